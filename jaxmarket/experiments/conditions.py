"""What an experiment compares: training runs, pure functions of keys, and deep markets."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jaxmarket.runs.jobs import CallJob, FitJob, GrowJob, Job
from jaxmarket.runs.populations import Evaluate, MarketPlan
from jaxmarket.training.config import TrainConfig

__all__ = ["Arrays", "Compute", "Condition", "Grow", "Scope", "Train"]

Arrays = Mapping[str, Any]
"""Measurements by name: NumPy arrays, mostly [seeds, ...]."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """The size of an experiment and its settings.

    Attributes:
        seeds: independent seeds per condition (or random processes, in experiments over these).
        quick: whether the budget is smaller, as a functional check.
        full: whether conditions that take hours belong to it.
        seed: of all randomness.
        steps: the share of its steps that a `Train` condition runs.
        settings: the experiment's own settings, complete.
    """

    seeds: int = 16
    quick: bool = False
    full: bool = False
    seed: int = 0
    steps: float = 1.0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Condition(Protocol):
    """One condition of an experiment; its seeds are computed together."""

    @property
    def name(self) -> str:
        """Unique in the experiment."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the conditions whose results it uses."""
        ...

    def job(self, scope: Scope, results: Mapping[str, Any]) -> Job:
        """The computation, given the results of the conditions that it needs."""
        ...


@dataclasses.dataclass(frozen=True)
class Train:
    """A training run of anything that `jaxmarket.fit` trains; its result is a `SavedRun`.

    Attributes:
        name: unique in the experiment.
        config: the settings, or a function that makes them of the results of ``inputs``.
        inputs: conditions whose results ``config`` receives.
        start: the condition, a training run, from whose networks it starts; None for new networks.
        seeds: independent seeds; by default those of the experiment.
        seed: of all randomness; by default that of the experiment.
        best_reply_every: as in `jaxmarket.fit`.
    """

    name: str
    config: TrainConfig | Callable[..., TrainConfig]
    inputs: tuple[str, ...] = ()
    start: str | None = None
    seeds: int | None = None
    seed: int | None = None
    best_reply_every: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The conditions whose results it uses."""
        return self.inputs if self.start is None else (*self.inputs, self.start)

    def job(self, scope: Scope, results: Mapping[str, Any]) -> FitJob:
        """The run."""
        config = self.config
        if not isinstance(config, TrainConfig):
            config = config(*(results[name] for name in self.inputs))
        changes: dict[str, Any] = {"seeds": scope.seeds if self.seeds is None else self.seeds}
        if scope.steps < 1:
            changes["steps"] = max(1, round(scope.steps * config.settings.steps))
        seed = scope.seed if self.seed is None else self.seed
        start = None if self.start is None else results[self.start]
        return FitJob(dataclasses.replace(config, **changes), seed, start, self.best_reply_every)


@dataclasses.dataclass(frozen=True)
class Compute:
    """A pure function of keys; its result is a dictionary of NumPy arrays.

    Attributes:
        name: unique in the experiment.
        function: ``(keys, *results of inputs) -> arrays by name``, with keys [seeds], one for each seed. A function of
            one key is given as ``jax.jit(jax.vmap(function))``. Arguments can be bound with `functools.partial`.
        inputs: conditions whose results it receives.
        seeds: number of keys; by default the seeds of the experiment.
        reports: whether the function also takes ``show``, and calls ``show(share, note)`` with the share that is done;
            ``show`` raises an exception after the user has stopped the experiment. Otherwise the function runs to its
            end.
    """

    name: str
    function: Callable[..., Arrays]
    inputs: tuple[str, ...] = ()
    seeds: int | None = None
    reports: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The conditions whose results it uses."""
        return self.inputs

    def job(self, scope: Scope, results: Mapping[str, Any]) -> CallJob:
        """The call."""
        seeds = scope.seeds if self.seeds is None else self.seeds
        inputs = tuple(results[name] for name in self.inputs)
        return CallJob(self.function, seeds, scope.seed, inputs, self.reports)


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
