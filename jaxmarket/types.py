"""The structs that the core functions pass on, and the names of their axes.

Axes, in the order they appear: ``T`` time, ``B`` parallel market instances, ``A`` bidders
(``A = P * clones``), ``P`` primitives, ``M`` modules (bidders that share parameters form one module), ``R`` bidders
of one module, ``S`` states of a finite process with one-hot observations. Seeds, chunks and rounds are written out,
as in ``[seeds, S, P]``. Populations and wide markets have ``N`` agents, wide markets ``G`` goods. Core functions are
unbatched, so the shape of a field is its shape in one market instance at one moment; `jax.vmap` and `jax.lax.scan` add
``B`` and ``T`` in front.
"""

import functools
import sys
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Bool, Float, Int32

__all__ = [
    "AUCTIONEER",
    "NOBODY",
    "Accounts",
    "Array",
    "Outcome",
    "PyTree",
    "Rules",
    "State",
    "Transition",
    "cached_property",
    "real",
    "tree_select",
]

Array = jax.Array
PyTree = Any

NOBODY = -1
"""The ``winner`` of an auction that had no eligible bidder."""

AUCTIONEER = -1
"""The account number of the auctioneer, which owns every state that no bidder has bought, such as an episode's first.

As an index it means the last account: an array of accounts holds the bidders' first and the auctioneer's last.
"""


if TYPE_CHECKING or sys.version_info >= (3, 12):
    cached_property = functools.cached_property
else:

    class cached_property(functools.cached_property):  # noqa: N801  as in functools
        """`functools.cached_property` as it is from Python 3.12 on, without a lock.

        Before, all instances of a class share a lock for each property. Two threads can then wait for each other
        forever, because configurations contain environments, which may contain configurations.
        """

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            values = instance.__dict__
            if self.attrname not in values:
                values[self.attrname] = self.func(instance)
            return values[self.attrname]


def real() -> jnp.dtype:
    """The floating dtype of money: float32, or float64 when JAX runs with x64 enabled."""
    return jnp.result_type(float)


def tree_select(pred: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """`jax.numpy.where` for two trees of one structure; ``pred`` selects along the leading axes of every leaf.

    Args:
        pred: bool [...].
        on_true, on_false: leaves [..., ...].
    """

    def select(x: Array, y: Array) -> Array:
        trailing = jnp.ndim(x) - jnp.ndim(pred)
        return jnp.where(pred.reshape(*pred.shape, *[1] * trailing) if jnp.ndim(pred) else pred, x, y)

    return jax.tree.map(select, on_true, on_false)


class Outcome(struct.PyTreeNode):
    """The outcome of one sealed-bid auction.

    ``winning_bid`` and ``highest_other_bid`` are the winner's own bid and the highest bid of the *other* eligible
    bidders, as in Chang et al. (2020), so that ``winning_bid >= highest_other_bid`` unless exploration chose the
    winner.
    """

    winner: Int32[Array, ""]  # bidder id, NOBODY if no bidder was eligible
    winning_bid: Float[Array, ""]  # the winner's own bid, 0 without a winner
    highest_other_bid: Float[Array, ""]  # the reserve without another bidder, 0 without a winner
    bids: Float[Array, " A"]  # sealed bids, never changed
    eligible: Bool[Array, " A"]  # the bidders that could win; a non-finite bid is never eligible


class Rules(struct.PyTreeNode):
    """The traced rules of a market; sweeping over them needs no new compilation.

    A rule left at ``None`` is not part of the compiled program at all.
    """

    exploration: Float[Array, ""] | float | None = None  # probability that a random eligible bidder wins instead
    persistence: Float[Array, ""] | float | None = None  # probability that exploration repeats its last draw
    reserve: Float[Array, ""] | float | None = None  # the highest other bid where no other bidder is eligible
    dropout: Float[Array, ""] | float | None = None  # probability that a bidder sits out an episode
    present: Bool[Array, " A"] | None = None  # bidders in the market; the others sit out every episode
    greedy: Bool[Array, ""] | None = None  # whether all bid the mean of their distributions, as in a greedy society


class Accounts(struct.PyTreeNode):
    """The money of one market since it opened; balances may be negative."""

    wealth: Float[Array, " A"]  # of each bidder
    auctioneer: Float[Array, ""]


class State(struct.PyTreeNode):
    """One running market instance."""

    env_state: PyTree
    obs: Float[Array, "..."]  # encoded observation of the state for sale
    owner: Int32[Array, ""]  # its seller: the last winner of this episode, or AUCTIONEER
    active: Bool[Array, " A"]  # bidders that take part in this episode
    accounts: Accounts
    episode_return: Float[Array, ""]  # undiscounted reward of the running episode
    episode_length: Int32[Array, ""]  # environment steps of the running episode
    reserved: Int32[Array, ""] | None = None  # further steps of the owner, if winners keep the right to act


class Transition(struct.PyTreeNode):
    """One auction, the payments it caused and the environment step of its winner: a row of a trajectory."""

    obs: Float[Array, "..."]  # encoded observation of the state that was sold
    outcome: Outcome
    owner: Int32[Array, ""]  # the seller, AUCTIONEER for the first sale of an episode
    price: Float[Array, ""]  # paid by the winner
    payout: Float[Array, ""]  # received by the seller; payout - price is minted
    reward: Float[Array, ""]  # credited to the winner
    duration: Float[Array, ""]  # environment steps the winner's primitive took (k; 1 for literal actions)
    terminated: Bool[Array, ""]  # the episode ended; takes precedence over truncated
    truncated: Bool[Array, ""]  # a limit cut the episode off
    next_obs: Float[Array, "..."]  # encoded observation of the state reached, before any reset
    next_eligible: Bool[Array, " A"]  # the bidders that could win the state reached
    bootstrap_value: Float[Array, ""]  # payout of a bootstrap auction where the rows are cut off, else 0
    accounts: Accounts  # after this row
    episode_return: Float[Array, ""]  # of the episode so far, this row included
    episode_length: Int32[Array, ""]  # of the episode so far, this row included
    choice: Float[Array, "..."] | None = None  # what the winner's policy chose, if primitives learn to act
    legal: Bool[Array, " N"] | None = None  # the actions it could choose, where some are illegal
    held: Bool[Array, ""] | None = None  # whether the owner kept the right to act, so that there was no sale
    windfalls: Float[Array, " A"] | None = None  # credited to other bidders, where modules have rewards of their own

    @property
    def done(self) -> Array:
        """Whether the episode ended with this row: bool []."""
        return self.terminated | self.truncated
