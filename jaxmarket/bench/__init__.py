"""Benchmarks on this machine, with a common timer (`timing`) and results in JSON."""

import importlib
from collections.abc import Callable
from pathlib import Path

import jax

from jaxmarket.bench.timing import Report, pinned
from jaxmarket.runs import files
from jaxmarket.validation import check_int

__all__ = ["BENCHMARKS", "bench", "conduct"]


BENCHMARKS = {
    "step": "rollouts, compared with the same environment and networks without a market",
    "train": "complete training, compared with a monolithic agent and Stable-Baselines3; many seeds",
    "scale": "growth of time and memory with bidders, instances and width",
    "population": "births, deaths and auctions of up to thousands of agents in one population",
    "equilibrium": "equilibria of 1,024 agents and 64 goods, one and 256 at once, compared with independent solvers",
    "compile": "import, tracing and compiling against the size of the program",
    "roofline": "training, compared with the device's arithmetic and memory limits",
}
"""What each benchmark measures. The Python module of that name has ``run(quick) -> Report``."""


def bench(name: str, out: str | Path | None = None, *, quick: bool = False, cores: int = 1) -> Report:
    """Run a benchmark and write its results with all raw timings to ``out/NAME.json``.

    Args:
        name: one of `BENCHMARKS`.
        out: folder, by default ``bench``.
        quick: measure only the headline numbers, in less than a minute.
        cores: CPU cores to use; more than one is usually slower. A backend that has already started keeps its cores.

    Raises:
        ValueError: the name is unknown, or the machine has fewer cores.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"name: unknown benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    return conduct(importlib.import_module(f"jaxmarket.bench.{name}").run, out, quick=quick, cores=cores)


def conduct(
    run: Callable[[bool], Report], out: str | Path | None = None, *, quick: bool = False, cores: int = 1
) -> Report:
    """Run a benchmark that is given as a function, as `bench` does."""
    cores = check_int("cores", cores)
    folder = Path("bench" if out is None else out)
    with files.writing(folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)  # compile times must not include cache hits
    try:
        with pinned(cores):
            report = run(quick)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    report.write(folder)
    return report
