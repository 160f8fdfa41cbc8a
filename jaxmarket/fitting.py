"""Fitting: a host loop over the compiled chunk, with a progress bar, evaluation and files around it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import baselines, tables, training, transfer
from jaxmarket.auctions import ENVIRONMENT_REWARD
from jaxmarket.baselines import Agent, Monolith, MonolithState
from jaxmarket.config import TrainConfig
from jaxmarket.evaluation import Episodes, bids_by_state, evaluate
from jaxmarket.learners import Hyperparameters
from jaxmarket.metrics import Oracle, bid_error, env_steps
from jaxmarket.runs import Folder, SavedRun, player_of, read
from jaxmarket.society import Society
from jaxmarket.training import FitResult, Program, TrainState, as_arrays, oracle_of
from jaxmarket.types import Array, PyTree, real

__all__ = ["compiles", "evaluate_both", "fit", "init_seeds", "program_of"]

_EPISODES = 128
_State = TrainState | MonolithState


def program_of(config: TrainConfig) -> Program | Monolith:
    """The static part of the run that a configuration describes."""
    return Monolith.of(config) if config.agent == "monolith" else Program.of(config)


def _functions(program: Program | Monolith) -> Any:
    """Where its ``init`` and ``chunk`` are."""
    return baselines if isinstance(program, Monolith) else training


def _without_prices(society: Society) -> Society:
    """Who acts does not depend on who pays whom: where only that matters, one program serves all mechanisms."""
    return dataclasses.replace(society, mechanism=ENVIRONMENT_REWARD)


@functools.partial(jax.jit, static_argnums=0)
def _init_seeds(program: Program | Monolith, keys: Array, hyper: Hyperparameters) -> _State:
    init, env_params = _functions(program).init, program.env.default_params
    return jax.vmap(lambda key: init(program, key, env_params, hyper))(keys)


def init_seeds(program: Any, keys: Array, hyper: Hyperparameters) -> Any:
    """`init` for every key: leaves [S, ...]."""
    if isinstance(program, Program):
        program = dataclasses.replace(program, society=_without_prices(program.society))
    return _init_seeds(program, keys, hyper)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _chunk_seeds(
    program: Program | Monolith, state: _State, hyper: Hyperparameters, oracle: Oracle | None
) -> tuple[_State, dict[str, Array]]:
    # The environment's parameters are constants here: a limit that is known spares shadow auctions.
    chunk, env_params = _functions(program).chunk, program.env.default_params
    return jax.vmap(lambda state: chunk(program, state, env_params, hyper, oracle))(state)


@functools.lru_cache(maxsize=64)
def _compiled(program: Program | Monolith, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    """The executable of `_chunk_seeds`, apart from running it, so that compile time can be told apart."""
    return _chunk_seeds.lower(program, *jax.tree.unflatten(tree, leaves)).compile()


def compiles() -> int:
    """Training programs compiled so far in this process."""
    return _compiled.cache_info().misses


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_seeds(player: Society | Agent, params: PyTree, keys: Array) -> Episodes:
    """`evaluate` for every seed: leaves [S, episodes]."""
    play: Any = evaluate if isinstance(player, Society) else baselines.evaluate
    env_params = player.env.default_params
    return jax.vmap(lambda params, key: play(player, params, key, env_params, _EPISODES))(params, keys)


def evaluate_both(player: Society | Agent, params: PyTree, key: Array, seeds: int) -> dict[str, Episodes]:
    """Fresh episodes of every seed, ``"greedy"`` and with ``"sampled"`` bids (or choices): leaves [S, episodes]."""
    keys = jax.random.split(key, (2, seeds))
    if isinstance(player, Society):
        player = _without_prices(player)
    return {
        how: _evaluate_seeds(dataclasses.replace(player, greedy=how == "greedy"), params, keys[i])
        for i, how in enumerate(("greedy", "sampled"))
    }


def fit(
    config: TrainConfig,
    key: Array,
    out: str | Path | None = None,
    *,
    start: "SavedRun | FitResult | str | Path | None" = None,
    freeze: Sequence[str] = (),
    progress: bool = True,
    on_chunk: Callable[[int, int, dict[str, np.ndarray]], None] | None = None,
) -> FitResult:
    """Train ``config.seeds`` seeds, evaluate them, and write the results.

    Seed i is ``train(config, jax.random.split(key, config.seeds)[i])``.

    Args:
        config: the settings.
        key: a typed PRNG key.
        out: a folder for the configuration, metrics, parameters and figures; nothing is written without.
        start: a finished run (or its folder) of the same kind of agent, on this task or another: seed i begins with the
            networks its seed i ended with, and with fresh optimizers.
        freeze: names of parts of the networks that are not trained, as shell patterns; see `jaxmarket.transfer`.
        progress: whether to show a progress bar with rate and ETA on standard error.
        on_chunk: called after each chunk with (auctions per seed so far, in all, metrics).
            Ctrl-C ends the training there, and the rest goes on with what was learned.

    Raises:
        ValueError: the folder is taken, the run to start from does not fit, or a name to freeze is none.
    """
    program = program_of(config)
    hyper, oracle = as_arrays(config.hyperparameters), oracle_of(config) if config.agent == "society" else None
    key_eval = jax.random.fold_in(key, 1)
    state: Any = init_seeds(program, jax.random.split(key, config.seeds), hyper)
    origin = None
    if start is not None:
        trained = (read(start) if isinstance(start, str | Path) else start).networks
        state = state.replace(learner=transfer.start_from(state.learner, trained))
        origin = transfer.fingerprint(trained)
    if freeze:
        frozen = transfer.freeze(state.learner, freeze, modules=isinstance(program, Program))
        state = state.replace(learner=frozen)
    folder = None if out is None else Folder(out, config)

    rows: list[dict[str, np.ndarray]] = []
    auctions, spent = config.auctions_per_chunk, np.zeros(config.seeds)
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
                spent = spent + env_steps(rows[-1]["duration"][None], auctions)[0]
                if folder is not None:
                    folder.add(done, spent, rows[-1])
                total = program.chunks * auctions
                show(config.seeds * done * auctions, config.seeds * total, tables.return_note(rows[-1]))
                if on_chunk is not None:
                    on_chunk(done * auctions, total, rows[-1])
        except KeyboardInterrupt:
            pass
    jax.block_until_ready(state)
    run_seconds = time.perf_counter() - began
    metrics = {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}

    steps = int(spent.sum())
    result = _assess(config, program, state, metrics, key_eval)
    result.summary.update(
        env_steps=steps,
        compile_seconds=compile_seconds,
        run_seconds=run_seconds,
        steps_per_second=steps / run_seconds,
        interrupted=len(rows) < program.chunks,
        start=origin,
        frozen=list(freeze),
        key=jax.random.key_data(key).tolist(),
        versions={name: version(name) for name in ("jaxmarket", "jax", "flax", "optax")},
    )
    if folder is not None:
        folder.finish(result)
    return result


def _assess(
    config: TrainConfig, program: Program | Monolith, state: Any, metrics: dict[str, np.ndarray], key: Array
) -> FitResult:
    """Evaluate every seed, greedily and sampled, and compare its bids with Q* where that is known."""
    player: Any = player_of(config)
    params = state.learner.params
    episodes = evaluate_both(player, params, key, config.seeds)
    returns = np.asarray(episodes["greedy"].returns.mean(1))
    terminated = {how: np.asarray(some.terminated.mean(1)) for how, some in episodes.items()}
    summary: dict[str, Any] = {
        "env": config.adapter.name,
        "agent": config.agent,
        "auction": program.society.mechanism.name if isinstance(program, Program) else None,
        "learner": config.learner,
        "clones": config.clones if isinstance(program, Program) else None,
        "seeds": config.seeds,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_seeds": [float(r) for r in returns],
        "sampled_return_mean": float(episodes["sampled"].returns.mean()),
        "termination_rate_seeds": [float(r) for r in terminated["greedy"]],
        "sampled_termination_rate_seeds": [float(r) for r in terminated["sampled"]],
        "bid_error": None,
    }
    exact = config.adapter.optimal_q(config.gamma) if isinstance(program, Program) else None
    bids = visited = None
    if exact is not None:
        q = jnp.asarray(exact, real())
        modules = jax.vmap(lambda p: bids_by_state(player, p, q.shape[0]))(params)
        bids = modules.reshape(*modules.shape[:2], player.primitives, -1).max(-1)
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
