"""Fitting: a host loop over the compiled chunk, with a progress bar, evaluation and files around it."""

import dataclasses
import functools
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import tables
from jaxmarket.auctions import ENVIRONMENT_REWARD
from jaxmarket.config import TrainConfig
from jaxmarket.evaluation import Episodes, bids_by_state, evaluate
from jaxmarket.learners import Hyperparameters
from jaxmarket.metrics import Oracle, bid_error
from jaxmarket.runs import Folder
from jaxmarket.society import Society
from jaxmarket.training import FitResult, Program, TrainState, as_arrays, chunk, init, oracle_of
from jaxmarket.types import Array, PyTree, real

__all__ = ["compiles", "evaluate_both", "fit", "init_seeds"]

_EPISODES = 128


def _without_prices(society: Society) -> Society:
    """Who acts does not depend on who pays whom: where only that matters, one program serves all mechanisms."""
    return dataclasses.replace(society, mechanism=ENVIRONMENT_REWARD)


@functools.partial(jax.jit, static_argnums=0)
def _init_seeds(program: Program, keys: Array, hyper: Hyperparameters) -> TrainState:
    return jax.vmap(lambda key: init(program, key, program.society.env.default_params, hyper))(keys)


def init_seeds(program: Program, keys: Array, hyper: Hyperparameters) -> TrainState:
    """`init` for every key: leaves [S, ...]."""
    return _init_seeds(dataclasses.replace(program, society=_without_prices(program.society)), keys, hyper)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _chunk_seeds(
    program: Program, state: TrainState, hyper: Hyperparameters, oracle: Oracle | None
) -> tuple[TrainState, dict[str, Array]]:
    # The environment's parameters are constants here: a limit that is known spares shadow auctions.
    env_params = program.society.env.default_params
    return jax.vmap(lambda state: chunk(program, state, env_params, hyper, oracle))(state)


@functools.lru_cache(maxsize=64)
def _compiled(program: Program, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    """The executable of `_chunk_seeds`, apart from running it, so that compile time can be told apart."""
    return _chunk_seeds.lower(program, *jax.tree.unflatten(tree, leaves)).compile()


def compiles() -> int:
    """Training programs compiled so far in this process."""
    return _compiled.cache_info().misses


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_seeds(society: Society, params: PyTree, keys: Array) -> Episodes:
    """`evaluate` for every seed: leaves [S, episodes]."""
    env_params = society.env.default_params
    return jax.vmap(lambda params, key: evaluate(society, params, key, env_params, _EPISODES))(params, keys)


def evaluate_both(society: Society, params: PyTree, key: Array, seeds: int) -> dict[str, Episodes]:
    """Fresh episodes of every seed with ``"greedy"`` and with ``"sampled"`` bids: leaves [S, episodes]."""
    keys = jax.random.split(key, (2, seeds))
    society = _without_prices(society)
    return {
        bids: _evaluate_seeds(dataclasses.replace(society, greedy=bids == "greedy"), params, keys[i])
        for i, bids in enumerate(("greedy", "sampled"))
    }


def fit(
    config: TrainConfig,
    key: Array,
    out: str | Path | None = None,
    *,
    progress: bool = True,
    on_chunk: Callable[[int, int, dict[str, np.ndarray]], None] | None = None,
) -> FitResult:
    """Train ``config.seeds`` seeds, evaluate them, and write the results.

    Seed i is ``train(config, jax.random.split(key, config.seeds)[i])``.

    Args:
        config: the settings.
        key: a typed PRNG key.
        out: a folder for the configuration, metrics, parameters and figures; nothing is written without.
        progress: whether to show a progress bar with rate and ETA on standard error.
        on_chunk: called after each chunk with (environment steps per seed so far, in all, metrics).
            Ctrl-C ends the training there, and the rest goes on with what was learned.
    """
    folder = None if out is None else Folder(out, config)
    program = Program.of(config)
    hyper, oracle = as_arrays(config.hyperparameters), oracle_of(config)
    key_eval = jax.random.fold_in(key, 1)
    state = init_seeds(program, jax.random.split(key, config.seeds), hyper)

    rows: list[dict[str, np.ndarray]] = []
    with tables.progress(config.adapter.name, shown=progress) as show:
        began = time.perf_counter()
        leaves, tree = jax.tree.flatten((state, hyper, oracle))
        shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
        compiled = _compiled(program, tree, shapes)
        compile_seconds = time.perf_counter() - began

        began = time.perf_counter()
        try:
            for done in range(1, program.chunks + 1):
                state, metrics = compiled(state, hyper, oracle)
                rows.append(jax.device_get(metrics))
                steps = done * program.env_steps // program.chunks
                if folder is not None:
                    folder.add(done, steps, rows[-1])
                show(config.seeds * steps, config.seeds * program.env_steps, tables.return_note(rows[-1]))
                if on_chunk is not None:
                    on_chunk(steps, program.env_steps, rows[-1])
        except KeyboardInterrupt:
            pass
    jax.block_until_ready(state)
    run_seconds = time.perf_counter() - began
    metrics = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}

    steps = config.seeds * program.env_steps * len(rows) // program.chunks
    result = _assess(config, program, state, metrics, key_eval)
    result.summary.update(
        env_steps=steps,
        compile_seconds=compile_seconds,
        run_seconds=run_seconds,
        steps_per_second=steps / run_seconds,
        interrupted=len(rows) < program.chunks,
        key=jax.random.key_data(key).tolist(),
        versions={name: version(name) for name in ("jaxmarket", "jax", "flax", "optax")},
    )
    if folder is not None:
        folder.finish(result)
    return result


def _assess(
    config: TrainConfig, program: Program, state: TrainState, metrics: dict[str, np.ndarray], key: Array
) -> FitResult:
    """Evaluate every seed, greedily and sampled, and compare its bids with Q* where that is known."""
    society, params = program.society, state.learner.params
    episodes = evaluate_both(society, params, key, config.seeds)
    returns = np.asarray(episodes["greedy"].returns.mean(1))
    summary: dict[str, Any] = {
        "env": config.adapter.name,
        "auction": society.mechanism.name,
        "learner": config.learner,
        "clones": config.clones,
        "seeds": config.seeds,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_seeds": [float(r) for r in returns],
        "sampled_return_mean": float(episodes["sampled"].returns.mean()),
        "bid_error": None,
    }
    exact = config.adapter.optimal_q(config.gamma)
    bids = visited = None
    if exact is not None:
        q = jnp.asarray(exact, real())
        modules = jax.vmap(lambda p: bids_by_state(society, p, q.shape[0]))(params)
        bids = modules.reshape(*modules.shape[:2], society.primitives, -1).max(-1)
        visited = state.visits > 0
        summary["bid_error"] = _worst(bid_error, bids, q, visited)
        if config.learner == "valuation":
            every = functools.partial(bid_error, every_bidder=True)
            summary["bid_error_all"] = _worst(every, bids, q, visited)
        bids, visited = np.asarray(bids), np.asarray(visited)
    return FitResult(summary, state, metrics, config, exact, bids, visited)


def _worst(error: Callable[..., Array], bids: Array, q: Array, visited: Array) -> float | None:
    """The largest error over seeds, None where a seed visited no state while visits were counted."""
    worst = float(jax.vmap(error, (0, None, 0))(bids, q, visited).max())
    return None if np.isnan(worst) else worst
