"""Fitting: a host loop over the compiled chunk, with a progress bar, evaluation and files around it."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmarket.auctions import ENVIRONMENT_REWARD
from jaxmarket.checking import checked
from jaxmarket.collectives import INSTANCES, SEEDS
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes, bids_by_state, evaluate
from jaxmarket.keys import key_for
from jaxmarket.learners import Hyperparameters
from jaxmarket.metrics import Oracle, bid_error, env_steps
from jaxmarket.runs.checkpoint import Checkpoints, Saved
from jaxmarket.runs.devices import Devices, gather, put
from jaxmarket.runs.devices import mesh as devices_mesh
from jaxmarket.runs.interrupts import Deferred, raise_dropped, retained
from jaxmarket.runs.run_folder import Folder, Origin, SavedRun, player_of, read, versions, warn_if_interrupted
from jaxmarket.runs.sinks import Logger, Record
from jaxmarket.society import Society
from jaxmarket.switches import entry_point, standard_promotion
from jaxmarket.training import divergence, transfer
from jaxmarket.training import monolith as baselines
from jaxmarket.training import society as training
from jaxmarket.training.arrays import digest, flatten, unflatten
from jaxmarket.training.config import TrainConfig, check_config
from jaxmarket.training.monolith import Agent, Monolith, MonolithState
from jaxmarket.training.result import FitResult
from jaxmarket.training.society import Program, TrainState, as_arrays, oracle_of
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_bool, check_float, check_key, check_path, short_repr
from jaxmarket.view import tables

__all__ = ["compiles", "evaluate_both", "fit", "init_seeds", "program_of"]

_EPISODES = 128
_MOST_METRICS = 2**30  # bytes of metrics in a checkpoint
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


def _params_of(adapter: Adapter, env_params: PyTree) -> PyTree:
    """The given parameters, or the environment's defaults if None.

    Defaults are constants of the program, so that a known time limit avoids bootstrap auctions. Others are traced.
    """
    return adapter.default_params if env_params is None else env_params


_PROGRAMS = 16
"""Compiled programs of each kind in the cache; each takes about 10 MB."""


@functools.lru_cache(maxsize=_PROGRAMS)
def _jitted(function: Callable[..., Any], static: Any) -> Callable[..., Any]:
    """``function``, compiled for one first argument; this cache frees it when evicted, unlike jit's own caches."""
    return jax.jit(functools.partial(function, static))


def _init_seeds(program: Program | Monolith, keys: Array, hyper: Hyperparameters, env_params: PyTree) -> _State:
    init, env_params = _functions(program).init, _params_of(program.env, env_params)
    return jax.vmap(lambda key: init(program, key, env_params, hyper))(keys)


def init_seeds(program: Any, keys: Array, hyper: Hyperparameters, env_params: PyTree = None) -> Any:
    """`init` for every key: leaves [S, ...]."""
    if isinstance(program, Program):
        program = dataclasses.replace(program, society=_without_prices(program.society))
    return _jitted(_init_seeds, program)(keys, hyper, env_params)


def _chunk_seeds(
    program: Program | Monolith,
    mesh: Mesh | None,
    state: _State,
    hyper: Hyperparameters,
    oracle: Oracle | None,
    env_params: PyTree = None,
) -> tuple[_State, dict[str, Array]]:
    functions = _functions(program)
    shards = 1 if mesh is None else mesh.shape[INSTANCES]
    local: Any = program.spread(shards) if shards > 1 else program

    def chunk(
        state: _State, hyper: Hyperparameters, oracle: Oracle | None, env_params: PyTree
    ) -> tuple[_State, dict[str, Array]]:
        env_params = _params_of(program.env, env_params)
        return jax.vmap(lambda state: functions.chunk(local, state, env_params, hyper, oracle))(state)

    if mesh is None:
        return chunk(state, hyper, oracle, env_params)
    each = functions.PARTITION
    specs = {"in_specs": (each, P(), P(), P()), "out_specs": (each, P(SEEDS))}
    state, metrics = jax.shard_map(chunk, mesh=mesh, **specs, check_vma=False)(state, hyper, oracle, env_params)
    # All of them in every process: the host writes them down.
    return state, jax.lax.with_sharding_constraint(metrics, NamedSharding(mesh, P()))


@functools.lru_cache(maxsize=_PROGRAMS)
def _compiled(
    program: Program | Monolith, mesh: Mesh | None, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> Any:
    """The executable of `_chunk_seeds`, apart from running it, so that compile time can be told apart."""
    chunk = jax.jit(functools.partial(_chunk_seeds, program, mesh), donate_argnums=0)
    return chunk.lower(*jax.tree.unflatten(tree, leaves)).compile()


def compiles() -> int:
    """Training programs compiled so far in this process."""
    return _compiled.cache_info().misses


def _evaluate_seeds(player: Society | Agent, params: PyTree, keys: Array, env_params: PyTree) -> Episodes:
    """`evaluate` for every seed: leaves [S, episodes]."""
    play: Any = evaluate if isinstance(player, Society) else baselines.evaluate
    env_params = _params_of(player.env, env_params)
    return jax.vmap(lambda params, key: play(player, params, key, env_params, _EPISODES))(params, keys)


@standard_promotion
def evaluate_both(
    player: Society | Agent, params: PyTree, key: Array, seeds: int, env_params: PyTree = None
) -> dict[str, Episodes]:
    """Fresh episodes of every seed, ``"greedy"`` and with ``"sampled"`` bids (or choices): leaves [S, episodes]."""
    keys = jax.random.split(key, (2, seeds))
    if isinstance(player, Society):
        player = _without_prices(player)
    return {
        how: _jitted(_evaluate_seeds, dataclasses.replace(player, greedy=how == "greedy"))(params, keys[i], env_params)
        for i, how in enumerate(("greedy", "sampled"))
    }


@entry_point
@retained()
def fit(
    config: TrainConfig,
    key: Array,
    out: str | Path | None = None,
    *,
    env_params: PyTree = None,
    start: "SavedRun | FitResult | str | Path | None" = None,
    freeze: Sequence[str] = (),
    resume: bool = False,
    checkpoint_every: float = 60.0,
    devices: Devices = 1,
    loggers: Sequence[Logger] = (),
    check: bool = False,
    other_versions: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train ``config.seeds`` seeds, evaluate them, and write the results.

    Seed i is ``train(config, jax.random.split(key, config.seeds)[i])``. A run with a folder is checkpointed there;
    killed at any moment and resumed, it ends with the same bits as one that never stopped. Signals wait for the end of
    the chunk under way and for a checkpoint: then Ctrl-C ends the training, and what was learned is evaluated and can
    be resumed; TERM and HUP end the process. While it is written, a folder has no other writer.

    Args:
        config: the settings.
        key: a typed PRNG key.
        out: a folder for the configuration, metrics, checkpoints, parameters and figures; nothing is written without.
        env_params: the environment's parameters, traced; its own if None. Metrics that need Q*, which is that of its
            own, are left out then, and every truncation of a rollout is priced by a bootstrap auction.
        start: a finished run (or its folder) of the same kind of agent, on this task or another: seed i begins with the
            networks its seed i ended with, and with fresh optimizers. Not needed to resume.
        freeze: names of parts of the networks that are not trained, as shell patterns; see
            `jaxmarket.training.transfer`.
        resume: go on where the run in ``out`` stopped, if there is one; one that is finished is read back.
        checkpoint_every: seconds between checkpoints, 0 for one after every chunk; there is always one at the end.
        devices: how many devices seeds and instances are spread over, ``"all"``, or which; see
            `jaxmarket.runs.devices`. The results are those of one device up to the order of sums where devices share a
            seed. In a run of several processes, always all of all of them.
        loggers: called after each chunk; see `jaxmarket.runs.sinks`.
        check: compile the library's invariants in (`jaxmarket.checking`): training stops where something is no number,
            or money comes from nowhere, and says what. Slower; the results are the same. On one device.
        other_versions: whether to resume a run of other library versions, whose results may differ.
        progress: whether to show a progress bar with rate and ETA on standard error.

    Raises:
        ValueError: the folder is in use or cannot be written, it contains another run than the one to resume or a
            damaged checkpoint, the run to start from does not fit, ``freeze`` names an unknown part, devices cannot
            share the work, or a check failed.
    """
    program = program_of(config)
    key = check_key("key", key, traced=False)
    checkpoint_every = check_float("checkpoint_every", checkpoint_every, 0)
    if not isinstance(freeze, list | tuple) or not all(isinstance(pattern, str) for pattern in freeze):
        write = f"; write [{freeze!r}]" if isinstance(freeze, str) else ""
        raise ValueError(f"freeze: expected a sequence of patterns, got {short_repr(freeze)}{write}")
    if not isinstance(loggers, list | tuple) or not all(map(callable, loggers)):
        raise ValueError(f"loggers: expected a sequence of functions of a Record, got {short_repr(loggers)}")
    resume, check = check_bool("resume", resume), check_bool("check", check)
    if start is not None and not isinstance(start, SavedRun | FitResult | str | Path):
        raise ValueError(f"start: expected a finished run or its folder, got {short_repr(start)}")
    out = None if out is None else check_path("out", out)
    if resume and out is None:
        raise ValueError("resume: which run? give its folder as out")
    if jax.process_count() > 1:
        devices = "all"
    mesh = devices_mesh(devices, config.seeds, program.instances, config.minibatch)  # type: ignore[arg-type]
    if check and mesh is not None:
        raise ValueError("check: checks are made on one device; leave out devices")
    env_params = None if env_params is None else config.adapter.parameters(env_params)
    run = _Run(config, program, key, mesh, env_params, check=check)
    begun = read(start) if isinstance(start, str | Path) else start
    if isinstance(begun, SavedRun):
        warn_if_interrupted(begun)
    trained = None if begun is None else begun.networks
    origin = Origin.of(
        key,
        start=None if trained is None else transfer.fingerprint(trained),
        start_folder=str(start) if isinstance(start, str | Path) else None,
        frozen=freeze,
        env_params=env_params,
    )
    if trained is not None:
        run.state = run.state.replace(learner=transfer.start_from(run.state.learner, trained))
    if freeze:
        frozen = transfer.freeze(run.state.learner, freeze, modules=isinstance(program, Program))
        run.state = run.state.replace(learner=frozen)
    label = config.adapter.name
    with tables.progress(label, shown=progress and jax.process_index() == 0) as show:
        if out is None:
            run.train(show, loggers)
            return run.result(show, origin)
        with (
            Folder(out, config, origin, resume=resume, other_versions=other_versions) as folder,
            Checkpoints(folder.path / "checkpoints") as checkpoints,
        ):
            return _fit_in(folder, checkpoints, run, show, loggers, checkpoint_every, started=trained is not None)


def _fit_in(
    folder: Folder,
    checkpoints: Checkpoints,
    run: "_Run",
    show: tables.Show,
    loggers: Sequence[Logger],
    checkpoint_every: float,
    *,
    started: bool,
) -> FitResult:
    """`fit` with a folder; resumes from its last checkpoint if it has one."""
    most = sum(leaf.nbytes for leaf in flatten(run.state).values()) + _MOST_METRICS
    last = checkpoints.last(most) if folder.resume else None
    summary = folder.finished() if folder.resume else None
    if jax.process_count() > 1:  # all have read before the first one writes
        multihost_utils.sync_global_devices("jaxmarket folder")
    if last is not None:
        folder.check(last[1].note.get("run"), checkpoints.path(last[0]))
        run.restore(last[1], str(checkpoints.path(last[0])))
    elif folder.origin.start is not None and not started:
        raise ValueError(
            f"resume: {folder.path} has no checkpoint, and its run started from the networks in "
            f"{folder.origin.start_folder}; start it again, with the same settings and start"
        )
    if summary is None:  # a finished run is not written again
        if folder.resume:
            folder.reopen()
        loggers = [folder.log, *loggers]
    run.replay(loggers)
    if last is None and started and summary is None:
        # From here on, resuming does not need the networks that the run started from.
        run.save(checkpoints, folder)
    run.train(show, loggers, checkpoints if summary is None else None, folder, checkpoint_every)
    if summary is not None:
        if digest(flatten(run.state)) != summary["params_sha256"]:
            raise ValueError(
                f"resume: {folder.path} holds a finished run whose last state cannot be shown (its last checkpoint is "
                "missing, or other versions computed it again); read its networks with jaxmarket.load or evaluate"
            )
        q, bids, visited = _bids_beside_q(run.config, run.program, run.state, run.env_params)
        lost = [each["seed"] for each in summary["diverged"]]
        return FitResult(summary, run.state, run.metrics, run.config, q, *_without(lost, bids, visited))
    result = run.result(show, folder.origin)
    show.phase("writing")
    folder.finish(result)
    return result


class _Run:
    """Training under way: the state, what came before it, and the loop."""

    def __init__(
        self,
        config: TrainConfig,
        program: Program | Monolith,
        key: Array,
        mesh: Mesh | None,
        env_params: PyTree,
        *,
        check: bool,
    ) -> None:
        self.env_params = env_params
        self.config, self.program, self.key, self.mesh, self.check = config, program, key, mesh, check
        self.hyper = as_arrays(config.hyperparameters)
        self.oracle = oracle_of(config) if config.agent == "society" and env_params is None else None
        self.state: Any = init_seeds(program, jax.random.split(key, config.seeds), self.hyper, env_params)
        self.rows: list[dict[str, np.ndarray]] = []
        self.spent = np.zeros(config.seeds)
        self.compile_seconds = self.run_seconds = 0.0

    @property
    def done(self) -> int:
        """Chunks."""
        return len(self.rows)

    def restore(self, saved: Saved, whose: str) -> None:
        """Restore a checkpoint.

        Raises:
            ValueError: its arrays belong to another society.
        """
        self.state = unflatten(self.state, saved.part("state"), f"{whose}: the arrays")
        metrics = saved.part("metrics")
        chunks = len(next(iter(metrics.values()), ()))
        self.rows = [{name: values[chunk] for name, values in metrics.items()} for chunk in range(chunks)]
        seconds = saved.note.get("seconds")
        self.run_seconds = float(seconds) if isinstance(seconds, int | float) else 0.0

    def replay(self, loggers: Sequence[Logger]) -> None:
        """Pass the restored metrics to the loggers."""
        rows, self.rows = self.rows, []
        for metrics in rows:
            self._record(metrics, loggers, earlier=True)

    def _record(self, metrics: dict[str, np.ndarray], loggers: Sequence[Logger], *, earlier: bool = False) -> None:
        """Store the metrics of a chunk, and pass them to the loggers."""
        auctions = self.config.auctions_per_chunk
        self.rows.append(metrics)
        self.spent = self.spent + env_steps(metrics["duration"][None], auctions)[0]
        record = Record(self.done, self.program.chunks, self.done * auctions, self.spent, metrics, earlier)
        if jax.process_index() == 0:
            for log in loggers:
                log(record)

    def save(self, checkpoints: Checkpoints, folder: Folder) -> None:
        """Write a checkpoint.

        Raises:
            ValueError: it cannot be written.
        """
        folder.check_owned()
        arrays = {f"state/{name}": value for name, value in flatten(gather(self.state, self.mesh)).items()}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        checkpoints.save(self.done, arrays, {"run": folder.identity, "seconds": self.run_seconds})

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """Of all chunks: [chunks, ...]."""
        return {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]} if self.rows else {}

    def train(
        self,
        show: tables.Show,
        loggers: Sequence[Logger],
        checkpoints: Checkpoints | None = None,
        folder: Folder | None = None,
        checkpoint_every: float = 0,
    ) -> None:
        """Train the remaining chunks, or until Ctrl-C.

        A signal takes effect between chunks, after a checkpoint, so that state, metrics and records are consistent.
        """
        config, chunks = self.config, self.program.chunks
        if self.done == chunks:
            return
        auctions = config.seeds * config.auctions_per_chunk
        before, kept = self.run_seconds, self.done
        began = time.perf_counter()
        self.state = put(self.state, self.mesh, _functions(self.program).PARTITION)
        settings = put((self.hyper, self.oracle, self.env_params), self.mesh, P())
        compiled = self._compile(settings)
        raise_dropped()  # there is nothing to save yet
        self.compile_seconds = time.perf_counter() - began
        if self.done:
            show.say(f"continuing after chunk {self.done} of {chunks}")
        began = saved = time.perf_counter()

        def one() -> None:
            self.state, metrics = compiled(self.state, *settings)
            metrics = jax.device_get(metrics)
            self.run_seconds = before + time.perf_counter() - began
            self._record(metrics, loggers)
            show(self.done * auctions, chunks * auctions, tables.return_note(metrics))

        def keep() -> None:
            nonlocal saved, kept
            if checkpoints is not None and folder is not None and kept < self.done:
                self.save(checkpoints, folder)
                saved, kept = time.perf_counter(), self.done

        alone = jax.process_count() == 1  # other processes may be a chunk ahead, so there is no common state to save
        try:
            while self.done < chunks:
                with Deferred() if alone else contextlib.nullcontext() as signals:
                    while self.done < chunks and not (signals and signals.pending):
                        one()
                        if self.done == chunks or _due(time.perf_counter() - saved >= checkpoint_every):
                            keep()
                    if alone:
                        keep()
        except KeyboardInterrupt:
            if not alone:
                raise
            show.say(f"stopping after chunk {self.done} of {chunks}, with the results so far")
            with Deferred():
                keep()  # a logger may have raised KeyboardInterrupt
        if self.mesh is not None:  # on one device again: what follows is small, and the same in every process
            self.state = unflatten(self.state, flatten(gather(self.state, self.mesh)))
        jax.block_until_ready(self.state)

    def _compile(self, settings: tuple[Hyperparameters, Oracle | None, PyTree]) -> Any:
        if self.check:
            return checked(functools.partial(_chunk_seeds, self.program, self.mesh))

        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]  compiling is impossible then
            return functools.partial(_chunk_seeds, self.program, self.mesh)

        def shape(leaf: Array) -> jax.ShapeDtypeStruct:
            sharding = None if self.mesh is None else leaf.sharding
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)

        leaves, tree = jax.tree.flatten((self.state, *settings))
        return _compiled(self.program, self.mesh, tree, tuple(shape(leaf) for leaf in leaves))

    def result(self, show: tables.Show, origin: Origin) -> FitResult:
        """What was learned, evaluated."""
        show.phase("evaluating")
        key_eval = key_for(self.key, "evaluation")
        result = _assess(self.config, self.program, self.state, self.metrics, key_eval, self.env_params)
        steps = int(self.spent.sum())
        result.summary.update(
            env_steps=steps,
            compile_seconds=self.compile_seconds,
            run_seconds=self.run_seconds,
            steps_per_second=steps / max(self.run_seconds, 1e-9),
            interrupted=self.done < self.program.chunks,
            **dataclasses.replace(origin, versions=versions()).json(),
            params_sha256=digest(flatten(self.state)),
        )
        return result


def _due(mine: bool) -> bool:
    """Whether it is time for a checkpoint; all processes go by the first one's clock."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.broadcast_one_to_all(jnp.asarray(mine)))


def _assess(
    config: TrainConfig,
    program: Program | Monolith,
    state: Any,
    metrics: dict[str, np.ndarray],
    key: Array,
    env_params: PyTree,
) -> FitResult:
    """Evaluate every seed, greedily and sampled, and compare its bids with Q* where that is known."""
    player: Any = player_of(config)
    params = state.learner.params
    given_params = {} if env_params is None else {"env_params": env_params}
    episodes = evaluate_both(player, params, key, config.seeds, **given_params)
    exact, bids, visited = _bids_beside_q(config, program, state, env_params)
    returns = {how: np.asarray(some.returns.mean(1)) for how, some in episodes.items()}
    found = divergence.find(metrics, *returns.values(), *([] if bids is None else [bids]))
    lost = [each["seed"] for each in found]
    bids, visited = _without(lost, bids, visited)

    def per_seed(values: Any) -> list[float]:
        known = np.array(values, np.float64)
        known[lost] = np.nan
        return known.tolist()

    terminated = {how: per_seed(some.terminated.mean(1)) for how, some in episodes.items()}
    unfinished = {how: per_seed(1 - some.finished.mean(1)) for how, some in episodes.items()}
    greedy = divergence.spread(per_seed(returns["greedy"]))
    summary: dict[str, Any] = {
        "env": config.adapter.name,
        "agent": config.agent,
        "auction": program.society.mechanism.name if isinstance(program, Program) else None,
        "learner": config.learner,
        "clones": config.clones if isinstance(program, Program) else None,
        "seeds": config.seeds,
        "diverged": found,
        "return_mean": greedy.mean,
        "return_std": greedy.std,
        "return_seeds": per_seed(returns["greedy"]),
        "sampled_return_mean": divergence.spread(per_seed(returns["sampled"])).mean,
        "unfinished_share": divergence.spread(unfinished["greedy"]).mean,
        "unfinished_share_seeds": unfinished["greedy"],
        "sampled_unfinished_share": divergence.spread(unfinished["sampled"]).mean,
        "termination_rate_seeds": terminated["greedy"],
        "sampled_termination_rate_seeds": terminated["sampled"],
        "bid_error": None,
    }
    if bids is not None and visited is not None and len(lost) < config.seeds:
        kept = np.delete(bids, lost, axis=0), jnp.asarray(exact, real()), np.delete(visited, lost, axis=0)
        summary["bid_error"] = _worst(bid_error, *kept)
        if config.learner == "valuation":
            summary["bid_error_all"] = _worst(functools.partial(bid_error, every_bidder=True), *kept)
    return FitResult(summary, state, metrics, config, exact, bids, visited)


def _bids_beside_q(
    config: TrainConfig, program: Program | Monolith, state: Any, env_params: PyTree
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """`FitResult`'s ``q``, ``bids`` and ``visited``: None where Q* is unknown."""
    known = isinstance(program, Program) and env_params is None
    exact = config.adapter.optimal_q(config.gamma) if known else None
    if exact is None:
        return None, None, None
    player: Any = player_of(config)
    modules = jax.vmap(lambda p: bids_by_state(player, p, exact.shape[0]))(state.learner.params)
    bids = modules.reshape(*modules.shape[:2], player.primitives, -1).max(-1)
    return exact, np.asarray(bids), np.asarray(state.visits > 0)


def _without(
    lost: Sequence[int], bids: np.ndarray | None, visited: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`FitResult`'s ``bids`` and ``visited``, with NaN and False for diverged seeds."""
    if bids is None or visited is None:
        return bids, visited
    bids, visited = bids.copy(), visited.copy()
    bids[lost], visited[lost] = np.nan, False
    return bids, visited


def _worst(error: Callable[..., Array], bids: Any, q: Array, visited: Any) -> float | None:
    """The largest error over seeds, None where a seed visited no state while visits were counted."""
    worst = float(jax.vmap(error, (0, None, 0))(bids, q, visited).max())
    return None if np.isnan(worst) else worst
