"""Exact gains of one bidder that deviates, in one auction and in whole episodes of a finite process.

If all other bidders bid as they do, the best reply of one bidder solves a decision process over (state, whether it
owns the state), here by dynamic programming in double precision (`solve`). `Seat` and `episode_gain` are about
deviations from truthful bids among truthful bidders, `best_replies` about any society, also one that draws its bids:
the gains of its bidders' best replies are its distance from equilibrium. `jaxmarket.interop.bidder.Exact` solves the
environment of one bidder.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import auctions
from jaxmarket.auctions import Mechanism
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.interop.rivals import FixedBids, Sale, check_finite_process, rivals_of
from jaxmarket.settlement import TimeLimits
from jaxmarket.society import Society
from jaxmarket.types import Array, PyTree, cached_property

__all__ = [
    "LEVELS",
    "BestReplies",
    "Seat",
    "best_replies",
    "bid_range",
    "episode_gain",
    "one_shot_gain",
    "optimal_value",
    "solve",
]

LEVELS = 201
"""Number of bids on the grids of `Seat.best_gain` and `best_replies`."""


def one_shot_gain(mechanism: Mechanism, points: int = 101) -> tuple[float, float]:
    """The gain of a bidder with value v over bidding v, in one auction against the highest other bid y.

    Args:
        mechanism: the auction.
        points: number of grid points on [0, 1] for v, the bid and y.

    Returns:
        The largest gain over all (v, bid, y), which is 0 if truthful bidding is a dominant strategy; and the largest
        expected gain over all v and bids if y is the highest of three uniform bids.
    """
    grid = (np.arange(points) + 0.5) / points

    def utility(value: Array, bid: Array, other: Array) -> Array:
        outcome = auctions.clear(jnp.stack([bid, other]))
        return jnp.where(outcome.winner == 0, value - mechanism.price(outcome), 0)

    with jax.enable_x64(True):
        utilities = jax.vmap(jax.vmap(jax.vmap(utility, (None, None, 0)), (None, 0, None)), (0, None, None))
        table = np.asarray(utilities(*(jnp.asarray(grid),) * 3))  # [v, bid, y]
    truth = table[np.arange(points), np.arange(points)]
    gain = table - truth[:, None]
    density = 3 * grid**2 / (3 * grid**2).sum()
    return float(gain.max()), float((gain @ density).max())


def solve(
    mdp: FiniteMDP, primitive: int, sale: Sale, gamma: float, horizon: int | None = None
) -> tuple[float, np.ndarray]:
    """The best of K ways to bid in every state, with and without owning it.

    Args:
        mdp: the process.
        primitive: that of the bidder.
        sale: the auction for each way to bid, [T, S, O, K]. T is the horizon or 1 and O is 2 or 1, if the ways to bid
            depend on the time and on whether the bidder owns the state, or not.
        gamma: discount.
        horizon: auctions until the market closes, after which no seller is paid, H; None: it never closes, and H is 1.

    Returns:
        The expected discounted utility from the start of an episode, in units of reward; and of each way to bid,
        f [H, S, 2, K].
    """
    owns, continuing = np.array([[0.0], [1.0]]), mdp.transitions * ~mdp.terminal
    earned = sale.wins * mdp.rewards[:, primitive, None, None] - sale.paid
    cash = owns * sale.received + earned  # [T, S, 2, K]
    sold = np.einsum("zsokp,spt->zsokt", sale.others, continuing)
    bought = sale.wins[..., None] * continuing[:, primitive, None, None]
    onward = np.broadcast_to(np.stack([sold, bought], -2), (*cash.shape, 2, mdp.num_states))

    if horizon is None:
        q = _stationary(cash[0], gamma * onward[0])[None]
    else:
        q, value = np.zeros((horizon, *cash.shape[1:])), np.zeros((mdp.num_states, 2))
        for t in reversed(range(horizon)):
            now = t % len(cash)
            q[t] = cash[now] + gamma * np.einsum("sokwt,tw->sok", onward[now], value)
            value = q[t].max(-1)
    return float(mdp.start @ q[0].max(-1)[:, 0]), q


def _stationary(cash: np.ndarray, onward: np.ndarray) -> np.ndarray:
    """The values of all ways to bid, f [S, 2, K], by policy iteration; ``onward`` [S, 2, K, 2, S'] is discounted."""
    states, shape = cash.shape[0], cash.shape[:2]
    onward = onward.swapaxes(-1, -2).reshape(*cash.shape, 2 * states)  # as values are laid out, [S', 2]
    policy = cash.argmax(-1)
    while True:
        chosen = np.take_along_axis(cash, policy[..., None], -1).ravel()
        moves = np.take_along_axis(onward, policy[..., None, None], 2).reshape(2 * states, 2 * states)
        value = np.linalg.solve(np.eye(2 * states) - moves, chosen).reshape(shape)
        q = cash + onward @ value.ravel()
        # An improvement within the rounding error is none: equal ways to bid would alternate.
        better = q.max(-1) > value + 1e-12 * np.maximum(1, np.abs(value).max())
        if not better.any():
            return q
        policy = np.where(better, q.argmax(-1), policy)


@dataclasses.dataclass(frozen=True)
class Seat:
    """The position of one bidder in a market in which all other bidders bid Q*.

    Attributes:
        mdp: the process.
        mechanism: the auction.
        clones: bidders per primitive, including this one.
        primitive: primitive of the bidder.
        horizon: number of auctions until the market closes, after which no seller is paid; None: it never closes.
    """

    mdp: FiniteMDP
    mechanism: Mechanism
    clones: int
    primitive: int
    horizon: int | None = None

    @cached_property
    def truth(self) -> np.ndarray:
        """The truthful strategy, bids by state and ownership: f64 [S, 2]."""
        return np.repeat(self.mdp.optimal_q()[:, self.primitive, None], 2, axis=1)

    def gain(self, strategy: np.ndarray) -> float:
        """The gain of a strategy f [S, 2] (bids for states of others, and for its own) over truthful bidding."""
        return self.value(np.asarray(strategy, float)[..., None]) - self.value(self.truth[..., None])

    def best_gain(self, low: float, high: float) -> float:
        """The gain of the best strategy over truthful bidding; bids are truthful or on a grid over [low, high]."""
        levels = np.broadcast_to(np.linspace(low, high, LEVELS), (*self.truth.shape, LEVELS))
        return self.value(np.concatenate([self.truth[..., None], levels], -1)) - self.value(self.truth[..., None])

    def value(self, choices: np.ndarray) -> float:
        """Discounted utility from the start under the best of the given bids f [S, 2, K]."""
        bids = np.repeat(self.mdp.optimal_q(), self.clones, axis=1)
        sale = FixedBids(bids, self.mechanism, self.clones, self.primitive * self.clones).sale(choices[None])
        return solve(self.mdp, self.primitive, sale, self.mdp.gamma, self.horizon)[0]


def bid_range(mdp: FiniteMDP) -> tuple[float, float]:
    """The smallest range of bids with whole ends that contains 0 and Q*, in units of reward."""
    q, rounding = mdp.optimal_q(), 1e-9
    return min(0.0, float(np.floor(q.min() + rounding))), max(0.0, float(np.ceil(q.max() - rounding)))


def episode_gain(mdp: FiniteMDP, mechanism: Mechanism, clones: int, *, horizon: int | None = None) -> float:
    """The largest `Seat.best_gain` of any bidder with bids in the `bid_range`.

    It is 0 if truthful bidding is an equilibrium on the grid of bids.

    Args:
        mdp, mechanism, clones, horizon: as in `Seat`.
    """
    seats = [Seat(mdp, mechanism, clones, primitive, horizon) for primitive in range(mdp.num_actions)]
    return max(0.0, *(seat.best_gain(*bid_range(mdp)) for seat in seats))


@dataclasses.dataclass(frozen=True)
class BestReplies:
    """What each bidder of a society earns at present, and with its best reply to the others.

    Attributes:
        present: expected discounted utility of its own bids over an episode, f [A].
        best: of its best reply, f [A].
        episode: discounted return of an episode of the optimal policy.
    """

    present: np.ndarray
    best: np.ndarray
    episode: float

    @property
    def gains(self) -> np.ndarray:
        """The gain of the best reply of each bidder, in units of reward: f [A]. It is 0 in an equilibrium."""
        return self.best - self.present

    @property
    def relative(self) -> np.ndarray:
        """The gains relative to the size of the episode's value: f [A]; NaN if that is 0."""
        return self.gains / (abs(self.episode) or np.nan)


def best_replies(
    society: Society, params: PyTree, time_limits: TimeLimits = "bootstrap", levels: Any = None
) -> BestReplies:
    """The best reply of every bidder of a society over a finite process, exactly, up to the grid of its bids.

    One bidder deviates, while all others, its clones included, bid as they do. It observes the state and whether it
    owns it, and bids from the grid or as it does at present, so that no gain is below 0. There is no exploration and no
    dropout. Members of a module have equal gains.

    Args:
        society: over a `FiniteMDP`.
        params: bid-network parameters of one seed, leaves [M, ...].
        time_limits: "bootstrap": the process has no time limit. "terminal": after its horizon the market closes and the
            owner of the last state is not paid; the deviation may then also depend on the time.
        levels: the grid, f [L]; by default `LEVELS` bids between the limits of the society's bids, or of the
            `bid_range` where there are none.

    Raises:
        ValueError: as `rivals_of`.
    """
    check_finite_process(society)
    mdp: FiniteMDP = society.env.env
    levels = _levels(society, params, mdp) if levels is None else np.asarray(levels, np.float64)
    rivals = rivals_of(society, params, levels)
    horizon = mdp.horizon if time_limits == "terminal" else None
    present, best = [], []
    for me in range(0, society.bidders, society.members):
        mine, primitive = dataclasses.replace(rivals, me=me), me // society.clones
        own, deviating = mine.present(), mine.sale(np.broadcast_to(levels, (1, mdp.num_states, 1, len(levels))))
        either = Sale(*(np.concatenate(both, 3) for both in zip(own, deviating, strict=True)))
        for sale, found in ((own, present), (either, best)):
            found.append(solve(mdp, primitive, sale, mdp.gamma, horizon)[0])
    return BestReplies(
        np.repeat(present, society.members), np.repeat(best, society.members), optimal_value(mdp, horizon)
    )


def optimal_value(mdp: FiniteMDP, horizon: int | None = None) -> float:
    """The discounted return of an optimal policy, over the first ``horizon`` steps, or without a time limit if None."""
    if horizon is None:
        return float(mdp.start @ mdp.optimal_q().max(1))
    value = np.zeros(mdp.num_states)
    for _ in range(horizon):
        value = (mdp.rewards + mdp.gamma * (mdp.transitions * ~mdp.terminal) @ value).max(1)
    return float(mdp.start @ value)


def _levels(society: Society, params: PyTree, mdp: FiniteMDP) -> np.ndarray:
    limits = jax.vmap(society.policy.limits)(society.bid_params(params))
    low, high = float(limits[0].min()), float(limits[1].max())
    if not np.isfinite([low, high]).all():
        low, high = bid_range(mdp)
    return np.linspace(low, high, LEVELS)
