"""A run's folder: configuration, metrics, parameters and figures; and the way back to a policy.

``config.json`` exact settings · ``metrics.csv`` a row per chunk and seed, written as they come ·
``checkpoints/`` the whole state of training, the last two · ``networks.safetensors`` parameters of every seed ·
``summary.json`` · ``learning_curve.png`` · ``best_reply_gain.png`` where it was measured · ``bids.csv`` and
``bids.png`` where Q* is known · ``SHA256SUMS`` checksums of the files that `read` uses.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import math
import os
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import validation
from jaxmarket.auctions import Mechanism, clear
from jaxmarket.environments.adapter import Adapter
from jaxmarket.evaluation import action_rates
from jaxmarket.keys import to_words
from jaxmarket.runs import checkpoint, files
from jaxmarket.runs.checkpoint import Checkpoints
from jaxmarket.runs.interrupts import Deferred
from jaxmarket.runs.result import FitResult, ShownRun
from jaxmarket.runs.sinks import Record, csv_rows, records, to_json
from jaxmarket.switches import standard_promotion
from jaxmarket.training import divergence, objects
from jaxmarket.training.arrays import digest, flatten, unflatten
from jaxmarket.training.config import ALIASES, OF_HEADS, OF_LEARNERS, TrainConfig, accepts
from jaxmarket.training.result import RunResult, summary_line
from jaxmarket.training.settings import Settings
from jaxmarket.training.transfer import NetworkParams, acting_params, networks
from jaxmarket.types import Array, PyTree, cached_property, real
from jaxmarket.validation import check_bool, check_int, escaped, short_repr
from jaxmarket.view import plotting

__all__ = [
    "NETWORKS",
    "Origin",
    "RunFolder",
    "SavedRun",
    "as_policy",
    "best_seed",
    "config_from_dict",
    "config_to_dict",
    "ended",
    "load",
    "read",
    "read_config",
    "read_json",
    "sampled_action_rates",
    "summary_of",
    "to_json",
    "versions",
    "write",
]


@dataclasses.dataclass(frozen=True)
class Origin:
    """The inputs besides the settings that determine a run's bits.

    Attributes:
        key: its PRNG key, in the form of `keys.to_words`.
        start: fingerprint of the networks it started from (`jaxmarket.training.transfer`); None for new networks.
        start_folder: the folder they were read from, for information only.
        frozen: patterns of the parts that are not trained.
        versions: versions of the libraries.
        env_params: the environment's parameters if they are not its defaults: ``sha256`` of their arrays, and
            ``values`` by name, None if they are too large for a text file.
    """

    key: dict[str, Any]
    start: str | None
    start_folder: str | None
    frozen: list[str]
    versions: dict[str, str]
    env_params: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        key: Array,
        start: str | None = None,
        start_folder: str | None = None,
        frozen: Sequence[str] = (),
        env_params: PyTree = None,
    ) -> "Origin":
        """The origin of a new run."""
        params = None if env_params is None else _params_json(env_params)
        return cls(to_words(key), start, start_folder, list(frozen), versions(), params)

    @classmethod
    def read(cls, folder: Path, found: Any) -> "Origin":
        """The origin in a run's ``config.json``.

        Raises:
            ValueError: the file contains no origin, or an incomplete one.
        """
        kinds = {"key": dict, "frozen": list, "versions": dict}
        names = {field.name for field in dataclasses.fields(cls)}
        whole = isinstance(found, dict) and set(found) == names
        if not whole or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"{folder / 'config.json'}: its entry `run` is missing or incomplete; train the run again")
        return cls(**found)

    def json(self) -> dict[str, Any]:
        """The origin as a JSON object for ``config.json``."""
        return dataclasses.asdict(self)


def versions() -> dict[str, str]:
    """The versions of the libraries, and JAX's switches, that determine a run's bits."""
    libraries = {name: version(name) for name in ("jaxmarket", "jax", "jaxlib", "flax", "optax")}
    switches = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_matmul_precision")
    return libraries | {name: str(getattr(jax.config, name)) for name in switches}


def resume_command(folder: Path) -> str:
    """The shell command that resumes the run in a folder."""
    return f"jaxmarket train --resume {shlex.quote(str(folder))}"


def difference(
    wanted: Mapping[str, Any], found: Mapping[str, Any], ignored: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first setting in which two runs differ: its name, its value in ``found``, its value in ``wanted``.

    Args:
        wanted: see `described`.
        found: see `described`.
        ignored: settings that may differ, besides versions and the folder of the networks a run started from.
    """

    def flat(run: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**run, **run["run"]}.items() if name != "run"}

    there, here = flat(found), flat(wanted)
    for name, value in here.items():
        if name not in ("versions", "start_folder", *ignored) and there.get(name) != value:
            return name, there.get(name), value
    return None


def described(config: TrainConfig, origin: Origin) -> dict[str, Any]:
    """The settings and origin of a run, as ``config.json`` and checkpoints contain them."""
    return config_to_dict(config) | {"run": origin.json()}


_MOST_PARAMS = 4096


def _params_json(env_params: PyTree) -> dict[str, Any]:
    arrays = flatten(env_params)
    few = sum(array.size for array in arrays.values()) <= _MOST_PARAMS
    plain = few and all(np.isfinite(array).all() for array in arrays.values())
    values = {name: array.tolist() for name, array in arrays.items()} if plain else None
    return {"sha256": digest(arrays), "values": values}


def params_in(config: TrainConfig, saved: Any, folder: Path) -> PyTree:
    """The environment's parameters that `Origin.env_params` describes; None for its defaults.

    Raises:
        ValueError: the description does not contain their values, or they belong to another environment.
    """
    if saved is None:
        return None
    try:
        like = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), config.adapter.default_params)
        wanted = flatten(like)
        arrays = {name: np.asarray(value, wanted[name].dtype) for name, value in saved["values"].items()}
        restored = unflatten(like, arrays)
        if digest(arrays) == saved["sha256"]:
            return restored
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        pass
    raise ValueError(
        f"{folder}: config.json does not contain the env_params of this run that fit {config.adapter.name}; give them "
        "in Python: jaxmarket.fit(config, key, folder, env_params=..., resume=True)"
    )


class RunFolder:
    """The folder of a run: it writes the settings at the start, metrics after each chunk, and the rest at the end.

    A context manager; inside it the folder has no other writer (`files.owned`). A file is valid once its checksum is in
    ``SHA256SUMS``.

    Args:
        path: the folder.
        config: the settings.
        origin: the other inputs that determine the run's bits.
        resume: whether to continue an existing run in the folder. If ``origin`` has no start, the run keeps its own.
        other_versions: whether to continue a run that began with other versions of the libraries.

    Raises:
        ValueError: (when entered) the folder holds another run, or a finished one, has another writer, or cannot be
            written.
    """

    def __init__(
        self,
        path: str | Path,
        config: TrainConfig,
        origin: Origin,
        *,
        resume: bool = False,
        other_versions: bool = False,
    ) -> None:
        self.path, self.config, self.origin = Path(path), config, origin
        self.resume, self.other_versions = resume, other_versions
        self._append = csv_rows(self.path / "metrics.csv")
        self._names: list[str] = []
        self._rows: list[list[float]] = []
        self._owned = contextlib.ExitStack()
        self._lock: files.Lock | None = None

    def __enter__(self) -> "RunFolder":
        if self.resume and os.path.exists(self.path / "config.json"):
            self.origin = self._same()
        if jax.process_index() > 0 or (self.resume and self.finished() is not None):
            return self  # only the first process writes, and a finished run is never written to
        self._lock = self._owned.enter_context(files.owned(self.path))
        try:
            self._begin()
        except BaseException:
            self._owned.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._owned.close()

    def _begin(self) -> None:
        if self.resume and os.path.exists(self.path / "config.json"):
            self.origin = self._same()  # another process may have written until the lock was acquired
            return
        resume = f"resume it ({resume_command(self.path)}, in Python resume=True)"
        summary = summary_of(self.path)
        if summary is not None:
            interrupted = summary.get("interrupted")
            state, what = ("an interrupted", f"{resume}, ") if interrupted else ("a finished", "")
            raise ValueError(f"out: {self.path} holds {state} run; {what}choose another folder, or remove it")
        if Checkpoints(self.path / "checkpoints").steps():
            if self.resume:
                raise ValueError(f"resume: {self.path} has checkpoints and no config.json; restore it from a copy")
            raise ValueError(f"out: {self.path} holds an unfinished run; {resume}, choose another folder, or remove it")
        with self._writing():
            for old in _SEALED:  # left by a run that was killed before its first checkpoint
                (self.path / old).unlink(missing_ok=True)
            text = json.dumps(described(self.config, self.origin), indent=2) + "\n"
            files.write_sums(self.path, {"config.json": files.sha256(text.encode())})
            files.write_text(self.path / "config.json", text)

    def _same(self) -> Origin:
        """The origin of the run in the folder.

        Raises:
            ValueError: its settings or origin differ from those of this run.
        """
        settings, there = read_json(self.path / "config.json"), _origin(self.path)
        ignored = ["start"] if self.origin.start is None else []
        differs = difference(described(self.config, self.origin), settings | {"run": there.json()}, ignored)
        if differs:
            name, found, wanted = differs
            raise ValueError(
                f"resume: {self.path} holds another run: {name} is {found!r} there and {wanted!r} here; resume it "
                "with its own settings, or choose another folder"
            )
        self._check_versions(self.path, there.versions)
        return there

    @property
    def identity(self) -> dict[str, Any]:
        """The settings and origin that checkpoints of this run contain."""
        return described(self.config, dataclasses.replace(self.origin, versions=versions()))

    def check(self, identity: Any, checkpoint: Path) -> None:
        """Check that a checkpoint belongs to this run.

        Raises:
            ValueError: it belongs to another run.
        """
        try:
            differs, found = difference(self.identity, identity), dict(identity["run"]["versions"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{checkpoint}: not a checkpoint of a run; remove it") from error
        if differs:
            name, there, here = differs
            raise ValueError(
                f"{checkpoint}: a checkpoint of another run: {name} is {there!r} there and {here!r} here; remove it, "
                "or restore the checkpoints of this run"
            )
        self._check_versions(checkpoint, found)

    def _check_versions(self, where: Path, found: Mapping[str, str]) -> None:
        here = versions().items()
        differ = [f"{name} {found.get(name)} (here {mine})" for name, mine in here if found.get(name) != mine]
        if differ and not self.other_versions and self.finished() is None:
            raise ValueError(
                f"resume: {where} was written with {', '.join(differ)}, and results may differ between versions; "
                "install and set those, or pass --other-versions (in Python other_versions=True)"
            )

    def check_owned(self) -> None:
        """Check that the folder is still the one that was locked.

        Raises:
            ValueError: the folder was removed or replaced.
        """
        if self._lock is not None:
            self._lock.check()

    def log(self, record: Record) -> None:
        """Append a chunk to ``metrics.csv``.

        Raises:
            ValueError: the file cannot be written, for example because the disk is full.
        """
        self.check_owned()
        self._names = record.names
        self._rows = record.rows() if record.chunk == 1 else self._rows + record.rows()
        with self._writing():
            self._append(record)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return files.writing(self.path, "make room, and resume from the last checkpoint")

    def reopen(self) -> None:
        """Remove the summary of an interrupted run, because it no longer matches once further metrics are written.

        Raises:
            ValueError: the folder cannot be written.
        """
        if jax.process_index() > 0:
            return
        with self._writing():
            sums = files.checksums(self.path)
            files.write_sums(self.path, {"config.json": sums["config.json"]})
            (self.path / "summary.json").unlink(missing_ok=True)

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run; None for an unfinished or interrupted one."""
        summary = summary_of(self.path)
        return None if summary is None or summary.get("interrupted") else summary

    def finish(self, result: FitResult) -> None:
        """Write parameters, figures and the summary, and last the checksums, which make them valid.

        Raises:
            ValueError: a file cannot be written, for example because the disk is full.
        """
        if jax.process_index() > 0:
            return
        with self._writing(), Deferred():
            self.check_owned()
            self._finish(result)

    def _finish(self, result: FitResult) -> None:
        checkpoint.save(self.path / NETWORKS, result.networks)
        if self._rows:  # whole and synced, which appending to it was not
            files.write_rows(self.path / "metrics.csv", self._names, self._rows)
        curves = {
            "return_mean": ("learning_curve.png", plotting.draw_learning_curve),
            "best_reply_gain": ("best_reply_gain.png", plotting.draw_best_reply_gain),
        }
        for name, draw in (curves[metric] for metric in curves if metric in result.metrics):
            fig, (ax,) = plotting.figure()
            draw(ax, result)
            plotting.save(fig, self.path / name)
        if result.bids is not None and result.visited is not None and result.q is not None:
            rows = [
                (seed, s, p, bid, result.q[s, p], int(result.visited[seed, s]))
                for (seed, s, p), bid in np.ndenumerate(result.bids)
            ]
            files.write_rows(self.path / "bids.csv", ["seed", "state", "primitive", "bid", "q", "visited"], rows)
        if result.bids is not None and result.visited is not None and result.visited.any():
            fig, (ax,) = plotting.figure()
            plotting.draw_bids(ax, result)
            plotting.save(fig, self.path / "bids.png")
        files.write_text(self.path / "summary.json", to_json(result.summary) + "\n")
        paths = [self.path / name for name in _SEALED]
        files.write_sums(self.path, {path.name: files.sum_of(path) for path in paths if path.exists()})


_SEALED = ("config.json", "metrics.csv", "bids.csv", "networks.safetensors", "summary.json")
NETWORKS = "networks.safetensors"
"""The file of a run's trained parameters."""


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The summary of a finished or interrupted run; None if the run is still in progress or was killed.

    Raises:
        ValueError: the summary is damaged, or the folder is incomplete.
    """
    sums = files.checksums(folder)
    if "config.json" not in sums and any(os.path.exists(folder / name) for name in ("config.json", "summary.json")):
        raise ValueError(
            f"{folder}: {files.SUMS} is missing or empty: a run of an earlier version, or an incomplete copy; copy the "
            "whole folder again, or choose another one"
        )
    if "summary.json" not in sums or not os.path.exists(folder / "summary.json"):
        return None
    return _restored(read_json(folder / "summary.json"))


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """The effective settings as JSON holds them.

    An object is saved by its name (`jaxmarket.training.objects`); environments and mechanisms also by a digest of what
    they compute.
    """
    settings = config.settings
    values = dict(settings.values)
    if _is_object(config.env):
        env = settings.adapter.env if isinstance(config.env, str) else config.env
        values["env"] = objects.describe(env) | {"sha256": environment_digest(settings.adapter)}
    if _is_object(values.get("auction")):
        mechanism, bidders = settings.society.mechanism, settings.society.bidders
        values["auction"] = objects.describe(mechanism) | {"sha256": _mechanism_digest(mechanism, bidders)}
    if _is_object(values["agent"]):
        values["agent"] = objects.describe(settings.agent)
    for field, made, saved in (
        ("learner", settings.learner, ("policy", "value", "axis", *OF_LEARNERS)),
        ("bids", settings.society.policy.head, tuple(OF_HEADS.values())),
    ):
        value = values.get(field)
        if _is_object(value):
            found = objects.find(value) if isinstance(value, str) else value
            values[field] = objects.describe(made if isinstance(found, type) else found, saved)
    return json.loads(json.dumps(values))


def _is_object(value: Any) -> bool:
    """Whether a setting is an object or the name of one, and not an alias."""
    return value is not None and (not isinstance(value, str) or ":" in value)


@functools.lru_cache(maxsize=64)
def environment_digest(env: Adapter) -> str:
    """SHA-256 of an environment's program (its reset and step, with all constants) and of its default parameters."""

    def program(key: Array, params: PyTree, action: Array) -> Any:
        obs, state = env.reset(key, params)
        return obs, env.step(key, state, action, params)

    action = jnp.zeros(env.action.shape, env.action.dtype)
    return _program_digest(program, jax.random.key(0), env.default_params, action)


@functools.lru_cache(maxsize=64)
def _mechanism_digest(mechanism: Mechanism, bidders: int) -> str:
    """SHA-256 of a mechanism's program: its price and payout."""
    bids = jnp.zeros(bidders, real())
    outcome = clear(bids)
    return _program_digest(lambda outcome: (mechanism.price(outcome), mechanism.payout(outcome)), outcome)


def _program_digest(function: Callable[..., Any], *args: Any) -> str:
    text = jax.jit(standard_promotion(function)).lower(*args).as_text()
    return files.sha256(f"{text} {digest(flatten(args))}".encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a run's folder, and verify its checksum.

    Raises:
        ValueError: the file cannot be read, was changed, or is not a JSON object.
    """
    text = files.sealed(path)
    try:
        found = json.loads(text)
    except (RecursionError, ValueError) as error:  # too long a number, too, is a ValueError
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return found


_NUMBERS = (
    "return_mean",
    "return_std",
    "return_seeds",
    "sampled_return_mean",
    "unfinished_share",
    "unfinished_share_seeds",
    "sampled_unfinished_share",
    "termination_rate_seeds",
    "sampled_termination_rate_seeds",
    "saturation",
    "best_reply_gain",
)


def _restored(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with NaN instead of the nulls that JSON has for the numbers of diverged seeds."""

    def check_float(value: Any) -> Any:
        return [check_float(x) for x in value] if isinstance(value, list) else math.nan if value is None else value

    return {name: check_float(value) if name in _NUMBERS else value for name, value in summary.items()}


def ended(folder: Path) -> dict[str, Any]:
    """The summary of the run in a folder.

    Raises:
        ValueError: the folder contains no run, the run has not ended, or its files are damaged.
    """
    if not os.path.exists(folder / "config.json"):
        raise ValueError(f"{folder}: expected a run folder, but config.json is missing; give the --out of a run")
    summary = summary_of(folder)
    if summary is None:
        raise ValueError(
            f"{folder}: this run is not finished; wait until it ends, or resume it: {resume_command(folder)}"
        )
    return summary


def write(path: str | Path, result: FitResult) -> None:
    """Write a run that was fitted without a folder, in the form that `fit` writes.

    Raises:
        ValueError: the folder holds a finished run, or cannot be written.
    """
    config, summary = result.config, result.summary
    origin = Origin(**{field.name: summary[field.name] for field in dataclasses.fields(Origin)})
    with RunFolder(path, config, origin) as folder:
        for record in records(result):
            folder.log(record)
        folder.finish(result)


@dataclasses.dataclass(frozen=True)
class SavedRun(ShownRun):
    """A finished run, read back.

    Attributes:
        config: its settings.
        networks: ``policy`` and, where the learner has one, ``value``: parameters, leaves [seeds, ...], of a society
            [seeds, M, ...].
        summary: the contents of ``summary.json``.
        folder: the run folder.
    """

    config: TrainConfig
    networks: NetworkParams
    summary: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        return f"SavedRun({summary_line(self.summary)}; {escaped(str(self.folder))})"

    @property
    def interrupted(self) -> bool:
        """Whether training was cut short."""
        return bool(self.summary.get("interrupted"))

    @property
    def interruption(self) -> str:
        """A message about an interrupted run."""
        return (
            f"{self.folder}: training was interrupted, so the networks are only partly trained; resume it: "
            f"{resume_command(self.folder)}"
        )

    @property
    def env_params(self) -> PyTree:
        """The environment's parameters that the run was trained with; None for its defaults.

        Raises:
            ValueError: the folder does not contain them.
        """
        return params_in(self.config, self.summary.get("env_params"), self.folder)

    @property
    def params(self) -> PyTree:
        """Parameters of the policies (bid networks), leaves [seeds, ...]."""
        return acting_params(self.networks)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """``metrics.csv`` as `FitResult.metrics`: [chunks, seeds], or [chunks, seeds, n] per bidder or state."""
        return self._metrics

    @cached_property
    def _metrics(self) -> dict[str, np.ndarray]:
        seeds = self.config.seeds
        rows = _columns(self.folder / "metrics.csv")
        if any(flat.size % seeds for flat in rows.values()):
            raise ValueError(
                f"{self.folder / 'metrics.csv'}: expected {seeds} rows, one per seed, for each chunk; train it again"
            )
        metrics: dict[str, Any] = {}
        for column, flat in rows.items():
            name, _, index = column.partition("[")
            values = flat.reshape(-1, seeds)
            if index:
                metrics.setdefault(name, []).append(values)
            elif name not in ("chunk", "env_steps", "seed"):
                metrics[name] = values
        return {name: np.stack(v, -1) if isinstance(v, list) else v for name, v in metrics.items()}

    @property
    def q(self) -> np.ndarray | None:
        """See `FitResult.q`."""
        return self._q

    @cached_property
    def _q(self) -> np.ndarray | None:
        settings = self.config.settings
        known = settings.trainable.states is not None and self.summary.get("env_params") is None
        return settings.adapter.optimal_q(settings.gamma) if known else None

    @property
    def bids(self) -> np.ndarray | None:
        """See `FitResult.bids`."""
        return None if self.q is None else self._bids["bid"].reshape(self.config.seeds, *self.q.shape)

    @property
    def visited(self) -> np.ndarray | None:
        """See `FitResult.visited`."""
        if self.q is None:
            return None
        return self._bids["visited"].reshape(self.config.seeds, *self.q.shape)[..., 0] > 0

    @cached_property
    def _bids(self) -> dict[str, np.ndarray]:
        return _columns(self.folder / "bids.csv")

    @property
    def best_seed(self) -> int:
        """The seed with the highest greedy return."""
        return best_seed(self)

    def policy(self, seed: int | None = None, *, greedy: bool = True) -> Any:
        """The policy of one seed, the best by default; see `as_policy`."""
        return as_policy(self, seed=seed, greedy=greedy)


def warn_if_interrupted(run: SavedRun, stacklevel: int = 3) -> None:
    """Warn if the run was interrupted."""
    if run.interrupted:
        warnings.warn(run.interruption, stacklevel=stacklevel)


def open_run(source: RunResult | str | Path) -> Any:
    """A finished run, which is read if ``source`` is its folder; warns the caller's caller if it was interrupted.

    Raises:
        ValueError: ``source`` is neither a run nor the folder of one.
    """
    run: Any = source
    if isinstance(source, str | Path):
        run = read(source)
        warn_if_interrupted(run, stacklevel=4)
    if not is_run(run):
        raise ValueError(
            f"source: expected a finished run or its folder, got {short_repr(source)}; give a result of fit, or a path"
        )
    return run


def is_run(source: Any) -> bool:
    """Whether it is a finished run (a `RunResult`)."""
    return all(hasattr(source, name) for name in ("config", "summary", "networks"))


def params_of_seed(run: RunResult, seed: int) -> PyTree:
    """The parameters of one seed's policy, on the device: leaves without the axis of seeds."""
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x)[seed], acting_params(run.networks)))


def best_seed(result: RunResult) -> int:
    """The seed with the highest greedy return among those that did not diverge.

    Raises:
        ValueError: every seed diverged.
    """
    return divergence.best(result.summary["return_seeds"])


def as_policy(source: RunResult | str | Path, *, seed: int | None = None, greedy: bool = True) -> Any:
    """The trained policy of a run, ``(obs, key) -> action``, for use inside ``scan`` or as an `Option`.

    Args:
        source: a run, or the folder of one.
        seed: which of its seeds; the one with the highest greedy return by default.
        greedy: whether bidders bid the mean of their distribution (a monolithic agent: the likeliest choice), or
            sample.

    Returns:
        A `MarketPolicy`; of other kinds of agents a `ChoicePolicy` (monolith), `WidePolicy` or `PopulationPolicy`.

    Raises:
        ValueError: the folder contains no run, the run has no such seed, every seed diverged and ``seed`` is not
            given, or its kind of agent has no policy in this environment.
    """
    run = open_run(source)
    settings: Settings = run.config.settings
    chosen = best_seed(run) if seed is None else check_int("seed", seed, 0, settings.seeds - 1)
    return settings.trainable.policy(params_of_seed(run, chosen), greedy=check_bool("greedy", greedy))


def sampled_action_rates(run: RunResult, obs: PyTree, key: Array, actions: int) -> np.ndarray:
    """How often each seed of a run takes each action, with sampled bids or choices, as `action_rates`.

    Args:
        run: a finished run.
        obs: B observations, leaves [B, ...].
        key: a typed PRNG key; every seed receives the same one.
        actions: number of actions.

    Returns:
        f64 [seeds, B, actions].
    """
    policies = (as_policy(run, seed=seed, greedy=False) for seed in range(run.config.seeds))
    return np.stack([_rates(policy, obs, key, actions=actions) for policy in policies]).astype(np.float64)


_rates = jax.jit(action_rates, static_argnames="actions")


def read(folder: str | Path, objects: Mapping[str, Any] | None = None) -> SavedRun:
    """Read a finished run.

    Args:
        folder: the ``--out`` of the run.
        objects: objects that the settings name and that no imported module defines, by setting (such as ``env``) or by
            name (``module:qualname``).

    Raises:
        ValueError: the folder holds no finished run, or another society's.
    """
    folder = validation.check_path("folder", folder)
    summary = ended(folder)
    config = config_from_dict(folder, read_json(folder / "config.json"), objects)
    returns = summary.get("return_seeds")
    if (
        not isinstance(returns, list)
        or len(returns) != config.seeds
        or not all(isinstance(value, int | float) for value in returns)
    ):
        raise ValueError(f"{folder / 'summary.json'}: expected the returns of {config.seeds} seeds; train it again")
    like = jax.eval_shape(lambda: _fresh_networks(config.settings))
    found = checkpoint.restore(folder / NETWORKS, like)  # no larger than what the settings describe
    files.check_sum(folder / NETWORKS)
    return SavedRun(config, found, summary, folder)


_MOST_BIDDERS = 2**20  # reading an untrusted folder must not exhaust memory


def read_config(folder: str | Path) -> tuple[TrainConfig, Origin]:
    """The settings and origin of a finished or unfinished run.

    Raises:
        ValueError: the folder contains no run that can be resumed.
    """
    folder = Path(folder)
    if not os.path.exists(folder / "config.json"):
        raise ValueError(f"resume: expected a run folder, got {folder}; give the --out of a run")
    summary_of(folder)  # an incomplete folder is refused here
    return config_from_dict(folder, read_json(folder / "config.json")), _origin(folder)


def _origin(folder: Path) -> Origin:
    return Origin.read(folder, read_json(folder / "config.json").get("run"))


def config_from_dict(
    folder: Path, settings: Mapping[str, Any], given_objects: Mapping[str, Any] | None = None
) -> TrainConfig:
    """The settings that ``config.json`` holds; the inverse of `config_to_dict`.

    Args:
        folder: for messages.
        settings: what the file holds.
        given_objects: as in `read`.

    Raises:
        ValueError: it holds no settings, or names an object that cannot be resolved.
    """
    where = folder / "config.json"
    settings = {name: value for name, value in settings.items() if name != "run"}
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    if "env" not in settings or set(settings) - fields:
        unknown = ", ".join(sorted(set(settings) - fields)) or "no env"
        raise ValueError(f"{where}: not the settings of a run ({unknown})")
    flat: dict[str, Mapping[str, str]] = {"learner": OF_LEARNERS, "bids": OF_HEADS}
    try:
        for field in ("env", *ALIASES):
            entry = settings.get(field)
            if not isinstance(entry, str) and entry is not None:
                # Saved settings that are fields of the object are passed to the object.
                extra = {own: settings.pop(name) for name, own in flat.get(field, {}).items() if name in settings}
                accepted = functools.partial(accepts, field)
                settings[field] = objects.restore(field, entry, accepted, given_objects or {}, extra)
            elif _is_object(entry):
                raise ValueError(f"{field}: expected an alias or a saved object, got {short_repr(entry)}")
        config = TrainConfig(**settings)
    except objects.MissingObjectError as error:
        raise ValueError(f"{folder}: {error}") from error
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where}: not the settings of a run ({error})") from error
    bidders = config.settings.society.bidders
    if bidders > _MOST_BIDDERS:
        raise ValueError(
            f"{folder}: expected at most {_MOST_BIDDERS:,} bidders in a folder, got {bidders:,}; build the society in "
            "Python"
        )
    return config


def _fresh_networks(settings: Settings) -> NetworkParams:
    """Networks of every seed of a run, untrained; leaves [seeds, ...]."""
    trainable, hyper = settings.trainable, settings.hyperparameters
    keys, env_params = jax.random.split(jax.random.key(0), settings.seeds), settings.adapter.default_params
    return jax.vmap(lambda key: networks(trainable.init(key, env_params, hyper).learner))(keys)


def _columns(path: Path) -> dict[str, np.ndarray]:
    """A CSV of numbers by column: f [rows] each."""
    text = files.sealed(path)
    try:
        names, *rows = csv.reader(io.StringIO(text.decode(), newline=""))
        values = np.array(rows, np.float64).reshape(-1, len(names))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table of numbers ({error}); train the run again") from error
    return dict(zip(names, values.T, strict=True))


def load(
    folder: str | Path,
    *,
    seed: int | None = None,
    greedy: bool = True,
    objects: Mapping[str, Any] | None = None,
) -> Any:
    """The policy a run learned: ``policy(obs, key) -> action``, usable inside ``jit``, ``vmap`` and ``scan``.

    Args:
        folder: the ``--out`` of a finished run.
        seed: which of its seeds; the one with the highest greedy return by default.
        greedy: whether bidders bid the mean of their distribution, or sample.
        objects: as in `read`.

    Returns:
        As `as_policy`.

    Warns:
        UserWarning: the run was interrupted, so the policy is only partly trained.
    """
    run = read(folder, objects)
    warn_if_interrupted(run)
    return run.policy(seed, greedy=greedy)
