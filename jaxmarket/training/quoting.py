"""Wide markets whose bidders know the effects of their operations: they quote prices, and do not learn.

A bidder expects to sell at the prices of the last round, so each round of quotes is a step of value iteration, which
the market computes: prices by backpropagation (Sudhir and Tran-Thanh 2025).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxmarket import wide_market
from jaxmarket.training.wide import ProductionLines, StageBids, WideSociety, Worker, effects, workers
from jaxmarket.types import Array, PyTree, real
from jaxmarket.wide_market import Additive

__all__ = ["QuotedBids", "play_quotes", "quote", "quoted_bids"]


@dataclasses.dataclass(frozen=True)
class QuotedBids:
    """A worker's valuation at given prices (the ``world``, f [G]): R + γ (D f)ᵀ p for the pieces of its line.

    Production functions f are linear in the bundle, and the derivative D f is the map of stages to next stages.

    Attributes:
        lines: the production lines.
        params: the environment's parameters, traced or not.
        gamma: the discount of a round.
    """

    lines: ProductionLines
    params: PyTree
    gamma: float

    def __call__(self, worker: Worker, world: Array) -> Additive:
        """The valuation."""
        after, earned = effects(self.lines, jax.tree.map(lambda x: x[None], worker), self.params)
        prices = world.reshape(self.lines.lines, self.lines.stages)[worker.line]
        values = earned[0] + self.gamma * after[0] @ prices
        return StageBids(self.lines)(worker.replace(values=values), None)


def quote(society: WideSociety, key: Array, env_params: PyTree, rounds: int, *, gamma: float) -> Float[Array, "R G"]:
    """Simulate a market of `QuotedBids`.

    Args:
        society: provides the production lines, the mechanism and the number of clones.
        key: a PRNG key; consumed.
        env_params: the environment's parameters.
        rounds: R.
        gamma: the discount of a round.

    Returns:
        Prices of all goods in each round, including those with zero supply. The bids of the first round are at prices
        of 0.
    """
    lines = society.lines
    market = dataclasses.replace(society.market(env_params), valuation=QuotedBids(lines, env_params, gamma))
    economy = society.open(_nothing(lines)).replace(world=jnp.zeros(lines.lines * lines.stages, real()))

    def trade(economy: wide_market.WideMarketState, key: Array) -> tuple[wide_market.WideMarketState, Array]:
        economy, round_ = wide_market.step(market, key, economy)
        return economy.replace(world=round_.prices), round_.prices

    return jax.lax.scan(trade, economy, jax.random.split(key, rounds))[1]


def quoted_bids(
    lines: ProductionLines, prices: Float[Array, " G"], env_params: PyTree, *, gamma: float
) -> Float[Array, "jobs K"]:
    """The bid of each job at each stage of its line at these prices, as `WideSociety.play` takes them."""
    jobs = workers(lines, _nothing(lines), clones=1)
    bids = jax.vmap(QuotedBids(lines, env_params, gamma), (0, None))(jobs, prices).values
    return bids.reshape(-1, lines.lines, lines.stages)[jnp.arange(jobs.line.size), jobs.line]


@functools.partial(jax.jit, static_argnames=("society", "rounds", "gamma"))
def play_quotes(society: WideSociety, key: Array, rounds: int, *, gamma: float) -> tuple[Array, Array]:
    """Quote prices, and play an episode at the prices of each round, in the environment with its default parameters.

    Returns:
        The returns f [R], and the prices f [R, G].
    """
    key_quote, key_play = jax.random.split(key)
    lines, env_params = society.lines, society.env.default_params
    prices = quote(society, key_quote, env_params, rounds, gamma=gamma)
    bids = jax.vmap(lambda prices: quoted_bids(lines, prices, env_params, gamma=gamma))(prices)
    play = functools.partial(society.play, env_params=env_params)
    return jax.vmap(play)(bids, jax.random.split(key_play, rounds)).returns[:, 0], prices


def _nothing(lines: ProductionLines) -> Array:
    return jnp.zeros((lines.lines * lines.operations, lines.stages), real())
