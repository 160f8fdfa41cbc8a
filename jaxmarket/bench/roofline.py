"""Training compared with the device's arithmetic and memory limits.

XLA's cost analysis gives floating-point operations and bytes accessed. It counts the body of a loop once, so the cost
of one training update is computed from its loop bodies, compiled separately: a step of all instances times the horizon,
the settlement, and a gradient step times the number of minibatches. Bootstrap auctions, metrics, and all but one
iteration of the loop in the random number generator are not counted, so the counts are slightly low. Divided by the
measured rate of a matrix product, and by the measured bandwidth of passes over an array of the program's size, they
give the minimal time of the counted work. The achieved fraction is that time over the measured time.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxmarket.bench.step import market_rollout
from jaxmarket.bench.timing import Report, measure
from jaxmarket.experiments.settings import train_config
from jaxmarket.learners.protocol import EXPERIENCE_AXES
from jaxmarket.settlement import settle
from jaxmarket.society import draw, reset, step_with
from jaxmarket.training.config import TrainConfig
from jaxmarket.training.society import SocietyTraining, module_experience
from jaxmarket.types import Array, PyTree, Rules
from jaxmarket.view.tables import progress

__all__ = ["configs", "copy_limit", "flops_limit", "run", "update_costs"]


def flops_limit(size: int = 1024) -> float:
    """Measured floating-point operations per second of a matrix product."""
    matrix = jnp.ones((size, size))
    return 2 * size**3 / measure({"": (jnp.matmul, (matrix, matrix))})[""].median


def copy_limit(working_set: int, moved: int = 2**29) -> float:
    """Measured bytes per second, read and written, of passes over an array of ``working_set`` bytes.

    A program whose data fits into a cache is thereby compared with that cache.
    """
    vector = jnp.ones(max(1, working_set // 4), jnp.float32)
    times = max(8, moved // (2 * vector.nbytes))
    passes = lambda vector: jax.lax.fori_loop(0, times, lambda _, x: x + 1, vector)  # noqa: E731
    return times * 2 * vector.nbytes / measure({"": (passes, (vector,))})[""].median


def _cost(function: Any, *arguments: Any) -> tuple[float, float]:
    """Floating-point operations and bytes of one call."""
    analysis = jax.jit(function).lower(*arguments).compile().cost_analysis() or {}
    return float(analysis.get("flops", 0)), float(analysis.get("bytes accessed", 0))


def update_costs(config: TrainConfig) -> dict[str, tuple[float, float]]:
    """Operations and bytes of one training update (of one epoch), by part: steps, settlement and gradients."""
    program, env_params, society = (
        SocietyTraining.of(config.settings),
        config.adapter.default_params,
        config.settings.society,
    )
    hyper = config.settings.hyperparameters.as_arrays()
    state = jax.jit(program.init)(jax.random.key(0), env_params, hyper)
    keys = jax.random.split(jax.random.key(1), program.instances)
    learner: Any = program.learner

    def one_step(params: PyTree, keys: Array, states: PyTree) -> PyTree:
        def instance_step(key: Array, state: PyTree) -> PyTree:
            fresh, _ = reset(society, key, env_params)
            return step_with(society, draw(society, key), params, state, fresh, env_params, Rules())

        return jax.vmap(instance_step)(keys, states)

    def view(rows: PyTree) -> PyTree:
        settlement = jax.vmap(lambda rows: settle(rows, hyper.discount), in_axes=1, out_axes=1)(rows)
        return module_experience(society, rows, settlement.utility)

    roll = market_rollout(society, state.learner.params, program.instances, program.horizon)
    rows = jax.jit(roll)(jax.random.key(2), state.market)[1]
    experience = jax.jit(view)(rows)
    small = jax.tree.map(lambda x: x[..., : learner.minibatch], experience.replace(obs=None))
    small = small.replace(obs=experience.obs[: learner.minibatch])

    def gradient_step(learner_state: PyTree, experience: PyTree) -> PyTree:
        learn = lambda state, e: learner.update(state, e, hyper, state_update, jnp.zeros(()))[0]  # noqa: E731
        return jax.vmap(learn, in_axes=(0, EXPERIENCE_AXES))(learner_state, experience)

    state_update = jnp.zeros((), jnp.int32)
    minibatches = program.instances * program.horizon // learner.minibatch
    parts = {
        "steps": (_cost(one_step, state.learner.params, keys, state.market), program.horizon),
        "settlement": (_cost(view, rows), 1),
        "gradients": (_cost(gradient_step, state.learner, small), minibatches),
    }
    return {name: (times * flops, times * moved) for name, ((flops, moved), times) in parts.items()}


def configs() -> dict[str, TrainConfig]:
    """The configurations that are measured; a quick run leaves out the last."""
    small: dict[str, Any] = {"instances": 128, "horizon": 32, "steps": 81_920, "log_every": 20}
    large: dict[str, Any] = {"instances": 1024, "horizon": 32, "minibatch": 1024, "steps": 65_536, "log_every": 2}
    return {
        "Chain-v0": train_config("Chain-v0", hidden=(16,), **small),
        "CartPole-v1": train_config("CartPole-v1", hidden=(64, 64), **small),
        "CartPole-v1, 2 × 256": train_config("CartPole-v1", hidden=(256, 256), **large),
    }


def run(quick: bool = False) -> Report:
    """Measure the achieved fraction of the limits for Chain and CartPole."""
    report = Report("roofline")
    measured = configs()
    if quick:
        measured.popitem()
    rows = report.tables.setdefault("one training update", [])
    with progress("roofline", unit="programs") as show:
        show(0, len(measured) + 1, "device")
        arithmetic, memory = flops_limit(), copy_limit(2**28)
        for done, (name, config) in enumerate(measured.items(), 1):
            show(done, len(measured) + 1, name)
            program, env_params = SocietyTraining.of(config.settings), config.adapter.default_params
            hyper = config.settings.hyperparameters.as_arrays()
            state = jax.jit(program.init)(jax.random.key(0), env_params, hyper)
            timed = lambda state, p=program, e=env_params, h=hyper: p.chunk(state, e, h)  # noqa: E731
            timing = measure({name: (timed, (state,))})
            report.keep("chunk", timing)
            costs = update_costs(config)
            flops, moved = (sum(part[i] for part in costs.values()) for i in (0, 1))
            seconds = timing[name].median / program.updates_per_chunk
            working_set = timing[name].memory_bytes or 2**28
            bandwidth = copy_limit(working_set)
            by_flops, by_bytes = flops / arithmetic, moved / bandwidth
            rows.append(
                {
                    "training": name,
                    "Mflop": flops / 1e6,
                    "MB": moved / 1e6,
                    "set MB": working_set / 1e6,
                    "GB/s": bandwidth / 1e9,
                    "by flops ms": 1e3 * by_flops,
                    "by bytes ms": 1e3 * by_bytes,
                    "took ms": 1e3 * seconds,
                    "achieved": max(by_flops, by_bytes) / seconds,
                }
            )
            report.timings[f"costs: {name}"] = {part: {"flops": f, "bytes": b} for part, (f, b) in costs.items()}
        show(len(measured) + 1, len(measured) + 1)
    report.headline = {
        "gflops_limit": arithmetic / 1e9,
        "gbytes_per_second_limit": memory / 1e9,
        "achieved": rows[0]["achieved"],
        "achieved_largest": rows[-1]["achieved"],
    }
    report.notes += [
        "MB: bytes that operations read and write, loops counted; set: what the program holds in memory",
        "GB/s: passes over an array of that size; achieved: the larger of the two limits over the time it took",
    ]
    return report
