"""Numbers that say how a market is doing. Pure functions of trajectories and accounts."""

import jax.numpy as jnp
from flax import struct

from jaxmarket.settlement import Settlement, flows
from jaxmarket.types import Array, Transition

__all__ = ["Summary", "bid_error", "conservation_residual", "gini", "summarize"]


class Summary(struct.PyTreeNode):
    """Sums over the rows of a trajectory; add summaries with ``jax.tree.map(jnp.add, ...)``."""

    steps: Array  # f [] environment steps
    auctions: Array  # f []
    episodes: Array  # f [] episodes that ended
    returns: Array  # f [] sum of their undiscounted returns
    lengths: Array  # f [] sum of their lengths
    price: Array  # f [] money paid in auctions
    subsidy: Array  # f [] money minted by the auctioneer
    utility: Array  # f [] of winners
    bid: Array  # f [] winning bids

    def means(self) -> dict[str, Array]:
        """Per-episode and per-auction means; NaN (never 0) before the first finished episode."""
        ended = jnp.where(self.episodes > 0, self.episodes, jnp.nan)
        return {
            "episodes": self.episodes,
            "return_mean": self.returns / ended,
            "length_mean": self.lengths / ended,
            "price": self.price / self.auctions,
            "subsidy": self.subsidy / self.auctions,
            "winner_utility": self.utility / self.auctions,
            "winning_bid": self.bid / self.auctions,
        }


def summarize(trajectory: Transition, settlement: Settlement) -> Summary:
    """Reduce a trajectory with any leading axes to a `Summary`."""
    t = trajectory
    return Summary(
        steps=t.duration.sum(),
        auctions=jnp.asarray(t.reward.size, t.reward.dtype),
        episodes=t.done.sum().astype(t.reward.dtype),
        returns=jnp.where(t.done, t.episode_return, 0).sum(),
        lengths=jnp.where(t.done, t.episode_length, 0).sum().astype(t.reward.dtype),
        price=t.price.sum(),
        subsidy=(t.resale - t.price).sum(),
        utility=jnp.where(t.outcome.winner >= 0, settlement.utility, 0).sum(),
        bid=t.outcome.winning_bid.sum(),
    )


def gini(wealth: Array) -> Array:
    """Gini coefficient of non-negative wealth [A]: 0 for equality, (A-1)/A if one owns all. NaN if all is 0."""
    n = wealth.shape[0]
    rank = jnp.arange(1, n + 1)
    return jnp.sum((2 * rank - n - 1) * jnp.sort(wealth)) / (n * jnp.sum(wealth))


def conservation_residual(trajectory: Transition) -> Array:
    """|change of money - named flows| over money moved, for rows [T] of a market opened at the first row. f []."""
    named = flows(trajectory)
    change = trajectory.wealth[-1].sum() + trajectory.house[-1]
    moved = jnp.abs(trajectory.price).sum() + jnp.abs(trajectory.resale).sum() + jnp.abs(trajectory.reward).sum()
    return jnp.abs(change - (named.earned + named.subsidy).sum()) / jnp.maximum(moved, 1)


def bid_error(bids: Array, q: Array, visited: Array, *, every_bidder: bool = False) -> Array:
    """Distance of greedy bids from Q*, over visited states, relative to max(1, max |Q*|).

    Args:
        bids: f [S, P], each primitive's (highest) greedy bid per state.
        q: f [S, P], Q*.
        visited: bool [S].
        every_bidder: compare each bid with its own Q*(s, a) instead of the highest with max Q*(s, ·).

    Returns:
        f []: NaN where no state was visited.
    """
    error = jnp.abs(bids - q).max(1) if every_bidder else jnp.abs(bids.max(1) - q.max(1))
    worst = jnp.where(visited.any(), jnp.where(visited, error, 0).max(), jnp.nan)
    return worst / jnp.maximum(1, jnp.abs(q).max())
