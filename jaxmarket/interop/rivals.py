"""What an auction brings to one bidder whose rivals bid as a society does: win probability, price, payout, next owner.

`rivals_of` tabulates the bids of a society in every state of a finite process. `FixedBids` are fixed bids, of greedy
or truthful rivals: outcomes are exact, ties included, under any mechanism. `DrawnBids` are independent draws from
distributions with a cdf: outcomes are expectations over all rivals' draws, under mechanisms that are linear in the
winner's own bid and the highest other bid, as the four of Chang et al. (2020) are.

All numbers are computed in double precision, on the host.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import auctions
from jaxmarket.auctions import Mechanism
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.policies import Point
from jaxmarket.society import Society
from jaxmarket.switches import standard_promotion
from jaxmarket.types import Array, Outcome, PyTree, cached_property, real

__all__ = ["NODES", "DrawnBids", "FixedBids", "Rivals", "Sale", "check_finite_process", "rivals_of"]

NODES = 2048
"""Bids between which `DrawnBids` integrates."""


class Sale(NamedTuple):
    """One auction of every state, in expectation, from the position of one bidder; [...] are states and own bids."""

    wins: np.ndarray  # f [...], probability that the bidder wins
    others: np.ndarray  # f [..., P], probability that another bidder of each primitive wins
    paid: np.ndarray  # f [...], price if the bidder wins, else 0
    received: np.ndarray  # f [...], payout to the owner of the state


@dataclasses.dataclass(frozen=True, eq=False)
class FixedBids:
    """Rivals that bid fixed amounts.

    Attributes:
        bids: of all bidders, f [S, A].
        mechanism: the auction.
        clones: bidders per primitive.
        me: the bidder that may deviate.
        ties: as in `jaxmarket.Society`.
    """

    bids: np.ndarray
    mechanism: Mechanism
    clones: int
    me: int = 0
    ties: str = "random"

    def sale(self, bids: np.ndarray) -> Sale:
        """The auction if the bidder bids ``bids``, f [..., S, O, K], and its rivals as they do."""
        me = self.me
        offers = np.where(np.arange(self.bids.shape[1]) == me, bids[..., None], self.bids[:, None, None])
        with jax.enable_x64(True):
            rows = jnp.asarray(offers.reshape(-1, offers.shape[-1]))
            odds, price, payout = (np.asarray(x).reshape(offers.shape) for x in _outcomes(self.mechanism, rows))
        if self.ties == "lowest":
            odds = np.eye(offers.shape[-1])[offers.argmax(-1)]
        wins = odds[..., me]
        others = odds.reshape(*wins.shape, -1, self.clones).sum(-1)
        others[..., me // self.clones] -= wins
        return Sale(wins, others, wins * price[..., me], (odds * payout).sum(-1))

    def present(self) -> Sale:
        """The auction if the bidder bids as it does at present, [1, S, 1, 1]."""
        return self.sale(self.bids[None, :, None, self.me, None])


@functools.partial(jax.jit, static_argnums=0)
def _outcomes(mechanism: Mechanism, rows: Array) -> tuple[Array, Array, Array]:
    """Per bidder, of auctions with these bids f [N, A]: its odds with random ties; its price and payout if it wins."""
    eligible = jnp.ones(rows.shape[1], bool)

    def auction(bids: Array) -> tuple[Array, Array, Array]:
        outcomes = jax.vmap(lambda winner: auctions.award(bids, winner, eligible))(jnp.arange(len(bids)))
        tied = bids == bids.max()
        return tied / tied.sum(), jax.vmap(mechanism.price)(outcomes), jax.vmap(mechanism.payout)(outcomes)

    return jax.vmap(auction)(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnBids:
    """Rivals that draw their bids independently, from distributions with a cdf.

    With Y and Z the highest and second-highest bid of the rivals, all expectations follow from the cdfs of Y and Z,
    which are sums of products of cdfs, and from the probability that Y is that of a given module. They are integrated
    by Simpson's rule, and the bidder's own draws by trapezoids, between nodes at which the mean cdf of the modules
    grows by at most about 1 / 1600. Errors are below 1e-8 of the range of bids by nested quadrature of densities, and
    below 1e-6 for own draws by a comparison with four times as many nodes.

    Attributes:
        nodes: bids in increasing order, from the lowest to the highest bid of any bidder, f [S, N].
        cdfs: probability that a bidder of a module bids less than a node, or than the middle before the next one, in
            turn, f [S, M, 2 N - 1].
        mechanism: the auction.
        clones: bidders per primitive.
        members: bidders per module.
        me: the bidder that may deviate.
    """

    nodes: np.ndarray
    cdfs: np.ndarray
    mechanism: Mechanism
    clones: int
    members: int
    me: int = 0

    def sale(self, bids: np.ndarray) -> Sale:
        """As `FixedBids.sale`; between nodes by linear interpolation."""
        table = self._table

        def at(column: np.ndarray) -> np.ndarray:
            states = range(len(self.nodes))
            return np.stack([np.interp(bids[..., s, :, :], self.nodes[s], column[s]) for s in states], -3)

        others = np.stack([at(each) for each in np.moveaxis(table.others, -1, 0)], -1)
        return Sale(at(table.wins), others, at(table.paid), at(table.received))

    def present(self) -> Sale:
        """As `FixedBids.present`: the expectation over the bidder's own draw."""
        drawn = np.diff(self.cdfs[:, self.me // self.members, ::2])  # [S, N - 1]

        def expected(column: np.ndarray) -> np.ndarray:
            middle = (column[:, 1:] + column[:, :-1]) / 2
            return np.einsum("sn,sn...->s...", drawn, middle)[None, :, None, None]

        return Sale(*(expected(column) for column in self._table))

    @cached_property
    def _table(self) -> Sale:
        """The auction if the bidder bids each node: [S, N]."""
        x, cdfs, modules = self.nodes, self.cdfs, self.cdfs.shape[1]
        count = np.full(modules, self.members)
        count[self.me // self.members] -= 1
        highest = cdfs ** count[:, None]  # cdf of the highest rival's bid in each module, [S, M, 2 N - 1]
        without = np.stack([np.delete(highest, k, 1).prod(1) for k in range(modules)], 1)
        all_below = highest.prod(1)  # P(Y < x)
        but_one = [
            n * (1 - cdfs[:, k]) * cdfs[:, k] ** (n - 1) * without[:, k] for k, n in enumerate(count.tolist()) if n
        ]
        second_below = all_below + sum(but_one)  # P(Z < x)
        wins = all_below[:, ::2]

        masses = _masses(highest, without, np.diff(wins))
        above = np.concatenate([masses[..., ::-1].cumsum(-1)[..., ::-1], 0 * masses[..., :1]], -1)
        others = above.reshape(len(x), -1, self.clones // self.members, x.shape[1]).sum(2).swapaxes(1, 2)

        # E[Y; Y < x] if the bidder wins; else E[Y; Y > x] and E[max(x, Z); Y > x].
        other_if_won = x * wins - _integral(x, all_below)
        own_if_lost = other_if_won[:, -1:] - other_if_won
        second = _integral(x, second_below)
        other_if_lost = x[:, -1:] - (second[:, -1:] - second) - x * wins
        price, payout = _coefficients(self.mechanism, "price"), _coefficients(self.mechanism, "payout")
        paid = price[0] * wins + price[1] * x * wins + price[2] * other_if_won
        received = payout[0] + payout[1] * (x * wins + own_if_lost) + payout[2] * (other_if_won + other_if_lost)
        return Sale(wins, others, paid, received)


Rivals = FixedBids | DrawnBids
"""The bids of a society in every state, from the position of one bidder, ``me``, which may deviate."""


def _integral(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The integral from the first node to each node, by Simpson's rule: f [S, N]; values [S, 2 N - 1]."""
    first, middle, last = values[:, :-2:2], values[:, 1::2], values[:, 2::2]
    parts = np.diff(x) * (first + 4 * middle + last) / 6
    return np.concatenate([np.zeros_like(x[:, :1]), parts.cumsum(1)], 1)


def _masses(highest: np.ndarray, without: np.ndarray, total: np.ndarray) -> np.ndarray:
    """P(the highest rival's bid is of this module, and between two nodes): f [S, M, N - 1].

    Args:
        highest: cdf of the highest bid of each module, f [S, M, 2 N - 1].
        without: cdf of the highest bid of all other modules, likewise.
        total: P(the highest rival's bid is between two nodes), f [S, N - 1].
    """
    others, own = ((x[..., :-2:2], x[..., 1::2], x[..., 2::2]) for x in (without, highest))
    # The integral of one quadratic with respect to the other.
    weights = np.array([[-3, 4, -1], [-4, 0, 4], [1, -4, 3]]) / 6
    found = np.maximum(np.einsum("psmn,pq,qsmn->smn", others, weights, own, optimize=True), 0)
    return found * (total / np.maximum(found.sum(1), 1e-300))[:, None]


@functools.cache
def _coefficients(mechanism: Mechanism, rule: str) -> np.ndarray:
    """The coefficients of 1, the winning bid and the highest other bid in a price or payout.

    Raises:
        ValueError: it is not linear in them.
    """

    def amount(winning: float, other: float, rest: float) -> float:
        bids = jnp.array([winning, other, rest, rest], real())
        eligible = jnp.ones(4, bool)
        outcome: Outcome = auctions.award(bids, jnp.asarray(0), eligible)
        return float(getattr(mechanism, rule)(outcome))

    constant = amount(0.0, 0.0, 0.0)
    own = amount(1.0, 0.0, 0.0) - constant
    found = np.array([constant, own, amount(1.0, 1.0, 1.0) - own - constant])
    for winning, other, rest in ((3.0, 2.0, 1.0), (0.5, 0.25, -1.0), (-1.0, -2.0, -4.0)):
        if not np.isclose(amount(winning, other, rest), found @ [1, winning, other], atol=1e-5):
            raise ValueError(
                f"mechanism: expected a {rule} linear in the winning bid and the highest other bid, where bids are "
                f"drawn, got that of {mechanism.name}; use a greedy society"
            )
    return found


@standard_promotion
def rivals_of(society: Society, params: PyTree, levels: np.ndarray) -> Rivals:
    """The bids of a society in every state of its process.

    Args:
        society: over a `FiniteMDP`. It draws its bids unless it is greedy or its bids are point estimates.
        params: bid-network parameters, leaves [M, ...].
        levels: bids that are nodes of `DrawnBids`, f [L].

    Raises:
        ValueError: the environment is not a `FiniteMDP`, its primitives learn, or bids are drawn from a distribution
            without a cdf or without bounds.
    """
    check_finite_process(society)
    distribution, low, high = _distributions(society, params)
    if society.greedy or isinstance(distribution, Point):
        # Greedy bids have the working precision, so that ties are those of the market.
        bids = np.repeat(np.asarray(_means(distribution)), society.members, axis=1).astype(np.float64)
        return FixedBids(bids, society.mechanism, society.clones, ties=society.ties)
    if not hasattr(distribution, "cdf") or not np.isfinite([low, high]).all():
        raise ValueError(
            f"bids: expected bids drawn from a distribution with a cdf, within limits, got those of "
            f"{type(society.policy.head).__name__}; give it a method cdf and its head limits, or use a greedy society"
        )
    if society.bidders < 2:
        raise ValueError("society: expected two bidders or more, got one, which has no rival; add a clone")
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), distribution)
        ends = np.array([min(low.min(), levels.min()), max(high.max(), levels.max())], np.float64)
        nodes, cdfs = _tabulated(exact, ends, np.asarray(levels, np.float64))
        return DrawnBids(nodes, cdfs, society.mechanism, society.clones, society.members)


def check_finite_process(society: Society) -> None:
    """Check that the transitions of a society's environment are known.

    Raises:
        ValueError: the environment is not a `FiniteMDP`, or its primitives learn.
    """
    if society.learned is not None or not isinstance(society.env.env, FiniteMDP):
        raise ValueError(
            f"env: expected a FiniteMDP, whose transitions are known, with actions as primitives, got "
            f"{society.env.name}; train a best reply instead, a lower bound (jaxmarket.runs.best_replies.trained)"
        )


def _distributions(society: Society, params: PyTree) -> tuple[Any, Array, Array]:
    """The distributions of all modules' bids in all states, leaves [S, M], and their limits, f [M] each."""
    params, states = society.bid_params(params), jnp.eye(society.observation.shape[0], dtype=real())
    found = jax.vmap(lambda obs: jax.vmap(society.policy.apply, (0, None))(params, obs))(states)
    return found, *jax.vmap(society.policy.limits)(params)


@jax.jit
def _means(distribution: Any) -> Array:
    return distribution.mean()


def _tabulated(distribution: Any, ends: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes f [S, N], the levels among them, between which all cdfs grow little; `DrawnBids.cdfs` f [S, M, 2 N - 1]."""
    each = jax.tree.map(lambda leaf: leaf[..., None], distribution)
    low, high = ends
    share = np.linspace(0, 1, NODES)
    nodes = np.broadcast_to(low + (high - low) * share, (jax.tree.leaves(distribution)[0].shape[0], NODES))
    for _ in range(3):
        # Equal steps of the mean of all cdfs and of a uniform one, as known from the nodes so far.
        growth = 0.8 * np.asarray(each.cdf(jnp.asarray(nodes[:, None]))).mean(1) + 0.2 * (nodes - low) / (high - low)
        nodes = np.stack([np.interp(share, *pair) for pair in zip(growth, nodes, strict=True)])
    nodes = np.sort(np.concatenate([nodes, np.broadcast_to(levels, (len(nodes), len(levels)))], 1), 1)
    nodes[:, 0], nodes[:, -1] = low, high
    finer = np.zeros((len(nodes), 2 * nodes.shape[1] - 1))
    finer[:, ::2], finer[:, 1::2] = nodes, (nodes[:, 1:] + nodes[:, :-1]) / 2
    return nodes, np.asarray(each.cdf(jnp.asarray(finer[:, None])))
