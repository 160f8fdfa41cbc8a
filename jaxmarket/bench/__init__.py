"""Benchmarks: what jaxmarket costs on this machine, measured by one timer (`timing`) and kept as JSON."""

import dataclasses
import importlib
from pathlib import Path

from jaxmarket.bench.timing import Report, pin

__all__ = ["BENCHMARKS", "Benchmark", "bench"]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark by name: the module of that name has a ``run(quick) -> Report``."""

    shows: str


BENCHMARKS = {
    "step": Benchmark("rollouts beside the same environment and networks without a market"),
    "train": Benchmark("complete training beside a monolithic agent, many seeds, and Stable-Baselines3"),
    "scale": Benchmark("growth of time and memory with bidders, instances and width"),
    "compile": Benchmark("import, tracing and compiling against the size of the program"),
    "roofline": Benchmark("training beside the device's arithmetic and memory limits"),
}
"""The benchmarks by name."""


def bench(name: str, out: str | Path | None = None, *, quick: bool = False, cores: int = 1) -> Report:
    """Run a benchmark and write its numbers, raw seconds included, to ``out/NAME.json``.

    Args:
        name: one of `BENCHMARKS`.
        out: folder, ``bench`` by default.
        quick: the headline numbers only, within a minute.
        cores: on a CPU, cores this process may use; more than one is usually slower.

    Raises:
        ValueError: there is no such benchmark, or no such number of cores.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name: unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    if isinstance(cores, bool) or not isinstance(cores, int) or cores < 1:
        raise ValueError(f"cores: expected a whole number >= 1, got {cores!r}")
    folder = Path("bench" if out is None else out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder} ({error.strerror}); choose another folder") from error
    pin(cores)
    report = importlib.import_module(f"jaxmarket.bench.{name}").run(quick)
    report.write(folder)
    return report
