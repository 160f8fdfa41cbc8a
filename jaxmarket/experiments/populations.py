"""Deep markets as conditions of an experiment, and what the experiments with them share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.experiments.conditions import Scope
from jaxmarket.experiments.results import Measure, Results
from jaxmarket.runs.jobs import GrowJob
from jaxmarket.runs.populations import Evaluate, GrownMarket, MarketPlan, terms_of
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Grow", "life", "market_facts", "measured"]


@dataclasses.dataclass(frozen=True)
class Grow:
    """A deep market on all seeds; its result is a `GrownMarket`.

    After each chunk a checkpoint is saved in the folder of the condition, where a repeated run continues.

    Attributes:
        name: unique in the experiment.
        plan: the market and the length of the run.
        evaluate: measures the frozen populations after every chunk; a function of a module.
    """

    name: str
    plan: MarketPlan
    evaluate: Evaluate

    @property
    def needs(self) -> tuple[str, ...]:
        """It uses no other results."""
        return ()

    def job(self, scope: Scope, results: Mapping[str, Any]) -> GrowJob:
        """The run."""
        del results
        return GrowJob(self.plan, self.evaluate, scope.seeds, scope.seed)


def measured(name: str) -> Measure:
    """A measurement of the final populations: f64 [seeds]."""
    return lambda grown: grown.measured[name][-1].astype(np.float64)


def life(condition: str, best: Callable[[Results], int]) -> "Callable[[Results], Figure]":
    """A figure (`plotting.market_history`) of the seed of a condition that ``best`` selects."""
    return lambda results: plotting.market_history(results[condition], best(results), condition)


def market_facts(results: Results) -> dict[str, Any]:
    """The terms of every `Grow` condition, and the largest `GrownMarket.residual`; for ``Experiment.facts``."""
    grown = {name: result for name, result in results.items() if isinstance(result, GrownMarket)}
    return {
        "terms": {name: terms_of(each.plan.terms) for name, each in grown.items()},
        "conservation_residual": float(np.max([each.residual for each in grown.values()])),
    }
