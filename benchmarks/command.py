"""What benchmarks of speed have in common on the command line: options, how they run, and what they show."""

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from benchmarks import PROGRAMS, SPEED
from benchmarks.timing import Report, pinned
from jaxmarket.runs import files
from jaxmarket.runs.sinks import to_json
from jaxmarket.validation import check_int
from jaxmarket.view.text import Screen, emit

__all__ = ["conduct", "main", "options", "parse"]


def options(description: str | None, out: str = "bench") -> argparse.ArgumentParser:
    """A parser of the options of every benchmark of speed.

    Args:
        description: what ``--help`` shows above the options.
        out: default folder of the results.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer or smaller measurements, in less than a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"folder of NAME.json with raw timings; {out}")
    parser.add_argument("--cores", type=int, default=1, help="number of CPU cores; more than one is usually slower")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, and create the folder. Invalid values end the process with exit code 2."""
    given = parser.parse_args(arguments)
    try:
        check_int("cores", given.cores)
        with files.writing(given.out, "choose another folder"):
            given.out.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        parser.exit(2, f"benchmarks: {error}\n")
    return given


def conduct(run: Callable[[bool], Report], given: argparse.Namespace) -> Report:
    """Run a benchmark with the parsed options, write its results with all raw timings, and show them.

    Args:
        run: measures; its argument is ``--quick``.
        given: the result of `parse`.
    """
    report = _measured(run, given)
    if given.json:
        emit(to_json(report.to_json()))
    return report


def _measured(run: Callable[[bool], Report], given: argparse.Namespace) -> Report:
    """`conduct` without JSON on standard output."""
    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)  # compile times must not include cache hits
    try:
        with pinned(given.cores):
            report = run(given.quick)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    written = report.write(given.out)
    screen = Screen()
    screen.message(f"{report.name}: {(SPEED | PROGRAMS)[report.name]}", "bold")
    screen.print(report.view())
    screen.message(f"written to {given.out}: {', '.join(path.name for path in written)}")
    return report


def main(name: str | None, arguments: Sequence[str]) -> int:
    """Run one of `SPEED`, or all of them if ``name`` is None; returns the exit code."""
    if name is not None:
        module = importlib.import_module(f"benchmarks.{name}")
        conduct(module.run, parse(options(module.__doc__), arguments))
        return 0
    names = "\n".join(f"  {each:12s} {does}" for each, does in (SPEED | PROGRAMS).items())
    about = f"NAME is one of the following, and has its own --help. Without NAME, the first {len(SPEED)} run."
    parser = options(f"{about}\n\n{names}")
    parser.usage = "python -m benchmarks [NAME] [-h] [--quick] [--json] [--out OUT] [--cores CORES]"
    given = parse(parser, arguments)
    reports = [_measured(importlib.import_module(f"benchmarks.{each}").run, given) for each in SPEED]
    if given.json:
        emit(to_json({"benchmarks": [report.to_json() for report in reports]}))
    return 0
