"""A run's folder: configuration, metrics, parameters and figures; and the way back to a policy.

``config.json`` exact settings · ``metrics.csv`` a row per chunk and seed, written as they come ·
``networks/`` parameters of every seed · ``summary.json`` · ``learning_curve.png`` ·
``bids.csv`` and ``bids.png`` where Q* is known.
"""

import csv
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxmarket import checkpoint, plotting
from jaxmarket.auctions import Mechanism
from jaxmarket.baselines import Agent, ChoicePolicy, Monolith
from jaxmarket.config import TrainConfig
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
    "load",
    "player_of",
    "read",
    "to_json",
    "write",
]

Policy = MarketPolicy | ChoicePolicy


def to_json(value: Any) -> str:
    """One line of strict JSON: NaN and infinities become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(value), allow_nan=False)


class Folder:
    """Writes a run into a folder: the settings at once, metrics as they come, the rest at the end.

    Raises:
        ValueError: the folder holds a finished run, or cannot be written.
    """

    def __init__(self, path: str | Path, config: TrainConfig) -> None:
        self.path = Path(path)
        if (self.path / "summary.json").exists():
            raise ValueError(f"out: {self.path} holds a finished run; choose another folder or remove it")
        settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        if not isinstance(config.env, str):
            settings["env"] = {"object": config.adapter.name}
        if isinstance(config.auction, Mechanism):
            settings["auction"] = {"object": config.auction.name}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
            self._metrics: TextIO = (self.path / "metrics.csv").open("w", newline="")
        except OSError as error:
            raise ValueError(f"out: cannot write to {self.path} ({error.strerror}); choose another folder") from error
        self._writer: csv.DictWriter[str] | None = None

    def add(self, chunk: int, steps: np.ndarray, metrics: dict[str, np.ndarray]) -> None:
        """Append one row per seed; metrics per bidder or state take a column each, as ``wins[0]``.

        Args:
            chunk: how many there are now.
            steps: environment steps of each seed so far, [seeds].
            metrics: of the chunk.
        """
        columns = {}
        for name, values in metrics.items():
            columns |= {name: values} if values.ndim == 1 else {f"{name}[{i}]": v for i, v in enumerate(values.T)}
        if self._writer is None:
            self._writer = csv.DictWriter(self._metrics, ["chunk", "env_steps", "seed", *columns])
            self._writer.writeheader()
        for seed in range(len(next(iter(columns.values())))):
            row = {name: float(values[seed]) for name, values in columns.items()}
            self._writer.writerow({"chunk": chunk, "env_steps": int(steps[seed]), "seed": seed, **row})
        self._metrics.flush()

    def finish(self, result: FitResult) -> None:
        """Write parameters, figures and, last, the summary."""
        self._metrics.close()
        checkpoint.save(self.path / "networks", result.networks)
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
        (self.path / "summary.json").write_text(to_json(result.summary) + "\n")


def write(path: str | Path, result: FitResult) -> None:
    """Write a whole run that was fitted without a folder, as `fit` would have.

    Raises:
        ValueError: the folder holds a finished run, or cannot be written.
    """
    folder = Folder(path, result.config)
    for chunk, steps in enumerate(env_steps(result.metrics["duration"], result.config.auctions_per_chunk)):
        folder.add(chunk + 1, steps, {name: values[chunk] for name, values in result.metrics.items()})
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
    chosen = best_seed(run) if seed is None else seed
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 0 <= chosen < run.config.seeds:
        raise ValueError(f"seed: the run has seeds 0 to {run.config.seeds - 1}, got {seed!r}")
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
    folder = Path(folder)
    documents = {}
    for name in ("config.json", "summary.json"):
        try:
            documents[name] = json.loads((folder / name).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{folder}: no finished run here, {name} cannot be read; give the --out of a run"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / name}: not valid JSON ({error})") from error
        if not isinstance(documents[name], dict):
            raise ValueError(f"{folder / name}: expected a JSON object")
    settings = documents["config.json"] | replace
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
    config = TrainConfig(**settings)
    like = jax.eval_shape(lambda: _fresh_networks(config))
    return SavedRun(config, checkpoint.restore(folder / "networks", like), documents["summary.json"], folder)


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
