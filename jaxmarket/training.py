"""Training: the whole run as one pure function, and a host loop over the same compiled chunk.

`train` is one seed, made of `chunk` calls inside one scan. `fit` maps the very same `chunk` over seeds
and calls it from Python, with a progress bar and files around it.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxmarket.config import TrainConfig
from jaxmarket.evaluation import Episodes, bids_by_state, evaluate
from jaxmarket.learners import Experience, Hyperparameters, Learner
from jaxmarket.metrics import Summary, bid_error, summarize
from jaxmarket.rollouts import rollout
from jaxmarket.settlement import TimeLimits, per_bidder, settle
from jaxmarket.society import Society, reset
from jaxmarket.types import Array, PyTree, Rules, State, Transition, real

__all__ = ["FitResult", "Program", "TrainState", "chunk", "experience_of", "fit", "init", "rules_at", "train"]

_CHUNKS = 50
_VISITED_FRACTION = 0.1
_EPISODES = 128


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a training run; equal programs share their compiled code."""

    society: Society
    learner: Learner
    instances: int
    horizon: int
    updates_per_chunk: int
    chunks: int
    time_limits: TimeLimits
    states: int | None  # S where the environment knows Q* over one-hot states, else None

    @classmethod
    def of(cls, config: TrainConfig) -> "Program":
        """The program a configuration describes."""
        per_chunk = -(-config.updates // min(_CHUNKS, config.updates))
        q = config.adapter.optimal_q(config.gamma)
        return cls(
            society=config.society,
            learner=config.learner_rule,
            instances=config.instances,  # type: ignore[arg-type]
            horizon=config.horizon,  # type: ignore[arg-type]
            updates_per_chunk=per_chunk,
            chunks=-(-config.updates // per_chunk),
            time_limits=config.time_limits,  # type: ignore[arg-type]
            states=None if q is None else q.shape[0],
        )

    @property
    def updates(self) -> int:
        """Updates of a whole run."""
        return self.chunks * self.updates_per_chunk

    @property
    def env_steps(self) -> int:
        """Auctions of a whole run, one environment step each where primitives are literal actions."""
        return self.updates * self.instances * self.horizon


class TrainState(struct.PyTreeNode):
    """Everything a run needs to go on; one seed."""

    learner: PyTree  # leaves [M, ...], with a field `params`
    market: State  # leaves [B, ...]
    key: Array
    update: Array  # i32 [] updates done
    visits: Array  # f [S] visits of each state during the last tenth of training; [0] if unknown


def init(program: Program, key: Array, env_params: PyTree, hyper: Hyperparameters) -> TrainState:
    """The state before the first update."""
    key_learner, key_market, key = jax.random.split(key, 3)
    society = program.society
    obs = jnp.zeros(society.observation.shape, society.observation.dtype)
    start = functools.partial(reset, society, env_params=env_params, rules=rules_at(hyper, jnp.zeros((), real())))
    market, _ = jax.vmap(start)(jax.random.split(key_market, program.instances))
    return TrainState(
        learner=jax.vmap(program.learner.init, (0, None))(jax.random.split(key_learner, society.modules), obs),
        market=market,
        key=key,
        update=jnp.zeros((), jnp.int32),
        visits=jnp.zeros(program.states or 0, real()),
    )


def rules_at(hyper: Hyperparameters, progress: Array) -> Rules:
    """The market's rules after that fraction of training: exploration falls linearly over its first half."""
    exploration = hyper.exploration
    if exploration is not None and hyper.exploration_final is not None:
        exploration = exploration + (hyper.exploration_final - exploration) * jnp.minimum(1, 2 * progress)
    return Rules(exploration=exploration, reserve=hyper.reserve, dropout=hyper.dropout)


def experience_of(society: Society, trajectory: Transition, utility: Array) -> Experience:
    """Each module's own view of rows [T, B]: obs [N, ...], the rest [M, N, R], with N = T · B."""
    t, winner = trajectory, trajectory.outcome.winner

    def by_module(value: Array) -> Array:
        return value.reshape(-1, society.modules, society.members).swapaxes(0, 1)

    return Experience(
        obs=t.obs.reshape(-1, *t.obs.shape[2:]),
        bid=by_module(t.outcome.bids),
        won=by_module(winner[..., None] == jnp.arange(society.bidders)),
        price=by_module(per_bidder(t.price, winner, society.bidders)),
        utility=by_module(per_bidder(utility, winner, society.bidders)),
    )


_AXES = Experience(obs=None, bid=0, won=0, price=0, utility=0)  # type: ignore[arg-type]  axes, not arrays


def _update(
    program: Program, state: TrainState, env_params: PyTree, hyper: Hyperparameters
) -> tuple[TrainState, Summary]:
    """One rollout of every instance, its settlement, and every module's local update."""
    society = program.society
    key_roll, key = jax.random.split(state.key)
    progress = state.update / jnp.asarray(program.updates, real())
    rules = rules_at(hyper, progress)

    def roll(key: Array, market: State) -> tuple[State, Transition]:
        return rollout(
            society, key, state.learner.params, market, env_params, program.horizon, rules,
            shadow=program.time_limits == "shadow",
        )  # fmt: skip

    def earned(rows: Transition) -> PyTree:
        return settle(rows, hyper.discount, trace_decay=hyper.trace_decay, time_limits=program.time_limits)

    keys = jax.random.split(key_roll, program.instances)
    market, rows = jax.vmap(roll, out_axes=(0, 1))(keys, state.market)
    settlement = jax.vmap(earned, in_axes=1, out_axes=1)(rows)
    experience = experience_of(society, rows, settlement.utility)

    def learn(learner: PyTree, experience: Experience) -> tuple[PyTree, dict[str, Array]]:
        return program.learner.update(learner, experience, hyper, state.update, progress)

    learner, _ = jax.vmap(learn, in_axes=(0, _AXES))(state.learner, experience)
    late = state.update >= (1 - _VISITED_FRACTION) * program.updates
    visits = state.visits
    if program.states is not None:
        visits = visits + jnp.where(late, experience.obs.sum(0), 0)
    state = TrainState(learner=learner, market=market, key=key, update=state.update + 1, visits=visits)
    return state, summarize(rows, settlement)


def chunk(
    program: Program, state: TrainState, env_params: PyTree, hyper: Hyperparameters
) -> tuple[TrainState, dict[str, Array]]:
    """``updates_per_chunk`` updates and the means over them."""

    def body(carry: tuple[TrainState, Summary], _: None) -> tuple[tuple[TrainState, Summary], None]:
        state, total = carry
        state, summary = _update(program, state, env_params, hyper)
        return (state, jax.tree.map(jnp.add, total, summary)), None

    zero = Summary(*([jnp.zeros((), real())] * len(dataclasses.fields(Summary))))
    (state, total), _ = jax.lax.scan(body, (state, zero), None, length=program.updates_per_chunk)
    return state, total.means()


def train(config: TrainConfig, key: Array, hyper: Hyperparameters | None = None) -> tuple[TrainState, dict[str, Array]]:
    """The whole run of one seed as one pure function.

    ``jax.jit(train, static_argnums=0)`` it, ``vmap`` it over keys, or over ``hyper``
    (``config.hyperparameters`` with arrays in place of numbers).

    Returns:
        The final state, and metrics with one entry per chunk.
    """
    program, env_params = Program.of(config), config.adapter.default_params
    hyper = _as_arrays(config.hyperparameters if hyper is None else hyper)

    def body(state: TrainState, _: None) -> tuple[TrainState, dict[str, Array]]:
        return chunk(program, state, env_params, hyper)

    return jax.lax.scan(body, init(program, key, env_params, hyper), None, length=program.chunks)


def _as_arrays(hyper: Hyperparameters) -> Hyperparameters:
    return jax.tree.map(lambda x: jnp.asarray(x, real()), hyper)


@functools.partial(jax.jit, static_argnums=0)
def _init_seeds(program: Program, keys: Array, env_params: PyTree, hyper: Hyperparameters) -> TrainState:
    return jax.vmap(lambda key: init(program, key, env_params, hyper))(keys)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _chunk_seeds(
    program: Program, state: TrainState, env_params: PyTree, hyper: Hyperparameters
) -> tuple[TrainState, dict[str, Array]]:
    return jax.vmap(lambda state: chunk(program, state, env_params, hyper))(state)


@functools.lru_cache(maxsize=64)
def _compiled(program: Program, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    """The executable of `_chunk_seeds`, apart from running it, so that compile time can be told apart."""
    return _chunk_seeds.lower(program, *jax.tree.unflatten(tree, leaves)).compile()


@functools.partial(jax.jit, static_argnums=0)
def evaluate_seeds(society: Society, params: PyTree, keys: Array, env_params: PyTree) -> Episodes:
    """`evaluate` for every seed: leaves [S, episodes]."""
    return jax.vmap(lambda params, key: evaluate(society, params, key, env_params, _EPISODES))(params, keys)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        summary: the fields of the command line's ``--json``.
        state: the final `TrainState`, leaves [seeds, ...].
        metrics: arrays [chunks, seeds] by name.
        config: the settings.
        bids: f [seeds, S, P], each primitive's highest greedy bid per state, where Q* is known.
        visited: bool [seeds, S], states visited in the last tenth of training, where Q* is known.
    """

    summary: dict[str, Any]
    state: TrainState
    metrics: dict[str, np.ndarray]
    config: TrainConfig
    bids: np.ndarray | None = None
    visited: np.ndarray | None = None


def fit(
    config: TrainConfig,
    key: Array,
    out: str | Path | None = None,
    *,
    on_chunk: Callable[[int, int, dict[str, np.ndarray]], None] | None = None,
) -> FitResult:
    """Train ``config.seeds`` seeds, evaluate them, and write the results.

    Seed i is ``train(config, jax.random.split(key, config.seeds)[i])``.

    Args:
        config: the settings.
        key: a typed PRNG key.
        out: a folder for the configuration, metrics, parameters and figures; nothing is written without.
        on_chunk: called after each chunk with (environment steps per seed so far, in all, metrics).
            Ctrl-C ends the training there, and the rest goes on with what was learned.
    """
    folder = None
    if out is not None:
        from jaxmarket.runs import Folder  # noqa: PLC0415  matplotlib only for those who write files

        folder = Folder(out, config)
    program, env_params = Program.of(config), config.adapter.default_params
    hyper = _as_arrays(config.hyperparameters)
    key_eval = jax.random.fold_in(key, 1)
    state = _init_seeds(program, jax.random.split(key, config.seeds), env_params, hyper)

    began = time.perf_counter()
    leaves, tree = jax.tree.flatten((state, env_params, hyper))
    compiled = _compiled(program, tree, tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves))
    compile_seconds = time.perf_counter() - began

    rows: list[dict[str, np.ndarray]] = []
    began = time.perf_counter()
    try:
        for done in range(1, program.chunks + 1):
            state, metrics = compiled(state, env_params, hyper)
            rows.append(jax.device_get(metrics))
            steps = done * program.env_steps // program.chunks
            if folder is not None:
                folder.add(done, steps, rows[-1])
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
    )
    if folder is not None:
        folder.finish(result)
    return result


def _assess(
    config: TrainConfig, program: Program, state: TrainState, metrics: dict[str, np.ndarray], key: Array
) -> FitResult:
    """Evaluate every seed, greedily and sampled, and compare its bids with Q* where that is known."""
    society, params, env_params = program.society, state.learner.params, config.adapter.default_params
    key_greedy, key_sampled = jax.random.split(key, (2, config.seeds))
    greedy = evaluate_seeds(dataclasses.replace(society, greedy=True), params, key_greedy, env_params)
    sampled = evaluate_seeds(society, params, key_sampled, env_params)
    returns = np.asarray(greedy.returns.mean(1))
    summary: dict[str, Any] = {
        "env": config.adapter.name,
        "auction": society.mechanism.name,
        "learner": config.learner,
        "clones": config.clones,
        "seeds": config.seeds,
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_seeds": [float(r) for r in returns],
        "sampled_return_mean": float(sampled.returns.mean()),
        "bid_error": None,
    }
    bids = visited = None
    if program.states is not None:
        q = jnp.asarray(config.adapter.optimal_q(config.gamma), real())
        modules = jax.vmap(lambda p: bids_by_state(society, p, q.shape[0]))(params)
        bids = modules.reshape(*modules.shape[:2], society.primitives, -1).max(-1)
        visited = state.visits > 0
        summary["bid_error"] = float(jax.vmap(bid_error, (0, None, 0))(bids, q, visited).max())
        if config.learner == "valuation":
            every = functools.partial(bid_error, every_bidder=True)
            summary["bid_error_all"] = float(jax.vmap(every, (0, None, 0))(bids, q, visited).max())
        bids, visited = np.asarray(bids), np.asarray(visited)
    return FitResult(summary, state, metrics, config, bids, visited)
