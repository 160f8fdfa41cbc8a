"""What the experiments with deep markets share."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket.deep_market import Terms
from jaxmarket.deep_market.evaluation import policy
from jaxmarket.experiments.results import Measure, Results
from jaxmarket.keys import key_for, key_of
from jaxmarket.runs.populations import GrownMarket, terms_of
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_frozen_policy", "estimating_terms", "life", "market_facts", "measured"]


def estimating_terms(fee: float, tax: float, exploration: float) -> Terms:
    """The terms of markets of `RiskAverseRules`: every new rule has a wealth of 1, and children inherit nothing.

    Args:
        fee: paid by every rule per step.
        tax: share of wealth that every rule pays per step.
        exploration: share of auctions that a random bidder wins.
    """
    return Terms(
        compute_tax=fee,
        wealth_tax=tax,
        exploration=exploration,
        endowment=1.0,
        child_endowment=1.0,
        inheritance=0.0,
        birth_rate=1.0,
        p_offspring=0.8,
        replace_poorest=True,
    )


def measured(name: str) -> Measure:
    """A measurement of the final populations: f64 [seeds]."""
    return lambda grown: grown.measured[name][-1].astype(np.float64)


def life(condition: str, best: Callable[[Results], int]) -> "Callable[[Results], Figure]":
    """A figure (`plotting.market_history`) of the seed of a condition that ``best`` selects."""
    return lambda results: plotting.market_history(results[condition], best(results), condition)


def draw_frozen_policy(ax: "Axes", results: Results, condition: str, seed: int) -> None:
    """The price of every cell of a `Maze` and the move of its buyer, in the frozen population of one seed."""
    grown = results[condition]
    market, population = grown.plan.market, jax.tree.map(jnp.asarray, grown.population(seed))
    key = key_for(key_of(results.scope.seed), "measurement")
    plotting.draw_maze_policy(ax, market.env.env, *jax.device_get(policy(market, key, population, grown.plan.terms)))


def market_facts(results: Results) -> dict[str, Any]:
    """The terms of every `Grow` condition, and the largest `GrownMarket.residual`; for ``Experiment.facts``."""
    grown = {name: result for name, result in results.items() if isinstance(result, GrownMarket)}
    return {
        "terms": {name: terms_of(each.plan.terms) for name, each in grown.items()},
        "conservation_residual": float(np.max([each.residual for each in grown.values()])),
    }
