"""Settlement: named cash flows and the utility of every purchase, from a trajectory.

A trajectory, `Transition` rows with a leading time axis, is the complete record of a market. `flows` names every
movement of money in it, undiscounted. `settle` computes each winner's utility, where proceeds are discounted by γ^k.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int

from jaxmarket.accounts import CashFlows
from jaxmarket.switches import standard_promotion
from jaxmarket.types import AUCTIONEER, Array, Transition
from jaxmarket.validation import check_choice

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

TimeLimits = Literal["bootstrap", "terminal"]
TIME_LIMITS: tuple[TimeLimits, ...] = ("bootstrap", "terminal")


def per_bidder(amount: Float[Array, "*rows"], bidder: Int[Array, "*rows"], bidders: int) -> Float[Array, "*rows A"]:
    """Spread one amount per row over an axis of bidders: the amount at its bidder, 0 at all others.

    Args:
        amount: of each row.
        bidder: the bidder that each amount belongs to; no bidder gets it if this is `NOBODY`.
        bidders: A.
    """
    return jnp.where(bidder[..., None] == jnp.arange(bidders), amount[..., None], 0)


@standard_promotion
def flows(trajectory: Transition) -> CashFlows:
    """Name the movements of money in ``trajectory``, undiscounted.

    Args:
        trajectory: rows [T] of one market instance, or with any leading axes.

    Returns:
        The flows ``purchase`` (minus the price that the winner paid), ``sale`` (the payout to the seller) and
        ``reward``, f [T, A + 1]: an entry for each bidder, and the last one for the auctioneer; and ``windfall``, where
        modules have rewards of their own. ``net`` is the change of every account; over all accounts it adds up to the
        rewards of all modules and the subsidy, payout - price.
    """
    t = trajectory
    buyer = t.outcome.winner[..., None]
    accounts = jnp.append(jnp.arange(t.accounts.wealth.shape[-1]), AUCTIONEER)
    named = CashFlows.of(
        purchase=jnp.where((buyer == accounts) & (buyer >= 0), -t.price[..., None], 0),
        sale=jnp.where(t.owner[..., None] == accounts, t.payout[..., None], 0),
        reward=jnp.where(buyer == accounts, t.reward[..., None], 0),
    )
    if t.windfalls is None:
        return named
    return named + CashFlows.of(windfall=jnp.append(t.windfalls, jnp.zeros_like(t.windfalls[..., :1]), -1))


class Settlement(struct.PyTreeNode):
    """The revenue and utility of every purchase of a trajectory."""

    revenue: Float[Array, " T"]  # reward + γ^k · proceeds
    utility: Float[Array, " T"]  # revenue - price, of the winner; every loser's utility is 0
    estimated: Bool[Array, " T"]  # the proceeds are a bootstrap value; that money never moved


def proceeds(
    trajectory: Transition, time_limits: TimeLimits = "bootstrap"
) -> tuple[Float[Array, " T"], Bool[Array, " T"]]:
    """The boundary rule: what the buyer of row t receives for the state that it reached.

    - *terminated* (also if truncated): the state is never sold, 0;
    - *truncated*, or the end of the rollout: the bootstrap value under ``"bootstrap"``; 0 under ``"terminal"``, the
      convention of the code released with Chang et al. (2020);
    - otherwise: the payout of the auction at t+1.

    Nothing is paid across a reset: the row after an episode's last one is never read.

    Args:
        trajectory: rows [T] of one market instance.
        time_limits: what a truncated row is worth, as above.

    Returns:
        The proceeds, and whether they are a bootstrap value.
    """
    t = trajectory
    last = jnp.arange(t.reward.shape[0]) == t.reward.shape[0] - 1
    cut = ~t.terminated & (t.truncated | last)
    following = jnp.roll(t.payout, -1)  # across resets, too: the next lines replace these entries
    estimate = t.bootstrap_value if time_limits == "bootstrap" else jnp.zeros_like(t.bootstrap_value)
    amounts = jnp.where(t.terminated, 0, jnp.where(cut, estimate, following))
    return amounts, cut & (time_limits == "bootstrap")


def lambda_returns(
    reward: Float[Array, "T ..."],
    *,
    discount: Float[Array, "T ..."],
    value: Float[Array, "T ..."],
    trace_decay: Float[Array, "T ..."],
) -> Float[Array, "T ..."]:
    """``reward + discount · ((1 - λ) · value + λ · the return of the next row)``, row by row from the last.

    These are λ-returns (Sutton 1988), where ``trace_decay`` is λ, and 0 on the last row of an episode. They equal
    generalised advantages (Schulman et al. 2016) plus the value of the row's own state.

    Args:
        reward: of each row.
        discount: γ^k.
        value: estimate for the state reached.
        trace_decay: λ, in [0, 1].
    """

    def backward(following: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        reward, discount, value, decay = row
        # Where λ is 0 nothing of the next row may leak in, not even a NaN.
        revenue = reward + discount * ((1 - decay) * value + jnp.where(decay > 0, decay * following, 0))
        return revenue, revenue

    return jax.lax.scan(backward, jnp.zeros_like(reward[0]), (reward, discount, value, trace_decay), reverse=True)[1]


@standard_promotion
def settle(
    trajectory: Transition,
    discount: Array | float,
    *,
    trace_decay: Array | float | None = None,
    time_limits: TimeLimits = "bootstrap",
) -> Settlement:
    """Utilities of a whole trajectory: ``reward + γ^k · proceeds - price`` (Chang et al. 2020).

    With a ``trace_decay`` λ > 0, proceeds are replaced by (1-λ) of the payout plus λ of the revenue of the next
    purchase, as if seller and buyer had a contract to share it: the λ-return of the chain of sales. The contract is
    void where exploration gave the state to a bidder that was outbid (Watkins's cut), so that truthful values are a
    fixed point at any exploration. λ changes utilities only; the money that moves is unaffected.

    A winner that keeps the right to act for k rows receives the discounted rewards of all of them and, discounted by
    γ^k, the proceeds of the next sale.

    Args:
        trajectory: rows [T] of one market instance, from `rollout`; ``vmap`` for many.
        discount: γ, f [].
        trace_decay: λ, f [], in [0, 1]; None is 0 without the code for it.
        time_limits: see `proceeds`.

    Returns:
        The revenue and utility of every purchase, [T].

    Raises:
        ValueError: unknown ``time_limits``.
    """
    check_choice("time_limits", time_limits, TIME_LIMITS)
    t = trajectory
    amounts, estimated = proceeds(t, time_limits)
    discounts = jnp.asarray(discount, t.reward.dtype) ** t.duration
    if trace_decay is None and t.held is None:
        revenue = t.reward + discounts * amounts
    else:
        # Both bids come from one pass over all bids. The maximum of `bids` may differ from `winning_bid` in the last
        # bit, because a compiler may compute bids twice. A bidder without a rival cannot be outbid.
        outbid = (t.outcome.winning_bid < t.outcome.highest_other_bid) & (t.outcome.eligible.sum(-1) > 1)
        won_by_bid = (t.outcome.winner >= 0) & ~outbid
        last = jnp.arange(t.reward.shape[0]) == t.reward.shape[0] - 1
        decay = (0 if trace_decay is None else trace_decay) * won_by_bid.astype(t.reward.dtype)
        if t.held is not None:
            decay = jnp.where(t.held, 1, decay)
        decay = jnp.where(t.done | last, 0, jnp.roll(decay, -1)).astype(t.reward.dtype)
        revenue = lambda_returns(t.reward, discount=discounts, value=amounts, trace_decay=decay)
    return Settlement(revenue=revenue, utility=revenue - t.price, estimated=estimated)
