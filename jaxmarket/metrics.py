"""Metrics of a market: pure functions of trajectories and accounts.

`summarize` reduces a trajectory to sums, inside the training scan; `Summary.means` turns the sums into the
metrics below. ``[A]`` and ``[S]`` mark metrics per bidder and per state, the latter for finite processes
with one-hot observations. Every kind of agent reports those that apply to it. In a wide market, a row is a round of one
instance, in which all lines sell their piece: means per auction are per round there, and as its training has no
episodes, ``return_mean`` is the reward of as many rounds as an episode has steps.

| metric | meaning |
|---|---|
| ``return_mean``, ``length_mean`` | of the episodes that ended; NaN (never 0) before the first one |
| ``termination_rate`` | share of the episodes that ended which terminated, and were not cut; success, where only success terminates |
| ``duration`` | environment steps per auction: 1 where primitives are literal actions |
| ``regret`` | return of the optimal policy minus ``return_mean``, per episode (Lai and Robbins 1985) |
| ``welfare`` | reward per auction, summed over all accounts: payments between accounts cancel (Nisan et al. 2007, ch. 9) |
| ``auction_revenue`` | the price that the winner paid, per auction (Nisan et al. 2007, ch. 13) |
| ``subsidy`` | minted money per auction: payout - price; 0 where money is conserved (Chang et al. 2020) |
| ``winner_utility`` | reward + γ^k · proceeds - price of the winner, per auction (Chang et al. 2020) |
| ``winning_bid`` | the winner's own bid, per auction |
| ``saturation`` | share of auctions whose winning bid is within 1% of an end of the range in which bids can be; where it is large, a fixed range is too narrow |
| ``wins`` [A] | share of all auctions each bidder won |
| ``state_price`` [S] | mean price paid for the state; NaN where it was not sold |
| ``bid_gap`` [S] | mean of winning bid - Q*(s, winner's primitive) over the state's sales: above 0 where winners bid more than the value of winning under the optimal continuation (Chang et al. 2020, theorem 1: 0) |
| ``gini`` | inequality of the bidders' wealth, see `gini` |
| ``conservation_residual`` | change of the accounts that no named flow explains, see `conservation_residual` |
| ``best_reply_gain`` | distance from equilibrium: the largest gain of any bidder's best reply, in units of reward; of a society on a finite process, every ``best_reply_every`` updates, else NaN; see `jaxmarket.interop.deviations.best_replies` |
| ``diverged`` | 1 if parameters or rewards of this chunk are not finite, else 0; see `jaxmarket.training.divergence` |
"""  # noqa: E501  a table row is a line

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int

from jaxmarket.accounts import CashFlows
from jaxmarket.settlement import Settlement
from jaxmarket.types import AUCTIONEER, Accounts, Array, Outcome, Transition, real

__all__ = [
    "ACCOUNTS",
    "Oracle",
    "Summary",
    "Totals",
    "bid_error",
    "conservation_residual",
    "env_steps",
    "gini",
    "ledger",
    "mutual_information",
    "saturation",
    "summarize",
    "totals",
    "wins_by_region",
]


class Oracle(struct.PyTreeNode):
    """The exact solution of a finite process, to which metrics are compared; learners do not see it."""

    q: Float[Array, "S P"]  # Q*
    optimal_return: Float[Array, ""]  # expected undiscounted return of an episode under the optimal policy


class Totals(struct.PyTreeNode):
    """Sums over rows of any agent, also without a market; add them with ``jax.tree.map(jnp.add, ...)``."""

    steps: Float[Array, ""]  # environment steps
    decisions: Float[Array, ""]  # auctions, where there are any
    episodes: Float[Array, ""]  # episodes that ended
    returns: Float[Array, ""]  # sum of their undiscounted returns
    lengths: Float[Array, ""]  # sum of their lengths
    terminations: Float[Array, ""]  # the number of these that terminated
    reward: Float[Array, ""]  # of all accounts

    def means(self) -> dict[str, Array]:
        """The metrics of the module's table that follow from these."""
        ended = jnp.where(self.episodes > 0, self.episodes, jnp.nan)
        return {
            "episodes": self.episodes,
            "return_mean": self.returns / ended,
            "length_mean": self.lengths / ended,
            "termination_rate": self.terminations / ended,
            "duration": self.steps / self.decisions,
            "welfare": self.reward / self.decisions,
        }


def totals(rows: Any) -> Totals:
    """Sums over rows with any leading axes: of a `Transition`, or of a `rollouts.EnvTransition`."""

    def count(flags: Array) -> Array:
        return flags.sum().astype(rows.reward.dtype)

    windfalls = getattr(rows, "windfalls", None)

    return Totals(
        steps=rows.duration.sum(),
        decisions=jnp.asarray(rows.reward.size, rows.reward.dtype),
        episodes=count(rows.done),
        returns=jnp.where(rows.done, rows.episode_return, 0).sum(),
        lengths=jnp.where(rows.done, rows.episode_length, 0).sum().astype(rows.reward.dtype),
        terminations=count(rows.terminated),
        reward=rows.reward.sum() if windfalls is None else rows.reward.sum() + windfalls.sum(),
    )


def env_steps(duration: np.ndarray, auctions: int) -> np.ndarray:
    """Environment steps of each seed up to the end of each chunk: [chunks, seeds].

    Args:
        duration: the metric of that name, [chunks, seeds].
        auctions: per seed and chunk.
    """
    return np.cumsum(np.round(np.float64(duration) * auctions), axis=0)


class Summary(struct.PyTreeNode):
    """Sums over the rows of a trajectory; add summaries with ``jax.tree.map(jnp.add, ...)``."""

    totals: Totals
    price: Float[Array, ""]  # money paid in auctions
    subsidy: Float[Array, ""]  # money minted
    utility: Float[Array, ""]  # of winners
    bid: Float[Array, ""]  # winning bids
    wins: Float[Array, " A"]  # auctions won
    sales: Float[Array, " S"]  # times each state was sold; [0] without an oracle, like the next two
    state_price: Float[Array, " S"]  # money paid for it
    bid_gap: Float[Array, " S"]  # winning bid - Q*(s, winner's primitive)

    def means(self, oracle: Oracle | None = None) -> dict[str, Array]:
        """Per-episode, per-auction and per-state means, as the module's table defines them."""
        auctions = self.totals.decisions
        means = self.totals.means() | {
            "auction_revenue": self.price / auctions,
            "subsidy": self.subsidy / auctions,
            "winner_utility": self.utility / auctions,
            "winning_bid": self.bid / auctions,
            "wins": self.wins / auctions,
        }
        if oracle is not None:
            sold = jnp.where(self.sales > 0, self.sales, jnp.nan)
            means |= {
                "regret": oracle.optimal_return - means["return_mean"],
                "state_price": self.state_price / sold,
                "bid_gap": self.bid_gap / sold,
            }
        return means


def summarize(trajectory: Transition, settlement: Settlement, oracle: Oracle | None = None) -> Summary:
    """Reduce a trajectory with any leading axes to a `Summary`.

    Args:
        trajectory: rows [...].
        settlement: of these rows.
        oracle: the solution, where observations are one-hot states whose Q* is known.
    """
    t = trajectory
    sold = t.outcome.winner >= 0
    bidders = t.accounts.wealth.shape[-1]
    won = (t.outcome.winner[..., None] == jnp.arange(bidders)).astype(t.reward.dtype).reshape(-1, bidders)
    sales = state_price = bid_gap = jnp.zeros(0, t.reward.dtype)
    if oracle is not None:
        states, primitives = oracle.q.shape
        state = t.obs.reshape(-1, states) * sold.reshape(-1, 1)
        # The counts of purchases by state and primitive determine all sums over Q*.
        bought = (state.T @ won).reshape(states, primitives, -1).sum(-1)
        state_price, bid = jnp.stack([t.price.reshape(-1), t.outcome.winning_bid.reshape(-1)]) @ state
        sales, bid_gap = bought.sum(1), bid - (bought * oracle.q).sum(1)
    return Summary(
        totals=totals(t),
        price=t.price.sum(),
        subsidy=(t.payout - t.price).sum(),
        utility=jnp.where(sold, settlement.utility, 0).sum(),
        bid=t.outcome.winning_bid.sum(),
        wins=won.sum(0),
        sales=sales,
        state_price=state_price,
        bid_gap=bid_gap,
    )


def saturation(outcome: Outcome, low: Float[Array, " M"], high: Float[Array, " M"]) -> Float[Array, ""]:
    """The share of auctions in which the winning bid is within 1% of an end of the range of bids.

    Args:
        outcome: of auctions with any leading axes and A bidders, ordered by module.
        low, high: the range of each module, which may be infinite.
    """
    per_module = outcome.bids.shape[-1] // low.shape[0]
    module = jnp.maximum(outcome.winner, 0) // per_module
    low, high = low[module], high[module]
    margin = jnp.where(jnp.isfinite(high - low), 0.01 * (high - low), 0)
    at_end = (outcome.winning_bid <= low + margin) | (outcome.winning_bid >= high - margin)
    at_end &= (high > low) & (outcome.winner >= 0)
    return at_end.mean(dtype=outcome.bids.dtype)


def gini(wealth: Float[Array, " A"], among: Bool[Array, " A"] | None = None) -> Float[Array, ""]:
    """Gini coefficient of wealth, debts included: 0 for equality, (A-1)/A if one bidder owns everything.

    The mean absolute difference over twice the mean *absolute* wealth: the usual coefficient without debts, and
    within [0, 1] with them (Raffinetti, Siletti and Vernizzi 2015, *Statistical Methods & Applications* 24). NaN if
    all wealth is 0.

    Args:
        wealth: of every bidder.
        among: the bidders that count; all by default.
    """
    rank = jnp.arange(1, wealth.shape[0] + 1)
    n = wealth.shape[0] if among is None else among.sum()
    ordered = jnp.sort(wealth if among is None else jnp.where(among, wealth, jnp.inf))
    ordered = jnp.where(rank <= n, ordered, 0)
    return jnp.sum((2 * rank - n - 1) * ordered) / (n * jnp.sum(jnp.abs(ordered)))


def conservation_residual(trajectory: Transition, opening: Accounts | Array | float = 0.0) -> Array:
    """The change of all accounts that no named flow explains, relative to the money moved or held: f [].

    Rewards and the subsidy are the only sources of money, so the residual is rounding, or a bug. See
    `jaxmarket.accounts.CashFlows.residual`.

    Args:
        trajectory: rows [T] of one market instance.
        opening: the `Accounts` before the first row, or their sum f []; 0 for a new market.
    """
    t = trajectory
    closing = jax.tree.map(lambda x: x[-1], t.accounts)
    held = sum(jnp.abs(x).sum() for x in jax.tree.leaves(closing))
    # Sums over accounts: cheaper than `settlement.flows`, and equal to them.
    named = CashFlows.of(purchase=-t.price, sale=t.payout, reward=t.reward)
    if t.windfalls is not None:
        named += CashFlows.of(windfall=t.windfalls.sum(-1))
    return named.residual(opening, closing, held)


ACCOUNTS = ("auctioneer", "mint", "environment")
"""The accounts of a `ledger` that follow the bidders' accounts, in this order."""


def ledger(trajectory: Transition) -> Array:
    """Payments by payer and payee: f [A + 3, A + 3], summed over rows with any leading axes.

    The last three accounts are `ACCOUNTS`: the auctioneer sells first states; the mint pays the subsidy, which is the
    part of a payout that exceeds the price (a negative entry if the payout is less); the environment pays rewards.
    Column sums minus row sums are each bidder's change of wealth.
    """
    t = trajectory
    bidders = t.accounts.wealth.shape[-1]
    auctioneer, mint, environment = bidders + jnp.arange(len(ACCOUNTS))
    buyer = jnp.where(t.outcome.winner < 0, auctioneer, t.outcome.winner).reshape(-1)
    seller = jnp.where(t.owner == AUCTIONEER, auctioneer, t.owner).reshape(-1)
    price, payout, reward = (x.reshape(-1) for x in (t.price, t.payout, t.reward))
    table = jnp.zeros((bidders + len(ACCOUNTS),) * 2, t.reward.dtype)
    table = table.at[buyer, seller].add(price)
    table = table.at[mint, seller].add(payout - price)
    if t.windfalls is not None:
        table = table.at[environment, :bidders].add(t.windfalls.reshape(-1, bidders).sum(0))
    return table.at[environment, buyer].add(reward)


def bid_error(
    bids: Float[Array, "S P"],
    q: Float[Array, "S P"],
    visited: Bool[Array, " S"],
    *,
    every_bidder: bool = False,
    floor: float = 1.0,
) -> Float[Array, ""]:
    """Distance of greedy bids from Q*, over visited states, relative to ``max(floor, max |Q*|)``.

    Args:
        bids: each primitive's (highest) greedy bid per state.
        q: Q*.
        visited: the states that count.
        every_bidder: compare each bid with its own Q*(s, a) instead of the highest with max Q*(s, ·).
        floor: smallest denominator; with 0 the error does not depend on the unit of rewards.

    Returns:
        The error; NaN where no state was visited.
    """
    error = jnp.abs(bids - q).max(1) if every_bidder else jnp.abs(bids.max(1) - q.max(1))
    worst = jnp.where(visited.any(), jnp.where(visited, error, 0).max(), jnp.nan)
    size = jnp.maximum(floor, jnp.abs(q).max())
    return worst / jnp.where(size > 0, size, 1)


def wins_by_region(
    primitive: Int[Array, "..."], region: Int[Array, "..."], regions: int, primitives: int
) -> Float[Array, "R P"]:
    """How many auctions each primitive won in each region of the state space.

    A row divided by its sum is each primitive's share of the region.

    Args:
        primitive: the winner's, of each auction: ``Society.primitive_of(outcome.winner)``. Of an agent without
            auctions: the number of the part that acted.
        region: of the state that was sold, from 0 to R - 1. Auctions in other regions are not counted.
        regions: R, static.
        primitives: P, static.
    """
    where, who = region.reshape(-1, 1) == jnp.arange(regions), primitive.reshape(-1, 1) == jnp.arange(primitives)
    return where.astype(real()).T @ who.astype(real())


def mutual_information(counts: Float[Array, "R P"], *, corrected: bool = False) -> Float[Array, ""]:
    """The information that the region of a state gives about the primitive that wins there, in bits.

    It is 0 if all regions have the same winners, and at most log2 of the smaller of both numbers, which it is if every
    primitive has regions of its own.

    Args:
        counts: auctions by region and primitive, as of `wins_by_region`. NaN if there are none.
        corrected: the estimate from counts of n independent auctions is too high, by about (R - 1)(P - 1) / (2 n ln 2)
            bits if all pairs occur. This subtracts the bias of each entropy (Miller 1955; occurring values are counted,
            so that deterministic winners have none), and can be negative.
    """
    n = counts.sum()
    joint = counts / n

    def entropy(p: Array) -> tuple[Array, Array]:
        """In bits, and the bias of its estimate."""
        bits = -jnp.sum(jnp.where(p == 0, 0, p * jnp.log2(jnp.where(p == 0, 1, p))))
        return bits, -(jnp.sum(p > 0) - 1) / (2 * n * math.log(2))

    parts = [entropy(p) for p in (joint.sum(0), joint.sum(1), joint)]
    primitive, region, both = (bits - bias if corrected else bits for bits, bias in parts)
    return primitive + region - both
