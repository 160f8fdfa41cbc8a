"""Fitting: a host loop over the compiled chunk, with a progress bar, evaluation and files around it."""

import contextlib
import dataclasses
import functools
import math
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

from jaxmarket.checking import checked
from jaxmarket.collectives import INSTANCES, SEEDS
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import Episodes
from jaxmarket.keys import from_words, key_for
from jaxmarket.learners import Hyperparameters
from jaxmarket.learners.protocol import is_large
from jaxmarket.metrics import Oracle, bid_error, env_steps
from jaxmarket.runs import best_replies, compilation_cache
from jaxmarket.runs.checkpoint import Checkpoints, Saved
from jaxmarket.runs.devices import Devices, gather, over_seeds, put
from jaxmarket.runs.devices import mesh as devices_mesh
from jaxmarket.runs.interrupts import Deferred, raise_dropped, retained
from jaxmarket.runs.result import FitResult
from jaxmarket.runs.run_folder import Origin, RunFolder, SavedRun, read, versions, warn_if_interrupted
from jaxmarket.runs.sinks import Logger, Record
from jaxmarket.switches import compiler_options, entry_point, standard_promotion, whole_program
from jaxmarket.training import divergence, transfer
from jaxmarket.training.arrays import digest, flatten, unflatten
from jaxmarket.training.config import TrainConfig, check_config
from jaxmarket.training.result import RunResult
from jaxmarket.training.settings import Settings
from jaxmarket.training.trainable import Player, Trainable
from jaxmarket.types import Array, PyTree, real
from jaxmarket.validation import check_bool, check_float, check_int, check_key, check_path, short_repr
from jaxmarket.view import tables

__all__ = ["Repeated", "compiles", "evaluate_both", "fit", "init_seeds", "repeat"]

_EPISODES = 128
_GAIN = "best_reply_gain"
_MOST_METRICS = 2**30  # bytes of metrics in a checkpoint


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
    return whole_program(functools.partial(function, static))


def _init_seeds(trainable: Trainable, keys: Array, hyper: Hyperparameters, env_params: PyTree) -> PyTree:
    env_params = _params_of(trainable.env, env_params)
    return jax.vmap(lambda key: trainable.init(key, env_params, hyper))(keys)


def init_seeds(trainable: Trainable, keys: Array, hyper: Hyperparameters, env_params: PyTree = None) -> Any:
    """`Trainable.init` for every key [seeds]: leaves [seeds, ...]."""
    return _jitted(_init_seeds, trainable.initializer)(keys, hyper, env_params)


def _init_run(static: tuple[Trainable, int], key: Array, hyper: Hyperparameters, env_params: PyTree) -> PyTree:
    trainable, seeds = static
    return _init_seeds(trainable, jax.random.split(key, seeds), hyper, env_params)


def _chunk_seeds(
    trainable: Trainable,
    mesh: Mesh | None,
    state: PyTree,
    hyper: Hyperparameters,
    oracle: Oracle | None,
    env_params: PyTree = None,
) -> tuple[PyTree, dict[str, Array]]:
    shards = 1 if mesh is None else mesh.shape[INSTANCES]
    local = trainable.shard(shards) if shards > 1 else trainable

    def chunk(
        state: PyTree, hyper: Hyperparameters, oracle: Oracle | None, env_params: PyTree
    ) -> tuple[PyTree, dict[str, Array]]:
        env_params = _params_of(trainable.env, env_params)
        large = _has_large_networks(trainable, state)
        return over_seeds(lambda state: local.chunk(state, env_params, hyper, oracle), state, large=large)

    if mesh is None:
        return chunk(state, hyper, oracle, env_params)
    each = trainable.partition
    specs = {"in_specs": (each, P(), P(), P()), "out_specs": (each, P(SEEDS))}
    state, metrics = jax.shard_map(chunk, mesh=mesh, **specs, check_vma=False)(state, hyper, oracle, env_params)
    # All of them in every process: the host writes them down.
    return state, jax.lax.with_sharding_constraint(metrics, NamedSharding(mesh, P()))


@functools.lru_cache(maxsize=_PROGRAMS)
def _compiled(trainable: Trainable, mesh: Mesh | None, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    """The executable of `_chunk_seeds`, compiled before it runs, so that compile time is measured by itself."""
    chunk = jax.jit(functools.partial(_chunk_seeds, trainable, mesh), donate_argnums=0)
    arguments = jax.tree.unflatten(tree, leaves)
    options = compiler_options(large=_has_large_networks(trainable, arguments[0]))
    return chunk.lower(*arguments).compile(compiler_options=options)


def _has_large_networks(trainable: Trainable, state: PyTree) -> bool:
    """Whether training should treat the networks of a state, leaves [seeds, ...], as large ones (`is_large`)."""
    params = jax.tree.leaves(state.learner.params)
    networks = math.prod(params[0].shape[: 1 + trainable.module_axis]) if params else 0
    return is_large(params, networks)


def compiles() -> int:
    """Training programs compiled so far in this process."""
    return _compiled.cache_info().misses


def _evaluation_keys(seeds: int, key: Array) -> tuple[Array, Array]:
    keys = jax.random.split(key, (2, seeds))
    return keys[0], keys[1]


def _evaluate_seeds(player: Player, params: PyTree, keys: Array, greedy: Array, env_params: PyTree) -> Episodes:
    """New episodes of every seed: leaves [seeds, episodes]."""
    env_params = _params_of(player.env, env_params)

    def evaluate(params: PyTree, key: Array) -> Episodes:
        return player.evaluate(params, key, env_params, _EPISODES, greedy=greedy)

    return over_seeds(lambda each: evaluate(*each), (params, keys))


@standard_promotion
def evaluate_both(
    trainable: Trainable, params: PyTree, key: Array, seeds: int, env_params: PyTree = None
) -> dict[str, Episodes]:
    """New episodes of every seed, with ``"greedy"`` and with ``"sampled"`` bids (or choices): leaves [seeds, episodes].

    Both are runs of one compiled program.

    Args:
        trainable: what was trained.
        params: its parameters, leaves [seeds, ...].
        key: a typed PRNG key.
        seeds: number of seeds.
        env_params: the environment's parameters; its ``default_params`` if None.
    """
    program = _jitted(_evaluate_seeds, trainable.player(greedy=False))
    keys = zip(("greedy", "sampled"), _jitted(_evaluation_keys, seeds)(key), strict=True)
    return {how: program(params, each, np.bool_(how == "greedy"), env_params) for how, each in keys}


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
    best_reply_every: int | None = None,
    progress: bool = True,
) -> FitResult:
    """Train ``config.seeds`` seeds, evaluate them, and write the results.

    Seed i is ``train(config, jax.random.split(key, config.seeds)[i])``. A run with a folder is checkpointed there: if
    it is killed at any moment and resumed, it ends with the same bits as a run that never stopped. A signal takes
    effect after the current chunk and a checkpoint. Ctrl-C then ends the training; what was learned so far is
    evaluated, and the run can be resumed. TERM and HUP end the process. The folder is locked: a second process that
    tries to write to it gets an error. In an IPython session, such as a notebook, JAX's compilation cache is switched
    on (`jaxmarket.runs.compilation_cache`).

    Args:
        config: the settings.
        key: a typed PRNG key.
        out: a folder for the configuration, metrics, checkpoints, parameters and figures; None writes nothing.
        env_params: parameters of the environment, traced; its ``default_params`` if None. With other parameters,
            metrics that need Q* (which is known for the defaults only) are omitted, and every truncation in a rollout
            needs a bootstrap auction.
        start: a finished run, or its folder, of the same kind of agent, on this task or another: seed i begins with
            the networks that its seed i ended with, and with new optimizers. Not needed to resume.
        freeze: parts of the networks that are not trained, as shell patterns such as ``policy/torso/*``; see
            `jaxmarket.training.transfer`.
        resume: continue the run in ``out`` where it stopped. A finished run is read back; without a run in ``out``
            training begins.
        checkpoint_every: seconds between checkpoints, 0 for one after every chunk; there is always one at the end.
        devices: the number of devices that share the seeds and instances, ``"all"``, or the devices themselves; see
            `jaxmarket.runs.devices`. If devices share a seed, results equal those of one device up to the order of
            sums. A run of several processes always uses all devices of all processes.
        loggers: called after each chunk; see `jaxmarket.runs.sinks`.
        check: compile the library's invariants into the program (`jaxmarket.checking`). Training then stops with an
            error at the first number that is not finite, or if money is not conserved. It is slower, the results are
            the same, and it needs a single device.
        other_versions: whether to resume a run of other library versions, whose results may differ.
        best_reply_every: updates between two values of the metric ``best_reply_gain``, how far the society is from
            equilibrium (`jaxmarket.interop.deviations.best_replies`): a multiple of ``log_every``. There is one after
            the last chunk, too. It needs a society over a `FiniteMDP`.
        progress: whether to show the phase, rate, ETA and return: on standard error, where a terminal also shows the
            curve of the return as a line of blocks, or in a notebook as one output with the curve as a figure.

    Returns:
        The final state, metrics per chunk and seed, and a summary of the evaluation, in which the returns of diverged
        seeds are NaN.

    Raises:
        ValueError: an argument is invalid, the folder is in use or cannot be written, it contains another run than the
            one to resume or a damaged checkpoint, the run to start from does not fit, ``freeze`` names an unknown part,
            devices cannot share the work, or a check failed.
    """
    compilation_cache.in_session()
    settings = check_config(config).settings
    key = check_key("key", key, traced=False)
    checkpoint_every = check_float("checkpoint_every", checkpoint_every, 0)
    if not isinstance(freeze, list | tuple) or not all(isinstance(pattern, str) for pattern in freeze):
        write = f"; write [{freeze!r}]" if isinstance(freeze, str) else ""
        raise ValueError(f"freeze: expected a sequence of patterns, got {short_repr(freeze)}{write}")
    if not isinstance(loggers, list | tuple) or not all(map(callable, loggers)):
        raise ValueError(
            f"loggers: expected a sequence of functions of a Record, got {short_repr(loggers)}; write [logger]"
        )
    resume, check = check_bool("resume", resume), check_bool("check", check)
    if best_reply_every is not None:
        best_reply_every = _chunks_between(best_reply_every, settings, env_params)
    if start is not None and not isinstance(start, SavedRun | FitResult | str | Path):
        raise ValueError(
            f"start: expected a finished run or its folder, got {short_repr(start)}; give the result of fit, or a path"
        )
    out = None if out is None else check_path("out", out)
    if resume and out is None:
        raise ValueError("resume: expected a run folder, got out=None; pass the folder as out")
    if jax.process_count() > 1:
        devices = "all"
    mesh = devices_mesh(devices, settings.seeds, settings.instances, settings.minibatch)
    if mesh is not None and mesh.shape[INSTANCES] > 1:
        settings.trainable.shard(mesh.shape[INSTANCES])  # refused now where instances cannot be spread
    if check and mesh is not None:
        raise ValueError("check: checked runs use one device; omit devices")
    env_params = None if env_params is None else settings.adapter.parameters(env_params)
    run = _Run(config, settings, key, mesh, env_params, check=check, best_reply_every=best_reply_every)
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
    run.begin(trained, freeze)
    with tables.progress(settings.adapter.name, shown=progress and jax.process_index() == 0) as show:
        loggers = [_curve(show), *loggers]
        if out is None:
            run.train(show, loggers)
            return run.result(show, origin)
        with (
            RunFolder(out, config, origin, resume=resume, other_versions=other_versions) as folder,
            Checkpoints(folder.path / "checkpoints") as checkpoints,
        ):
            return _fit_in(folder, checkpoints, run, show, loggers, checkpoint_every, started=trained is not None)


def _chunks_between(updates: int, settings: Settings, env_params: PyTree) -> int:
    """The chunks between two values of ``best_reply_gain``.

    Raises:
        ValueError: the updates are no multiple of a chunk's, or best replies cannot be solved.
    """
    updates, each = check_int("best_reply_every", updates), settings.updates_per_chunk
    if updates % each:
        raise ValueError(f"best_reply_every: expected a multiple of log_every, {each} updates, got {updates}")
    if not best_replies.solvable(settings.trainable) or env_params is not None:
        raise ValueError(
            "best_reply_every: expected a society over a FiniteMDP with its own parameters and actions as primitives, "
            f"got {settings.trainable} on {settings.adapter.name}; train a best reply afterwards, a lower bound "
            "(jaxmarket.runs.best_replies.trained)"
        )
    return updates // each


@dataclasses.dataclass(frozen=True)
class Repeated:
    """What `repeat` recorded.

    Attributes:
        steps: environment steps of each seed at each moment, [moments, seeds]; the first is 0.
        bids: f [moments, seeds, S, P], greedy bids as `Trainable.bids_and_visits` returns them.
        same: whether the training ended with the bits of the run that it repeats.
    """

    steps: np.ndarray
    bids: np.ndarray
    same: bool


@entry_point
def repeat(source: RunResult, moments: int = 50, *, progress: bool = True) -> Repeated:
    """Repeat the training of a run from its settings, and record the greedy bids in every state on the way.

    The training is that of `fit` on one device; it writes nothing.

    Args:
        source: a run whose bids per state are known (`Trainable.bids_and_visits`).
        moments: the most moments to record, from before the first chunk to after the last.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the run was interrupted, or started from networks that are no longer in their folder.
    """
    config, summary = source.config, source.summary
    if summary.get("interrupted"):
        raise ValueError("training: the run was interrupted, so it cannot be repeated; resume it first")
    start = summary["start_folder"]
    trained = None if start is None else read(start).networks
    if summary["start"] != (None if trained is None else transfer.fingerprint(trained)):
        raise ValueError(
            f"training: the run started from networks that are not those in {start}, so it cannot be repeated; leave "
            "out the replay of the training"
        )
    settings = config.settings
    run = _Run(config, settings, from_words(summary["key"]), None, None, check=False)
    run.begin(trained, summary["frozen"])
    chosen = {int(chunk) for chunk in np.round(np.linspace(0, settings.chunks, moments))}
    steps, bids = [run.spent], [run.bids_beside_q()[1]]

    def record(now: Record) -> None:
        if now.chunk in chosen:
            steps.append(now.env_steps)
            bids.append(run.bids_beside_q()[1])

    with tables.progress(settings.adapter.name, shown=progress) as show:
        run.train(show, [_curve(show), record])
    same = digest(flatten(run.state)) == summary["params_sha256"]
    return Repeated(np.stack(steps), np.stack([x for x in bids if x is not None]), same)


def _curve(show: tables.Show) -> Logger:
    """A logger that continues the curve beside the progress bar."""

    def log(record: Record) -> None:
        returns = record.metrics["return_mean"]
        lost = record.metrics.get("diverged", np.zeros(len(returns))) > 0
        show.point(float(record.env_steps.mean()), returns, lost)

    return log


def _fit_in(
    folder: RunFolder,
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
        q, bids, visited = run.bids_beside_q()
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
        settings: Settings,
        key: Array,
        mesh: Mesh | None,
        env_params: PyTree,
        *,
        check: bool,
        best_reply_every: int | None = None,
    ) -> None:
        self.best_reply_every = best_reply_every  # chunks
        self.config, self.settings, self.trainable = config, settings, settings.trainable
        self.key, self.mesh, self.env_params, self.check = key, mesh, env_params, check
        self.hyper = settings.hyperparameters.as_arrays()
        self.oracle = settings.oracle if env_params is None else None
        start = _jitted(_init_run, (self.trainable.initializer, settings.seeds))
        self.state: Any = start(key, self.hyper, env_params)
        self.rows: list[dict[str, np.ndarray]] = []
        self.spent = np.zeros(settings.seeds)
        self.compile_seconds = self.run_seconds = 0.0

    def begin(self, trained: transfer.NetworkParams | None, freeze: Sequence[str]) -> None:
        """Start from trained networks, if there are any, and freeze parts of the networks."""
        if trained is not None:
            self.state = self.state.replace(learner=transfer.start_from(self.state.learner, trained))
        if freeze:
            frozen = transfer.freeze(self.state.learner, freeze, modules=self.trainable.module_axis)
            self.state = self.state.replace(learner=frozen)

    @property
    def done(self) -> int:
        """The number of finished chunks."""
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

    def _best_reply_gain(self) -> dict[str, np.ndarray]:
        """The metric of the chunk that was just trained; nothing where none is due."""
        every, chunk = self.best_reply_every, self.done + 1
        if every is None or (chunk % every and chunk < self.trainable.chunks):
            return {}
        params = gather(self.state.learner.params, self.mesh)
        found = best_replies.of_seeds(self.trainable, params)
        return {_GAIN: np.array([each.gains.max() for each in found], real())}

    def _record(self, metrics: dict[str, np.ndarray], loggers: Sequence[Logger], *, earlier: bool = False) -> None:
        """Store the metrics of a chunk, and pass them to the loggers."""
        if self.best_reply_every is not None or (self.rows and _GAIN in self.rows[0]):
            # All chunks have the same columns, in the order of restored ones.
            metrics = dict(sorted(({_GAIN: np.full(self.settings.seeds, np.nan, real())} | metrics).items()))
        auctions = self.settings.auctions_per_chunk
        self.rows.append(metrics)
        self.spent = self.spent + env_steps(metrics["duration"][None], auctions)[0]
        record = Record(self.done, self.trainable.chunks, self.done * auctions, self.spent, metrics, earlier)
        if jax.process_index() == 0:
            for log in loggers:
                log(record)

    def save(self, checkpoints: Checkpoints, folder: RunFolder) -> None:
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
        """The metrics of all chunks: [chunks, ...] by name."""
        return {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]} if self.rows else {}

    def train(
        self,
        show: tables.Show,
        loggers: Sequence[Logger],
        checkpoints: Checkpoints | None = None,
        folder: RunFolder | None = None,
        checkpoint_every: float = 0,
    ) -> None:
        """Train the remaining chunks, or until Ctrl-C.

        A signal takes effect between chunks, after a checkpoint, so that state, metrics and records are consistent.
        """
        settings, chunks = self.settings, self.trainable.chunks
        if self.done == chunks:
            return
        auctions = settings.seeds * settings.auctions_per_chunk
        before, kept = self.run_seconds, self.done
        began = time.perf_counter()
        self.state = put(self.state, self.mesh, self.trainable.partition)
        arguments = put((self.hyper, self.oracle, self.env_params), self.mesh, P())
        compiled = self._compile(arguments)
        raise_dropped()  # there is nothing to save yet
        self.compile_seconds = time.perf_counter() - began
        if self.done:
            show.say(f"continuing after chunk {self.done} of {chunks}")
        began = saved = time.perf_counter()

        def run_chunk() -> None:
            self.state, metrics = compiled(self.state, *arguments)
            metrics = jax.device_get(metrics) | self._best_reply_gain()
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
                        run_chunk()
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

    def _compile(self, arguments: tuple[Hyperparameters, Oracle | None, PyTree]) -> Any:
        if self.check:
            return checked(functools.partial(_chunk_seeds, self.trainable, self.mesh))

        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]  compiling is impossible then
            return functools.partial(_chunk_seeds, self.trainable, self.mesh)

        def shape(leaf: Array) -> jax.ShapeDtypeStruct:
            sharding = None if self.mesh is None else leaf.sharding
            return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)

        leaves, tree = jax.tree.flatten((self.state, *arguments))
        return _compiled(self.trainable, self.mesh, tree, tuple(shape(leaf) for leaf in leaves))

    def result(self, show: tables.Show, origin: Origin) -> FitResult:
        """Evaluate the current state."""
        show.phase("evaluating")
        key_eval = key_for(self.key, "evaluation")
        result = self._assess(key_eval)
        steps = int(self.spent.sum())
        result.summary.update(
            env_steps=steps,
            compile_seconds=self.compile_seconds,
            run_seconds=self.run_seconds,
            steps_per_second=steps / max(self.run_seconds, 1e-9),
            interrupted=self.done < self.trainable.chunks,
            **dataclasses.replace(origin, versions=versions()).json(),
            params_sha256=digest(flatten(self.state)),
        )
        return result

    def _assess(self, key: Array) -> FitResult:
        """Evaluate every seed, greedily and sampled, and compare its bids with Q* where that is known."""
        settings = self.settings
        given_params = {} if self.env_params is None else {"env_params": self.env_params}
        episodes = evaluate_both(self.trainable, self.state.learner.params, key, settings.seeds, **given_params)
        exact, bids, visited = self.bids_beside_q()
        means = jax.device_get(_means(episodes))
        returns = {how: some.returns for how, some in means.items()}
        found = divergence.find(self.metrics, *returns.values(), *([] if bids is None else [bids]))
        lost = [each["seed"] for each in found]
        bids, visited = _without(lost, bids, visited)

        def per_seed(values: Any) -> list[float]:
            known = np.array(values, np.float64)
            known[lost] = np.nan
            return known.tolist()

        terminated = {how: per_seed(some.terminated) for how, some in means.items()}
        unfinished = {how: per_seed(1 - some.finished) for how, some in means.items()}
        greedy = divergence.spread(per_seed(returns["greedy"]))
        summary: dict[str, Any] = {
            "env": settings.adapter.name,
            **settings.labels,
            "seeds": settings.seeds,
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
            "bid_error_relative": None,
        }
        for name in ("saturation", _GAIN):
            if name in self.metrics:
                summary[name] = divergence.spread(per_seed(self.metrics[name][-1])).mean
        if bids is not None and visited is not None and len(lost) < settings.seeds:
            kept = np.delete(bids, lost, axis=0), np.asarray(exact, real()), np.delete(visited, lost, axis=0)
            errors = {name: float(error) for name, error in _worst_errors(*kept).items()}
            if not getattr(settings.learner, "estimates_values", False):
                del errors["bid_error_all"]
            summary |= {name: None if np.isnan(error) else error for name, error in errors.items()}
        return FitResult(summary, self.state, self.metrics, self.config, exact, bids, visited)

    def bids_beside_q(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """`FitResult`'s ``q``, ``bids`` and ``visited``: None where Q* is unknown."""
        found = None if self.oracle is None else _jitted(_bids_and_visits, self.trainable)(self.state)
        if found is None:
            return None, None, None
        bids, visited = found
        return self.settings.adapter.optimal_q(self.settings.gamma), np.asarray(bids), np.asarray(visited)


def _due(mine: bool) -> bool:
    """Whether a checkpoint is due, by the clock of the first process."""
    if jax.process_count() == 1:
        return mine
    return bool(multihost_utils.broadcast_one_to_all(jnp.asarray(mine)))


def _without(
    lost: Sequence[int], bids: np.ndarray | None, visited: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`FitResult`'s ``bids`` and ``visited``, with NaN and False for diverged seeds."""
    if bids is None or visited is None:
        return bids, visited
    bids, visited = bids.copy(), visited.copy()
    bids[lost], visited[lost] = np.nan, False
    return bids, visited


def _bids_and_visits(trainable: Trainable, state: PyTree) -> tuple[Array, Array] | None:
    return trainable.bids_and_visits(state)


@jax.jit
def _means(episodes: dict[str, Episodes]) -> dict[str, Episodes]:
    return jax.tree.map(lambda x: x.mean(1), episodes)


@jax.jit
def _worst_errors(bids: Array, q: Array, visited: Array) -> dict[str, Array]:
    """The largest errors over seeds, NaN where a seed visited no state while visits were counted."""
    kinds: dict[str, dict[str, Any]] = {
        "bid_error": {},
        "bid_error_relative": {"floor": 0.0},
        "bid_error_all": {"every_bidder": True},
    }
    return {
        name: jax.vmap(functools.partial(bid_error, **kind), (0, None, 0))(bids, q, visited).max()
        for name, kind in kinds.items()
    }
