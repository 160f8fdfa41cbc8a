"""Fitting: a host loop over the compiled chunk, with a progress bar, evaluation and files around it."""

import contextlib
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmarket import baselines, tables, training, transfer
from jaxmarket.auctions import ENVIRONMENT_REWARD
from jaxmarket.baselines import Agent, Monolith, MonolithState
from jaxmarket.checking import checked, flag, given, number, path, prng_key
from jaxmarket.checkpoint import Checkpoints, digest, flatten, unflatten
from jaxmarket.config import TrainConfig, check_config
from jaxmarket.devices import INSTANCES, SEEDS, Devices, gather, put
from jaxmarket.devices import mesh as devices_mesh
from jaxmarket.evaluation import Episodes, bids_by_state, evaluate
from jaxmarket.learners import Hyperparameters
from jaxmarket.logging import Logger, Record
from jaxmarket.metrics import Oracle, bid_error, env_steps
from jaxmarket.runs import Folder, SavedRun, player_of, read, settings_of
from jaxmarket.society import Society
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.training import FitResult, Program, TrainState, as_arrays, oracle_of
from jaxmarket.types import Array, PyTree, real

__all__ = ["compiles", "evaluate_both", "fit", "init_seeds", "program_of"]

_EPISODES = 128
_State = TrainState | MonolithState


def program_of(config: TrainConfig) -> Program | Monolith:
    """The static part of the run that a configuration describes."""
    return Monolith.of(config) if check_config(config).agent == "monolith" else Program.of(config)


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


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _chunk_seeds(
    program: Program | Monolith,
    mesh: Mesh | None,
    state: _State,
    hyper: Hyperparameters,
    oracle: Oracle | None,
) -> tuple[_State, dict[str, Array]]:
    functions, env_params = _functions(program), program.env.default_params
    shards = 1 if mesh is None else mesh.shape[INSTANCES]
    local: Any = program.spread(shards) if shards > 1 else program

    def chunk(state: _State, hyper: Hyperparameters, oracle: Oracle | None) -> tuple[_State, dict[str, Array]]:
        # The environment's parameters are constants here: a limit that is known spares shadow auctions.
        return jax.vmap(lambda state: functions.chunk(local, state, env_params, hyper, oracle))(state)

    if mesh is None:
        return chunk(state, hyper, oracle)
    each = functions.PARTITION
    spread = jax.shard_map(chunk, mesh=mesh, in_specs=(each, P(), P()), out_specs=(each, P(SEEDS)), check_vma=False)
    state, metrics = spread(state, hyper, oracle)
    # All of them in every process: the host writes them down.
    return state, jax.lax.with_sharding_constraint(metrics, NamedSharding(mesh, P()))


@functools.lru_cache(maxsize=64)
def _compiled(
    program: Program | Monolith, mesh: Mesh | None, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Any:
    """The executable of `_chunk_seeds`, apart from running it, so that compile time can be told apart."""
    return _chunk_seeds.lower(program, mesh, *jax.tree.unflatten(tree, leaves)).compile()


def compiles() -> int:
    """Training programs compiled so far in this process."""
    return _compiled.cache_info().misses


@functools.partial(jax.jit, static_argnums=0)
def _evaluate_seeds(player: Society | Agent, params: PyTree, keys: Array) -> Episodes:
    """`evaluate` for every seed: leaves [S, episodes]."""
    play: Any = evaluate if isinstance(player, Society) else baselines.evaluate
    env_params = player.env.default_params
    return jax.vmap(lambda params, key: play(player, params, key, env_params, _EPISODES))(params, keys)


@standard_promotion
def evaluate_both(player: Society | Agent, params: PyTree, key: Array, seeds: int) -> dict[str, Episodes]:
    """Fresh episodes of every seed, ``"greedy"`` and with ``"sampled"`` bids (or choices): leaves [S, episodes]."""
    keys = jax.random.split(key, (2, seeds))
    if isinstance(player, Society):
        player = _without_prices(player)
    return {
        how: _evaluate_seeds(dataclasses.replace(player, greedy=how == "greedy"), params, keys[i])
        for i, how in enumerate(("greedy", "sampled"))
    }


@entry_point
def fit(
    config: TrainConfig,
    key: Array,
    out: str | Path | None = None,
    *,
    start: "SavedRun | FitResult | str | Path | None" = None,
    freeze: Sequence[str] = (),
    resume: bool = False,
    checkpoint_every: float = 60.0,
    devices: Devices = 1,
    loggers: Sequence[Logger] = (),
    check: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train ``config.seeds`` seeds, evaluate them, and write the results.

    Seed i is ``train(config, jax.random.split(key, config.seeds)[i])``. A run with a folder is checkpointed there;
    killed at any moment and resumed, it ends with the same bits as one that never stopped. Ctrl-C ends the training
    after the chunk under way, and the rest goes on with what was learned; it can be resumed, too.

    Args:
        config: the settings.
        key: a typed PRNG key.
        out: a folder for the configuration, metrics, checkpoints, parameters and figures; nothing is written without.
        start: a finished run (or its folder) of the same kind of agent, on this task or another: seed i begins with the
            networks its seed i ended with, and with fresh optimizers.
        freeze: names of parts of the networks that are not trained, as shell patterns; see `jaxmarket.transfer`.
        resume: go on where the run in ``out`` stopped, if there is one; one that is finished is read back.
        checkpoint_every: seconds between checkpoints, 0 for one after every chunk; there is always one at the end.
        devices: how many devices seeds and instances are spread over, ``"all"``, or which; see `jaxmarket.devices`. The
            results are those of one device up to the order of sums where devices share a seed. In a run of several
            processes, always all of all of them.
        loggers: called after each chunk; see `jaxmarket.logging`.
        check: compile the library's invariants in (`jaxmarket.checking`): training stops where something is no number,
            or money comes from nowhere, and says what. Slower; the results are the same. On one device.
        progress: whether to show a progress bar with rate and ETA on standard error.

    Raises:
        ValueError: the folder is taken or cannot be written, it holds another run than the one to resume or a damaged
            checkpoint, the run to start from does not fit, a name to freeze is none, devices cannot share the work, or
            a check failed.
    """
    program = program_of(config)
    key = prng_key("key", key, traced=False)
    checkpoint_every = number("checkpoint_every", checkpoint_every, 0)
    if not isinstance(freeze, list | tuple) or not all(isinstance(pattern, str) for pattern in freeze):
        write = f"; write [{freeze!r}]" if isinstance(freeze, str) else ""
        raise ValueError(f"freeze: expected a sequence of patterns, got {given(freeze)}{write}")
    if not isinstance(loggers, list | tuple) or not all(map(callable, loggers)):
        raise ValueError(f"loggers: expected a sequence of functions of a Record, got {given(loggers)}")
    resume, check = flag("resume", resume), flag("check", check)
    if start is not None and not isinstance(start, SavedRun | FitResult | str | Path):
        raise ValueError(f"start: expected a finished run or its folder, got {given(start)}")
    out = None if out is None else path("out", out)
    if resume and out is None:
        raise ValueError("resume: which run? give its folder as out")
    if jax.process_count() > 1:
        devices = "all"
    mesh = devices_mesh(devices, config.seeds, program.instances, config.minibatch)  # type: ignore[arg-type]
    if check and mesh is not None:
        raise ValueError("check: checks are made on one device; leave out devices")
    run = _Run(config, program, key, mesh, check=check)
    trained = None if start is None else (read(start) if isinstance(start, str | Path) else start).networks
    origin = {
        "key": jax.random.key_data(key).tolist(),
        "start": None if trained is None else transfer.fingerprint(trained),
        "start_folder": str(start) if isinstance(start, str | Path) else None,
        "frozen": list(freeze),
    }
    if trained is not None:
        run.state = run.state.replace(learner=transfer.start_from(run.state.learner, trained))
    if freeze:
        frozen = transfer.freeze(run.state.learner, freeze, modules=isinstance(program, Program))
        run.state = run.state.replace(learner=frozen)
    if out is None:
        run.train(loggers, progress=progress)
        return run.result(origin)
    folder = Folder(out, config, origin, resume=resume)
    summary = folder.finished() if resume else None
    if summary is None:  # of a finished run nothing is written again
        loggers = [folder.log, *loggers]
    with Checkpoints(folder.path / "checkpoints") as checkpoints:
        if resume:
            run.resume(checkpoints, loggers)
        run.train(loggers, checkpoints, checkpoint_every, progress=progress)
    if summary is not None:
        return FitResult(summary, run.state, run.metrics, config, *_bids_beside_q(config, program, run.state))
    result = run.result(origin)
    folder.finish(result)
    return result


class _Run:
    """Training under way: the state, what came before it, and the loop."""

    def __init__(
        self, config: TrainConfig, program: Program | Monolith, key: Array, mesh: Mesh | None, *, check: bool
    ) -> None:
        self.config, self.program, self.key, self.mesh, self.check = config, program, key, mesh, check
        self.hyper = as_arrays(config.hyperparameters)
        self.oracle = oracle_of(config) if config.agent == "society" else None
        self.state: Any = init_seeds(program, jax.random.split(key, config.seeds), self.hyper)
        self.rows: list[dict[str, np.ndarray]] = []
        self.spent = np.zeros(config.seeds)
        self.compile_seconds = self.run_seconds = 0.0

    @property
    def done(self) -> int:
        """Chunks."""
        return len(self.rows)

    def resume(self, checkpoints: Checkpoints, loggers: Sequence[Logger]) -> None:
        """Go on from the last checkpoint, if there is one, and tell the loggers what was before it.

        Raises:
            ValueError: it is damaged, or another run's.
        """
        last = checkpoints.last()
        if last is None:
            return
        step, saved = last
        whose = f"{checkpoints.folder / str(step)}: the arrays"
        settings = settings_of(self.config)
        if saved.note.get("config") != settings:
            raise ValueError(
                f"{checkpoints.folder / str(step)}: a checkpoint of other settings; remove it, or resume them"
            )
        self.state = unflatten(self.state, saved.part("state"), whose)
        metrics = saved.part("metrics")
        for chunk in range(step):
            self._book({name: values[chunk] for name, values in metrics.items()}, loggers, earlier=True)
        self.run_seconds = saved.note["seconds"]

    def _book(self, metrics: dict[str, np.ndarray], loggers: Sequence[Logger], *, earlier: bool = False) -> None:
        """Take down a chunk's metrics, and tell the loggers."""
        auctions = self.config.auctions_per_chunk
        self.rows.append(metrics)
        self.spent = self.spent + env_steps(metrics["duration"][None], auctions)[0]
        record = Record(self.done, self.program.chunks, self.done * auctions, self.spent, metrics, earlier)
        if jax.process_index() == 0:
            for log in loggers:
                log(record)

    def _save(self, checkpoints: Checkpoints) -> None:
        arrays = {f"state/{name}": value for name, value in flatten(gather(self.state, self.mesh)).items()}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        note = {"config": settings_of(self.config), "seconds": self.run_seconds, "versions": _versions()}
        checkpoints.save(self.done, arrays, note)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """Of all chunks: [chunks, ...]."""
        return {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]} if self.rows else {}

    def train(
        self,
        loggers: Sequence[Logger],
        checkpoints: Checkpoints | None = None,
        checkpoint_every: float = 0,
        *,
        progress: bool,
    ) -> None:
        """Do the chunks that are left, or those until Ctrl-C."""
        config, chunks = self.config, self.program.chunks
        if self.done == chunks:
            return
        auctions = config.seeds * config.auctions_per_chunk
        before, kept = self.run_seconds, self.done
        with tables.progress(config.adapter.name, shown=progress and jax.process_index() == 0) as show:
            began = time.perf_counter()
            self.state = put(self.state, self.mesh, _functions(self.program).PARTITION)
            hyper, oracle = put((self.hyper, self.oracle), self.mesh, P())
            compiled = self._compile(hyper, oracle)
            self.compile_seconds = time.perf_counter() - began
            if self.done:
                show.say(f"going on after chunk {self.done} of {chunks}")
            began = saved = time.perf_counter()
            try:
                while self.done < chunks:
                    self.state, metrics = compiled(self.state, hyper, oracle)
                    metrics = jax.device_get(metrics)
                    self.run_seconds = before + time.perf_counter() - began
                    self._book(metrics, loggers)
                    show(self.done * auctions, chunks * auctions, tables.return_note(metrics))
                    if checkpoints is not None and _due(time.perf_counter() - saved >= checkpoint_every):
                        self._save(checkpoints)
                        saved, kept = time.perf_counter(), self.done
            except KeyboardInterrupt:
                if jax.process_count() > 1:  # the others may be a chunk ahead
                    raise
                show.say(f"stopping after chunk {self.done} of {chunks}, with the results so far")
            if checkpoints is not None and kept < self.done:
                with _undisturbed():
                    self._save(checkpoints)
        if self.mesh is not None:  # on one device again: what follows is small, and the same in every process
            self.state = unflatten(self.state, flatten(gather(self.state, self.mesh)))
        jax.block_until_ready(self.state)

    def _compile(self, hyper: Hyperparameters, oracle: Oracle | None) -> Any:
        if self.check:
            return checked(functools.partial(_chunk_seeds, self.program, self.mesh))

        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]  nothing is compiled then
            return functools.partial(_chunk_seeds, self.program, self.mesh)

        def shape(leaf: Array) -> jax.ShapeDtypeStruct:
            sharding = None if self.mesh is None else leaf.sharding
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)

        leaves, tree = jax.tree.flatten((self.state, hyper, oracle))
        return _compiled(self.program, self.mesh, tree, tuple(shape(leaf) for leaf in leaves))

    def result(self, origin: dict[str, Any]) -> FitResult:
        """What was learned, evaluated."""
        key_eval = jax.random.fold_in(self.key, 1)
        result = _assess(self.config, self.program, self.state, self.metrics, key_eval)
        steps = int(self.spent.sum())
        result.summary.update(
            env_steps=steps,
            compile_seconds=self.compile_seconds,
            run_seconds=self.run_seconds,
            steps_per_second=steps / max(self.run_seconds, 1e-9),
            interrupted=self.done < self.program.chunks,
            **origin,
            params_sha256=digest(flatten(self.state)),
            versions=_versions(),
        )
        return result


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C, pressed again by who is impatient, waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _due(mine: bool) -> bool:
    """Whether it is time for a checkpoint; all processes go by the first one's clock."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.broadcast_one_to_all(jnp.asarray(mine)))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("jaxmarket", "jax", "flax", "optax")}


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
    exact, bids, visited = _bids_beside_q(config, program, state)
    if exact is not None:
        q = jnp.asarray(exact, real())
        summary["bid_error"] = _worst(bid_error, bids, q, visited)
        if config.learner == "valuation":
            every = functools.partial(bid_error, every_bidder=True)
            summary["bid_error_all"] = _worst(every, bids, q, visited)
    return FitResult(summary, state, metrics, config, exact, bids, visited)


def _bids_beside_q(
    config: TrainConfig, program: Program | Monolith, state: Any
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """`FitResult`'s ``q``, ``bids`` and ``visited``: None where Q* is unknown."""
    exact = config.adapter.optimal_q(config.gamma) if isinstance(program, Program) else None
    if exact is None:
        return None, None, None
    player: Any = player_of(config)
    modules = jax.vmap(lambda p: bids_by_state(player, p, exact.shape[0]))(state.learner.params)
    bids = modules.reshape(*modules.shape[:2], player.primitives, -1).max(-1)
    return exact, np.asarray(bids), np.asarray(state.visits > 0)


def _worst(error: Callable[..., Array], bids: Any, q: Array, visited: Any) -> float | None:
    """The largest error over seeds, None where a seed visited no state while visits were counted."""
    worst = float(jax.vmap(error, (0, None, 0))(bids, q, visited).max())
    return None if np.isnan(worst) else worst
