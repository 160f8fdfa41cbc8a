"""Sweeps: one run per combination of settings; finished runs are skipped when a sweep is repeated.

Settings that are traced (`jaxmarket.learners.Hyperparameters`: learning rates, entropy, exploration, discount, …) share
one compiled program whatever their values; every other setting compiles again for each of its values. On a CPU the
combinations run in that program, two at a time, each in a thread: ``vmap`` over them would not be faster there, and
could not save finished runs one by one.
"""

import dataclasses
import difflib
import itertools
import json
import math
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxmarket.keys import key_of
from jaxmarket.runs import files, fitting, run_folder
from jaxmarket.runs.checkpoint import Checkpoints
from jaxmarket.runs.comparison import Comparison, compare, shown
from jaxmarket.runs.estimates import Estimate, ResultTable, mean
from jaxmarket.runs.fitting import FitResult
from jaxmarket.runs.interrupts import retained
from jaxmarket.runs.run_folder import Origin, SavedRun
from jaxmarket.runs.schedule import Running, ScheduledTask, run_tasks
from jaxmarket.runs.sinks import Record
from jaxmarket.training import divergence, objects
from jaxmarket.training.config import ALIASES, TrainConfig, plain_setting
from jaxmarket.training.transfer import fingerprint
from jaxmarket.types import Array, PyTree
from jaxmarket.validation import check_bool, check_float, check_int, check_path, escaped, parse_int, short_repr
from jaxmarket.view import plotting, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Cell",
    "NamedConfig",
    "Range",
    "Sweep",
    "combinations",
    "draw",
    "fit_as_task",
    "given_objects",
    "outcome",
    "parse",
    "read_run",
    "sweep",
    "train",
]


class Cell(Protocol):
    """One combination of settings of a sweep; its seeds are one vmapped call."""

    @property
    def name(self) -> str:
        """The name of the combination and of its folder."""
        ...

    @property
    def config(self) -> TrainConfig:
        """The settings of the combination."""
        ...


@dataclasses.dataclass(frozen=True)
class NamedConfig:
    """A `Cell` with a name and settings only."""

    name: str
    config: TrainConfig


@retained()
def train(
    wanted: Sequence[Cell],
    folder: Path,
    *,
    seed: int = 0,
    label: str = "sweep",
    progress: bool = True,
    start: Mapping[str, SavedRun] | None = None,
    env_params: PyTree = None,
) -> dict[str, SavedRun]:
    """Train what is not in ``folder`` yet; every finished condition by name.

    On CPU two conditions run side by side, each in its own thread. A condition is written when it is
    complete, so after an interruption at most those under way are lost.

    Args:
        wanted: the conditions.
        folder: a folder of runs, one per condition and named like it.
        seed: of all randomness.
        label: of the progress bar.
        progress: whether to show one.
        start: by a condition's name, the run whose networks it starts from.
        env_params: the environment's parameters for all conditions, as in `fit`; its defaults if None.

    Raises:
        ValueError: the folder holds a condition of that name with other settings or another seed.
    """
    start = start or {}
    key = key_of(seed)
    finished = _finished_in(folder, wanted, key, start, env_params)
    waiting = [c for c in wanted if c.name not in finished]

    def task(condition: Cell) -> ScheduledTask:
        def run(running: Running) -> FitResult:
            return fit_as_task(running, condition.config, key, env_params=env_params, start=start.get(condition.name))

        def keep(result: FitResult) -> tuple[SavedRun, str]:
            run_folder.write(folder / condition.name, result)
            return read_run(folder / condition.name, condition.config), f"{condition.name}: {outcome(result)}"

        return ScheduledTask(condition.name, run, keep, work=_steps(condition.config))

    with tables.progress(label, shown=progress and bool(waiting)) as show:
        if finished:
            show.say(f"{len(finished)} of {len(wanted)} conditions are in {folder} already")
        return finished | run_tasks([task(condition) for condition in waiting], show)


def fit_as_task(running: Running, config: TrainConfig, key: Array, **options: Any) -> FitResult:
    """`jaxmarket.fit` in a task of `run_tasks`: the first of equal programs compiles, others wait for it.

    Args:
        running: of the task.
        config: the settings.
        key: a PRNG key.
        options: other arguments of `jaxmarket.fit`.
    """
    running.compile(config.settings.trainable)

    def on_chunk(record: Record) -> None:
        note = "evaluating" if record.chunk == record.chunks else tables.return_note(record.metrics)
        running.show(record.chunk / record.chunks, note)

    return fitting.fit(config, key, progress=False, loggers=[on_chunk], **options)


def outcome(result: FitResult) -> str:
    """The greedy return of a finished run and what it took, as text."""
    s = result.summary
    middle, _, low, high = map(tables.number, divergence.spread(s["return_seeds"]))
    text = f"greedy return {middle} ({low} … {high}), {s['run_seconds']:.0f} s"
    return f"{text}; {divergence.described(s['diverged'], s['seeds'])}" if s["diverged"] else text


def _steps(config: TrainConfig) -> int:
    return config.seeds * config.settings.chunks * config.settings.auctions_per_chunk


def given_objects(config: TrainConfig) -> dict[str, Any]:
    """The settings that were given as objects and not by name, by setting."""
    given = {field: getattr(config, field) for field in ("env", *ALIASES)}
    return {name: each for name, each in given.items() if each is not None and not isinstance(each, str)}


def read_run(folder: Path, config: TrainConfig) -> SavedRun:
    """The run in a folder, with the objects of the settings that it was trained with."""
    return run_folder.read(folder, given_objects(config))


def _finished_in(
    folder: Path, wanted: Sequence[Cell], key: Array, start: Mapping[str, SavedRun], env_params: PyTree
) -> dict[str, SavedRun]:
    """The conditions that are finished, by name."""
    origins = {name: fingerprint(run.networks) for name, run in start.items()}
    found = {}
    for condition in wanted:
        params = None if env_params is None else condition.config.adapter.parameters(env_params)
        origin = Origin.of(key, origins.get(condition.name), env_params=params)
        found[condition.name] = _finished(folder / condition.name, condition, origin)
    return {name: run for name, run in found.items() if run is not None}


def _finished(folder: Path, condition: Cell, origin: Origin) -> SavedRun | None:
    if run_folder.summary_of(folder) is None:
        if Checkpoints(folder / "checkpoints").steps():
            raise ValueError(
                f"out: {folder} holds an unfinished run; finish it ({run_folder.resume_command(folder)}), or remove it"
            )
        return None
    run = read_run(folder, condition.config)
    if run.interrupted:
        raise ValueError(f"out: {run.interruption}")
    differs = run_folder.difference(
        run_folder.described(condition.config, origin), run_folder.read_json(folder / "config.json")
    )
    if differs:
        name, there, here = differs
        raise ValueError(
            f"out: {folder} holds another run: {name} is {there!r} there and {here!r} here; choose another folder"
        )
    if run.summary["versions"] != origin.versions:
        raise ValueError(f"out: {folder} holds a run of other library versions; choose another folder")
    return run


# --- which combinations


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``.

    Attributes:
        low, high: both ends belong to it; above 0 where ``log``.
        log: whether equal ratios, and not equal differences, are equally far apart.
        points: how many of them a grid takes; at least 2, None where the range is only drawn from.
        whole: whether they are integers.
    """

    low: float
    high: float
    log: bool = False
    points: int | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        for field in ("low", "high"):
            object.__setattr__(self, field, check_float(f"range: {field}", getattr(self, field)))
        for field in ("log", "whole"):
            object.__setattr__(self, field, check_bool(f"range: {field}", getattr(self, field)))
        if not self.low < self.high:
            raise ValueError(f"range: expected low < high, got {self.low:g}:{self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"range: a logarithmic one begins above 0, got {self.low:g}:{self.high:g}; use lin")
        if self.points is not None:
            object.__setattr__(self, "points", check_int("range: points", self.points, 2))

    def grid(self) -> list[float]:
        """The points of the range, rounded to four digits (for integer settings to distinct integers)."""
        if self.points is None:
            raise ValueError(
                f"range: expected a number of points, got {self.low:g}:{self.high:g}; append for example :8, or use "
                "--samples"
            )
        space = np.geomspace if self.log else np.linspace
        return list(dict.fromkeys(self._rounded(x) for x in space(self.low, self.high, self.points)))

    def draw(self, rng: np.random.Generator) -> float:
        """A number of it at random, uniform (in its logarithm where ``log``), rounded like a grid's."""
        if self.log:
            return self._rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self._rounded(rng.uniform(self.low, self.high))

    def _rounded(self, x: float) -> float:
        return round(x) if self.whole else float(f"{x:.4g}")


Vary = Mapping[str, "Sequence[Any] | Range"]
"""Values by setting."""


def combinations(vary: Vary) -> list[dict[str, Any]]:
    """Every combination of the values, the last setting fastest."""
    values = [choice.grid() if isinstance(choice, Range) else list(choice) for choice in vary.values()]
    return [dict(zip(vary, each, strict=True)) for each in itertools.product(*values)]


def draw(vary: Vary, samples: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct random combinations; the first ones do not depend on the number drawn.

    Raises:
        ValueError: there are fewer combinations.
    """
    samples = check_int("samples", samples)
    too_few = f"samples: there are not {samples} different combinations; ask for fewer, or leave it out"
    lists = [choice for choice in vary.values() if not isinstance(choice, Range)]
    if len(lists) == len(vary) and math.prod(map(len, lists)) < samples:
        raise ValueError(too_few)
    rng = np.random.default_rng(check_int("seed", seed, 0, 2**32 - 1))
    found: dict[str, dict[str, Any]] = {}
    for _ in range(100 * samples):
        if len(found) == samples:
            break
        one = {
            name: choice.draw(rng) if isinstance(choice, Range) else choice[int(rng.integers(len(choice)))]
            for name, choice in vary.items()
        }
        found.setdefault(repr(one), one)
    if len(found) < samples:
        raise ValueError(too_few)
    return list(found.values())


_HINTS = typing.get_type_hints(TrainConfig)


def _kinds(field: str) -> tuple[Any, ...]:
    """``(int, NoneType)`` of a setting that may be None."""
    return typing.get_args(_HINTS[field]) or (_HINTS[field],)


def parse(text: str) -> tuple[str, "list[Any] | Range"]:
    """Parse a variation of the command line: a setting and its values.

    ``learning_rate=1e-3,1e-4`` lists them, ``hidden=none,64,64x64`` lists widths of layers, and
    ``learning_rate=1e-5:1e-2:log:8`` is a `Range` (``lin`` in place of ``log`` for equal differences; ``:8`` may be
    left out where combinations are drawn at random).

    Raises:
        ValueError: there is no such setting, or a value is none of its kind.
    """
    name, equals, values = text.partition("=")
    field = _setting("vary", name.strip().replace("-", "_"))
    if not equals or not values.strip():
        raise ValueError(f"vary: expected values of {field}, got none; write {field}=a,b")
    kind = next((kind for kind in (int, float) if kind in _kinds(field)), None)
    if ":" in values and kind is not None:
        return field, _range(field, values, kind)
    return field, list(dict.fromkeys(_value(field, value.strip()) for value in values.split(",")))


def _setting(where: str, field: Any) -> str:
    """Check the name of a setting that can be varied.

    Raises:
        ValueError: there is no such setting.
    """
    known = [f.name for f in dataclasses.fields(TrainConfig) if f.name != "env"]
    if field not in known:
        near = difflib.get_close_matches(str(field), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
        raise ValueError(f"{where}: unknown setting {short_repr(field)}; {hint}")
    return field


def _range(field: str, text: str, kind: type) -> Range:
    low, high, *rest = text.split(":")
    if len(rest) not in (1, 2) or rest[0] not in ("lin", "log"):
        raise ValueError(
            f"vary: expected a range, got {field}={text}; write {field}=low:high:log:8 (or lin), or {field}=a,b"
        )
    points = _number(field, rest[1], int) if len(rest) == 2 else None
    return Range(_number(field, low, float), _number(field, high, float), rest[0] == "log", points, kind is int)


def _number(field: str, text: str, kind: type) -> Any:
    try:
        return parse_int(text) if kind is int else kind(text)
    except (ValueError, OverflowError) as error:
        what = "an integer" if kind is int else "a number"
        raise ValueError(f"vary: {field}: expected {what}, got {text!r}") from error


def _value(field: str, text: str) -> Any:
    kinds = _kinds(field)
    if any(typing.get_origin(kind) is tuple for kind in kinds):
        return () if text == "none" else tuple(_number(field, width, int) for width in text.split("x"))
    if bool in kinds:
        if text not in ("true", "false"):
            raise ValueError(f"vary: {field}: expected true or false, got {text!r}")
        return text == "true"
    for kind in (int, float):
        if kind in kinds:
            return _number(field, text, kind)
    return text


def _checked(vary: Any) -> dict[str, Any]:
    """Check the varied settings, and convert their values to those that a configuration stores.

    Raises:
        ValueError: a setting or a value is invalid, or a value is given twice.
    """
    if not isinstance(vary, Mapping) or not vary:
        raise ValueError(
            f"vary: expected at least one setting with its values, got {short_repr(vary)}; give one, such as "
            "learning_rate=1e-3,1e-4"
        )
    found: dict[str, Any] = {}
    for name, values in vary.items():
        if isinstance(name, str) and name == "env":
            raise ValueError("vary: expected other settings than env, got env; run one sweep per env")
        _setting("vary", name)
        if isinstance(values, Range):
            # Settings of type int take integers, even if the range does not.
            found[name] = dataclasses.replace(values, whole=True) if int in _kinds(name) else values
            continue
        single = isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", 1) == 0
        if single or not isinstance(values, Iterable):
            raise ValueError(f"vary: {name}: expected a list of values or a Range, got {short_repr(values)}")
        try:
            plain = [None if value is None else plain_setting(name, value) for value in values]
        except ValueError as error:
            raise ValueError(f"vary: {error}") from error
        if not plain:
            raise ValueError(f"vary: {name}: expected at least one value, got none; give some")
        for i, value in enumerate(plain):
            if value in plain[:i]:
                raise ValueError(
                    f"vary: {name}: expected distinct values, got {_text(value, exact=True)} twice; remove one"
                )
        found[name] = plain
    return found


_PLAIN = (int, float, str, tuple, list, type(None))
"""Values of settings that are not objects."""


def _text(value: Any, *, exact: bool) -> str:
    """A value as text for names and tables; ``exact`` if six digits do not distinguish it from the others."""
    if not isinstance(value, _PLAIN):
        return objects.label(value)
    if exact and isinstance(value, float):
        return repr(value)
    return "default" if exact and value is None else shown(value)


def _texts(chosen: Sequence[Mapping[str, Any]]) -> Callable[[str, Any], str]:
    """A function that formats the values of each setting: short if the short forms are distinct."""
    values: dict[str, list[Any]] = {name: [] for name in chosen[0]}
    for each in chosen:
        for name, value in each.items():
            if value not in values[name]:
                values[name].append(value)
    exact = {name for name, some in values.items() if len({_text(v, exact=False) for v in some}) < len(some)}
    return lambda name, value: _text(value, exact=name in exact)


def _names(chosen: Sequence[Mapping[str, Any]]) -> list[str]:
    """The name of each combination, which is also the name of its folder.

    Raises:
        ValueError: two combinations have the same name, or a name is not valid for a folder.
    """
    text = _texts(chosen)
    names = [",".join(f"{name}={text(name, value)}" for name, value in each.items()) for each in chosen]
    for i, name in enumerate(names):
        if name.casefold() in (other.casefold() for other in names[:i]):  # some file systems ignore case
            raise ValueError(f"vary: expected distinct names, got {name} twice; give the objects different names")
        if "/" in name or os.sep in name or "\0" in name:
            raise ValueError(
                f"vary: expected a valid folder name, got {short_repr(name)}; give the object another name"
            )
        if len(os.fsencode(name)) > _LONGEST:
            raise ValueError(
                f"vary: expected a folder name of at most {_LONGEST} bytes, got {short_repr(name)}; vary fewer settings"
            )
    return names


_LONGEST = 200
"""Bytes in the name of a run's folder, at most: file systems allow 255, and temporary names are longer."""


# --- a sweep


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        folder: where its runs are.
        vary: what was varied.
        drawn: whether combinations were drawn at random, and not all of them tried.
        settings: the varied settings of every run, by its name.
        comparison: of the runs, the best first.
        compiled: training programs that were compiled for it.
    """

    folder: Path
    vary: Vary
    drawn: bool
    settings: dict[str, dict[str, Any]]
    comparison: Comparison
    compiled: int

    def __repr__(self) -> str:
        best = self.comparison.runs[0]
        return f"Sweep({escaped(str(self.folder))}: {len(self.settings)} combinations, the best {best!r})"

    def tables(self) -> list[ResultTable]:
        """A row per combination, the best first, and all of them against the best."""
        best = self.comparison
        title = f"{best.runs[0].env}: {len(best.runs)} combinations, by greedy return"
        # Defaults that follow from what was varied are in each run's config.json.
        return dataclasses.replace(best, differing=list(self.vary)).tables(title)

    def document(self) -> dict[str, Any]:
        """Plain values: what was varied, and a row per run, the best first."""
        vary = {
            name: dataclasses.asdict(values) if isinstance(values, Range) else [_document(v) for v in values]
            for name, values in self.vary.items()
        }
        return {"vary": vary, "drawn": self.drawn, "compiled_now": self.compiled, **self.comparison.document()}

    def write(self) -> list[str]:
        """``sweep.json``, ``sweep.csv`` and ``sweep.png`` into the folder; their names."""
        document = self.document()
        files.write_text(
            self.folder / "sweep.json", json.dumps(json.loads(run_folder.to_json(document)), indent=2) + "\n"
        )
        rows = self.tables()[0].as_rows()
        names = list(rows[-1])  # the first one is not held against itself
        files.write_rows(self.folder / "sweep.csv", names, [[row.get(name) for name in names] for row in rows])
        plotting.save(self.figure(), self.folder / "sweep.png")
        return ["sweep.csv", "sweep.json", "sweep.png"]

    def figure(self) -> "Figure":
        """A figure of the greedy return over the varied settings.

        One number: a line with intervals. Two numbers, or two choices: a heat map. A number and a choice: a line per
        choice. Random combinations: a panel per number. All other sweeps: a row per combination.
        """
        cells = [(self.settings[run.name], run.returns) for run in self.comparison.runs]
        estimates = [mean(returns) for _, returns in cells]
        text = _texts(list(self.settings.values()))
        numeric = [name for name in self.vary if all(_is_number(s[name]) for s, _ in cells)]
        others = [name for name in self.vary if name not in numeric]
        if self.drawn and numeric:
            fig, axes = plotting.figure(columns=len(numeric), width=4.5)
            for ax, name in zip(axes, numeric, strict=True):
                x = [s[name] for s, _ in cells]
                plotting.draw_returns_by_setting(
                    ax, {"": (x, _array(estimates))}, name, log=self._log(name), joined=False
                )
        elif not self.drawn and len(numeric) == 1 and len(others) <= 1:
            fig, (ax,) = plotting.figure()
            lines: dict[str, list[int]] = {}
            for i, (s, _) in enumerate(cells):
                lines.setdefault(",".join(f"{name}={text(name, s[name])}" for name in others), []).append(i)
            drawn = {
                each: ([cells[i][0][numeric[0]] for i in mine], _array([estimates[i] for i in mine]))
                for each, mine in sorted(lines.items())
            }
            plotting.draw_returns_by_setting(ax, drawn, numeric[0], log=self._log(numeric[0]))
        elif not self.drawn and len(self.vary) == 2:
            fig, (ax,) = plotting.figure()
            down, across = self.vary
            rows, columns = (list(dict.fromkeys(s[n] for s in combinations(self.vary))) for n in (down, across))
            values = np.full((len(rows), len(columns)), np.nan)
            for (s, _), estimate in zip(cells, estimates, strict=True):
                values[rows.index(s[down]), columns.index(s[across])] = estimate.value
            plotting.draw_heat_map(ax, values, [text(down, x) for x in rows], [text(across, x) for x in columns])
            ax.set(xlabel=across, ylabel=down)
        else:
            fig, (ax,) = plotting.figure(width=8.0, height=max(4.0, 1.2 + 0.28 * len(cells)))
            names = [run.name for run in self.comparison.runs]
            ends = {name: (e.value, e.low, e.high) for name, e in zip(names, estimates, strict=True)}
            plotting.draw_final_returns(ax, {run.name: run.returns for run in self.comparison.runs}, ends)
        fig.suptitle(f"{plotting.plain_text(self.comparison.runs[0].env)}: greedy return, mean of seeds", fontsize=10)
        return fig

    def _log(self, name: str) -> bool:
        """Whether a logarithmic axis suits: a logarithmic range, or a list that spans more than a decade."""
        values = self.vary[name]
        if isinstance(values, Range):
            return values.log
        return min(values) > 0 and max(values) >= 10 * min(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _document(value: Any) -> Any:
    return value if isinstance(value, _PLAIN) else {"object": objects.label(value)}


def _array(estimates: Sequence[Estimate]) -> np.ndarray:
    return np.array([(e.value, e.low, e.high) for e in estimates])


def sweep(
    env: Any,
    vary: Vary,
    out: str | Path,
    *,
    samples: int | None = None,
    seed: int = 0,
    env_params: PyTree = None,
    progress: bool = True,
    share: float = 0.9,
    **settings: Any,
) -> Sweep:
    """Train every combination of some settings, or some combinations at random, and compare them.

    Every combination is a run like any other, in ``out/learning_rate=0.001,entropy=0.1``. What is finished is kept,
    and skipped when the same sweep, or a larger one, is called again.

    Args:
        env: as in `TrainConfig`.
        vary: by setting, a list of values or a `Range`.
        out: a folder for the runs, ``sweep.csv``, ``sweep.json`` and ``sweep.png``.
        samples: number of random combinations; default: all combinations.
        seed: of all randomness, that of the drawing included.
        env_params: the environment's parameters for all combinations, traced; its defaults if None.
        progress: whether to show a progress bar.
        share: of the best run's return, see `compare`.
        settings: of all combinations, as in `TrainConfig`.

    Raises:
        ValueError: a setting is invalid or given twice, two combinations are the same or have the same folder, or the
            folder holds a run with other settings. All errors are raised before training.
    """
    vary, out = _checked(vary), check_path("out", out)
    key_of(seed)  # raises before training if the seed is out of range
    for name, value in settings.items():
        if _setting(name, name) in vary:
            raise ValueError(f"vary: {name} is both varied and given as {shown(value)}; remove one of them")
    if not 0 < check_float("share", share) <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {short_repr(share)}")
    if samples is not None:
        samples = check_int("samples", samples, 2)
    chosen = combinations(vary) if samples is None else draw(vary, samples, seed)
    names = _names(chosen)
    if len(chosen) < 2:
        raise ValueError(f"vary: expected at least two combinations, got {names[0]}; give more values")
    cells: list[NamedConfig] = []
    same: dict[str, str] = {}
    for name, each in zip(names, chosen, strict=True):
        try:
            cells.append(NamedConfig(name, TrainConfig(env, **settings, **each)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        other = same.setdefault(json.dumps(run_folder.config_to_dict(cells[-1].config), sort_keys=True), name)
        if other != name:
            raise ValueError(f"vary: expected different runs, got the same settings for {other} and {name}; remove one")
    before = fitting.compiles()
    with files.owned(out):
        name = cells[0].config.adapter.name
        train(cells, out, seed=seed, label=name, progress=progress, env_params=env_params)
        with tables.progress(name, shown=progress) as show:
            show.phase("comparing and drawing")
            comparison = compare([out / cell.name for cell in cells], share=share, best_first=True)
            found = Sweep(
                out,
                vary,
                samples is not None,
                {cell.name: each for cell, each in zip(cells, chosen, strict=True)},
                comparison,
                fitting.compiles() - before,
            )
            with files.writing(out):
                found.write()
    return found
