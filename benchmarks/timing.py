"""The timer of all benchmarks, and their report.

`measure` compiles ahead of time, so that the measurement includes no tracing; warms up; blocks on the result; repeats
at least ten times, alternating between candidates, so that changes of machine load affect all of them; and reports the
median and interquartile range. The report contains all raw timings, the device, versions and commit.
"""

import dataclasses
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Group

from jaxmarket.runs.files import write_text
from jaxmarket.switches import compiler_options
from jaxmarket.types import Array, PyTree
from jaxmarket.view.plotting import save
from jaxmarket.view.text import DataTable

__all__ = [
    "REPEATS",
    "ROOT",
    "Report",
    "Timing",
    "allowed_cores",
    "every_core",
    "executable",
    "exponent",
    "in_a_row",
    "machine",
    "measure",
    "pinned",
]

REPEATS = 10
ROOT = Path(__file__).parents[1]
"""The checkout: the folder from which a child process imports `benchmarks`."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """The time of one compiled call.

    Attributes:
        seconds: seconds of each repeat.
        compile_seconds: seconds of tracing, lowering and compilation, with all cores.
        memory_bytes: planned size of arguments, results and temporaries of the program; None if XLA does not report it.
    """

    seconds: tuple[float, ...]
    compile_seconds: float
    memory_bytes: int | None = None

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return float(np.median(self.seconds))

    @property
    def iqr(self) -> float:
        """Interquartile range of the repeats."""
        low, high = np.quantile(self.seconds, (0.25, 0.75))
        return float(high - low)

    def raw(self) -> dict[str, Any]:
        """All fields and statistics, for JSON."""
        return {**dataclasses.asdict(self), "median": self.median, "iqr": self.iqr}


def measure(
    candidates: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]],
    repeats: int = REPEATS,
    others: Mapping[str, Callable[[], Any]] | None = None,
    results: dict[str, Any] | None = None,
    large: Collection[str] = (),
) -> dict[str, Timing]:
    """Compile each function for its arguments, warm it up, and time it alternately with the others.

    Args:
        candidates: pure functions and their arguments, by name.
        repeats: number of timed calls of each.
        others: functions of other libraries by name, which are called as they are; their compile time is that of a
            first call.
        results: receives what each of the candidates returned in its warm-up, by name, if it is given. Results are not
            kept otherwise, because they may be large.
        large: names of the candidates that train large networks (`jaxmarket.switches.compiler_options`).

    Raises:
        RuntimeError: a function was traced more than once.
    """
    calls: dict[str, Callable[[], Any]] = {}
    compile_seconds, memory = {}, {}
    for name, (function, arguments) in candidates.items():
        traces = []

        def counted(*arguments: Any, function: Callable = function, traces: list = traces) -> Any:
            traces.append(1)
            return function(*arguments)

        began = time.perf_counter()
        program = executable(counted, *arguments, large=name in large)
        compile_seconds[name] = time.perf_counter() - began
        result = jax.block_until_ready(program(*arguments))
        if results is not None:
            results[name] = result
        del result
        if len(traces) != 1:
            raise RuntimeError(f"{name}: traced {len(traces)} times, a benchmark times one program")
        plan = program.memory_analysis()
        memory[name] = (
            None
            if plan is None
            else int(plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes)
        )
        calls[name] = functools.partial(program, *arguments)
    for name, call in (others or {}).items():
        began = time.perf_counter()
        with every_core():
            call()
        compile_seconds[name], calls[name] = time.perf_counter() - began, call
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(seconds[name]), compile_seconds[name], memory.get(name)) for name in calls}


def in_a_row(
    rollout: Callable[[Array, PyTree], tuple[PyTree, PyTree]], count: int
) -> Callable[[Array, PyTree], tuple[PyTree, PyTree]]:
    """A function that runs ``count`` rollouts in one program, so that the overhead of a call is negligible.

    The latest rows are part of the loop's carry, so that each rollout writes all of its rows to memory, as it would for
    a learner, and XLA cannot eliminate unused rows.

    Args:
        rollout: ``(key, state) -> (state, rows)``.
        count: number of rollouts per call.
    """

    def rollouts(key: Array, state: PyTree) -> tuple[PyTree, PyTree]:
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(rollout, key, state)[1])

        def body(carry: tuple[Array, PyTree, PyTree], _: None) -> tuple[tuple[Array, PyTree, PyTree], None]:
            key, key_rollout = jax.random.split(carry[0])
            return (key, *rollout(key_rollout, carry[1])), None

        (_, state, rows), _ = jax.lax.scan(body, (key, state, blank), None, length=count)
        return state, rows

    return rollouts


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The exponent p of the least-squares fit ``value = c · size^p``, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


_ALLOWED = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


@contextmanager
def pinned(cores: int = 1) -> Iterator[None]:
    """Restrict this process to the first ``cores`` cores. Enter it before JAX starts its backend.

    A backend keeps the cores that it starts with. On CPUs XLA runs small operations fastest on one core, and
    single-core results are comparable. If the backend is an accelerator, all cores are restored. It has no effect on
    systems without CPU affinity.
    """
    if _ALLOWED is None:
        yield
        return
    os.sched_setaffinity(0, allowed_cores()[:cores])
    try:
        if jax.default_backend() != "cpu":
            os.sched_setaffinity(0, _ALLOWED)
        yield
    finally:
        os.sched_setaffinity(0, _ALLOWED)


def allowed_cores() -> list[int]:
    """The ids of the cores that this process may use."""
    return list(range(os.cpu_count() or 1)) if _ALLOWED is None else sorted(_ALLOWED)


@contextmanager
def every_core() -> Iterator[None]:
    """Use all cores, for compilation, inside `pinned`."""
    if _ALLOWED is None:
        yield
        return
    confined = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _ALLOWED)
    try:
        yield
    finally:
        os.sched_setaffinity(0, confined)


def executable(function: Callable[..., Any], *arguments: Any, large: bool = False) -> Any:
    """The compiled program of a function for these arguments, with the options with which `fit` compiles.

    Args:
        function: a pure function.
        *arguments: its arguments.
        large: whether it trains large networks.
    """
    with every_core():
        return jax.jit(function).lower(*arguments).compile(compiler_options=compiler_options(large=large))


def counts(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """What XLA counts in one call of a function, such as ``flops``; loop bodies once."""
    return executable(function, *arguments).cost_analysis() or {}


def machine() -> dict[str, Any]:
    """The device, machine, versions and commit of a measurement."""
    device = jax.devices()[0]
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu": models[0] if models else platform.processor(),
        "cores_used": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jaxmarket", "jax", "jaxlib", "flax", "optax", "gymnax")},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> str | None:
    """The commit of the checkout, with a + if files differ from it; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False).stdout

    return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno").strip() else "")


@dataclasses.dataclass
class Report:
    """The results of a benchmark.

    Attributes:
        name: name of the benchmark.
        machine: device, versions and commit, see `machine`.
        headline: the main numbers by name.
        tables: rows of numbers by title; columns are shown in the order of their keys.
        notes: sentences below the tables.
        timings: raw seconds by measured program.
        figure: a Matplotlib figure, or None.
    """

    name: str
    machine: dict[str, Any] = dataclasses.field(default_factory=machine)
    headline: dict[str, float | None] = dataclasses.field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    timings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    figure: Any = None

    def keep(self, label: str, timings: Mapping[str, Timing]) -> None:
        """Store the raw seconds of a measurement."""
        self.timings |= {f"{label}: {name}": timing.raw() for name, timing in timings.items()}

    def view(self) -> Group:
        """The tables and notes for a terminal."""
        shown: list[Any] = []
        for title, rows in self.tables.items():
            table = DataTable(title=title)
            for number, column in enumerate(rows[0] if rows else ()):
                numeric = isinstance(rows[0][column], int | float)
                table.add_column(column, justify="right" if numeric else "left", wrap=12 if number else 0)
            for row in rows:
                table.add_row(*(_cell(value) for value in row.values()))
            shown.append(table)
        numbers = DataTable("", title=self.name, show_header=False)
        numbers.add_column("", justify="right")
        for key, value in self.headline.items():
            numbers.add_row(key, _cell(value))
        return Group(*shown, numbers, *self.notes)

    def to_json(self) -> dict[str, Any]:
        """The headline, tables, notes and machine, without raw seconds."""
        return {
            "benchmark": self.name,
            **self.headline,
            "machine": self.machine,
            "tables": self.tables,
            "notes": self.notes,
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the report with all raw seconds to ``folder/NAME.json``, and its figure to ``folder/NAME.png``."""
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{self.name}.json"]
        write_text(written[0], json.dumps({**self.to_json(), "timings": self.timings}, indent=1) + "\n")
        if self.figure is not None:
            written.append(folder / f"{self.name}.png")
            save(self.figure, written[1])
        return written


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
