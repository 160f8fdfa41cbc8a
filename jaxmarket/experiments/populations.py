"""Deep markets as conditions of an experiment, and what the experiments with them share."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.auctions import BUCKET_BRIGADE, ENVIRONMENT_REWARD, Mechanism
from jaxmarket.experiments.conditions import Scope
from jaxmarket.experiments.results import Measure
from jaxmarket.runs.addresses import encode, source_digest
from jaxmarket.runs.populations import Evaluate, GrownMarket, MarketPlan, finished, grow
from jaxmarket.runs.run_folder import environment_digest, versions
from jaxmarket.runs.schedule import Running

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["UNPAID", "Grow", "measured"]

UNPAID = Mechanism("unpaid", price=ENVIRONMENT_REWARD.price, payout=BUCKET_BRIGADE.payout)
"""No conservation: the mint pays the winning bid to the seller, and the buyer pays nothing."""


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

    def job(self, scope: Scope, results: "Mapping[str, Any]") -> "_Growth":
        """The run."""
        del results
        return _Growth(self.plan, self.evaluate, scope.seeds, scope.seed)


@dataclasses.dataclass(frozen=True)
class _Growth:
    plan: MarketPlan
    evaluate: Evaluate
    seeds: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        plan, market = self.plan, self.plan.market
        return {
            "plan": {f.name: encode(getattr(plan, f.name)) for f in dataclasses.fields(plan) if f.name != "market"},
            "market": {f.name: encode(getattr(market, f.name)) for f in dataclasses.fields(market) if f.name != "env"},
            "env": environment_digest(market.env),
            "evaluate": encode(self.evaluate),
            "seeds": self.seeds,
            "seed": self.seed,
            "sources": source_digest(plan, self.evaluate, grow),
            "versions": versions(),
        }

    def run(self, running: Running) -> GrownMarket:
        def show(chunks: int, found: dict[str, np.ndarray]) -> None:
            running.show(chunks / self.plan.chunks, _means(found))

        running.compile((self.plan.program, self.evaluate))
        return grow(self.plan, self.evaluate, seeds=self.seeds, seed=self.seed, folder=running.folder, on_chunk=show)

    def write(self, folder: Path, result: GrownMarket) -> str:
        return _means({name: values[-1] for name, values in result.measured.items()})  # the last checkpoint is there

    def read(self, folder: Path) -> GrownMarket | None:
        return finished(self.plan, self.evaluate, folder, seeds=self.seeds, seed=self.seed)


def _means(found: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {values.mean():.3f}" for name, values in list(found.items())[:3])


def measured(name: str) -> Measure:
    """A measurement of the final populations: f64 [seeds]."""
    return lambda grown: grown.measured[name][-1].astype(np.float64)
