"""Settlement: named cash flows and the utility of every purchase, from a trajectory.

A trajectory, `Transition` rows with a leading time axis, is the complete record of a market. `flows` names every
movement of money in it, undiscounted. `settle` computes each winner's utility, where proceeds are discounted by γ^k.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxmarket.accounts import CashFlows
from jaxmarket.switches import standard_promotion
from jaxmarket.types import AUCTIONEER, Array, Transition

__all__ = [
    "TIME_LIMITS",
    "Settlement",
    "TimeLimits",
    "flows",
    "lambda_returns",
    "per_bidder",
    "proceeds",
    "settle",
]

TimeLimits = Literal["shadow", "terminal"]
TIME_LIMITS: tuple[TimeLimits, ...] = ("shadow", "terminal")


def per_bidder(amount: Array, bidder: Array, bidders: int) -> Array:
    """Amounts [...] as entries of the bidders [...] they belong to: f [..., A], 0 for all other bidders."""
    return jnp.where(bidder[..., None] == jnp.arange(bidders), amount[..., None], 0)


@standard_promotion
def flows(trajectory: Transition) -> CashFlows:
    """Name the movements of money in ``trajectory``, undiscounted.

    Args:
        trajectory: rows [T] of one market instance, or with any leading axes.

    Returns:
        The flows ``purchase`` (minus the price that the winner paid), ``sale`` (the payout to the seller) and
        ``reward``, f [T, A + 1]: an entry for each bidder, and the last one for the auctioneer. ``net`` is the change
        of every account; over all accounts it adds up to the rewards and the subsidy, payout - price.
    """
    t = trajectory
    buyer = t.outcome.winner[..., None]
    accounts = jnp.append(jnp.arange(t.accounts.wealth.shape[-1]), AUCTIONEER)
    return CashFlows.of(
        purchase=jnp.where((buyer == accounts) & (buyer >= 0), -t.price[..., None], 0),
        sale=jnp.where(t.owner[..., None] == accounts, t.payout[..., None], 0),
        reward=jnp.where(buyer == accounts, t.reward[..., None], 0),
    )


class Settlement(struct.PyTreeNode):
    """What every purchase of a trajectory earned."""

    revenue: Array  # f [T] reward + γ^k · proceeds: what the purchase turned out to be worth
    utility: Array  # f [T] revenue - price, the winner's; every loser's utility is 0
    estimated: Array  # bool [T] the proceeds are a shadow estimate; that money never moved


def proceeds(trajectory: Transition, time_limits: TimeLimits = "shadow") -> tuple[Array, Array]:
    """The boundary rule: what the state bought at t was sold for afterwards.

    - *terminated* (it wins where both flags are set): nothing is ever sold, 0;
    - *truncated*, or the end of the rollout: the shadow auction's estimate under ``"shadow"``; 0
      under ``"terminal"``, the convention of the code released with Chang et al. (2020);
    - otherwise: what the auction at t+1 paid its seller.

    Nothing is paid across a reset: the row after an episode's last one is never read.

    Returns:
        ``(payout, estimated)``: f [T] and bool [T].
    """
    t = trajectory
    last = jnp.arange(t.reward.shape[0]) == t.reward.shape[0] - 1
    cut = ~t.terminated & (t.truncated | last)
    following = jnp.roll(t.payout, -1)
    estimate = t.shadow if time_limits == "shadow" else jnp.zeros_like(t.shadow)
    payout = jnp.where(t.terminated, 0, jnp.where(cut, estimate, following))
    return payout, cut & (time_limits == "shadow")


def lambda_returns(reward: Array, patience: Array, estimate: Array, share: Array) -> Array:
    """``reward + patience · ((1 - share) · estimate + share · the same of the next row)``: f [T].

    λ-returns (Sutton 1988) where ``share`` is λ, and 0 where nothing of the next row belongs to this one.
    With V(s') for the estimate, they are generalised advantages (Schulman et al. 2016) plus V(s).

    Args:
        reward, estimate: f [T].
        patience: f [T], γ^k.
        share: f [T], in [0, 1].
    """

    def backward(ahead: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, patience, estimate, share = row
        # Where nothing is shared nothing ahead may leak in, not even a NaN.
        revenue = reward + patience * ((1 - share) * estimate + jnp.where(share > 0, share * ahead, 0))
        return revenue, revenue

    return jax.lax.scan(backward, jnp.zeros_like(reward[0]), (reward, patience, estimate, share), reverse=True)[1]


@standard_promotion
def settle(
    trajectory: Transition,
    discount: Array | float,
    *,
    trace_decay: Array | float | None = None,
    time_limits: TimeLimits = "shadow",
) -> Settlement:
    """Utilities of a whole trajectory: ``reward + γ^k · proceeds - price`` (Chang et al. 2020).

    With a ``trace_decay`` λ > 0 buyer and seller hold a contract: the seller waits, and receives
    (1-λ) of the payout and λ of what the buyer's own purchase turns out to be worth. This is the
    λ-return of the chain of sales. The contract is void where exploration forced the sale on
    someone who was outbid (Watkins's cut), so truthful values stay the fixed point at any
    exploration. It changes utilities only; the money in the books is unaffected.

    Args:
        trajectory: rows [T] of one market instance, from `rollout`; ``vmap`` for many.
        discount: γ, f [].
        trace_decay: λ, f [], in [0, 1].
        time_limits: see `proceeds`.

    Raises:
        ValueError: unknown ``time_limits``.
    """
    if time_limits not in TIME_LIMITS:
        raise ValueError(f"time_limits: unknown rule {time_limits!r}; choose from {', '.join(TIME_LIMITS)}")
    t = trajectory
    payout, estimated = proceeds(t, time_limits)
    patience = jnp.asarray(discount, t.reward.dtype) ** t.duration
    if trace_decay is None:
        revenue = t.reward + patience * payout
    else:
        highest = jnp.where(t.outcome.eligible, t.outcome.bids, -jnp.inf).max(-1)
        won_by_bid = (t.outcome.winner >= 0) & (t.outcome.winning_bid >= highest)
        last = jnp.arange(t.reward.shape[0]) == t.reward.shape[0] - 1
        share = jnp.where(t.done | last, 0, trace_decay * jnp.roll(won_by_bid, -1))

        revenue = lambda_returns(t.reward, patience, payout, share.astype(t.reward.dtype))
    return Settlement(revenue=revenue, utility=revenue - t.price, estimated=estimated)
