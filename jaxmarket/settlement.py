"""Settlement: who pays whom and when, and what each purchase earned in the end.

The books of a market are its trajectory: `Transition` rows with a leading time axis. Three readings:

- `transfer` moves the money of one row between the accounts (the step calls it);
- `flows` names every movement of money in a trajectory, undiscounted;
- `settle` recomputes each winner's utility, in which γ is patience and not money.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxmarket.checking import check, check_conserved, checking
from jaxmarket.switches import standard_promotion
from jaxmarket.types import HOUSE, Array, Transition

__all__ = [
    "TIME_LIMITS",
    "Flows",
    "Settlement",
    "TimeLimits",
    "flows",
    "lambda_returns",
    "per_bidder",
    "resale_ahead",
    "settle",
    "transfer",
]

TimeLimits = Literal["shadow", "terminal"]
TIME_LIMITS: tuple[TimeLimits, ...] = ("shadow", "terminal")


def transfer(
    wealth: Array,
    house: Array,
    *,
    buyer: Array,
    seller: Array,
    price: Array,
    resale: Array,
    reward: Array,
) -> tuple[Array, Array]:
    """Move the money of one sale and one reward.

    The buyer pays ``price`` and earns ``reward``; the seller receives ``resale``. The house sells
    the first state of an episode, and earns the reward of a step that nobody bought.

    Args:
        wealth: f [A]. house: f []. buyer, seller: i32 [], negative for the house.
        price, resale, reward: f [].

    Returns:
        The new ``(wealth, house)``.
    """
    ids = jnp.arange(wealth.shape[0])
    for role, who in (("buyer", buyer), ("seller", seller)):
        check(
            lambda who=who: (who >= HOUSE) & (who < wealth.shape[0]),
            f"{role}: there is no account {{who}}, only -1 (the house) to {wealth.shape[0] - 1}; give one of these",
            who=who,
        )
    opening = wealth, house
    wealth = wealth + jnp.where(ids == buyer, reward - price, 0) + jnp.where(ids == seller, resale, 0)
    house = house + jnp.where(seller < 0, resale, 0) + jnp.where(buyer < 0, reward, 0)
    if checking():
        # Where nobody bought, nobody pays the price.
        paid = jnp.where(buyer < 0, 0, price)
        check_conserved(opening, (wealth, house), (reward, resale, -paid))
    return wealth, house


def per_bidder(value: Array, bidder: Array, bidders: int) -> Array:
    """Book ``value`` [...] on the account of ``bidder`` [...]: f [..., A], 0 for all others."""
    return jnp.where(bidder[..., None] == jnp.arange(bidders), value[..., None], 0)


class Flows(struct.PyTreeNode):
    """Every movement of money in a trajectory, by name. Undiscounted.

    ``purchase + sale + reward`` summed over time is each bidder's change of wealth, ``house`` the
    house's, and all of it together is ``earned + subsidy``: rewards and what the auctioneer minted.
    """

    purchase: Array  # f [T, A] minus the price the winner paid
    sale: Array  # f [T, A] what the owner of the state received
    reward: Array  # f [T, A] what the winner's step earned
    subsidy: Array  # f [T] minted by the auctioneer: resale - price
    house: Array  # f [T] first sale of an episode, and rewards nobody bought
    earned: Array  # f [T] reward of the environment, whoever received it


@standard_promotion
def flows(trajectory: Transition) -> Flows:
    """Name the movements of money in ``trajectory`` (leading axis T)."""
    t = trajectory
    winner, bidders = t.outcome.winner, t.wealth.shape[-1]
    return Flows(
        purchase=per_bidder(-t.price, winner, bidders),
        sale=per_bidder(t.resale, t.owner, bidders),
        reward=per_bidder(t.reward, winner, bidders),
        subsidy=t.resale - t.price,
        house=jnp.where(t.owner == HOUSE, t.resale, 0) + jnp.where(winner < 0, t.reward, 0),
        earned=t.reward,
    )


class Settlement(struct.PyTreeNode):
    """What every purchase of a trajectory earned."""

    revenue: Array  # f [T] reward + γ^k · resale ahead: what the purchase turned out to be worth
    utility: Array  # f [T] revenue - price, the winner's; every loser's utility is 0
    estimated: Array  # bool [T] the resale ahead is a shadow estimate; that money never moved


def resale_ahead(trajectory: Transition, time_limits: TimeLimits = "shadow") -> tuple[Array, Array]:
    """The boundary rule: what the state bought at t was sold for afterwards.

    - *terminated* (it wins where both flags are set): nothing is ever sold, 0;
    - *truncated*, or the end of the rollout: the shadow auction's estimate under ``"shadow"``; 0
      under ``"terminal"``, the convention of the code released with Chang et al. (2020);
    - otherwise: what the auction at t+1 paid its seller.

    Nothing is paid across a reset: the row after an episode's last one is never read.

    Returns:
        ``(resale, estimated)``: f [T] and bool [T].
    """
    t = trajectory
    last = jnp.arange(t.reward.shape[0]) == t.reward.shape[0] - 1
    cut = ~t.terminated & (t.truncated | last)
    following = jnp.roll(t.resale, -1)
    estimate = t.shadow if time_limits == "shadow" else jnp.zeros_like(t.shadow)
    resale = jnp.where(t.terminated, 0, jnp.where(cut, estimate, following))
    return resale, cut & (time_limits == "shadow")


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
    """Utilities of a whole trajectory: ``reward + γ^k · resale ahead - price`` (Chang et al. 2020).

    With a ``trace_decay`` λ > 0 buyer and seller hold a contract: the seller waits, and receives
    (1-λ) of the resale and λ of what the buyer's own purchase turns out to be worth. This is the
    λ-return of the chain of sales. The contract is void where exploration forced the sale on
    someone who was outbid (Watkins's cut), so truthful values stay the fixed point at any
    exploration. It changes utilities only; the money in the books is unaffected.

    Args:
        trajectory: rows [T] of one market instance, from `rollout`; ``vmap`` for many.
        discount: γ, f [].
        trace_decay: λ, f [], in [0, 1].
        time_limits: see `resale_ahead`.

    Raises:
        ValueError: unknown ``time_limits``.
    """
    if time_limits not in TIME_LIMITS:
        raise ValueError(f"time_limits: unknown rule {time_limits!r}; choose from {', '.join(TIME_LIMITS)}")
    t = trajectory
    resale, estimated = resale_ahead(t, time_limits)
    patience = jnp.asarray(discount, t.reward.dtype) ** t.duration
    if trace_decay is None:
        revenue = t.reward + patience * resale
    else:
        highest = jnp.where(t.outcome.eligible, t.outcome.bids, -jnp.inf).max(-1)
        won_by_bid = (t.outcome.winner >= 0) & (t.outcome.winning_bid >= highest)
        last = jnp.arange(t.reward.shape[0]) == t.reward.shape[0] - 1
        share = jnp.where(t.done | last, 0, trace_decay * jnp.roll(won_by_bid, -1))

        revenue = lambda_returns(t.reward, patience, resale, share.astype(t.reward.dtype))
    return Settlement(revenue=revenue, utility=revenue - t.price, estimated=estimated)
