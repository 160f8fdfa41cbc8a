"""Jobs: computations that are not repeated, because their results are kept in folders named by content addresses.

`run_jobs` runs what is not in its folder yet. A result is found again by a digest of the settings, seeds and code that
determine it (`jaxmarket.runs.addresses`), and of the inputs of the job.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxmarket.keys import key_of
from jaxmarket.runs import addresses, files, fitting, populations, run_folder, sweeps
from jaxmarket.runs.populations import Evaluate, GrownMarket, MarketPlan
from jaxmarket.runs.run_folder import Origin, SavedRun
from jaxmarket.runs.schedule import Running, ScheduledTask, run_tasks
from jaxmarket.training import objects
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.transfer import fingerprint
from jaxmarket.view import tables

__all__ = ["CallJob", "FitJob", "GrowJob", "Job", "PlannedJob", "run_jobs", "slug"]


class Job(Protocol):
    """A computation whose inputs are known."""

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


class PlannedJob(NamedTuple):
    """A job of `run_jobs`.

    Attributes:
        name: unique; the name of its folder begins with it.
        needs: names of the jobs whose results it uses.
        make: the job, given the results of these jobs by name.
    """

    name: str
    needs: tuple[str, ...]
    make: Callable[[Mapping[str, Any]], Job]


def run_jobs(
    planned: Sequence[PlannedJob], folder: Path, show: tables.Show
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Run the jobs whose results are not in a folder yet.

    A result is written when its job is finished, so an interruption loses only the jobs under way. The other jobs
    continue after one that raises.

    Args:
        planned: the jobs.
        folder: of the results, each in a folder of its own.
        show: of `jaxmarket.view.tables.progress`.

    Returns:
        Results by name, and exceptions by name of the jobs that failed or need one that failed; in the given order.

    Raises:
        ValueError: as `run_tasks`.
    """
    finished: dict[str, Any] = {}
    found_at: dict[str, str] = {}
    failed: dict[str, Exception] = {}
    addresses.refresh()

    def task(name: str, needs: tuple[str, ...], make: Callable[[Mapping[str, Any]], Job]) -> ScheduledTask:
        def compute(running: Running) -> tuple[Job, Path, Any, Any]:
            job = make(finished)
            found_at[name] = addresses.address(job.identity | {"inputs": [found_at[each] for each in needs]})
            where = folder / f"{slug(name)}-{found_at[name][:12]}"
            found, running.folder = job.read(where), where
            return job, where, found, None if found is not None else job.run(running)

        def keep(outcome: tuple[Job, Path, Any, Any]) -> tuple[Any, str]:
            job, where, found, result = outcome
            line = f"in {where} already"
            if found is None:
                line = job.write(where, result)
                found = job.read(where)  # as a repeated call will find it
            finished[name] = found
            return found, f"{name}: {line}"

        return ScheduledTask(name, compute, keep, after=needs)

    def on_failure(task: ScheduledTask, error: Exception) -> None:
        failed[task.name] = error
        show.say(" ".join(f"{task.name} failed: {type(error).__name__}: {error}".split()))

    run_tasks([task(*each) for each in planned], show, on_failure)
    names = [each.name for each in planned]
    finished, failed = ({name: each[name] for name in names if name in each} for each in (finished, failed))
    return finished, failed


def slug(name: str) -> str:
    """A name as part of the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name)


@dataclasses.dataclass(frozen=True)
class FitJob:
    """A training run (`jaxmarket.fit`); its result is a `SavedRun`.

    Attributes:
        config: the settings.
        seed: of all randomness.
        start: the run from whose networks it starts; None for new networks.
        best_reply_every: as in `jaxmarket.fit`.
    """

    config: TrainConfig
    seed: int
    start: SavedRun | None = None
    best_reply_every: int | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Settings, origin and source code."""
        origin = Origin.of(key_of(self.seed), None if self.start is None else fingerprint(self.start.networks))
        # Objects that are globals of a module are saved by their names only, so the source of that module counts too.
        modules = [objects.name_of(each).partition(":")[0] for each in sweeps.given_objects(self.config).values()]
        sources = addresses.source_digest(self.config.settings.trainable, fitting.fit, modules=modules)
        identity = {"run": run_folder.described(self.config, origin), "sources": sources}
        return identity if self.best_reply_every is None else identity | {"best_reply_every": self.best_reply_every}

    def run(self, running: Running) -> Any:
        """Train."""
        return sweeps.fit_as_task(
            running, self.config, key_of(self.seed), start=self.start, best_reply_every=self.best_reply_every
        )

    def write(self, folder: Path, result: Any) -> str:
        """Write the run's folder."""
        run_folder.write(folder, result)
        return sweeps.outcome(result)

    def read(self, folder: Path) -> SavedRun | None:
        """The run in the folder; None if there is none, or an unfinished one."""
        return None if run_folder.summary_of(folder) is None else sweeps.read_run(folder, self.config)


@dataclasses.dataclass(frozen=True)
class CallJob:
    """A call of a pure function; its result is a dictionary of NumPy arrays.

    Attributes:
        function: ``(keys, *inputs) -> arrays by name``, with keys [seeds].
        seeds: number of keys.
        seed: of all randomness.
        inputs: other arguments, results of other jobs.
        reports: whether the function also takes ``show`` (`Running.show`).
    """

    function: Callable[..., Mapping[str, Any]]
    seeds: int
    seed: int
    inputs: tuple[Any, ...] = ()
    reports: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """The function with its source code, seeds and versions of the libraries."""
        return {
            "function": addresses.encode(self.function),
            "seeds": self.seeds,
            "seed": self.seed,
            "sources": addresses.source_digest(self.function),
            "versions": run_folder.versions(),
        }

    def run(self, running: Running) -> dict[str, np.ndarray]:
        """Call the function.

        Raises:
            ValueError: it returns no arrays of numbers or text by name.
        """
        running.show(0, "")
        show = {"show": running.show} if self.reports else {}
        found = self.function(jax.random.split(key_of(self.seed), self.seeds), *self.inputs, **show)
        if not isinstance(found, Mapping):
            raise ValueError(f"function: expected arrays by name, got {type(found).__name__}; return a dictionary")
        arrays = {name: np.asarray(value) for name, value in jax.device_get(dict(found)).items()}
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"function: {name} is not an array of numbers or text; return its parts by name")
        return arrays

    def write(self, folder: Path, result: dict[str, np.ndarray]) -> str:
        """Write the arrays."""
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            files.write_arrays(folder / "arrays.npz", result)
        return "computed"

    def read(self, folder: Path) -> dict[str, np.ndarray] | None:
        """The arrays in the folder; None if there are none, or damaged ones."""
        return files.read_arrays(folder / "arrays.npz")


@dataclasses.dataclass(frozen=True)
class GrowJob:
    """A deep market on many seeds (`populations.grow`); its result is a `GrownMarket`.

    After each chunk a checkpoint is saved in the folder, where a repeated run continues.

    Attributes:
        plan: the market and the length of the run.
        evaluate: measures the frozen populations after every chunk; a function of a module.
        seeds: number of independent markets.
        seed: of all randomness.
    """

    plan: MarketPlan
    evaluate: Evaluate
    seeds: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """The plan with its environment, the measurement, source code, seeds and versions of the libraries."""
        market = vars(self.plan.market) | {"env": run_folder.environment_digest(self.plan.market.env)}
        return {
            "plan": addresses.encode(vars(self.plan) | {"market": market}),
            "evaluate": addresses.encode(self.evaluate),
            "seeds": self.seeds,
            "seed": self.seed,
            "sources": addresses.source_digest(self.plan, self.evaluate, populations.grow),
            "versions": run_folder.versions(),
        }

    def run(self, running: Running) -> GrownMarket:
        """Run the market."""

        def show(chunks: int, found: dict[str, np.ndarray]) -> None:
            running.show(chunks / self.plan.chunks, _means(found))

        running.compile((self.plan.program, self.evaluate))
        return populations.grow(
            self.plan, self.evaluate, seeds=self.seeds, seed=self.seed, folder=running.folder, on_chunk=show
        )

    def write(self, folder: Path, result: GrownMarket) -> str:
        """Describe the last measurements; the run has left the last checkpoint in the folder."""
        return _means({name: values[-1] for name, values in result.measured.items()})

    def read(self, folder: Path) -> GrownMarket | None:
        """The market in the folder; None if there is none, or an interrupted one."""
        return populations.finished(self.plan, self.evaluate, folder, seeds=self.seeds, seed=self.seed)


def _means(found: dict[str, np.ndarray]) -> str:
    """The first three measurements as text."""
    return ", ".join(f"{name} {values.mean():.3f}" for name, values in list(found.items())[:3])
