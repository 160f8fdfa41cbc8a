"""Auctions: who wins, what the winner pays, what the seller receives.

`clear` turns sealed bids into an `Outcome`. A `Mechanism` is two pure functions of an outcome, which set the price of
a state and the payout to its owner. (The prices of a wide market are those of its solver.) A new auction is therefore
two functions, here for three or more bidders::

    >>> third_price = Mechanism(
    ...     "third-price",
    ...     price=lambda o: jnp.sort(jnp.where(o.eligible, o.bids, 0.0))[-3],
    ...     payout=lambda o: jnp.sort(jnp.where(o.eligible, o.bids, 0.0))[-3],
    ... )
    >>> outcome = clear(jnp.array([0.2, 0.9, 0.5]))
    >>> float(third_price.price(outcome)), float(VICKREY.price(outcome))
    (0.2..., 0.5)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Int32, UInt32

from jaxmarket.switches import standard_promotion
from jaxmarket.types import NOBODY, Array, Outcome, real
from jaxmarket.validation import as_bool_array, as_float_array, check_key, short_repr

__all__ = [
    "BUCKET_BRIGADE",
    "CREDIT_CONSERVING_VICKREY",
    "ENVIRONMENT_REWARD",
    "MECHANISMS",
    "VICKREY",
    "Mechanism",
    "award",
    "choose",
    "clear",
    "mechanism",
    "pick",
]


def pick(draw: Float[Array, ""] | None, candidates: Bool[Array, " A"]) -> Int32[Array, ""]:
    """A candidate, chosen uniformly at random.

    Args:
        draw: a uniform random number from [0, 1); with None the candidate with the lowest id is chosen.
        candidates: whether each bidder is a candidate.

    Returns:
        The id of the candidate; `NOBODY` if there is none.
    """
    return choose(jnp.zeros(candidates.shape, real()), draw, candidates)


def choose(bids: Float[Array, " A"], draw: Float[Array, ""] | None, eligible: Bool[Array, " A"]) -> Int32[Array, ""]:
    """The winner: the eligible bidder with the highest bid.

    Args:
        bids: of all bidders.
        draw: a uniform random number from [0, 1), which breaks ties; with None the lowest id wins a tie.
        eligible: the bidders that may win.

    Returns:
        The id of the winner; `NOBODY` if no bidder is eligible.
    """
    # One pass over the bidders, in which the higher bid wins, and among equal bids the higher priority.
    ids = jnp.arange(bids.shape[0], dtype=jnp.int32)
    bidders = (jnp.where(eligible, jax.lax.stop_gradient(bids), -jnp.inf), _tie_break_hash(draw, ids), ids)
    no_bidder = (jnp.asarray(-jnp.inf, bids.dtype), jnp.zeros((), jnp.uint32), jnp.asarray(NOBODY, jnp.int32))

    # On equal bids and priorities either may be returned: `jax.lax.reduce` does not specify an order.
    def better(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
        stays = (first[0] > second[0]) | ((first[0] == second[0]) & (first[1] >= second[1]))
        return tuple(jnp.where(stays, x, y) for x, y in zip(first, second, strict=True))

    highest, _, winner = jax.lax.reduce(bidders, no_bidder, better, (0,))
    return jnp.where(highest > -jnp.inf, winner, NOBODY)


def _tie_break_hash(draw: Float[Array, ""] | None, ids: Int32[Array, " A"]) -> UInt32[Array, " A"]:
    """Tie-breaking priorities: a hash of the draw and the id; without a draw the lower id has priority."""
    ids = ids.astype(jnp.uint32)
    if draw is None:
        return ~ids
    # Weyl increments through a 32-bit finalizer: as good as a random permutation, for a few operations per bidder.
    # Counting up to the n-th candidate instead needs a cumulative sum, which takes ten times as long.
    x = jax.lax.bitcast_convert_type(draw.astype(jnp.float32), jnp.uint32) + ids * jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def award(
    bids: Float[Array, " A"],
    winner: Int[Array, ""],
    eligible: Bool[Array, " A"],
    reserve: Float[Array, ""] | float = 0.0,
) -> Outcome:
    """The outcome of an auction that ``winner`` wins, with the highest bid or without it.

    Exploration uses this function: it replaces the winner and never changes a bid.

    Args:
        bids: of all bidders.
        winner: an eligible bidder or `NOBODY`.
        eligible: the bidders that may win.
        reserve: replaces the highest other bid where no other bidder is eligible.
    """
    own = jnp.arange(bids.shape[0]) == winner
    sold = winner >= 0
    # A masked maximum rather than a gather, and both in one pass.
    winning, other = _maxima(jnp.where(own, bids, -jnp.inf), jnp.where(eligible & ~own, bids, -jnp.inf))
    other = jnp.where(jnp.isfinite(other), other, jnp.asarray(reserve, bids.dtype))
    return Outcome(
        winner=winner,
        winning_bid=jnp.where(sold, winning, 0),
        highest_other_bid=jnp.where(sold, other, 0),
        bids=bids,
        eligible=eligible,
    )


def _maxima(*vectors: Float[Array, " A"]) -> tuple[Float[Array, ""], ...]:
    """The maximum of each vector [A], read side by side in one pass: f [] each."""
    lowest = [jnp.asarray(-jnp.inf, v.dtype) for v in vectors]
    return jax.lax.reduce(vectors, tuple(lowest), lambda a, b: tuple(map(jnp.maximum, a, b)), (0,))


@standard_promotion
def clear(
    bids: Array,
    key: Array | None = None,
    eligible: Array | None = None,
    *,
    reserve: Array | float = 0.0,
) -> Outcome:
    """Clear one sealed-bid auction.

    Args:
        bids: f [A], any finite numbers; a bid that is NaN or infinite is not eligible.
        key: breaks ties uniformly at random; without it the lowest id wins.
        eligible: bool [A], all bidders by default.
        reserve: f [], replaces the highest other bid where fewer than two bidders are eligible. It is no minimum: a
            bid below it still wins.

    Returns:
        An `Outcome`; without an eligible bidder ``winner`` is `NOBODY` (-1) and both bids are 0.

    Raises:
        ValueError: ``bids`` is not a vector of at least one bid, or ``eligible`` is not its mask.

    >>> outcome = clear(jnp.array([0.2, 0.9, 0.5]))
    >>> int(outcome.winner), float(outcome.winning_bid), float(outcome.highest_other_bid)
    (1, 0.8999999761581421, 0.5)
    """
    if not isinstance(bids, jax.Array) or not jnp.issubdtype(bids.dtype, jnp.floating):
        bids = as_float_array("bids", bids)
    reserve = as_float_array("reserve", reserve, ())
    if bids.ndim != 1 or bids.shape[0] == 0:
        raise ValueError(
            f"bids: an auction takes a vector of at least one bid, got shape {bids.shape}; "
            "use jax.vmap(clear) for many auctions at once"
        )
    if eligible is None:
        eligible = jnp.ones(bids.shape, bool)
    eligible = as_bool_array("eligible", eligible, bids.shape) & jnp.isfinite(bids)
    draw = None if key is None else jax.random.uniform(check_key("key", key))
    return award(bids, choose(bids, draw, eligible), eligible, reserve)


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """The rules of payment of an auction: price and payout as functions of the outcome.

    Attributes:
        name: short name, as used on the command line.
        price: ``Outcome -> f []``, what the winner pays for the state.
        payout: ``Outcome -> f []``, what the owner of the state receives for it.

    The society replaces both by 0 where ``outcome.winner`` is `NOBODY`.

    Raises:
        ValueError: the name is not a string, or a rule is not a function.
    """

    name: str
    price: Callable[[Outcome], Array]
    payout: Callable[[Outcome], Array]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name: expected a short name, got {short_repr(self.name)}; give a string such as 'third'")
        for field in ("price", "payout"):
            if not callable(getattr(self, field)):
                raise ValueError(
                    f"{field}: expected a function of an Outcome, got {short_repr(getattr(self, field))}; write one, "
                    "such as lambda outcome: outcome.winning_bid"
                )


def _own(outcome: Outcome) -> Array:
    return outcome.winning_bid


def _other(outcome: Outcome) -> Array:
    return outcome.highest_other_bid


def _highest(outcome: Outcome) -> Array:
    return jnp.maximum(outcome.winning_bid, outcome.highest_other_bid)


def _nothing(outcome: Outcome) -> Array:
    return jnp.zeros_like(outcome.winning_bid)


BUCKET_BRIGADE = Mechanism("bb", price=_own, payout=_own)
"""First price (Holland 1985): the winner pays its own bid, and the owner receives it."""

VICKREY = Mechanism("vickrey", price=_other, payout=_highest)
"""Second price (Chang et al. 2020): the winner pays the highest other bid, the owner receives the highest bid, and
the auctioneer mints the difference."""

CREDIT_CONSERVING_VICKREY = Mechanism("ccv", price=_other, payout=_other)
"""Second price (Chang et al. 2020): the winner pays the highest other bid, and the owner receives it. It conserves
money, and in a single auction truthful bids are optimal."""

ENVIRONMENT_REWARD = Mechanism("env", price=_nothing, payout=_nothing)
"""No market (Chang et al. 2020, ablation): nothing is paid, and the winner keeps its reward."""

MECHANISMS = {m.name: m for m in (BUCKET_BRIGADE, VICKREY, CREDIT_CONSERVING_VICKREY, ENVIRONMENT_REWARD)}
"""The mechanisms of Chang et al. (2020) by short name, which the setting ``auction`` and the command line take."""


def mechanism(auction: str | Mechanism) -> Mechanism:
    """The mechanism of that short name; a `Mechanism` is returned as it is.

    Raises:
        ValueError: there is no mechanism of that name.
    """
    if isinstance(auction, Mechanism):
        return auction
    if not isinstance(auction, str) or auction not in MECHANISMS:
        raise ValueError(f"auction: unknown mechanism {short_repr(auction)}; choose from {', '.join(MECHANISMS)}")
    return MECHANISMS[auction]
