"""Exact gains of one bidder that deviates from truthful bids, in one auction and in whole episodes of a finite process.

All values are computed in double precision from the transitions of the process, and bids may take any value;
`jaxmarket.interop.bidder.Exact` has a fixed grid of bids and the precision of the market.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import auctions
from jaxmarket.auctions import Mechanism
from jaxmarket.environments.tabular import FiniteMDP
from jaxmarket.types import Array

__all__ = ["LEVELS", "Seat", "bid_range", "episode_gain", "one_shot_gain"]

LEVELS = 201
"""Number of bids on the grid of `Seat.best_gain`."""


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

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """The truthful strategy, bids by state and ownership: f64 [S, 2]."""
        return np.repeat(self.mdp.optimal_q()[:, self.primitive, None], 2, axis=1)

    def gain(self, strategy: np.ndarray) -> float:
        """The gain of a strategy f [S, 2] (bids for states of others, and for its own) over truthful bidding."""
        return self._value(np.asarray(strategy, float)[..., None]) - self._value(self.truth[..., None])

    def best_gain(self, low: float, high: float) -> float:
        """The gain of the best strategy over truthful bidding; bids are truthful or on a grid over [low, high]."""
        levels = np.broadcast_to(np.linspace(low, high, LEVELS), (*self.truth.shape, LEVELS))
        return self._value(np.concatenate([self.truth[..., None], levels], -1)) - self._value(self.truth[..., None])

    def _value(self, choices: np.ndarray) -> float:
        """Discounted utility from the start under the best of the given bids f [S, 2, L]."""
        earned, onward = self._auctions(choices)
        value = np.zeros((self.mdp.num_states, 2))
        for _ in range(self.horizon or 1_000_000):
            new = (earned + self.mdp.gamma * np.einsum("solwt,tw->sol", onward, value)).max(-1)
            settled = np.abs(new - value).max() < 1e-12 * max(1, np.abs(new).max())
            value = new
            if settled and self.horizon is None:
                break
        return float(self.mdp.start @ value[:, 0])

    def _auctions(self, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Expected money of each auction over ties, f [S, 2, L], and the next states by winner, f [S, 2, L, 2, S']."""
        mdp, me = self.mdp, self.primitive * self.clones
        mine = np.arange(mdp.num_actions * self.clones) == me
        with jax.enable_x64(True):
            others_bids = jnp.repeat(jnp.asarray(mdp.optimal_q()), self.clones, axis=1)
            odds, price, payout = (
                np.asarray(x) for x in _outcomes(self.mechanism, others_bids, me, jnp.asarray(choices))
            )
        owns = np.array([0.0, 1.0])[None, :, None]
        won = odds[..., me] * (mdp.rewards[:, self.primitive, None, None] - price[..., me])
        earned = owns * (odds * payout).sum(-1) + won
        successors = np.repeat(mdp.transitions, self.clones, axis=1)  # [S, A, S']
        by_winner = [np.einsum("sola,sat->solt", odds * who, successors) for who in (~mine, mine)]
        return earned, np.stack(by_winner, -2) * ~mdp.terminal


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


@functools.partial(jax.jit, static_argnums=0)
def _outcomes(mechanism: Mechanism, others_bids: Array, me: Array | int, choices: Array) -> tuple[Array, Array, Array]:
    """Win probabilities, prices and payouts for the others' bids f [S, A] and own bids f [S, 2, L]."""
    eligible = jnp.ones(others_bids.shape[1], bool)

    def auction(others_bids: Array, bid: Array) -> tuple[Array, Array, Array]:
        bids = others_bids.at[me].set(bid)
        outcomes = jax.vmap(lambda w: auctions.award(bids, w, eligible))(jnp.arange(len(eligible)))
        tied = bids == bids.max()
        return tied / tied.sum(), jax.vmap(mechanism.price)(outcomes), jax.vmap(mechanism.payout)(outcomes)

    return jax.vmap(jax.vmap(jax.vmap(auction, (None, 0)), (None, 0)))(others_bids, choices)
