"""Random and invalid inputs for all public entry points: each must be accepted, or rejected as documented.

    python -m benchmarks fuzz --count 10000 --seed 0 --out benchmarks/results/cpu/fuzz.json

Eight kinds of input: settings (`TrainConfig`), the command line, arguments of `fit` and its relatives, arrays and
numbers for public constructors, the text files of a run's folder, those of its networks and checkpoints, and whole
runs: trained, written to a folder with an odd name, shown and read back. Accepted inputs must give correct results:
files read back bit for bit, tables and JSON contain every row, and no NaN passes as a number. Rejected inputs must
raise a `ValueError` whose message begins with the field (on the command line: one line and exit code 2). Any other
outcome is a failure: another exception, a wrong number, a silent NaN, no result within `LIMIT` seconds.

Input i of a seed is always the same: ``--only i`` repeats it, with its traceback. ``--self-check`` injects three
faults, one after the other, and fails if one of them is not detected.
"""

import argparse
import collections
import contextlib
import dataclasses
import decimal
import faulthandler
import fractions
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time is compilation: without the optimisations of the backend, the programs take half as long.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ["COLUMNS"] = "400"  # wide enough that no table cell is wrapped, so that rows can be found

import jax
import jax.numpy as jnp
import numpy as np
from numpy.random import Generator

import jaxmarket
from jaxmarket import TrainConfig, auctions, cli, deep_market, environments, fit, wide_market
from jaxmarket.deep_market import (
    BidTables,
    ClassifierRules,
    GuardedPrograms,
    NeuralNetworks,
    RiskAverseRules,
    demographics,
)
from jaxmarket.networks.backpropagation import MarketGraph, goods_flows, solve_prices
from jaxmarket.policies import BetaHead, BidPolicy, KumaraswamyHead, ValueHead, cnn, linear, mlp
from jaxmarket.runs import checkpoint, files, run_folder, sweeps
from jaxmarket.society import Society
from jaxmarket.training.arrays import digest, flatten
from jaxmarket.training.config import ALIASES
from jaxmarket.wide_market import Additive, Linear, Logarithmic, Quadratic

LIMIT = 60.0
"""Seconds of processor time (not of real time) that an input may take. Most of it is compilation."""

_WAIT = 5
"""The limit of real time, as a multiple of `LIMIT`."""

# The message of a documented error begins with its subject: a field, an entry of a field, or a file.
_DOCUMENTED = re.compile(r"^[\w.\-/ =,+]+(\[[\w, :\-]*\])?[\w.\-/ ,\[\]]*: \S", re.DOTALL)

_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "valuation": {"env": "Bandit-v0", "learner": "valuation", "seeds": 2},
    "ppo": {"env": "Chain-v0"},
    "monolith": {"env": "Chain-v0", "agent": "monolith"},
}
# Runs that differ only in these traced settings share a compiled program.
_TRACED: dict[str, tuple[str, ...]] = {
    "valuation": ("learning_rate", "exploration", "exploration_final", "trace_decay"),
    "ppo": ("learning_rate", "value_learning_rate", "entropy", "clip"),
    "monolith": ("learning_rate", "value_learning_rate", "entropy", "clip"),
}
_SMALL: dict[str, Any] = {"steps": 64, "instances": 4, "horizon": 8, "minibatch": 16}


class Hang(BaseException):
    """An input took longer than `LIMIT`."""


@dataclasses.dataclass(frozen=True)
class Input:
    """An input: a description, and a function that tries it and returns whether the values that it read are correct."""

    kind: str
    what: str
    run: Callable[[], bool | None]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of an input: ``taken`` (accepted), ``refused`` (as documented), or a kind of failure."""

    outcome: str
    message: str = ""
    traceback: str = ""

    @property
    def fine(self) -> bool:
        """Whether the outcome is as documented."""
        return self.outcome in ("taken", "refused")


# --- random values


_WORDS = (
    "",
    "a",
    "ccv",
    "society",
    "0",
    "-1",
    "nan",
    "None",
    "Chain-v0",
    "Chain-v1",
    "\x00",
    "✓ü\u202e",
    "x" * 300,
    "../..",
    "[red]",
    "[/]",
    "\x1b[31m",
    "\x9b2J",
    "a\nb",
    "%s{0}$HOME",
    "1e6",
)

_PATHS = (
    "a[b]", "a\\b", "a*?", " a ", "ünï✓", "-a", "a\nb", "%s{x}", "$HOME", "~", "[red]a", "[/]", "\x1b[31ma", "\u202ea",
    "'a\"", "a;b", "#a", "a=b,c", "x" * 300, "a\x00b", "\udce4", ".hidden", "CON", "a.json",
)  # fmt: skip


class Gym:
    """An object with the interface of a Gymnasium environment."""

    __module__ = "gymnasium.envs.odd"

    def reset(self, *, seed: int | None = None) -> tuple[int, dict]:
        """As in Gymnasium."""
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        """As in Gymnasium."""
        return 0, 0.0, False, False, {}


class Broken:
    """An object whose repr raises an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def number(rng: Generator) -> Any:
    """A number, sometimes an unusual one."""
    small = int(rng.integers(-3, 9))
    odd = (
        0, 1, -1, 2, 3, 7, 0.0, 0.5, -0.5, 1.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"), 2**31, 2**63,
        10**30, True, False, 1j, np.float32(0.5), np.int8(3), np.float64("nan"), np.array(2), small, float(small),
        np.int64(small), np.uint8(2), np.float16(0.25), np.bool_(True), np.array(0.5), np.array([2]), np.array(True),
        jnp.int32(2), jnp.float32(0.5), jnp.bfloat16(0.5), jnp.asarray(True), jnp.asarray([0.5]), jnp.float32("inf"),
        64.0, 1e6, 2.5, 10**400, fractions.Fraction(1, 2), decimal.Decimal("0.5"), np.str_("2"), np.longdouble(0.5),
    )  # fmt: skip
    return odd[rng.integers(len(odd))]


def array(rng: Generator, shape: tuple[int, ...] | None = None) -> Any:
    """An array of the given shape, or of a random small one, with unusual dtypes and entries."""
    if shape is None:
        shape = tuple(int(n) for n in rng.integers(0, 4, rng.integers(0, 5)))
    values: Any = rng.normal(size=shape)
    how = rng.integers(9)
    if how == 0:
        values = np.abs(values)
    elif how == 1:
        values = np.asarray(values, np.int64)
    elif how == 2:
        values = values > 0
    elif how == 3:
        values = values.astype(object)
    elif how == 4:
        values = np.asarray(values).astype(str)
    elif how == 5:
        values = values.astype(np.complex64)
    elif how == 6 and np.size(values):
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # some numbers do not fit into an array
            np.reshape(values, -1)[rng.integers(np.size(values))] = number(rng).real if values.ndim else 0
    elif how == 7:
        values = values.tolist()
    elif how == 8:
        values = np.asarray(values, np.float16)
    return values


def thing(rng: Generator, depth: int = 0) -> Any:
    """A value of any type."""
    how = rng.integers(9)
    if how < 3:
        return number(rng)
    if how == 3:
        return _WORDS[rng.integers(len(_WORDS))]
    if how == 4:
        return None
    if how == 5:
        return array(rng)
    if depth > 2 or how == 6:
        odd = (object(), len, lambda *a: a, np.nan, b"\xff", range(3), {1, 2}, float, Gym(), Gym, Broken(), Path("a"),
               environments.Chain, iter([1, 2]), jax.random.key(0), (environments.make("Chain-v0")))  # fmt: skip
        return odd[rng.integers(len(odd))]
    members = [thing(rng, depth + 1) for _ in range(rng.integers(4))]
    return members if how == 7 else {str(i): member for i, member in enumerate(members)}


def spoiled(rng: Generator, value: Any) -> Any:  # noqa: PLR0912  a branch for each kind of change
    """A valid value, changed in a way that depends on its type; sometimes unchanged."""
    if rng.random() < 0.35 or value is None:
        return thing(rng)
    if isinstance(value, jax.Array | np.ndarray) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        changed = np.array(value)
        how = rng.integers(9)
        if how == 0:
            return array(rng, changed.shape)
        if how == 1:
            return array(rng)
        if how == 2 and changed.size:
            return changed[:-1] if changed.ndim else changed
        if how == 3:
            return changed[None]
        if how == 4:
            return changed.T
        if how == 5:
            return changed.tolist()
        if how == 6:
            return -changed if changed.dtype != bool else ~changed
        if changed.size and np.issubdtype(changed.dtype, np.floating):
            odd = (np.nan, np.inf, -np.inf, -1.0, 1e38, 1e-45, 0.0)
            changed.reshape(-1)[rng.integers(changed.size)] = odd[rng.integers(len(odd))]
        return changed
    if isinstance(value, bool | int | float):
        return number(rng)
    if isinstance(value, str):
        return value[: rng.integers(len(value) + 1)] + _WORDS[rng.integers(len(_WORDS))]
    if isinstance(value, tuple | list) and len(value):
        members = list(value)
        members[rng.integers(len(members))] = spoiled(rng, members[rng.integers(len(members))])
        return type(value)(members) if isinstance(value, list) or not hasattr(value, "_fields") else members
    return thing(rng)


def dressed(rng: Generator, value: Any) -> Any:
    """An equal value, sometimes of another type."""
    if isinstance(value, bool):
        return (value, np.bool_(value), jnp.asarray(value))[rng.integers(3)]
    if isinstance(value, int):
        return (value, float(value), np.int64(value), jnp.int32(value), np.array(value))[rng.integers(5)]
    if isinstance(value, float):
        return (value, np.float32(value), np.float64(value), jnp.float32(value), np.array(value))[rng.integers(5)]
    if isinstance(value, tuple):
        return (value, list(value), np.array(value), jnp.array(value))[rng.integers(4)]
    return np.str_(value) if isinstance(value, str) and rng.random() < 0.5 else value


def spoiled_bytes(rng: Generator, content: bytes) -> bytes:
    """The content of a file with a small defect."""
    data = bytearray(content)
    at = int(rng.integers(len(data) + 1))
    how = rng.integers(8)
    if how == 0:
        return bytes(data[:at])
    if how == 1:
        return b""
    if how == 2:
        return bytes(data[:at]) + rng.bytes(int(rng.integers(1, 40))) + bytes(data[at:])
    if how == 3:
        return bytes(data[:at]) + bytes(data[at + int(rng.integers(1, 40)) :])
    if how == 4:
        return bytes(data[at:] + data[:at])
    if how == 5:
        return bytes(data) + bytes(data[at:])
    if how == 6 and data:
        start = int(rng.integers(len(data)))
        size = len(data[start : start + 16])
        return bytes(data[:start]) + bytes(size) + bytes(data[start + size :])
    for _ in range(int(rng.integers(1, 4))):
        if data:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def spoiled_json(rng: Generator, content: bytes) -> bytes:
    """A JSON document that is valid but unusual, or slightly invalid."""
    document = json.loads(content)
    names = list(document)
    name = names[rng.integers(len(names))]
    how = rng.integers(14)
    if how == 0:
        return b"[" * 100_000
    if how == 1:
        return b'{"env": ' * 3000 + b"1" + b"}" * 3000
    if how == 2:
        return content.replace(b"}", b', "steps": ' + b"9" * 5000 + b"}")
    if how == 3:
        return b"\xef\xbb\xbf" + content
    if how == 4:
        return content.decode().encode("utf-16")
    if how == 5:
        return (b"[]", b"null", b"3", b'"run"', b"{}", b"NaN", b"[{}]")[rng.integers(7)]
    if how == 6:
        document.pop(name)
    elif how == 7:
        document[name + "✓"] = document.pop(name)
    elif how == 8:  # a name that occurs twice: the last value counts
        text = json.dumps(document)[:-1]
        return f"{text}, {json.dumps(name)}: {json.dumps(_jsonable(thing(rng)))}}}".encode()
    else:
        for other in rng.choice(names, rng.integers(1, 4)):
            document[str(other)] = _jsonable(spoiled(rng, document[str(other)]))
    return json.dumps(document).encode()


def _jsonable(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return _short(value)
    return value


# --- kinds of input


def settings(rng: Generator, _: "Workshop") -> Input:
    """Settings of a training run."""
    fields = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "env"]
    good: dict[str, Any] = {
        "agent": "society", "auction": "ccv", "learner": "ppo", "clones": 2, "seeds": 1, "steps": 64, "gamma": 0.9,
        "instances": 4, "horizon": 8, "minibatch": 16, "epochs": 1, "learning_rate": 1e-3, "trace_decay": 0.5,
        "exploration": 0.5, "dropout": 0.1, "bid_low": 0.0, "bid_high": 1.0, "hidden": (4,), "bids": "beta",
        "time_limits": "bootstrap", "ties": "random", "preset": "paper", "clip": 0.2, "entropy": 0.1, "stride": 2,
        "convolutions": (4,), "share_clones": True, "log_every": 1,
    }  # fmt: skip
    env: Any = ("Chain-v0", "Bandit-v0", "Duality-v0", "CartPole-v1")[rng.integers(4)]
    if rng.random() < 0.1:
        env = spoiled(rng, env)
    given = {}
    for field in rng.choice(fields, rng.integers(1, 4), replace=False):
        value = good.get(str(field))
        given[str(field)] = dressed(rng, value) if rng.random() < 0.5 else spoiled(rng, value)
    return Input("settings", f"TrainConfig({_short(env)}, **{_short(given)})", lambda: plain(TrainConfig(env, **given)))


OBJECTS = ("env", *ALIASES)
"""Settings that may be objects."""


def plain(config: TrainConfig) -> bool:
    """Whether a configuration contains finite plain values, and is equal after a round trip through its file.

    Raises:
        SilentNaNError: it contains a NaN.
    """
    values = [getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in OBJECTS]
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise SilentNaNError(f"{config}")
    kinds = {type(value) for value in values} | {type(width) for width in (config.hidden or ())}
    if not kinds <= {int, float, bool, str, tuple, type(None)}:
        return False
    objects = {name: getattr(config, name) for name in OBJECTS}
    replace = {name: value for name, value in objects.items() if not isinstance(value, str)}
    again = run_folder.config_from_dict(
        Path("here"), json.loads(json.dumps(run_folder.config_to_dict(config))), replace
    )
    return again.settings == config.settings


class SilentNaNError(Exception):
    """A NaN was accepted as a number."""


def command(rng: Generator, w: "Workshop") -> Input:
    """Arguments of the command ``jaxmarket``."""
    commands = ("train", "evaluate", "watch", "compare", "list", "reproduce", "bench", "trian", "--help", "--version")
    words = [commands[rng.integers(len(commands))]]
    flags = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(TrainConfig)]
    flags += [
        "--seed",
        "--out",
        "--json",
        "--start",
        "--freeze",
        "--quick",
        "--run-seed",
        "--no-json",
        "--cores",
        "-x",
        "--",
    ]
    values = ["-5", "0", "1e400", "nan", "99999999999999999999", "1,2", "1.5", "true", "ppo", "policy/*", "Chain-v0"]
    if words[0] in ("train", "reproduce", "bench", "trian") and rng.random() < 0.9:
        words.append(("Chain-v0", "Bandit-v0", "Chain-v1", "Pendulum-v1", "chain", "step", "")[rng.integers(7)])
    if words[0] in ("evaluate", "watch", "compare"):
        folders = (*map(str, w.folders.values()), "/nowhere", str(w.path), "")
        words += [folders[rng.integers(len(folders))] for _ in range(rng.integers(3))]
    for _ in range(rng.integers(6)):
        words.append(flags[rng.integers(len(flags))])
        if rng.random() < 0.8:
            word = _WORDS[rng.integers(len(_WORDS))] if rng.random() < 0.4 else values[rng.integers(len(values))]
            words.append(word.replace("\x00", "0"))
    return Input("command", f"jaxmarket {words!r}", lambda: w.call(words) is not None)


def arguments(rng: Generator, w: "Workshop") -> Input:
    """Arguments of `fit`, `train`, `as_policy`, `load` and `sweep`."""
    config = TrainConfig(**(_CONFIGURATIONS["valuation"] | _SMALL))
    key = jax.random.key(0)
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "fit": (
            lambda **given: fit(**given, progress=False),
            {"config": config, "key": key, "out": None, "start": None, "freeze": (), "resume": False, "devices": 1,
             "checkpoint_every": 60.0, "loggers": ()},
        ),
        "train": (
            lambda **given: jax.eval_shape(lambda: jaxmarket.train(**given)),
            {"config": config, "key": key, "hyper": config.settings.hyperparameters},
        ),
        "hyper": (
            lambda **given: config.settings.hyperparameters.replace(**given).as_arrays(),
            {"learning_rate": 1e-3, "discount": 0.9, "exploration": 0.5, "clip": 0.2},
        ),
        "as_policy": (jaxmarket.as_policy, {"source": w.folders["valuation"], "seed": 0, "greedy": True}),
        "load": (jaxmarket.load, {"folder": w.folders["valuation"], "seed": 0, "greedy": True}),
        "sweep": (
            _planned,
            {"env": "Bandit-v0", "vary": {"learning_rate": [1e-3, 1e-2], "clones": [1, 2]}, "out": w.path / "sweep",
             "samples": None, "seed": 0, "share": 0.9},
        ),
    }  # fmt: skip
    name = list(calls)[rng.integers(len(calls))]
    call, good = calls[name]
    given, shown = dict(good), {}
    for field in rng.choice(list(given), rng.integers(1, 3), replace=False):
        if field == "vary":
            given["vary"] = {**good["vary"], "learning_rate": spoiled(rng, [1e-3, 1e-2])}
            if rng.random() < 0.3:
                given["vary"] = thing(rng)
        elif field == "hyper":
            given["hyper"] = good["hyper"].replace(learning_rate=thing(rng))
        elif field in ("out", "folder") and rng.random() < 0.5:
            given[str(field)] = f"{w.path}/odd/{_PATHS[rng.integers(len(_PATHS))]}"
        else:
            given[str(field)] = thing(rng) if rng.random() < 0.7 else spoiled(rng, given[str(field)])
        shown[str(field)] = given[str(field)]

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(w.path):
            call(**given)

    return Input(f"arguments: {name}", f"{name}: {_short(shown)}", run)


def _planned(**given: Any) -> None:
    """A sweep up to the start of training."""
    before = sweeps.train
    sweeps.train = _stop
    try:
        sweeps.sweep(**given, progress=False, learner="valuation", **_SMALL)
    except _ReachedError:
        return
    finally:
        sweeps.train = before


def whole_runs(rng: Generator, w: "Workshop") -> Input:
    """A run: trained on the command line into a folder with an odd name, shown, evaluated, compared and read back."""
    which = list(_CONFIGURATIONS)[rng.integers(len(_CONFIGURATIONS))]
    given = dict(_CONFIGURATIONS[which] | _SMALL)
    for field in rng.choice(_TRACED[which], rng.integers(0, 3), replace=False):
        given[str(field)] = float((0.0, 1e-3, 0.5, 1.0)[rng.integers(4)])
    folder = w.path / "odd" / _PATHS[rng.integers(len(_PATHS))]
    seed = int(rng.integers(5))

    def run() -> bool:
        shutil.rmtree(w.path / "odd", ignore_errors=True)
        words = ["train", *_words(given), f"--out={folder}", f"--seed={seed}", "--json"]
        printed = w.call(words, train=True)
        result = w.trained
        read = run_folder.read(folder)
        summary = json.loads(printed.splitlines()[-1])
        same = [
            read.config.settings == result.config.settings == TrainConfig(**given).settings,
            _equal(read.networks, result.networks),
            _equal(read.metrics, result.metrics),
            run_folder.to_json(read.summary) == run_folder.to_json(result.summary) == run_folder.to_json(summary),
            jaxmarket.load(folder) is not None,
        ]
        shown = w.call(["evaluate", str(folder), f"--seed={seed}", "--json"])
        same += [_has_rows(shown, ("greedy", "sampled")), "greedy_return_mean" in json.loads(shown.splitlines()[-1])]
        (w.path / "odd" / "plain").mkdir()
        for name in ("first", "second"):
            shutil.copytree(folder, w.path / "odd" / "plain" / name)
        compared = w.call(["compare", str(w.path / "odd" / "plain"), "--json"])
        same += [_has_rows(compared, ("first", "second")), len(json.loads(compared.splitlines()[-1])["runs"]) == 2]
        numbers = [*jax.tree.leaves(read.networks), *summary["return_seeds"]]
        if not all(value is not None and np.isfinite(value).all() for value in numbers):
            raise SilentNaNError(f"{summary['return_seeds']}")
        return all(same)

    return Input("runs", f"{folder.name!r}: {_short(given)}", run)


def _words(settings: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def _equal(one: Any, other: Any) -> bool:
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True), one, other)
    return all(jax.tree.leaves(same))


def _has_rows(printed: str, names: tuple[str, ...]) -> bool:
    """Whether a table has a row that begins with each of the names."""
    first = {(re.findall(r"[^\s│┃|]+", line) or [""])[0] for line in printed.splitlines()}
    return first.issuperset(names)


def run_files(rng: Generator, w: "Workshop") -> Input:
    """The text files of a run's folder."""
    which = list(w.folders)[rng.integers(len(w.folders))]
    name = ("config.json", "config.json", "summary.json", "metrics.csv")[rng.integers(4)]
    folder, content = w.copy(which), (w.folders[which] / name).read_bytes()
    path, how = folder / name, int(rng.integers(12))
    if how == 0:
        path.unlink()
    elif how == 1:
        path.unlink()
        path.mkdir()
    elif how < 6 or name == "metrics.csv":
        path.write_bytes(spoiled_bytes(rng, content))
    else:
        path.write_bytes(spoiled_json(rng, content))
    found = path.read_bytes() if path.is_file() else b""
    resealed = path.is_file() and rng.random() < 0.5  # with a valid digest, so that the reader gets the damaged content
    if resealed:
        sums = files.checksums(folder)
        files.write_sums(folder, sums | {name: files.sha256(found)})
    what = f"{which}/{name}{', resealed' if resealed else ''}: {found[:300] if path.is_file() else 'no file'!r}"

    def read() -> bool:
        run = run_folder.read(folder)
        run.policy()
        _ = run.metrics
        return resealed or found == content  # otherwise a damaged file was accepted

    return Input("run files", what, read)


def saved_networks(rng: Generator, w: "Workshop") -> Input:
    """The files of saved networks. The networks that are read must equal those written, bit for bit."""
    which, folder, what = _damaged(rng, w, "networks.safetensors")

    def read() -> bool:
        found, exact = run_folder.read(folder).networks, w.networks[which]
        same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), found, exact)
        return all(jax.tree.leaves(same))

    return Input("networks", what, read)


def checkpoints(rng: Generator, w: "Workshop") -> Input:
    """The files of checkpoints. A run that is resumed from them must have the same results as before."""
    which, folder, what = _damaged(rng, w, "checkpoints/*.safetensors")

    def resume() -> bool:
        config = TrainConfig(**(_CONFIGURATIONS[which] | _SMALL))
        again = fit(config, jax.random.key(0), folder, resume=True, progress=False)
        return digest(flatten(again.state)) == again.summary["params_sha256"] == w.digests[which]

    return Input("checkpoints", what, resume)


def _damaged(rng: Generator, w: "Workshop", pattern: str) -> tuple[str, Path, str]:
    """The name of a run, a copy of its folder with one damaged file that matches the pattern, and a description."""
    which = list(w.folders)[rng.integers(len(w.folders))]
    folder = w.copy(which)
    paths = sorted(folder.glob(pattern))
    path = paths[rng.integers(len(paths))]
    how = int(rng.integers(11))
    what = f"{which}/{path.relative_to(folder)}: "
    if how == 0:
        what, _ = what + "removed", path.unlink()
    elif how == 1:
        other = paths[rng.integers(len(paths))]
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
        what += f"swapped with {other.relative_to(folder)}"
    elif how == 2:
        (path.parent / "unrelated").write_bytes(rng.bytes(50))
        what += "with an unrelated file in its folder"
    elif how == 3:
        for each in paths:
            each.unlink()
        what += "all removed"
    elif how == 4:
        other = next(name for name in w.folders if name != which)
        for each in paths:
            each.unlink()
        for each in w.folders[other].glob(pattern):
            shutil.copy(each, path.parent)
        what += f"those of {other}"
    elif how == 5:
        what += "nothing"
    else:
        before = path.read_bytes()
        after = spoiled_bytes(rng, before)
        path.write_bytes(after)
        what += f"{len(before)} bytes became {len(after)}" + (", the same" if before == after else "")
    return which, folder, what


def constructors(rng: Generator, _: "Workshop") -> Input:
    """Arrays and numbers for public functions and constructors."""
    name = list(_CONSTRUCTORS)[rng.integers(len(_CONSTRUCTORS))]
    build, good = _CONSTRUCTORS[name]
    given = dict(good())
    shown = {}
    for field in rng.choice(list(given), rng.integers(1, min(3, len(given)) + 1), replace=False):
        given[str(field)] = shown[str(field)] = spoiled(rng, given[str(field)])

    def run() -> None:
        build(**given)
        checked = {field: value for field, value in shown.items() if field not in _EXCLUDED.get(name, ())}
        if name not in _NAN_IS_TAKEN and _holds_nan(checked):
            raise SilentNaNError(name)

    return Input(f"arrays: {name}", f"{name}: {_short(shown)}", run)


_NAN_IS_TAKEN = ("clear", "adapt", "make", "mechanism", "Functions")
"""A NaN bid is not eligible; the others take objects, or a data set without checks."""

_EXCLUDED = {"SealedBids": ("valuations", "wealth")}
"""Arguments in which NaN means that an agent does not bid."""


def _holds_nan(value: Any) -> bool:
    found = []
    for leaf in jax.tree.leaves(value):
        if isinstance(leaf, str):  # the string "nan" is not a number
            continue
        with contextlib.suppress(TypeError, ValueError, AttributeError, OverflowError):
            found.append(bool(np.isnan(np.asarray(leaf, np.float64)).any()))
    return any(found)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except RuntimeError:
        text = "an object without repr"
    return text if len(text) <= 400 else text[:400] + " …"


def _mdp() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "P": rng.dirichlet(np.ones(3), (3, 2)),
        "R": rng.random((3, 2)),
        "gamma": 0.9,
        "start": np.full(3, 1 / 3),
        "horizon": 7,
        "terminal": np.array([False, False, True]),
    }


def _economy() -> dict[str, Any]:
    return {"agents": jnp.ones((3, 2)), "holdings": jnp.ones((3, 2)), "wealth": jnp.ones(3), "prices": jnp.ones(2)}


def _trade(valuations: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "valuations": valuations,
        "wealth": jnp.ones(3),
        "holdings": jnp.ones((3, 2)),
        "prices": jnp.ones(2),
    }


def _graph(solve: Callable[..., Any]) -> Callable[..., Any]:
    graph = MarketGraph(_double, _utility)
    return lambda **given: solve(graph, **given, max_rounds=100)


def _double(agent: Any, x: jax.Array) -> jax.Array:
    leaves = jax.tree.leaves(agent)
    return leaves[0].mean() * x if leaves else x / 2  # a graph without differences between agents has no parameters


def _utility(agent: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return (x + y).sum()


def _sine(value: Any) -> Any:
    return jax.tree.map(jnp.sin, value)


def _cosine(value: Any) -> Any:
    return jax.tree.map(jnp.cos, value)


def _flat(**given: Any) -> Any:
    pair = given.pop("functions"), given.pop("dataset")
    return environments.Functions(*pair, lambda *both: sum(map(jnp.sum, jax.tree.leaves(both)), jnp.zeros(())), **given)


_OPTION = environments.Option(policy=lambda obs, key: jnp.zeros((), jnp.int32), length=3)
_MARKET = {"env": "Chain-v0", "representation": BidTables(states=6, actions=2), "capacity": 4, "instances": 2}
_PAIR = {"low": 0.0, "high": 1.0}


def _deep(**given: Any) -> Any:
    env = given["env"]
    return deep_market.DeepMarket(**given | {"env": environments.make(env)[0] if isinstance(env, str) else env})


def _run_deep(**given: Any) -> Any:
    market, env = _deep(**_MARKET), environments.make("Chain-v0")[0]
    economy = deep_market.init(market, jax.random.key(0), env.default_params)
    return jax.eval_shape(
        lambda economy: deep_market.run(market, jax.random.key(0), economy, env.default_params, **given), economy
    )


def _open_deep(**given: Any) -> Any:
    market, env = _deep(**_MARKET), environments.make("Chain-v0")[0]
    return deep_market.init(market, jax.random.key(0), env.default_params, **given)


def _society() -> dict[str, Any]:
    policy = BidPolicy(linear(4), KumaraswamyHead())
    chain = environments.make("Chain-v0")[0]
    return {"env": chain, "policy": policy, "mechanism": auctions.VICKREY, "clones": 2, "ties": "random"}


def _make_society(**given: Any) -> Any:
    society = Society(**given)
    return society.observation and society


_CONSTRUCTORS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "FiniteMDP": (environments.FiniteMDP, _mdp),
    "garnet": (environments.garnet, lambda: {"seed": 0, "states": 3, "actions": 2, "gamma": 0.9, "branching": 2}),
    "Functions": (
        _flat,
        lambda: {
            "functions": [_sine, _cosine],
            "dataset": (np.ones((4, 3), np.float32), np.ones((4, 3), np.float32)),
            "steps": 2,
            "price": 0.1,
            "names": ["a", "b"],
        },
    ),
    "Options": (
        environments.Options,
        lambda: {"env": environments.make("Chain-v0")[0], "options": [_OPTION] * 2, "discount": 0.9, "bound": 5},
    ),
    "Option": (
        lambda **given: environments.Options(environments.make("Chain-v0")[0], [environments.Option(**given)]),
        lambda: {
            "policy": lambda obs, key: jnp.zeros((), jnp.int32),
            "done": 1,
            "length": 3,
            "until": lambda o: o[0] > 0,
        },
    ),
    "SupplyChain": (
        environments.SupplyChain,
        lambda: {"recipe": [[0, 1], [1, 0]], "lines": 2, "stages": 2, "operations": 2, "horizon": 9, "material": 0.1},
    ),
    "Multiplexer": (environments.Multiplexer, lambda: {"address": 2}),
    "Memory": (environments.Memory, lambda: {"env": environments.make("Chain-v0")[0], "bits": 1}),
    "Maze": (
        environments.Maze,
        lambda: {"layout": ["OOO", "O.O", "OFO", "OOO"], "moves": 4, "limit": 9, "starts": [(1, 1)]},
    ),
    "BlocksWorld": (
        environments.BlocksWorld,
        lambda: {"sizes": (1, 2), "colours": 2, "capacity": 4, "limit": 9, "done": False, "reward": "one"},
    ),
    "make": (environments.make, lambda: {"env_id": "Chain-v0"}),
    "adapt": (environments.adapt, lambda: {"env": environments.make("Chain-v0")[0]}),
    "clear": (
        auctions.clear,
        lambda: {"bids": jnp.array([0.1, 0.5, 0.3]), "eligible": jnp.array([True, True, False]), "reserve": 0.1},
    ),
    "mechanism": (auctions.mechanism, lambda: {"auction": "ccv"}),
    "Society": (_make_society, _society),
    "BetaHead": (BetaHead, lambda: _PAIR),
    "ValueHead": (ValueHead, lambda: _PAIR),
    "mlp": (lambda width: mlp(width, 3), lambda: {"width": 4}),
    "cnn": (lambda **given: cnn(4, **given), lambda: {"convolutions": (4,), "stride": 1}),
    "DeepMarket": (_deep, lambda: dict(_MARKET, mechanism=auctions.VICKREY)),
    "deep_market.init": (
        _open_deep,
        lambda: {"num_agents": 3, "wealth": 1.0, "original_owner": -1, "consumers": 0.0},
    ),
    "deep_market.run": (_run_deep, lambda: {"rounds": 1, "period": 2, "max_births": 1}),
    "population.found": (
        demographics.make_population,
        lambda: {"agents": jnp.ones((3, 2)), "wealth": jnp.ones(3), "alive": jnp.array([True, False, True])},
    ),
    "BidTables": (BidTables, lambda: {"states": 3, "actions": 2}),
    "ClassifierRules": (ClassifierRules, lambda: {"bits": 3, "actions": 2}),
    "RiskAverseRules": (RiskAverseRules, lambda: {"bits": 3, "actions": 2, "margin": 0.5, "risk_aversion": 1.0}),
    "GuardedPrograms": (
        GuardedPrograms,
        lambda: {"sensors": 3, "actions": 2, "length": 2, "constants": (0.0, 1.0), "names": ("a",) * 3},
    ),
    "NeuralNetworks": (NeuralNetworks, lambda: {"features": 3, "actions": 2}),
    "wide_market.init": (wide_market.init, _economy),
    "Tatonnement": (
        wide_market.Tatonnement(),
        _trade(Quadratic(jnp.ones((3, 2)), jnp.ones((3, 2)))),
    ),
    "ConvexProgram": (
        wide_market.ConvexProgram(),
        _trade(Logarithmic(jnp.ones((3, 2)), jnp.ones((3, 2)))),
    ),
    "ProportionalResponse": (
        wide_market.ProportionalResponse(),
        _trade(Linear(jnp.ones((3, 2)))),
    ),
    "SealedBids": (wide_market.SealedBids(), _trade(Additive(jnp.ones((3, 2))))),
    "networks.goods_flows": (
        _graph(goods_flows),
        lambda: {"agents": jnp.ones(2) / 2, "shares": jnp.ones((2, 2, 1)) / 4, "endowments": jnp.ones((2, 1))},
    ),
    "networks.solve_prices": (
        _graph(solve_prices),
        lambda: {"agents": jnp.ones(2) / 2, "shares": jnp.ones((2, 2, 1)) / 4, "endowments": jnp.ones((2, 1))},
    ),
}

KINDS: dict[str, tuple[Callable[[Generator, "Workshop"], Input], float]] = {
    "settings": (settings, 0.24),
    "command": (command, 0.15),
    "arguments": (arguments, 0.14),
    "run files": (run_files, 0.14),
    "networks": (saved_networks, 0.08),
    "checkpoints": (checkpoints, 0.03),
    "arrays": (constructors, 0.21),
    "runs": (whole_runs, 0.01),
}
"""All kinds of input: the function that draws one, and its share of all inputs."""


# --- running the inputs


class Workshop:
    """Small runs whose files are damaged, in a temporary folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trained: Any = None  # the result of the last `call` that trained
        self.folders = {name: path / "runs" / name for name in _CONFIGURATIONS}
        for name, given in _CONFIGURATIONS.items():
            fit(TrainConfig(**(given | _SMALL)), jax.random.key(0), self.folders[name], progress=False)
        self.digests = {name: run_folder.read(folder).summary["params_sha256"] for name, folder in self.folders.items()}
        self.networks = {
            name: jax.device_get(run_folder.read(folder).networks) for name, folder in self.folders.items()
        }

    def copy(self, name: str) -> Path:
        """A copy of the folder of a run, which replaces the previous copy."""
        shutil.rmtree(self.path / "copy", ignore_errors=True)
        shutil.copytree(self.folders[name], self.path / "copy", ignore=shutil.ignore_patterns("*.png"))
        return self.path / "copy"

    def call(self, words: list[str], *, train: bool = False) -> str:
        """Run the command line, and return its output. With ``train`` it may train, and sets ``trained`` to the result.

        Raises:
            ValueError: it ended with exit code 2 and one line on standard error, which is the message.
        """
        printed, error, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(error), self._kept() if train else _idle():
            try:
                cli.main(words)
            except SystemExit as stopped:
                code = stopped.code
            except _ReachedError:
                return printed.getvalue()
        said = error.getvalue()
        if code == 0:
            return printed.getvalue()
        if train:  # the progress bar precedes the message
            said = "".join(said.splitlines(keepends=True)[-1:])
        if code != 2 or not said.startswith("jaxmarket: ") or said.count("\n") != 1:
            raise AssertionError(f"exit code {code}, standard error: {said!r}")
        raise ValueError(said)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Store the results of training on the command line in ``trained``."""

        def kept(*args: Any, **kwargs: Any) -> Any:
            self.trained = fit(*args, **kwargs)
            return self.trained

        cli.fit = kept
        try:
            yield
        finally:
            cli.fit = fit


class _ReachedError(Exception):
    """Raised where the work of a command would begin."""


def _stop(*args: Any, **kwargs: Any) -> Any:
    raise _ReachedError


@contextlib.contextmanager
def _idle() -> Iterator[None]:
    """Skip commands that compile further programs; run tables, JSON, evaluation and comparison."""
    from jaxmarket import experiments  # noqa: PLC0415

    places = [(cli, "fit"), (cli, "make"), (experiments, "reproduce"), (cli.os, "execve")]
    places += [(cli.multi, "launch"), (cli.multi, "join"), (sweeps, "train")]
    before = [getattr(*place) for place in places]
    for place in places:
        setattr(*place, _stop)
    try:
        yield
    finally:
        for place, was in zip(places, before, strict=True):
            setattr(*place, was)


def draw_input(seed: int, index: int, workshop: Workshop, kinds: tuple[str, ...] = tuple(KINDS)) -> Input:
    """Input ``index`` of a seed, a deterministic function of both."""
    rng = np.random.default_rng([seed, index])
    shares = np.array([KINDS[kind][1] for kind in kinds])
    kind = kinds[rng.choice(len(kinds), p=shares / shares.sum())]
    return KINDS[kind][0](rng, workshop)


def attempt(some: Input, limit: float = LIMIT) -> Verdict:
    """Try an input, and return its outcome."""

    def late(*_: Any) -> None:
        raise Hang

    timers = (signal.SIGPROF, signal.ITIMER_PROF, limit), (signal.SIGALRM, signal.ITIMER_REAL, _WAIT * limit)
    previous = [signal.signal(number, late) for number, *_ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            right = some.run()
        verdict = Verdict("taken") if right is not False else Verdict("wrong numbers")
    except Hang:
        verdict = Verdict("hang", f"no answer in {limit:g} s", traceback.format_exc())
    except SilentNaNError as error:
        verdict = Verdict("silent NaN", f"{error}", traceback.format_exc())
    except ValueError as error:
        message = str(error)
        # The message of an error about a path begins with it, whatever characters it has.
        path = message.startswith(("/", *filter(None, (*_PATHS, *_WORDS)))) and ": " in message
        documented = some.kind == "command" or path or _DOCUMENTED.match(message)
        told = "refused" if documented else "undocumented ValueError"
        verdict = Verdict(told, f"{error}", traceback.format_exc())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict = Verdict(type(error).__name__, f"{error}", traceback.format_exc())
    finally:
        for (number, timer, _), handler in zip(timers, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)
    return verdict


def fuzz(
    count: int, seed: int, path: Path, kinds: tuple[str, ...] = tuple(KINDS), *, say: Callable[[str], Any] = lambda _: 0
) -> dict[str, Any]:
    """Try ``count`` inputs, and return the outcomes by kind and all failures."""
    workshop = Workshop(path)
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    messages: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures, slowest, began = [], (0.0, ""), time.perf_counter()
    for index in range(count):
        some = draw_input(seed, index, workshop, kinds)
        # Ends the process if it does not even handle a signal.
        faulthandler.dump_traceback_later((_WAIT + 1) * LIMIT, exit=True)
        started = time.perf_counter()
        verdict = attempt(some)
        slowest = max(slowest, (time.perf_counter() - started, f"{index}: {some.what.replace(str(path), '')[:200]}"))
        faulthandler.cancel_dump_traceback_later()
        outcomes[some.kind][verdict.outcome] += 1
        if verdict.outcome == "refused":
            messages[some.kind.partition(":")[0]][_subject(verdict.message)] += 1
        if not verdict.fine:
            failures.append(
                {
                    "index": index,
                    "kind": some.kind,
                    "what": some.what.replace(str(path), "")[:1000],
                    "outcome": verdict.outcome,
                    "message": verdict.message.replace(str(path), "")[:500],
                    "where": _where(verdict.traceback),
                }
            )
            say(f"{index} {some.kind}: {verdict.outcome}: {verdict.message[:200]}\n    {some.what[:300]}")
        if index % 500 == 499:
            say(f"{index + 1} inputs, {len(failures)} failures, {time.perf_counter() - began:.0f} s")
    return {
        "count": count,
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "slowest": slowest,
        "outcomes": {kind: dict(found) for kind, found in sorted(outcomes.items())},
        "refusals": {kind: dict(found.most_common(60)) for kind, found in sorted(messages.items())},
        "failures": failures,
    }


def _subject(message: str) -> str:
    """The subject of a documented error."""
    message = message.removeprefix("jaxmarket: ")
    subject = message.partition(":")[0]
    return re.sub(r"\d+", "N", Path(subject).name)[:60]


def _where(trace: str) -> str:
    """The last line of a traceback that is in this package."""
    lines = [line.strip() for line in trace.splitlines() if "/jaxmarket/" in line]
    return lines[-1].replace(str(Path(__file__).parents[1]), "") if lines else ""


# --- the self-check


def _without_second_row(add_row: Callable[..., None]) -> Callable[..., None]:
    rows: dict[int, int] = {}  # rows requested so far, by table

    def drop(table: Any, *cells: Any, **how: Any) -> None:
        rows[id(table)] = rows.get(id(table), 0) + 1
        if rows[id(table)] != 2:
            add_row(table, *cells, **how)

    return drop


def _other_numbers(restore: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: jax.tree.map(lambda x: x + np.float32(1e-6), restore(*args, **kwargs))


def self_check(path: Path, say: Callable[[str], Any] = print) -> list[str]:
    """Inject faults, one after the other, and return the names of those that were not detected.

    A table drops its second row, the reader of networks returns other numbers, and the validator of numbers accepts
    NaN.
    """
    from jaxmarket.training import config as settings_module  # noqa: PLC0415
    from jaxmarket.view.text import DataTable  # noqa: PLC0415

    workshop = Workshop(path)
    lax = {
        field: (lambda name, value, kind=kind: math.nan if _is_nan(value) else kind(name, value))
        for field, kind in settings_module._KINDS.items()
    }
    faults: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
        "a table drops a row": (DataTable, {"add_row": _without_second_row(DataTable.add_row)}, ("runs",)),
        "a reader returns other numbers": (checkpoint, {"restore": _other_numbers(checkpoint.restore)}, ("networks",)),
        "a validator lets NaN through": (settings_module, {"_KINDS": lax}, ("settings",)),
    }
    unnoticed = []
    for name, (module, changes, kinds_tried) in faults.items():
        before = {attribute: getattr(module, attribute) for attribute in changes}
        try:
            for index in range(_TRIES):
                some = draw_input(0, index, workshop, kinds_tried)
                sound = attempt(some)
                for attribute, fault in changes.items():
                    setattr(module, attribute, fault)
                verdict = attempt(draw_input(0, index, workshop, kinds_tried))
                for attribute, was in before.items():
                    setattr(module, attribute, was)
                if sound.fine and not verdict.fine:
                    say(f"{name}: noticed at input {index}: {verdict.outcome} {verdict.message[:100]}")
                    break
            else:
                unnoticed.append(name)
                say(f"{name}: NOT noticed in {_TRIES} inputs")
        finally:
            for attribute, was in before.items():
                setattr(module, attribute, was)
    return unnoticed


_TRIES = 400


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating) and math.isnan(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the inputs")
    parser.add_argument(
        "--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), help="kinds of input; all by default"
    )
    parser.add_argument("--only", type=int, help="try only the input with this number, and show the outcome")
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes and failures")
    parser.add_argument("--self-check", action="store_true", help="inject three faults; fail if one is not detected")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if given.self_check:
            return int(bool(self_check(Path(folder))))
        if given.only is not None:
            some = draw_input(given.seed, given.only, Workshop(Path(folder)), tuple(given.kinds))
            verdict = attempt(some)
            print(some.what, verdict.outcome, verdict.message, verdict.traceback, sep="\n")
            return int(not verdict.fine)
        report = fuzz(
            given.count, given.seed, Path(folder), tuple(given.kinds), say=lambda line: print(line, flush=True)
        )
    for kind, outcomes in report["outcomes"].items():
        print(f"{kind:32s}", "  ".join(f"{name} {n}" for name, n in sorted(outcomes.items())))
    print(f"{report['count']} inputs in {report['seconds']:.0f} s, {len(report['failures'])} failures")
    if given.out is not None:
        report["versions"] = {"jax": jax.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
        given.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    return int(bool(report["failures"]))
