"""A run's folder: configuration, metrics, parameters and figures; and the way back to a policy.

``config.json`` exact settings · ``metrics.csv`` a row per chunk and seed, written as they come ·
``checkpoints/`` the whole state of training, the last two · ``networks/`` parameters of every seed ·
``summary.json`` · ``learning_curve.png`` · ``bids.csv`` and ``bids.png`` where Q* is known.
"""

import contextlib
import csv
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import checking, checkpoint, plotting
from jaxmarket.auctions import Mechanism
from jaxmarket.baselines import Agent, ChoicePolicy, Monolith
from jaxmarket.checking import flag, given, whole
from jaxmarket.config import TrainConfig
from jaxmarket.logging import Record, csv_rows, to_json
from jaxmarket.metrics import env_steps
from jaxmarket.society import MarketPolicy, Society
from jaxmarket.training import FitResult
from jaxmarket.transfer import Networks, networks
from jaxmarket.types import PyTree

__all__ = [
    "Folder",
    "Policy",
    "SavedRun",
    "as_policy",
    "best_seed",
    "configuration",
    "document",
    "load",
    "player_of",
    "read",
    "settings_in",
    "settings_of",
    "to_json",
    "write",
]

Policy = MarketPolicy | ChoicePolicy


class Folder:
    """Writes a run into a folder: the settings at once, metrics as they come, the rest at the end.

    Args:
        path: of the folder.
        config: the settings.
        origin: what else decides the run's bits: its key and, of a transfer, what it starts from.
        resume: go on with what is there, if anything is.

    Raises:
        ValueError: the folder holds another run, or a finished one, or cannot be written.
    """

    def __init__(
        self, path: str | Path, config: TrainConfig, origin: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        self.path = Path(path)
        self._rows = csv_rows(self.path / "metrics.csv")
        if jax.process_index() > 0:  # of a run of several processes, the first one writes
            return
        wanted = settings_of(config) | {"run": dict(origin)}
        if resume and (self.path / "config.json").exists():
            _same(self.path, wanted, document(self.path / "config.json"))
            return
        if (self.path / "summary.json").exists():
            raise ValueError(f"out: {self.path} holds a finished run; choose another folder or remove it")
        if (self.path / "checkpoints").exists():
            raise ValueError(
                f"out: {self.path} holds an unfinished run; go on with it (--resume {self.path}, in Python resume=True)"
                ", choose another folder, or remove it"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(self.path / "config.json", json.dumps(wanted, indent=2) + "\n")
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.path} ({error.strerror}); choose another folder") from error

    def log(self, record: Record) -> None:
        """Add a chunk to ``metrics.csv``.

        Raises:
            ValueError: it cannot be written, as where the disk is full.
        """
        with self._writing():
            self._rows(record)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"out: cannot write to {self.path} ({error.strerror}); make room, and resume: nothing checkpointed is "
                "lost"
            ) from error

    def finished(self) -> dict[str, Any] | None:
        """The summary, where the run has come to its end."""
        path = self.path / "summary.json"
        summary = document(path) if path.exists() else None
        return None if summary is None or summary.get("interrupted") else summary

    def finish(self, result: FitResult) -> None:
        """Write parameters, figures and, last, the summary.

        Raises:
            ValueError: something cannot be written, as where the disk is full.
        """
        with self._writing():
            self._finish(result)

    def _finish(self, result: FitResult) -> None:
        checkpoint.save(self.path / "networks", jax.device_get(result.networks))
        if jax.process_index() > 0:
            return
        if result.metrics:
            fig, (ax,) = plotting.figure()
            plotting.draw_learning_curve(ax, result)
            plotting.save(fig, self.path / "learning_curve.png")
        if result.bids is not None and result.visited is not None and result.q is not None:
            with (self.path / "bids.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["seed", "state", "primitive", "bid", "q", "visited"])
                for (seed, s, p), bid in np.ndenumerate(result.bids):
                    writer.writerow([seed, s, p, bid, result.q[s, p], int(result.visited[seed, s])])
        if result.bids is not None and result.visited is not None and result.visited.any():
            fig, (ax,) = plotting.figure()
            plotting.draw_bids(ax, result)
            plotting.save(fig, self.path / "bids.png")
        checkpoint.write_text(self.path / "summary.json", to_json(result.summary) + "\n")


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON holds them: objects of the user's own by their names."""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if not isinstance(config.env, str):
        settings["env"] = {"object": config.adapter.name}
    if isinstance(config.auction, Mechanism):
        settings["auction"] = {"object": config.auction.name}
    return json.loads(json.dumps(settings))


def _same(folder: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Whether a folder's settings are those wanted.

    Raises:
        ValueError: they are not.
    """

    def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
        run = settings.get("run")
        return {**settings, **(run if isinstance(run, dict) else {}), "run": None, "start_folder": None}

    mine, there = flat(wanted), flat(found)
    for name in mine:
        if there.get(name) != mine[name]:
            raise ValueError(
                f"resume: {folder} holds another run: {name} is {there.get(name)!r} there and {mine[name]!r} here; "
                "resume it with its own settings, or choose another folder"
            )


def document(path: Path) -> dict[str, Any]:
    """A JSON object from a run's folder.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path.parent}: no finished run here, {path.name} cannot be read; give the --out of a run"
        ) from error
    except (ValueError, RecursionError) as error:  # too long a number, too, is a ValueError
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return found


def write(path: str | Path, result: FitResult) -> None:
    """Write a whole run that was fitted without a folder, as `fit` would have.

    Raises:
        ValueError: the folder holds a finished run, or cannot be written.
    """
    config, summary = result.config, result.summary
    folder = Folder(path, config, {name: summary[name] for name in ("key", "start", "start_folder", "frozen")})
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
        return None if self.config.agent == "monolith" else self.config.adapter.optimal_q(self.config.gamma)

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


def best_seed(result: "FitResult | SavedRun") -> int:
    """The seed with the highest greedy return."""
    return int(np.argmax(result.summary["return_seeds"]))


def as_policy(source: "FitResult | SavedRun | str | Path", *, seed: int | None = None, greedy: bool = True) -> Policy:
    """What a run learned as a policy, ``(obs, key) -> action``: for use inside ``scan``, or as an `Option`.

    Args:
        source: a run, or the folder of one.
        seed: which of its seeds; the one with the highest greedy return by default.
        greedy: whether bidders bid the mean of their distribution (a monolithic agent: the likeliest choice), or
            sample.

    Raises:
        ValueError: there is no run there, or no such seed.
    """
    run = read(source) if isinstance(source, str | Path) else source
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
    settings, summary = (document(folder / name) for name in ("config.json", "summary.json"))
    config, _ = configuration(folder, settings, **replace)
    returns = summary.get("return_seeds")
    if not isinstance(returns, list) or len(returns) != config.seeds:
        raise ValueError(f"{folder / 'summary.json'}: not the summary of a run of {config.seeds} seeds; train it again")
    like = jax.eval_shape(lambda: _fresh_networks(config))
    return SavedRun(config, checkpoint.restore(folder / "networks", like), summary, folder)


def settings_in(folder: str | Path) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of a run, finished or not, and what else decided its bits: key, start, start_folder, frozen.

    Raises:
        ValueError: there is no run in the folder that can be resumed.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"resume: {folder} holds no run; give the --out of one")
    config, origin = configuration(folder, document(folder / "config.json"))
    if set(origin) != {"key", "start", "start_folder", "frozen"}:
        raise ValueError(f"resume: {folder} does not say with which key its run began; train it again")
    return config, origin


def configuration(folder: Path, settings: Mapping[str, Any], **replace: Any) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings that ``config.json`` holds, and what else decided the run's bits.

    Raises:
        ValueError: it holds none, or an object stood where a file can only hold its name.
    """
    settings = dict(settings)
    origin = settings.pop("run", {})
    settings |= replace
    for field in ("env", "auction"):
        if isinstance(settings.get(field), dict):
            raise ValueError(
                f"{folder}: the run was trained with an object as its {field} ({settings[field].get('object')}), which "
                f"a file cannot hold; in Python, give it again: jaxmarket.load(folder, {field}=...)"
            )
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    if "env" not in settings or set(settings) - fields or not isinstance(origin, dict):
        unknown = ", ".join(sorted(set(settings) - fields)) or "no env"
        raise ValueError(f"{folder / 'config.json'}: not the settings of a run ({unknown})")
    try:
        return TrainConfig(**settings), origin
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{folder / 'config.json'}: not the settings of a run ({error})") from error


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
    try:
        with path.open(newline="") as file:
            names, *rows = csv.reader(file)
        values = np.array(rows, np.float64).reshape(-1, len(names))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a table of numbers ({error}); run it again") from error
    return dict(zip(names, values.T, strict=True))


def load(folder: str | Path, *, seed: int | None = None, greedy: bool = True, **replace: Any) -> Policy:
    """The policy a run learned: ``policy(obs, key) -> action``, usable inside ``jit``, ``vmap`` and ``scan``.

    Args:
        folder: the ``--out`` of a finished run.
        seed: which of its seeds; the one with the highest greedy return by default.
        greedy: whether bidders bid the mean of their distribution, or sample.
        replace: ``env=`` or ``auction=``, where the run was trained with objects of the user's own.
    """
    return read(folder, **replace).policy(seed, greedy=greedy)
