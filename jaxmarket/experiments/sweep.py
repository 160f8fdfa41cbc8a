"""Training many conditions: finished ones are kept and skipped, two run side by side on a CPU."""

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from jaxmarket import fitting, runs, tables
from jaxmarket.config import TrainConfig
from jaxmarket.experiments.report import Options
from jaxmarket.runs import SavedRun
from jaxmarket.transfer import fingerprint
from jaxmarket.types import Array

__all__ = ["Cell", "Condition", "train"]


class Cell(Protocol):
    """One cell of a sweep: all its seeds are one vmapped call."""

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        ...

    @property
    def config(self) -> TrainConfig:
        """Its settings."""
        ...


@dataclasses.dataclass(frozen=True)
class Condition:
    """A cell that is no more than that."""

    name: str
    config: TrainConfig


def train(
    wanted: Sequence[Cell], options: Options, label: str, start: Mapping[str, SavedRun] | None = None
) -> dict[str, SavedRun]:
    """Train what is not in ``options.folder`` yet; every finished condition by name.

    On CPU two conditions run side by side, each in its own thread. A condition is written when it is
    complete, so after an interruption at most those under way are lost.

    Args:
        wanted: the conditions.
        options: seed, folder, and whether to show a progress bar.
        label: of the progress bar.
        start: by a condition's name, the run whose networks it starts from.

    Raises:
        ValueError: the folder holds a condition of that name with other settings or another seed.
    """
    start = start or {}
    key = jax.random.key(options.seed)
    origins = {name: fingerprint(run.networks) for name, run in start.items()}
    found = {c.name: _finished(options.folder / c.name, c, key, origins.get(c.name)) for c in wanted}
    finished = {name: run for name, run in found.items() if run is not None}
    waiting = [c for c in wanted if c.name not in finished]
    total = sum(_steps(c.config) for c in waiting)
    stop, done = threading.Event(), dict.fromkeys((c.name for c in waiting), 0)
    workers = min(2, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    with tables.progress(label, shown=options.progress and bool(waiting)) as show:
        if finished:
            show.say(f"{len(finished)} of {len(wanted)} conditions are in {options.folder} already")

        def fit_one(condition: Cell) -> Any:
            def on_chunk(steps: int, _: int, metrics: dict[str, np.ndarray]) -> None:
                if stop.is_set():
                    raise concurrent.futures.CancelledError
                done[condition.name] = steps * condition.config.seeds
                show(sum(done.values()), total, f"{condition.name} {tables.return_note(metrics)}")

            return fitting.fit(
                condition.config, key, start=start.get(condition.name), progress=False, on_chunk=on_chunk
            )

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(fit_one, condition): condition for condition in waiting}
            try:
                for future in concurrent.futures.as_completed(futures):
                    condition, result = futures[future], future.result()
                    runs.write(options.folder / condition.name, result)
                    finished[condition.name] = _read(options.folder / condition.name, condition)
                    s = result.summary
                    show.say(
                        f"{condition.name}: greedy return {s['return_mean']:.3f} "
                        f"({min(s['return_seeds']):.3f} … {max(s['return_seeds']):.3f}), {s['run_seconds']:.0f} s"
                    )
            except BaseException:
                show.say("stopping: the conditions under way are given up, the finished ones are kept")
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return finished


def _steps(config: TrainConfig) -> int:
    return config.seeds * config.chunks * config.auctions_per_chunk


def _read(folder: Path, condition: Cell) -> SavedRun:
    # What a file cannot hold is taken from the condition.
    objects = {"env": condition.config.env, "auction": condition.config.auction}
    return runs.read(folder, **{field: value for field, value in objects.items() if not isinstance(value, str)})


def _finished(folder: Path, condition: Cell, key: Array, origin: str | None) -> SavedRun | None:
    if not (folder / "summary.json").exists():
        return None
    run = _read(folder, condition)
    if run.config != condition.config or run.summary["key"] != jax.random.key_data(key).tolist():
        raise ValueError(f"out: {folder} holds a run with other settings or another seed; choose another folder")
    if run.summary.get("start") != origin:
        raise ValueError(
            f"out: {folder} holds a run that went on from other networks; remove it, or choose another folder"
        )
    return run
