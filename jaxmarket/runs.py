"""A run's folder: configuration, metrics, parameters and figures; and the way back to a policy.

``config.json`` exact settings · ``metrics.csv`` a row per chunk and seed, written as they come ·
``checkpoints/`` the whole state of training, the last two · ``networks.safetensors`` parameters of every seed ·
``summary.json`` · ``learning_curve.png`` · ``bids.csv`` and ``bids.png`` where Q* is known · ``SHA256SUMS`` checksums
of what is read back.
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

from jaxmarket import checking, checkpoint, divergence, files, plotting
from jaxmarket.auctions import Mechanism, clear
from jaxmarket.baselines import Agent, ChoicePolicy, Monolith
from jaxmarket.checking import flag, given, whole
from jaxmarket.checkpoint import Checkpoints
from jaxmarket.config import TrainConfig
from jaxmarket.environments.adapter import Adapter
from jaxmarket.interrupts import Deferred
from jaxmarket.keys import to_words
from jaxmarket.logging import Record, csv_rows, to_json
from jaxmarket.metrics import env_steps
from jaxmarket.society import MarketPolicy, Society
from jaxmarket.switches import standard_promotion
from jaxmarket.text import plain
from jaxmarket.training import FitResult, in_short
from jaxmarket.transfer import Networks, networks
from jaxmarket.types import Array, PyTree, real

__all__ = [
    "NETWORKS",
    "Folder",
    "Origin",
    "Policy",
    "SavedRun",
    "as_policy",
    "best_seed",
    "configuration",
    "document",
    "ended",
    "load",
    "player_of",
    "read",
    "settings_in",
    "settings_of",
    "summary_of",
    "to_json",
    "versions",
    "write",
]

Policy = MarketPolicy | ChoicePolicy


@dataclasses.dataclass(frozen=True)
class Origin:
    """What decides a run's bits beside its settings.

    Attributes:
        key: its PRNG key, as `keys.to_words` describes it.
        start: fingerprint of the networks that it started from (`jaxmarket.transfer`); None where they were fresh.
        start_folder: where those were read from; a remark, which is never followed.
        frozen: patterns of the parts that are not trained.
        versions: of the libraries that compute.
        env_params: the environment's parameters where they are not its own: ``sha256`` of their arrays, and ``values``
            by name, None where they are too many for a text file.
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
        """The origin of a run that begins here and now."""
        params = None if env_params is None else _params_json(env_params)
        return cls(to_words(key), start, start_folder, list(frozen), versions(), params)

    @classmethod
    def read(cls, folder: Path, found: Any) -> "Origin":
        """The origin in a run's ``config.json``.

        Raises:
            ValueError: there is none, or it is incomplete.
        """
        kinds = {"key": dict, "frozen": list, "versions": dict}
        names = {field.name for field in dataclasses.fields(cls)}
        whole = isinstance(found, dict) and set(found) == names
        if not whole or not all(isinstance(found[name], kind) for name, kind in kinds.items()):
            raise ValueError(f"{folder / 'config.json'}: does not say how the run began; train it again")
        return cls(**found)

    def json(self) -> dict[str, Any]:
        """As ``config.json`` holds it."""
        return dataclasses.asdict(self)


def versions() -> dict[str, str]:
    """What decides a run's bits beside settings and origin: versions of the libraries, and JAX's switches."""
    libraries = {name: version(name) for name in ("jaxmarket", "jax", "jaxlib", "flax", "optax")}
    switches = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_matmul_precision")
    return libraries | {name: str(getattr(jax.config, name)) for name in switches}


def resume_command(folder: Path) -> str:
    """What to type to resume the run in a folder."""
    return f"jaxmarket train --resume {shlex.quote(str(folder))}"


def difference(
    wanted: Mapping[str, Any], found: Mapping[str, Any], ignored: Sequence[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first setting in which a run differs from the one that is wanted: its name, its value there, and here.

    Args:
        wanted: as `described`.
        found: likewise, of the run that is there.
        ignored: names that may differ, beside versions and the place of the networks it started from.
    """

    def flat(run: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in {**run, **run["run"]}.items() if name != "run"}

    there, here = flat(found), flat(wanted)
    for name, value in here.items():
        if name not in ("versions", "start_folder", *ignored) and there.get(name) != value:
            return name, there.get(name), value
    return None


def described(config: TrainConfig, origin: Origin) -> dict[str, Any]:
    """All that decides a run, as ``config.json`` and checkpoints hold it."""
    return settings_of(config) | {"run": origin.json()}


_MOST_PARAMS = 4096


def _params_json(env_params: PyTree) -> dict[str, Any]:
    arrays = checkpoint.flatten(env_params)
    few = sum(array.size for array in arrays.values()) <= _MOST_PARAMS
    plain = few and all(np.isfinite(array).all() for array in arrays.values())
    values = {name: array.tolist() for name, array in arrays.items()} if plain else None
    return {"sha256": checkpoint.digest(arrays), "values": values}


def params_in(config: TrainConfig, saved: Any, folder: Path) -> PyTree:
    """The environment's parameters that `Origin.env_params` describes; None for its own.

    Raises:
        ValueError: the description does not hold their values, or they are of another environment.
    """
    if saved is None:
        return None
    try:
        like = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), config.adapter.default_params)
        wanted = checkpoint.flatten(like)
        arrays = {name: np.asarray(value, wanted[name].dtype) for name, value in saved["values"].items()}
        restored = checkpoint.unflatten(like, arrays)
        if checkpoint.digest(arrays) == saved["sha256"]:
            return restored
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        pass
    raise ValueError(
        f"{folder}: trained with env_params that config.json does not hold for {config.adapter.name}; in Python, give "
        "them again: jaxmarket.fit(config, key, folder, env_params=..., resume=True)"
    )


class Folder:
    """The folder that a run is written into: settings at once, metrics as they come, the rest at the end.

    A context manager; inside it the folder has no other writer (`files.owned`). What is written is synced, and counts
    once its checksum is in ``SHA256SUMS``.

    Args:
        path: of the folder.
        config: the settings.
        origin: what else decides the run's bits.
        resume: go on with the run that is there, if there is one. Where ``origin`` has no start, the run's own holds.
        other_versions: go on although the run began with other versions of the libraries.

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

    def __enter__(self) -> "Folder":
        if self.resume and os.path.exists(self.path / "config.json"):
            self.origin = self._same()
        if jax.process_index() > 0 or (self.resume and self.finished() is not None):
            return self  # of several processes the first one writes; to a finished run nothing is written
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
            self.origin = self._same()  # another process may have written there until the lock was taken
            return
        resume = f"go on with it ({resume_command(self.path)}, in Python resume=True)"
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
            for old in _SEALED:  # of a run that was killed before its first checkpoint
                (self.path / old).unlink(missing_ok=True)
            text = json.dumps(described(self.config, self.origin), indent=2) + "\n"
            files.write_sums(self.path, {"config.json": files.sha256(text.encode())})
            files.write_text(self.path / "config.json", text)

    def _same(self) -> Origin:
        """The origin of the run in the folder, where it is the one that is wanted.

        Raises:
            ValueError: it is not.
        """
        settings, there = document(self.path / "config.json"), _origin(self.path)
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
        """What a checkpoint of this run holds beside the state: all that decided its bits."""
        return described(self.config, dataclasses.replace(self.origin, versions=versions()))

    def check(self, identity: Any, checkpoint: Path) -> None:
        """See that a checkpoint is of this run.

        Raises:
            ValueError: it is of another one.
        """
        try:
            differs, found = difference(self.identity, identity), dict(identity["run"]["versions"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{checkpoint}: not a checkpoint of a run; remove it") from error
        if differs:
            name, there, here = differs
            raise ValueError(
                f"{checkpoint}: a checkpoint of another run: {name} is {there!r} there and {here!r} here; remove it, "
                "or put back those of this run"
            )
        self._check_versions(checkpoint, found)

    def _check_versions(self, where: Path, found: Mapping[str, str]) -> None:
        here = versions().items()
        differ = [f"{name} {found.get(name)} (here {mine})" for name, mine in here if found.get(name) != mine]
        if differ and not self.other_versions and self.finished() is None:
            raise ValueError(
                f"resume: {where} was written with {', '.join(differ)}, and other versions may end with other bits; "
                "install and set those, or accept that by --other-versions (in Python other_versions=True)"
            )

    def check_owned(self) -> None:
        """See that the folder is still the one that was locked.

        Raises:
            ValueError: it was removed or replaced.
        """
        if self._lock is not None:
            self._lock.check()

    def log(self, record: Record) -> None:
        """Add a chunk to ``metrics.csv``.

        Raises:
            ValueError: it cannot be written, as where the disk is full.
        """
        self.check_owned()
        self._names = record.names
        self._rows = record.rows() if record.chunk == 1 else self._rows + record.rows()
        with self._writing():
            self._append(record)

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return files.writing(self.path, "make room, and resume: nothing checkpointed is lost")

    def reopen(self) -> None:
        """Take back what an interrupted run ended with, before metrics are written that no longer go with it.

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
        """The summary, where the run has come to its end."""
        summary = summary_of(self.path)
        return None if summary is None or summary.get("interrupted") else summary

    def finish(self, result: FitResult) -> None:
        """Write parameters, figures and the summary; they count once the checksums are written, which comes last.

        Raises:
            ValueError: something cannot be written, as where the disk is full.
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
        if result.metrics:
            fig, (ax,) = plotting.figure()
            plotting.draw_learning_curve(ax, result)
            plotting.save(fig, self.path / "learning_curve.png")
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
    """The summary of a run that has ended, finished or interrupted; None while it is under way, or was killed.

    Raises:
        ValueError: it is damaged, or the folder is incomplete.
    """
    sums = files.checksums(folder)
    if "config.json" not in sums and any(os.path.exists(folder / name) for name in ("config.json", "summary.json")):
        raise ValueError(
            f"{folder}: {files.SUMS} is missing or empty: a run of an earlier version, or an incomplete copy; copy the "
            "whole folder again, or choose another one"
        )
    if "summary.json" not in sums or not os.path.exists(folder / "summary.json"):
        return None
    return _restored(document(folder / "summary.json"))


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON holds them: objects of the user's own by name and by a digest of what they compute."""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if not isinstance(config.env, str):
        settings["env"] = {"object": config.adapter.name, "sha256": _environment_digest(config.adapter)}
    if isinstance(config.auction, Mechanism):
        digest = _mechanism_digest(config.auction, config.society.bidders)
        settings["auction"] = {"object": config.auction.name, "sha256": digest}
    return json.loads(json.dumps(settings))


@functools.lru_cache(maxsize=64)
def _environment_digest(env: Adapter) -> str:
    """SHA-256 of an environment's program: its reset and step, with all constants in them."""

    def program(key: Array, params: PyTree, action: Array) -> Any:
        obs, state = env.reset(key, params)
        return obs, env.step(key, state, action, params)

    return _program_digest(program, jax.random.key(0), env.default_params, jnp.zeros((), jnp.int32))


@functools.lru_cache(maxsize=64)
def _mechanism_digest(mechanism: Mechanism, bidders: int) -> str:
    """SHA-256 of a mechanism's program: its price and resale."""
    bids = jnp.zeros(bidders, real())
    outcome = clear(bids)
    return _program_digest(lambda outcome: (mechanism.price(outcome), mechanism.resale(outcome)), outcome)


def _program_digest(function: Callable[..., Any], *args: Any) -> str:
    return files.sha256(jax.jit(standard_promotion(function)).lower(*args).as_text().encode())


def document(path: Path) -> dict[str, Any]:
    """A JSON object from a run's folder, unchanged since it was written.

    Raises:
        ValueError: it cannot be read, was changed, or is not a JSON object.
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
)


def _restored(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with NaN where JSON has null in place of a number: what seeds that diverged reached."""

    def number(value: Any) -> Any:
        return [number(one) for one in value] if isinstance(value, list) else math.nan if value is None else value

    numbers = {name: number(value) if name in _NUMBERS else value for name, value in summary.items()}
    return {"diverged": [], "unfinished_share": math.nan, "sampled_unfinished_share": math.nan} | numbers


def ended(folder: Path) -> dict[str, Any]:
    """The summary of the run in a folder.

    Raises:
        ValueError: there is no run, it has not ended, or its files are damaged.
    """
    if not os.path.exists(folder / "config.json"):
        raise ValueError(f"{folder}: no run here, config.json is missing; give the --out of a run")
    summary = summary_of(folder)
    if summary is None:
        raise ValueError(f"{folder}: this run is not finished; wait for it, or go on with it: {resume_command(folder)}")
    return summary


def write(path: str | Path, result: FitResult) -> None:
    """Write a whole run that was fitted without a folder, as `fit` would have.

    Raises:
        ValueError: the folder holds a finished run, or cannot be written.
    """
    config, summary = result.config, result.summary
    origin = Origin(**{field.name: summary[field.name] for field in dataclasses.fields(Origin)})
    with Folder(path, config, origin) as folder:
        for chunk, steps in enumerate(env_steps(result.metrics["duration"], config.auctions_per_chunk), 1):
            metrics = {name: values[chunk - 1] for name, values in result.metrics.items()}
            folder.log(Record(chunk, config.chunks, chunk * config.auctions_per_chunk, steps, metrics))
        folder.finish(result)


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A finished run, read back.

    Attributes:
        config: its settings.
        networks: ``policy`` and, where the learner has one, ``value``: parameters, leaves [seeds, ...], of a society
            [seeds, M, ...].
        summary: what ``summary.json`` says.
        folder: where it was read from.
    """

    config: TrainConfig
    networks: Networks
    summary: dict[str, Any]
    folder: Path

    def __repr__(self) -> str:
        return f"SavedRun({in_short(self.summary)}; {plain(str(self.folder))})"

    @property
    def interrupted(self) -> bool:
        """Whether training was cut short."""
        return bool(self.summary.get("interrupted"))

    @property
    def interruption(self) -> str:
        """What to say of an interrupted run."""
        return (
            f"{self.folder}: training was interrupted, the networks are those of its first part; go on with it: "
            f"{resume_command(self.folder)}"
        )

    @property
    def env_params(self) -> PyTree:
        """The environment's parameters that it was trained with; None for its own.

        Raises:
            ValueError: the folder does not hold them.
        """
        return params_in(self.config, self.summary.get("env_params"), self.folder)

    @property
    def params(self) -> PyTree:
        """Parameters of the policies (bid networks), leaves [seeds, ...]."""
        return self.networks["policy"]

    @functools.cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        """``metrics.csv`` as `FitResult.metrics`: [chunks, seeds], or [chunks, seeds, n] per bidder or state."""
        rows = _columns(self.folder / "metrics.csv")
        metrics: dict[str, Any] = {}
        for column, flat in rows.items():
            name, _, index = column.partition("[")
            values = flat.reshape(-1, self.config.seeds)
            if index:
                metrics.setdefault(name, []).append(values)
            elif name not in ("chunk", "env_steps", "seed"):
                metrics[name] = values
        return {name: np.stack(v, -1) if isinstance(v, list) else v for name, v in metrics.items()}

    @functools.cached_property
    def q(self) -> np.ndarray | None:
        """As `FitResult.q`."""
        own = self.config.agent != "monolith" and self.summary.get("env_params") is None
        return None if not own else self.config.adapter.optimal_q(self.config.gamma)

    @property
    def bids(self) -> np.ndarray | None:
        """As `FitResult.bids`."""
        return None if self.q is None else self._bids["bid"].reshape(self.config.seeds, *self.q.shape)

    @property
    def visited(self) -> np.ndarray | None:
        """As `FitResult.visited`."""
        if self.q is None:
            return None
        return self._bids["visited"].reshape(self.config.seeds, *self.q.shape)[..., 0] > 0

    @functools.cached_property
    def _bids(self) -> dict[str, np.ndarray]:
        return _columns(self.folder / "bids.csv")

    @property
    def best_seed(self) -> int:
        """The seed with the highest greedy return."""
        return best_seed(self)

    def policy(self, seed: int | None = None, *, greedy: bool = True) -> Policy:
        """The policy of one seed, the best by default; see `as_policy`."""
        return as_policy(self, seed=seed, greedy=greedy)


def warn_if_interrupted(run: SavedRun) -> None:
    """Warn that a run which is read for its networks was interrupted."""
    if run.interrupted:
        warnings.warn(run.interruption, stacklevel=3)


def best_seed(result: "FitResult | SavedRun") -> int:
    """The seed with the highest greedy return, of those that did not diverge.

    Raises:
        ValueError: all of them diverged.
    """
    return divergence.best(result.summary["return_seeds"])


def as_policy(source: "FitResult | SavedRun | str | Path", *, seed: int | None = None, greedy: bool = True) -> Policy:
    """What a run learned as a policy, ``(obs, key) -> action``: for use inside ``scan``, or as an `Option`.

    Args:
        source: a run, or the folder of one.
        seed: which of its seeds; the one with the highest greedy return by default.
        greedy: whether bidders bid the mean of their distribution (a monolithic agent: the likeliest choice), or
            sample.

    Raises:
        ValueError: there is no run there, no such seed, or, without ``seed``, every seed diverged.
    """
    if isinstance(source, str | Path):
        run: SavedRun | FitResult = (saved := read(source))
        warn_if_interrupted(saved)
    else:
        run = source
    if not isinstance(run, SavedRun | FitResult):
        raise ValueError(f"source: expected a finished run or its folder, got {given(run)}")
    chosen = best_seed(run) if seed is None else whole("seed", seed, 0, run.config.seeds - 1)
    greedy = flag("greedy", greedy)
    params = jax.tree.map(lambda x: x[chosen], run.networks["policy"])
    player = dataclasses.replace(player_of(run.config), greedy=greedy)
    return MarketPolicy(params, player) if isinstance(player, Society) else ChoicePolicy(params, player)


def player_of(config: TrainConfig) -> Society | Agent:
    """Who plays: the society, or the monolithic agent."""
    return Monolith.of(config).agent if config.agent == "monolith" else config.society


def read(folder: str | Path, **replace: Any) -> SavedRun:
    """Read a finished run; ``replace`` gives back what a file cannot hold (``env=``, ``auction=`` objects).

    Raises:
        ValueError: the folder holds no finished run, or another society's.
    """
    folder = checking.path("folder", folder)
    summary = ended(folder)
    config = configuration(folder, document(folder / "config.json"), **replace)
    returns = summary.get("return_seeds")
    if (
        not isinstance(returns, list)
        or len(returns) != config.seeds
        or not all(isinstance(one, int | float) for one in returns)
    ):
        raise ValueError(f"{folder / 'summary.json'}: not the summary of a run of {config.seeds} seeds; train it again")
    like = jax.eval_shape(lambda: _fresh_networks(config))
    found = checkpoint.restore(folder / NETWORKS, like)  # no larger than what the settings describe
    files.check_sum(folder / NETWORKS)
    return SavedRun(config, found, summary, folder)


_MOST_BIDDERS = 2**20  # a folder may come from elsewhere: reading it must not exhaust memory


def settings_in(folder: str | Path) -> tuple[TrainConfig, Origin]:
    """The settings of a run, finished or not, and what else decided its bits.

    Raises:
        ValueError: there is no run in the folder that can be resumed.
    """
    folder = Path(folder)
    if not os.path.exists(folder / "config.json"):
        raise ValueError(f"resume: {folder} holds no run; give the --out of one")
    summary_of(folder)  # an incomplete folder is refused here
    return configuration(folder, document(folder / "config.json")), _origin(folder)


def _origin(folder: Path) -> Origin:
    return Origin.read(folder, document(folder / "config.json").get("run"))


def configuration(folder: Path, settings: Mapping[str, Any], **replace: Any) -> TrainConfig:
    """The settings that ``config.json`` holds.

    Raises:
        ValueError: it holds none, or an object stood where a file can only hold its name.
    """
    settings = {name: value for name, value in settings.items() if name != "run"} | replace
    for field in ("env", "auction"):
        if isinstance(settings.get(field), dict):
            raise ValueError(
                f"{folder}: the run was trained with an object as its {field} ({settings[field].get('object')}), which "
                f"a file cannot hold; in Python, give it again: jaxmarket.load(folder, {field}=...)"
            )
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    if "env" not in settings or set(settings) - fields:
        unknown = ", ".join(sorted(set(settings) - fields)) or "no env"
        raise ValueError(f"{folder / 'config.json'}: not the settings of a run ({unknown})")
    try:
        config = TrainConfig(**settings)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder / 'config.json'}: not the settings of a run ({error})") from error
    if config.society.bidders > _MOST_BIDDERS:
        raise ValueError(
            f"{folder}: a society of {config.society.bidders:,} bidders, where at most {_MOST_BIDDERS:,} are read from "
            "files; build it in Python"
        )
    return config


def _fresh_networks(config: TrainConfig) -> Networks:
    """Networks of every seed of a run, untrained."""
    keys = jax.random.split(jax.random.key(0), config.seeds)
    obs = jnp.zeros(config.society.observation.shape, config.society.observation.dtype)
    if config.agent == "monolith":
        learner = Monolith.of(config).learner
        return jax.vmap(lambda key: networks(learner.init(key, obs)))(keys)
    modules, rule = config.society.modules, config.learner_rule
    return jax.vmap(lambda key: jax.vmap(lambda k: networks(rule.init(k, obs)))(jax.random.split(key, modules)))(keys)


def _columns(path: Path) -> dict[str, np.ndarray]:
    """A CSV of numbers by column: f [rows] each."""
    text = files.sealed(path)
    try:
        names, *rows = csv.reader(io.StringIO(text.decode(), newline=""))
        values = np.array(rows, np.float64).reshape(-1, len(names))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a table of numbers ({error}); run it again") from error
    return dict(zip(names, values.T, strict=True))


def load(folder: str | Path, *, seed: int | None = None, greedy: bool = True, **replace: Any) -> Policy:
    """The policy a run learned: ``policy(obs, key) -> action``, usable inside ``jit``, ``vmap`` and ``scan``.

    Args:
        folder: the ``--out`` of a finished run.
        seed: which of its seeds; the one with the highest greedy return by default.
        greedy: whether bidders bid the mean of their distribution, or sample.
        replace: ``env=`` or ``auction=``, where the run was trained with objects of the user's own.

    Warns:
        UserWarning: the run was interrupted, so the policy is of unfinished training.
    """
    run = read(folder, **replace)
    warn_if_interrupted(run)
    return run.policy(seed, greedy=greedy)
