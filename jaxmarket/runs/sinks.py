"""Metric sinks: loggers that receive the metrics of every chunk.

A logger is a callable that takes a `Record`. It is called after every chunk, in order. If a run is resumed, it is first
called with the earlier chunks, so that a logger that writes a file starts it again and no row appears twice. Your own
logger takes a few lines::

    def worst_seed(record):
        print(record.chunk, record.metrics["return_mean"].min())

    jaxmarket.fit(config, key, loggers=[worst_seed])
"""

import csv
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmarket.metrics import env_steps
from jaxmarket.training.result import RunResult
from jaxmarket.view.text import emit

__all__ = [
    "LOGGERS",
    "Logger",
    "Record",
    "console",
    "csv_rows",
    "json_lines",
    "records",
    "tensorboard",
    "to_json",
    "wandb",
]


@dataclasses.dataclass(frozen=True)
class Record:
    """The state of a run after a chunk.

    Attributes:
        chunk: number of the chunk, from 1.
        chunks: number of chunks of the run.
        auctions: auctions per seed so far.
        env_steps: i64 [seeds], environment steps so far.
        metrics: by name, f [seeds], or [seeds, n] per bidder or state; `jaxmarket.metrics` defines them.
        earlier: whether the chunk was trained before the run was resumed.
    """

    chunk: int
    chunks: int
    auctions: int
    env_steps: np.ndarray
    metrics: dict[str, np.ndarray]
    earlier: bool = False

    def columns(self) -> dict[str, np.ndarray]:
        """The metrics as columns, one for each bidder or state, named as ``wins[0]``: f [seeds] each."""
        columns = {}
        for name, values in self.metrics.items():
            columns |= {name: values} if values.ndim == 1 else {f"{name}[{i}]": v for i, v in enumerate(values.T)}
        return columns

    @property
    def names(self) -> list[str]:
        """Names of the columns of `rows`."""
        return ["chunk", "env_steps", "seed", *self.columns()]

    def rows(self) -> list[list[float]]:
        """A row of numbers per seed."""
        columns = self.columns().values()
        return [
            [self.chunk, int(steps), seed, *(float(values[seed]) for values in columns)]
            for seed, steps in enumerate(self.env_steps)
        ]


Logger = Callable[[Record], None]


def records(result: RunResult) -> Iterator[Record]:
    """The records that the loggers of a finished run received."""
    settings, metrics = result.config.settings, result.metrics
    if not metrics:  # interrupted in the first chunk
        return
    for i, steps in enumerate(env_steps(metrics["duration"], settings.auctions_per_chunk)):
        chunk = {name: values[i] for name, values in metrics.items()}
        yield Record(i + 1, settings.chunks, (i + 1) * settings.auctions_per_chunk, steps, chunk)


def to_json(value: Any) -> str:
    """One line of strict JSON: NaN and infinities become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(value), allow_nan=False)


def console() -> Logger:
    """A line per chunk on standard output: mean and spread over seeds of the return and the auction revenue."""

    def log(record: Record) -> None:
        if record.earlier:
            return
        words = [f"{record.chunk}/{record.chunks}", f"{int(record.env_steps.sum()):,} steps"]
        lost = record.metrics.get("diverged", np.zeros(0)) > 0
        if lost.any():
            words.append(f"{lost.sum()} of {len(lost)} seeds diverged")
        for name in ("return_mean", "auction_revenue"):
            values = record.metrics.get(name, np.zeros(0))
            values = values[np.isfinite(values) & ~lost] if len(lost) == len(values) else values[np.isfinite(values)]
            if len(values):
                words.append(f"{name} {values.mean():.3f} ± {values.std():.3f}")
        emit(" · ".join(words))

    return log


def json_lines(path: str | Path) -> Logger:
    """A JSON object per chunk; every metric is a list over seeds."""
    path = Path(path)

    def log(record: Record) -> None:
        lists = {name: values.tolist() for name, values in record.metrics.items()}
        row = {"chunk": record.chunk, "env_steps": record.env_steps.astype(int).tolist(), **lists}
        with path.open("w" if record.chunk == 1 else "a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")

    return log


def csv_rows(path: str | Path) -> Logger:
    """A row per chunk and seed; a metric per bidder or state has a column for each, such as ``wins[0]``."""
    path = Path(path)

    def log(record: Record) -> None:
        if record.chunk == 1:
            path.unlink(missing_ok=True)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows(([record.names] if record.chunk == 1 else []) + record.rows())

    return log


def tensorboard(folder: str | Path) -> Logger:
    """Event files for TensorBoard: a run ``seedN`` for every seed, over environment steps. Extra: tensorboard.

    Raises:
        ValueError: the extra is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found]  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ValueError("log: tensorboardX is not installed; pip install 'jaxmarket[tensorboard]'") from error
    folder, writers = Path(folder), []

    def log(record: Record) -> None:
        if record.chunk == 1:
            for old in folder.glob("seed*/events.*"):
                old.unlink()
            writers[:] = [SummaryWriter(str(folder / f"seed{i}")) for i in range(len(record.env_steps))]
        for seed, writer in enumerate(writers):
            for name, values in record.columns().items():
                if not np.isnan(values[seed]):
                    tag = name.replace("[", "/").removesuffix("]")  # TensorBoard replaces brackets by underscores
                    writer.add_scalar(tag, float(values[seed]), int(record.env_steps[seed]))
            if record.chunk == record.chunks:
                writer.close()  # `flush` would not write what is still in its queue

    return log


def wandb(**settings: Any) -> Logger:
    """Weights & Biases: ``seedN/METRIC`` over chunks, in one run. Extra: wandb.

    Args:
        settings: arguments of ``wandb.init``. Give ``id=`` and ``resume="allow"`` for a run that may be resumed:
            Weights & Biases drops rows that it already has.

    Raises:
        ValueError: the extra is not installed.
    """
    try:
        import wandb as client  # type: ignore[import-not-found]  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ValueError("log: wandb is not installed; pip install 'jaxmarket[wandb]'") from error
    run = client.init(**settings)

    def log(record: Record) -> None:
        values = {
            f"seed{seed}/{name}": float(value)
            for name, column in record.columns().items()
            for seed, value in enumerate(column)
            if not np.isnan(value)
        }
        steps = {f"seed{seed}/env_steps": int(steps) for seed, steps in enumerate(record.env_steps)}
        run.log(values | steps, step=record.chunk)

    return log


LOGGERS: dict[str, Callable[[Path | None], Logger]] = {
    "console": lambda _: console(),
    "jsonl": lambda out: json_lines(_within(out, "metrics.jsonl")),
    "tensorboard": lambda out: tensorboard(_within(out, "tensorboard")),
    "wandb": lambda out: wandb(project="jaxmarket", name=None if out is None else out.name),
}
"""Loggers by their names on the command line. Each takes the run folder, which always has a ``metrics.csv``."""


def _within(out: Path | None, name: str) -> Path:
    if out is None:
        raise ValueError(f"log: {name} is written into the run folder; give --out")
    return out / name
