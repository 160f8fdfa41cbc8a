"""Tests and benchmarks for one accelerator, within eight minutes.

    python -m benchmarks accelerator --out benchmarks/results/gpu
    python -m benchmarks accelerator --parts tests scale
    python -m benchmarks accelerator --quick

First the tests of auctions, settlement, parity with the reference market and conservation of money run on the device,
in a process of their own, with products of matrices in full precision. Then the other benchmarks of speed run
with sizes for an accelerator: rollouts, training, growth with bidders and instances, populations, equilibria, image
societies and many seeds.

Every part has a budget of seconds. A part that fails, runs out of memory or exceeds its budget is reported as failed
with its reason, what it measured until then is kept, and the other parts go on. Results are written after each part:
``PART.json`` with the raw timings (and ``PART.png``), and ``accelerator.json`` and ``accelerator.png`` with all of
them. The exit code is 1 if a part failed. JAX chooses the device; without an accelerator everything runs on the CPU,
where most parts exceed their budgets.

``--quick`` runs every part with the smallest sizes, in less than a minute on a CPU: a test of this program, not a
measurement.
"""

import dataclasses
import functools
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from benchmarks import command, equilibrium, population, scale, step, train
from benchmarks.timing import ROOT, Report, measure
from jaxmarket.learners.protocol import is_large
from jaxmarket.runs.devices import over_seeds
from jaxmarket.training.pinned import train_config
from jaxmarket.view.plotting import figure
from jaxmarket.view.text import Screen

TOTAL = 480.0
"""Seconds of all parts together."""
TESTS = (
    "tests/core/test_auctions.py",
    "tests/core/test_settlement.py",
    "tests/core/test_accounts.py",
    "tests/core/test_parity.py",
    "tests/core/test_metrics.py::test_conservation_residual_sees_lost_money",
    "tests/deep_market/test_market.py::test_instances_share_one_table_of_wealth",
    "tests/deep_market/test_market.py::test_every_change_of_the_money_supply_has_a_name",
    "tests/wide_market/test_wide_market.py::test_every_change_of_the_money_supply_has_a_name",
)
QUICK_TESTS = ("tests/core/test_accounts.py",)


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        seconds: its budget.
        run: measures, and adds what it finds to the report.
    """

    seconds: float
    run: Callable[[Report, bool], None]


def run_tests(quick: bool, seconds: float) -> tuple[bool, str]:
    """Run the tests on the device; whether they passed, and pytest's last line with the names of failed tests.

    To be called before this process starts JAX's backend, which may reserve the device's memory.
    """
    environment = {
        "JAX_PLATFORMS": "",  # the tests' default is the CPU
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    workers = "4" if Path("/dev/nvidiactl").exists() else "0"  # processes can share a GPU, but not every accelerator
    # Equal bits of different programs are promised on CPUs only.
    command = [sys.executable, "-m", "pytest", "-q", "-n", workers, "-m", "not bits and not slow and not full"]
    command += QUICK_TESTS if quick else TESTS
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"not finished after {seconds:.3g} s"
    lines = done.stdout.splitlines() or done.stderr.splitlines() or ["no output"]
    failed = [line.split(" - ")[0] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, "; ".join([lines[-1].strip("= "), *failed])


def rollouts(report: Report, quick: bool) -> None:
    """Rollouts and market tax of CartPole and Chain with 1,024 instances, and of CartPole with 65,536."""
    if quick:
        step.add_case(report, step.Case("Bandit-v0", instances=2, hidden=(3,), horizon=2), 2, 4)
        return
    tax = step.add_case(report, step.TAX)
    report.headline |= {"market_tax": tax["tax"], "steps_per_second": 1e6 * tax["M/s"]}
    report.headline["chain_market_tax"] = step.add_case(report, step.Case("Chain-v0", hidden=(16,)))["tax"]
    large = dataclasses.replace(step.TAX, instances=2**16, horizon=32)
    report.headline["steps_per_second_65536_instances"] = 1e6 * step.add_case(report, large)["M/s"]


def training(report: Report, quick: bool) -> None:
    """Complete training and rollouts of Chain, with 128 instances as on the CPU and with more."""
    few: dict[str, Any] = {"hidden": (16,), "horizon": 32}
    sizes = {128: 10, 2**12: 4, 2**16: 2}  # updates per call by instances
    if quick:
        few, sizes = {"hidden": (3,), "horizon": 2}, {4: 1}
    rows = report.tables.setdefault("complete training of Chain-v0, steps/s", [])
    for instances, updates in sizes.items():
        shape = {"instances": instances, "minibatch": max(128, instances) if not quick else 4}
        steps = updates * instances * few["horizon"]
        config = train_config("Chain-v0", steps=steps, log_every=updates, **shape, **few)
        rates = train.beside_rollouts(report, f"Chain, {instances} instances", config, 2 if quick else 10)
        rows.append({"instances": instances, **rates})
    report.headline |= {
        "chain_steps_per_second": rows[0]["training"],
        "train_over_rollout": rows[0]["training"] / rows[0]["rollouts"],
        "chain_steps_per_second_largest": rows[-1]["training"],
    }


def growth(report: Report, quick: bool) -> None:
    """Growth of time and memory with 2^10 to 2^20 instances and 2 to 4,096 bidders."""
    sweeps = {"bidders": (2, 8, 32, 128, 512, 2048, 4096), "instances": tuple(2**k for k in range(10, 21, 2))}
    if quick:
        sweeps = {"bidders": (2, 4), "instances": (2,)}
    for what, sizes in sweeps.items():
        for _ in scale.sweep(report, what, sizes, 4_000 if quick else 1_000_000):
            pass
    report.headline |= scale.exponents(report)
    largest = report.tables["growth with instances"][-1]
    report.headline["steps_per_second_most_instances"] = 1e6 / largest["µs per step"]
    report.figure = scale.draw(report)


def populations(report: Report, quick: bool) -> None:
    """Populations with births and deaths of up to 4,096 agents."""
    for _ in population.sweep(report, "rules", (16,) if quick else (64, 512, 4096), 1 if quick else 10_000_000):
        pass
    population.summarize(report, ("rules",))


def equilibria(report: Report, quick: bool) -> None:
    """Equilibria of 1,024 agents and 64 goods, one and 64 at once."""
    names = ("Fisher",) if quick else ("Quadratic", "Logarithmic", "Linear", "Fisher")
    agents, goods = (8, 2) if quick else (1024, 64)
    for name in names:
        case = dataclasses.replace(equilibrium.CASES[name], references={})
        equilibrium.compare(report, name, case, agents, goods)
        equilibrium.many(report, name, case, agents, goods, [("vmap", 2 if quick else 64)], time_limit=1.0)
    one, _, batch = report.tables.values()
    for row in one:
        report.headline[f"ms {row['valuations']} {row['solver']}"] = row["ms"]
    met = sum(row["meets"] == "yes" for row in one) + sum(row["meet"] for row in batch)
    report.headline["markets_that_meet"] = met / (len(one) + sum(int(row["way"].split()[1]) for row in batch))


def images(report: Report, quick: bool) -> None:
    """Complete training on images: Breakout, by `valuation` and by `ppo`."""
    shape: dict[str, Any] = {
        "instances": 256,
        "horizon": 32,
        "minibatch": 1024,
        "convolutions": (16,),
        "hidden": (128,),
    }
    if quick:
        shape = {"instances": 2, "horizon": 2, "minibatch": 4, "convolutions": (1,), "hidden": (2,)}
    rows = report.tables.setdefault("complete training of Breakout-MinAtar, steps/s", [])
    for learner in ("valuation",) if quick else ("valuation", "ppo"):
        steps = shape["instances"] * shape["horizon"]
        config = train_config("Breakout-MinAtar", learner=learner, steps=steps, log_every=1, **shape)
        chunk, start = train.training(config)
        state = jax.jit(start)(jax.random.key(0))
        large = [learner] if is_large(state.learner.params, config.settings.society.modules) else []
        timing = measure({learner: (chunk, (state,))}, 2 if quick else 10, large=large)
        report.keep("Breakout", timing)
        rows.append({"learner": learner, "steps/s": steps / timing[learner].median})
        report.headline[f"breakout_{learner}_steps_per_second"] = rows[-1]["steps/s"]


def many_seeds(report: Report, quick: bool) -> None:
    """Chain with up to 256 seeds in one call."""
    config = dataclasses.replace(train.CHAIN, steps=4_096, log_every=1)
    if quick:
        config = train_config("Bandit-v0", hidden=(3,), instances=2, horizon=2, minibatch=4, steps=4, log_every=1)
    chunk, start = train.training(config)
    rows = report.tables.setdefault(f"seeds × {config.settings.instances} instances of {config.env}", [])
    for seeds in (2,) if quick else (1, 16, 64, 256):
        states = jax.jit(jax.vmap(start))(jax.random.split(jax.random.key(0), seeds))
        timing = measure({f"{seeds} seeds": (functools.partial(over_seeds, chunk), (states,))}, 2 if quick else 10)
        report.keep("seeds", timing)
        rate = seeds * config.settings.auctions_per_chunk / timing[f"{seeds} seeds"].median
        rows.append({"seeds": seeds, "steps/s": rate})
        report.headline[f"seeds{seeds}_steps_per_second"] = rate


TEST_SECONDS = 130.0
PARTS: Mapping[str, Part] = {
    "step": Part(40, rollouts),
    "train": Part(75, training),
    "scale": Part(80, growth),
    "population": Part(35, populations),
    "equilibrium": Part(45, equilibria),
    "images": Part(35, images),
    "seeds": Part(40, many_seeds),
}
"""The measurements. Their budgets and that of the tests add up to `TOTAL`."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the body after some seconds, as soon as a running call of JAX returns.

    It has no effect on systems without SIGALRM.
    """
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not finished after {seconds:.3g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(name: str, seconds: float, quick: bool, folder: Path) -> tuple[Report, str]:
    """The report of a part, which is also written to the folder; and why the part failed, or an empty string."""
    report, reason = Report(name), ""
    try:
        with time_limit(seconds):
            PARTS[name].run(report, quick)
    except Exception as error:  # whatever it is, the next part goes on
        first = next(iter(str(error).splitlines()), "")
        reason = f"{type(error).__name__}: {first[:200]}"
        report.notes.append(f"failed: {reason}")
    report.write(folder)
    jax.clear_caches()
    gc.collect()  # arrays of a part that ran out of memory
    return report, reason


def run(
    quick: bool = False, *, parts: Sequence[str], folder: Path, began: float, tests: tuple[bool, str] | None
) -> Report:
    """Run the parts, and write the results after each.

    Args:
        quick: the smallest sizes.
        parts: some of `PARTS`.
        folder: for the results.
        began: `time.monotonic` at the start, for the budget of all parts.
        tests: the result of `run_tests`, None if they did not run.
    """
    report = Report("accelerator")
    rows = report.tables.setdefault("parts", [])

    def add(part: str, passed: bool, seconds: float, reason: str) -> None:
        result = "passed" if passed else "failed"
        rows.append({"part": part, "result": result, "seconds": seconds, "reason": reason})
        report.headline["failed"] = float(sum(row["result"] == "failed" for row in rows))

    if tests is not None:
        add("tests", tests[0], time.monotonic() - began, tests[1])
    done: dict[str, Report] = {}
    for name in parts:
        started = time.monotonic()
        seconds = min(PARTS[name].seconds, began + TOTAL - started)
        if seconds <= 0:
            add(name, False, 0.0, f"no time is left of {TOTAL:.0f} s")
        else:
            done[name], reason = run_part(name, seconds, quick, folder)
            add(name, not reason, time.monotonic() - started, reason)
            report.headline |= {f"{name}: {key}": value for key, value in done[name].headline.items()}
        Screen().message(f"{name}: {rows[-1]['result']} {rows[-1]['reason']}".rstrip())
        report.figure = draw(done, report.machine)
        report.write(folder)
    report.headline["seconds"] = time.monotonic() - began
    for name, each in done.items():
        report.tables |= {f"{name}: {title}": table for title, table in each.tables.items() if table}
    return report


def draw(done: Mapping[str, Report], machine: Mapping[str, Any]) -> Any:
    """Speed over instances, bidders, agents and seeds, as far as they were measured; None without a measurement."""
    per, work = "µs per step", "M agents × instances × steps/s"
    panels: list[tuple[str, str, str, str, Callable[[Mapping[str, Any]], float]]] = [
        ("scale", "growth with instances", "instances", "rollouts, steps/s", lambda row: 1e6 / row[per]),
        ("scale", "growth with bidders", "bidders", "rollouts, bids/s", lambda row: 1e6 * row["bidders"] / row[per]),
        ("train", "complete training", "instances", "training, steps/s", lambda row: row["training"]),
        ("seeds", "seeds", "seeds", "training, steps/s", lambda row: row["steps/s"]),
        ("population", "rules", "capacity", "agents × instances × steps/s", lambda row: 1e6 * row[work]),
    ]
    found = [
        (rows, size, quantity, value)
        for name, title, size, quantity, value in panels
        for key, rows in (done[name].tables if name in done else {}).items()
        if key.startswith(title) and rows
    ]
    if not found:
        return None
    fig, axes = figure(len(found), width=3.2, height=3.0)
    for ax, (rows, size, quantity, value) in zip(axes, found, strict=True):
        ax.loglog([row[size] for row in rows], [value(row) for row in rows], "o-")
        ax.set_xscale("log", base=2)
        ax.set(xlabel=size, title=quantity)
        ax.grid(which="major", alpha=0.3)
    fig.suptitle(f"{machine['device']}, jax {machine['jax']}", fontsize=10)
    return fig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = command.options(__doc__, "bench/accelerator")
    everything = ("tests", *PARTS)
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything, help="parts; all by default")
    given = command.parse(parser, arguments)
    began, tests = time.monotonic(), None
    if "tests" in given.parts:
        tests = run_tests(given.quick, TEST_SECONDS)
        Screen().message(f"tests: {tests[1]}")
    wanted = [name for name in PARTS if name in given.parts]
    measured = functools.partial(run, parts=wanted, folder=given.out, began=began, tests=tests)
    report = command.conduct(measured, given)
    return int(bool(report.headline["failed"]))
