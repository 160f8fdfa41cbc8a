"""Training speed compared with the paper's algorithm in NumPy and PyTorch, side by side on one core.

    python -m benchmarks rivals
    python -m benchmarks rivals --quick

Chain-v0 with the paper's settings (`PRESETS["paper"]`: 32 instances × 128 auctions per update, minibatches of 128
auctions, two clones, so 256 transitions per module). The programs take turns in one process:

- *PyTorch*: `benchmarks._torch_society`, a vectorised program of ours that shares no code with jaxmarket, with Beta
  bids; and the same with its loss compiled by ``torch.compile``, if there is a C++ compiler and without ``--quick``;
- *jaxmarket* with Beta bids, and with Kumaraswamy bids.

A call trains from the initial state; jaxmarket's calls also compute its metrics. All programs then train on Chain with
a larger learning rate, and the greedy return (the optimum is .8) is reported. PyTorch is in the extra ``baselines``.
"""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import command
from benchmarks.timing import REPEATS, Report, measure
from benchmarks.train import training
from jaxmarket import TrainConfig
from jaxmarket.policies import KumaraswamyHead
from jaxmarket.view.tables import progress

MISSING = "rivals: PyTorch is not installed; run pip install -e '.[baselines]'"
LEARNING = {"learning_rate": 1e-3, "entropy": 0.05}
"""Settings with which Chain is learned within `LEARNED` updates; the paper's rate needs many more."""
LEARNED = 30


def config(updates: int, **settings: Any) -> TrainConfig:
    """The paper's settings for Chain, with ``updates`` updates per call."""
    return TrainConfig("Chain-v0", preset="paper", hidden=(16,), steps=4096 * updates, log_every=updates, **settings)


def greedy_return(settings: TrainConfig) -> float:
    """The mean greedy return of jaxmarket's society after one chunk."""
    step, start = training(settings)
    state = jax.jit(lambda key: step(start(key))[0])(jax.random.key(0))
    player = settings.settings.trainable.player(greedy=True)
    env_params = settings.adapter.default_params
    return float(player.evaluate(state.learner.params, jax.random.key(1), env_params, 64).returns.mean())


def run(quick: bool = False) -> Report:
    """Measure all programs in turns, and check that they learn Chain.

    Raises:
        ImportError: PyTorch is not installed.
    """
    import torch  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    from benchmarks._torch_society import TorchSociety  # noqa: PLC0415

    torch.set_num_threads(1)
    report = Report("rivals")
    report.machine["torch"] = torch.__version__
    updates = 5 if quick else 20
    beta = config(updates)
    heads = {"jaxmarket, Beta": beta, "jaxmarket, Kumaraswamy": dataclasses.replace(beta, bids=KumaraswamyHead(0, 1))}
    candidates = {}
    for name, each in heads.items():
        step, start = training(each)
        candidates[name] = (step, (jax.jit(start)(jax.random.key(0)),))
    variants = {"PyTorch, Beta": False}
    if not quick and shutil.which("c++"):
        variants["PyTorch, Beta, torch.compile"] = True

    def again(compiled: bool) -> Callable[[], None]:
        society = TorchSociety(beta, compiled=compiled)
        initial = society.snapshot()

        def call() -> None:
            society.restore(initial)
            society.train(updates)

        return call

    with progress("rivals", unit="parts") as show:
        show(0, 2, "speed")
        timings = measure(candidates, REPEATS, {name: again(compiled) for name, compiled in variants.items()})
        report.keep("training", timings)
        show(1, 2, "learning")
        learned = TorchSociety(config(LEARNED, **LEARNING))
        learned.train(LEARNED)
        returns = {"PyTorch, Beta": learned.greedy_return()}
        for name, each in heads.items():
            returns[name] = greedy_return(config(LEARNED, bids=each.bids, **LEARNING))
        show(2, 2)
    rates = {name: beta.settings.auctions_per_chunk / timing.median for name, timing in timings.items()}
    report.tables["Chain-v0, the paper's settings, one core"] = [
        {
            "program": name,
            "k steps/s": rates[name] / 1e3,
            "± %": 100 * timings[name].iqr / timings[name].median,
            "times PyTorch": rates[name] / rates["PyTorch, Beta"],
            "compile s": timings[name].compile_seconds,
            "greedy return": returns.get(name),
        }
        for name in (*variants, *heads)
    ]
    report.headline = {
        "torch_steps_per_second": rates["PyTorch, Beta"],
        "beta_steps_per_second": rates["jaxmarket, Beta"],
        "kumaraswamy_steps_per_second": rates["jaxmarket, Kumaraswamy"],
        "beta_over_torch": rates["jaxmarket, Beta"] / rates["PyTorch, Beta"],
        "kumaraswamy_over_torch": rates["jaxmarket, Kumaraswamy"] / rates["PyTorch, Beta"],
        "lowest_greedy_return": min(returns.values()),
    }
    if compiled_rate := rates.get("PyTorch, Beta, torch.compile"):
        report.headline["beta_over_torch_compile"] = rates["jaxmarket, Beta"] / compiled_rate
    report.notes += [
        f"medians of {REPEATS} calls in turns, {updates} updates of 4,096 steps each; ± interquartile range; compile: "
        "before the first call, or the first call of PyTorch",
        f"greedy return: after {LEARNED} updates with learning rate {LEARNING['learning_rate']:g} and entropy weight "
        f"{LEARNING['entropy']:g}; the optimum is .8",
    ]
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    given = command.parse(command.options(__doc__), arguments)
    try:
        import torch  # noqa: F401, PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError:
        print(MISSING, file=sys.stderr)
        return 1
    command.conduct(run, given)
    return 0
