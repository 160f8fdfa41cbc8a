"""What an experiment compares: training runs, and pure functions of keys."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxmarket.keys import key_of
from jaxmarket.runs import files, fitting, run_folder, sweeps
from jaxmarket.runs.addresses import encode, source_digest
from jaxmarket.runs.run_folder import Origin, SavedRun
from jaxmarket.runs.schedule import Running
from jaxmarket.training import objects
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.transfer import fingerprint

__all__ = ["Arrays", "Compute", "Condition", "Job", "Scope", "Train"]

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


class Job(Protocol):
    """A condition whose inputs are known."""

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the result, a JSON object."""
        ...

    def run(self, running: Running) -> Any:
        """Compute the result, with checkpoints in `Running.folder` if it likes; may raise what `Running.check` does."""

    def write(self, folder: Path, result: Any) -> str:
        """Write the result to a new folder, and return a line that describes it."""
        ...

    def read(self, folder: Path) -> Any:
        """The result in that folder; None if it is not there or incomplete."""


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
    """

    name: str
    config: TrainConfig | Callable[..., TrainConfig]
    inputs: tuple[str, ...] = ()
    start: str | None = None
    seeds: int | None = None
    seed: int | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The conditions whose results it uses."""
        return self.inputs if self.start is None else (*self.inputs, self.start)

    def job(self, scope: Scope, results: Mapping[str, Any]) -> "_Run":
        """The run."""
        config = self.config
        if not isinstance(config, TrainConfig):
            config = config(*(results[name] for name in self.inputs))
        changes: dict[str, Any] = {"seeds": scope.seeds if self.seeds is None else self.seeds}
        if scope.steps < 1:
            changes["steps"] = max(1, round(scope.steps * config.settings.steps))
        seed = scope.seed if self.seed is None else self.seed
        start = None if self.start is None else results[self.start]
        return _Run(dataclasses.replace(config, **changes), seed, start)


@dataclasses.dataclass(frozen=True)
class _Run:
    config: TrainConfig
    seed: int
    start: SavedRun | None

    @property
    def identity(self) -> dict[str, Any]:
        origin = Origin.of(key_of(self.seed), None if self.start is None else fingerprint(self.start.networks))
        # Objects that are globals of a module are saved by their names only, so the source of that module counts too.
        modules = [objects.name_of(each).partition(":")[0] for each in sweeps.given_objects(self.config).values()]
        sources = source_digest(self.config.settings.trainable, fitting.fit, modules=modules)
        return {"run": run_folder.described(self.config, origin), "sources": sources}

    def run(self, running: Running) -> Any:
        return sweeps.fit_as_task(running, self.config, key_of(self.seed), start=self.start)

    def write(self, folder: Path, result: Any) -> str:
        run_folder.write(folder, result)
        return sweeps.outcome(result)

    def read(self, folder: Path) -> SavedRun | None:
        return None if run_folder.summary_of(folder) is None else sweeps.read_run(folder, self.config)


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

    def job(self, scope: Scope, results: Mapping[str, Any]) -> "_Call":
        """The call."""
        seeds = scope.seeds if self.seeds is None else self.seeds
        return _Call(self, seeds, scope.seed, tuple(results[name] for name in self.inputs))


@dataclasses.dataclass(frozen=True)
class _Call:
    condition: Compute
    seeds: int
    seed: int
    inputs: tuple[Any, ...]

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "function": encode(self.condition.function),
            "seeds": self.seeds,
            "seed": self.seed,
            "sources": source_digest(self.condition.function),
            "versions": run_folder.versions(),
        }

    def run(self, running: Running) -> dict[str, np.ndarray]:
        running.show(0, "")
        show = {"show": running.show} if self.condition.reports else {}
        found = self.condition.function(jax.random.split(key_of(self.seed), self.seeds), *self.inputs, **show)
        if not isinstance(found, Mapping):
            raise ValueError(f"function: expected arrays by name, got {type(found).__name__}; return a dictionary")
        arrays = {name: np.asarray(value) for name, value in jax.device_get(dict(found)).items()}
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"function: {name} is not an array of numbers or text; return its parts by name")
        return arrays

    def write(self, folder: Path, result: dict[str, np.ndarray]) -> str:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            files.write_arrays(folder / "arrays.npz", result)
        return "computed"

    def read(self, folder: Path) -> dict[str, np.ndarray] | None:
        return files.read_arrays(folder / "arrays.npz")
