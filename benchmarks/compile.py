"""Time before the first step: import, tracing and compilation, as a function of the size of the program."""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import jax

from benchmarks.scale import market
from benchmarks.timing import ROOT, Report, allowed_cores, every_core
from jaxmarket.learners.protocol import is_large
from jaxmarket.rollouts import rollout
from jaxmarket.society import reset
from jaxmarket.switches import compiler_options
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.pinned import train_config
from jaxmarket.view.tables import progress

__all__ = ["run"]


def _child(code: str, repeats: int) -> list[float]:
    """The seconds that ``code`` prints, in fresh interpreters with all cores and without the compilation cache."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    everywhere = f"import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {allowed_cores()})\n"
    command = [sys.executable, "-c", everywhere + code]
    done = [
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        for _ in range(repeats)
    ]
    return [float(json.loads(run.stdout.splitlines()[-1])) for run in done]


_IMPORT = """
import time
began = time.perf_counter()
import {module}
print(time.perf_counter() - began)
"""
_NO_BACKEND = """
import jaxmarket
from jax._src import xla_bridge
print(len(xla_bridge._backends))
"""
_MAIN_JOB = """
from benchmarks.compile import chain, seconds_to_compile
print(sum(seconds_to_compile(chain())))
"""


def chain(clones: int = 2) -> TrainConfig:
    """The society on Chain whose training is compiled."""
    return train_config("Chain-v0", hidden=(16,), clones=clones)


def cart_pole(layers: int) -> TrainConfig:
    """The society on CartPole whose training is compiled."""
    return train_config("CartPole-v1", hidden=(64,) * layers)


def seconds_to_compile(config: TrainConfig) -> tuple[float, float]:
    """Seconds to trace and lower, and seconds to compile, the training chunk of a configuration."""
    program, env_params = config.settings.trainable, config.adapter.default_params
    hyper, oracle = config.settings.hyperparameters.as_arrays(), config.settings.oracle
    state = jax.eval_shape(lambda key: program.init(key, env_params, hyper), jax.random.key(0))
    large = is_large(state.learner.params, config.settings.society.modules)

    def chunk(state: Any, hyper: Any, oracle: Any) -> Any:
        return program.chunk(state, env_params, hyper, oracle)

    return _seconds(chunk, state, hyper, oracle, large=large)


def _seconds(function: Any, *arguments: Any, large: bool = False) -> tuple[float, float]:
    jax.clear_caches()  # otherwise tracing would reuse results of an earlier repetition
    with every_core():
        began = time.perf_counter()
        lowered = jax.jit(function).lower(*arguments)
        traced = time.perf_counter()
        lowered.compile(compiler_options=compiler_options(large=large))
        return traced - began, time.perf_counter() - traced


def _rollout_seconds(bidders: int, horizon: int) -> tuple[float, float]:
    society = market(bidders)
    env_params = society.env.default_params
    params = jax.eval_shape(society.init, jax.random.key(0))
    states = jax.eval_shape(
        lambda key: jax.vmap(lambda k: reset(society, k, env_params)[0])(jax.random.split(key, 64)), jax.random.key(0)
    )

    def roll(key: Any, params: Any, states: Any) -> Any:
        def instance_rollout(key: Any, state: Any) -> Any:
            return rollout(society, key, params, state, env_params, horizon)

        return jax.vmap(instance_rollout)(jax.random.split(key, 64), states)

    return _seconds(roll, jax.random.key(0), params, states)


def run(quick: bool = False) -> Report:
    """Measure the import time, the compilation of a training chunk, and sweeps over bidders, horizon and depth."""
    report = Report("compile")
    repeats = 3 if quick else 5

    def depth(layers: int) -> tuple[float, float]:
        return seconds_to_compile(cart_pole(layers))

    def bidders_trained(clones: int) -> tuple[float, float]:
        return seconds_to_compile(chain(clones))

    sweeps: dict[str, tuple[Any, tuple[int, ...]]] = {
        "rollout, bidders": (lambda n: _rollout_seconds(n, 64), (2, 4096) if quick else (2, 64, 512, 4096)),
    }
    if not quick:
        sweeps |= {
            "rollout, horizon": (lambda n: _rollout_seconds(4, n), (16, 128, 1024)),
            "training, bidders (clones of 2)": (bidders_trained, (1, 32, 2048)),
            "training, hidden layers": (depth, (1, 2, 4)),
        }
    rows = report.tables.setdefault("seconds before the first step", [])
    todo, done = sum(len(sizes) for _, sizes in sweeps.values()) + 3, 0
    with progress("compile", unit="programs") as show:

        def add(what: str, size: int | None, trace: float | None, total: list[float]) -> float:
            nonlocal done
            median = statistics.median(total)
            rows.append({"what": what, "size": size, "trace s": trace, "in all s": median, "slowest s": max(total)})
            report.timings[f"{what} {size}"] = {"seconds": total}
            done += 1
            show(done, todo, what)
            return median

        imported = add("import jaxmarket", None, None, _child(_IMPORT.format(module="jaxmarket"), repeats))
        alone = add(
            "import jax, flax.linen, optax",
            None,
            None,
            _child(_IMPORT.format(module="jax, flax.linen, optax"), repeats),
        )
        # A fresh interpreter could not use an accelerator that this process has reserved.
        alone_here = jax.default_backend() == "cpu"
        compiling = (
            _child(_MAIN_JOB, repeats) if alone_here else [sum(seconds_to_compile(chain())) for _ in range(repeats)]
        )
        job = add("main job: training chunk of Chain-v0", None, None, compiling)
        growth: dict[str, float] = {}
        for what, (seconds, sizes) in sweeps.items():
            runs = {size: [] for size in sizes}
            for _ in range(repeats):  # alternate sizes, so that changes of machine load affect all of them
                for size in sizes:
                    runs[size].append(seconds(size))
            medians = [
                add(what, size, statistics.median(t for t, _ in runs[size]), [sum(pair) for pair in runs[size]])
                for size in sizes
            ]
            growth[what] = medians[-1] / medians[0]
    report.headline |= {
        "import_seconds": imported,
        "import_over_dependencies": imported - alone,
        "backends_started_by_import": _child(_NO_BACKEND, 1)[0],
        "main_job_compile_seconds": job,
    }
    report.headline |= {f"growth: {what}": ratio for what, ratio in growth.items()}
    report.notes.append("every core; import and main job in fresh interpreters")
    report.notes.append("growth: largest size over smallest, medians")
    return report
