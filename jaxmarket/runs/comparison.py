"""Finished runs side by side: where their settings differ, what they reached, how soon, and whether that is noise."""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.metrics import env_steps
from jaxmarket.runs import files, run_folder
from jaxmarket.runs.curves import first_reach, last_part
from jaxmarket.runs.estimates import (
    Estimate,
    ResultTable,
    difference,
    interquartile_mean,
    mean,
    mean_ci,
    probability_of_improvement,
)
from jaxmarket.training.divergence import finite, spread
from jaxmarket.training.result import RunResult
from jaxmarket.validation import escaped, short_repr
from jaxmarket.view import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "RunOutcome", "compare", "find", "label", "outcome", "read", "shown"]


@dataclasses.dataclass(frozen=True)
class RunOutcome:
    """The results of one finished run, with T rows of metrics per seed.

    Attributes:
        name: name of the run in tables and figures.
        folder: the run folder; None for a run in memory.
        env: name of the environment.
        settings: the settings in ``config.json``, and the seed, ``start`` and ``frozen``.
        returns: f [seeds], greedy returns of new episodes after training; NaN for diverged seeds.
        unfinished: f [seeds], share of these episodes that exceeded the step limit of the evaluation; NaN if unknown.
        diverged: see `divergence.find`.
        steps: f [T, seeds], environment steps so far.
        learning: f [T, seeds], return of the episodes that ended since the last row; NaN if none did, and for diverged
            seeds.
        steps_per_second: environment steps of all seeds together.
        interrupted: whether training was cut short.
    """

    name: str
    folder: Path | None
    env: str
    settings: dict[str, Any]
    returns: np.ndarray
    unfinished: np.ndarray
    diverged: list[dict[str, Any]]
    steps: np.ndarray
    learning: np.ndarray
    steps_per_second: float
    interrupted: bool

    def __repr__(self) -> str:
        stopped = ", interrupted" if self.interrupted else ""
        reached = mean(self.kept).plus_minus
        run = f"{escaped(self.name)}: {escaped(self.env)}"
        return f"RunOutcome({run}, {len(self.returns)} seeds, return {reached}{stopped})"

    @property
    def kept(self) -> np.ndarray:
        """Greedy returns of the seeds that did not diverge."""
        return finite(self.returns)

    @property
    def late(self) -> float:
        """Return while learning in the last tenth of training, mean over seeds; NaN where no episode ended."""
        return spread(last_part(self.learning)).mean

    def steps_to(self, target: float) -> np.ndarray:
        """Environment steps at the first row of metrics whose return is at least ``target``: f [seeds], NaN if none."""
        return first_reach(self.learning, target, self.steps)


def read(folder: str | Path, name: str | None = None) -> RunOutcome:
    """Read what a run reached; its networks are not needed, nor the objects it may have been trained with.

    Args:
        folder: the ``--out`` of a finished run.
        name: in tables and figures; the folder's own by default.

    Raises:
        ValueError: there is no run, it is not finished, or its files are damaged.
    """
    folder = Path(folder)
    summary = run_folder.ended(folder)
    settings = run_folder.read_json(folder / "config.json")
    settings.pop("run", None)  # also in the summary, but for a folder that needs not have the same name everywhere
    text = files.sealed(folder / "metrics.csv").decode()
    try:
        rows = [(row["env_steps"], row["return_mean"]) for row in csv.DictReader(io.StringIO(text, newline=""))]
        table = np.array(rows, np.float64).reshape(-1, len(summary["return_seeds"]), 2)
        name = folder.resolve().name if name is None else name
        return _outcome(name, folder, summary, settings, table[..., 0], table[..., 1])
    except (KeyError, csv.Error, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{folder}: summary.json and metrics.csv are not those of a finished run ({error!r})"
        ) from error


def outcome(run: RunResult, name: str) -> RunOutcome:
    """What a finished run reached.

    Args:
        run: the result of `fit`, or a run that was read back.
        name: in tables and figures.

    Raises:
        ValueError: it was interrupted before its first row of metrics.
    """
    metrics, settings = run.metrics, run_folder.config_to_dict(run.config)
    if not metrics:
        raise ValueError(f"{name}: expected one row of metrics or more, got none: the run was interrupted; resume it")
    steps = env_steps(metrics["duration"], run.config.settings.auctions_per_chunk)
    return _outcome(name, getattr(run, "folder", None), run.summary, settings, steps, metrics["return_mean"])


def _outcome(
    name: str,
    folder: Path | None,
    summary: Mapping[str, Any],
    settings: Mapping[str, Any],
    steps: np.ndarray,
    learning: np.ndarray,
) -> RunOutcome:
    # Inputs of a run that are not part of its configuration.
    *rest, seed = summary["key"]["words"]
    beside = {
        "seed": summary["key"]["words"] if any(rest) else seed,
        "start": summary.get("start"),
        "frozen": summary.get("frozen", []),
        "env_params": (summary.get("env_params") or {}).get("sha256"),
    }
    returns = np.asarray(summary["return_seeds"], np.float64).reshape(-1)
    return RunOutcome(
        name=name,
        folder=folder,
        env=str(summary["env"]),
        settings={**settings, **beside},
        returns=returns,
        unfinished=np.asarray(summary.get("unfinished_share_seeds", [None] * len(returns)), np.float64),
        diverged=list(summary.get("diverged", [])),
        steps=steps,
        learning=np.where(np.isfinite(returns), learning, np.nan).astype(np.float64),
        steps_per_second=float(summary["steps_per_second"]),
        interrupted=bool(summary["interrupted"]),
    )


def find(runs: "Sequence[RunResult | str | Path]") -> list[Any]:
    """The run folders that the paths refer to; other runs are returned unchanged.

    A folder that contains runs refers to all of them, in the order of their names. Plain files are ignored, because a
    shell includes them in the expansion of ``OUT/*``.

    Raises:
        ValueError: there is no such folder, or a run is named twice.
    """
    found: list[Any] = []
    for run in runs:
        if not isinstance(run, str | Path):
            found.append(run)
            continue
        path = Path(run)
        if os.path.isfile(path):  # pathlib's raises an error where a name is too long
            continue
        inside = sorted(p.parent for p in path.glob("*/config.json")) if os.path.isdir(path) else []
        found += inside if inside and not (path / "config.json").exists() else [path]
    folders = [_folder(run) for run in found]
    whole = [id(run) if path is None else path.resolve() for path, run in zip(folders, found, strict=True)]
    twice = [run for run, one in zip(found, whole, strict=True) if whole.count(one) > 1]
    if twice:
        raise ValueError(f"{twice[0]}: this run is named twice; name every run once")
    return found


def _folder(run: Any) -> Path | None:
    return run if isinstance(run, Path) else getattr(run, "folder", None)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one environment; the first is what the others are held against.

    Attributes:
        runs: at least two.
        differing: settings in which they differ, by name.
        target: the return that `RunOutcome.steps_to` asks for.
    """

    runs: list[RunOutcome]
    differing: list[str]
    target: float

    def __repr__(self) -> str:
        first, *rest = (escaped(run.name) for run in self.runs)
        others = ", ".join(rest[:3]) + (", …" if len(rest) > 3 else "")
        return f"Comparison({escaped(self.runs[0].env)}: {len(self.runs)} runs, {others} against {first})"

    @property
    def goal(self) -> str:
        """The name of the column with the steps to the target."""
        return f"steps to {self.target:.3g}"

    def rows(self) -> list[dict[str, Any]]:
        """A row per run: settings, then numbers, or an `Estimate` each."""
        first, rows = self.runs[0], []
        for run in self.runs:
            steps = run.steps_to(self.target)
            middle = float(np.median(np.nan_to_num(steps, nan=np.inf)))
            rows.append(
                {
                    "run": run.name + (" (interrupted)" if run.interrupted else ""),
                    **{name: shown(run.settings.get(name)) for name in self.differing},
                    "seeds": len(run.returns),
                    "diverged": int(np.sum(~np.isfinite(run.returns))),
                    "unfinished": spread(run.unfinished).mean,
                    "return": mean(run.kept),
                    self.goal: middle if np.isfinite(middle) else None,
                    "reached by": f"{int(np.sum(~np.isnan(steps)))}/{len(steps)}",
                    "steps/s": run.steps_per_second,
                    "interquartile mean": interquartile_mean(run.kept) if len(run.kept) > 1 else mean(run.kept),
                    "minus first": _against(difference, run, first),
                    "P(above first)": _against(probability_of_improvement, run, first),
                }
            )
        return rows

    def tables(self, title: str | None = None) -> list[ResultTable]:
        """The results of each run, and its comparison with the first one."""
        rows = self.rows()
        known = [set(label(run.settings, self.differing).split(",")) for run in self.runs]
        named = all(set(run.name.split(",")) <= parts for run, parts in zip(self.runs, known, strict=True))
        aside = ("run",) if named else ()  # names that only repeat the settings are omitted
        reached = "return: greedy; mean of seeds ± 95% interval (Student)"
        never = (self.goal, "reached by") if math.isnan(self.target) else ()  # no episode ended while learning
        if not never:
            reached += f"\n{self.goal}: environment steps until the return\nwhile learning is there; median of seeds"
        against = (
            "interquartile mean: with its interval by bootstrap\n"
            "minus first: difference of means, interval by Welch\n"
            "P(above first): that a seed of this run is above\none of the first, ties counting half"
        )
        pairwise = ("interquartile mean", "minus first", "P(above first)")
        alone = ("seeds", "diverged", "unfinished", "return", self.goal, "reached by", "steps/s")
        if any(row["diverged"] for row in rows):
            reached += "\ndiverged: seeds that are excluded from all numbers"
        else:
            never = (*never, "diverged")
        if any(row["unfinished"] > 0 for row in rows):
            reached += "\nunfinished: share of the greedy episodes that\nthe step limit of the evaluation cut"
        else:
            never = (*never, "unfinished")
        if "seeds" in self.differing:
            alone = alone[1:]
        title = title or f"{self.runs[0].env}: {len(self.runs)} runs"
        # The settings may be many, and the name of a run already contains them.
        below = () if named else tuple(name for name in self.differing if name != "seeds")
        return [
            ResultTable("runs", title, rows, reached, aside=(*aside, *pairwise, *never), below=below),
            ResultTable("against", f"against {self.runs[0].name}", rows, against, aside=(*aside, *alone, *below)),
        ]

    def figure(self) -> "Figure":
        """Learning curves, and what was reached in the end."""
        names = [run.name for run in self.runs]
        height = max(4.0, 1.2 + 0.28 * len(names))
        fig, (left, right) = plotting.figure(columns=2, height=height)
        curves = {run.name: (run.steps.mean(1), *mean_ci(run.learning)) for run in self.runs}
        plotting.draw_return_curves(left, curves, target=self.target)
        env = plotting.plain_text(self.runs[0].env)
        left.set_title(f"{env}: while learning, mean of seeds and 95% interval", fontsize=10)
        ends = {run.name: run.kept for run in self.runs}
        plotting.draw_final_returns(right, ends, {run.name: _ends(mean(run.kept)) for run in self.runs})
        right.set_title("greedy, in the end: seeds, their mean and 95% interval", fontsize=10)
        return fig

    def document(self) -> dict[str, Any]:
        """Plain values: a row per run, with its folder and the returns of its seeds."""
        rows = []
        for run, row in zip(self.runs, self.tables()[0].as_rows(), strict=True):
            folder = None if run.folder is None else str(run.folder)
            raw = {name: run.settings.get(name) for name in self.differing}  # as they are, not as they are shown
            seeds = {
                "return_seeds": run.returns.tolist(),
                "unfinished_share_seeds": run.unfinished.tolist(),
                "diverged_seeds": run.diverged,
                "steps_seeds": run.steps_to(self.target).tolist(),
            }
            rows.append(row | raw | {"run": run.name, "folder": folder, "interrupted": run.interrupted} | seeds)
        return {"env": self.runs[0].env, "target": self.target, "differing": self.differing, "runs": rows}


def _against(how: Callable[[Any, Any], Estimate], run: RunOutcome, first: RunOutcome) -> Estimate | None:
    """Compare a run with the first: None for the first itself, NaN if every seed of either run diverged."""
    if run is first:
        return None
    if not len(run.kept) or not len(first.kept):
        return Estimate(math.nan, math.nan, math.nan)
    return how(run.kept, first.kept)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def shown(value: Any) -> str:
    """A setting as text for tables and names of folders: short numbers, ``64x64`` for widths, ``none`` for no width."""
    if isinstance(value, dict):
        name, fields = value.get("object", value), value.get("fields") or {}
        return f"{name}({', '.join(f'{key}={shown(one)}' for key, one in fields.items())})" if fields else str(name)
    if isinstance(value, list | tuple):
        return "x".join(map(str, value)) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def label(settings: dict[str, Any], names: Sequence[str]) -> str:
    """``learning_rate=0.001,entropy=0.1``: those settings, in that order."""
    return ",".join(f"{name}={shown(settings.get(name))}" for name in names)


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest trailing parts of the paths that are distinct."""
    parts = [path.resolve().parts for path in paths]
    names: list[str] = []
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def _differing(runs: Sequence[RunOutcome]) -> list[str]:
    """Names of the settings in which runs differ."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)]


def _sources(runs: Any) -> tuple[list[Any], list[str | None]]:
    """The runs to compare, and the names that they were given."""
    if isinstance(runs, str) or not isinstance(runs, Mapping | Sequence):
        raise ValueError(f"runs: expected a sequence or a mapping of finished runs, got {short_repr(runs)}")
    given = list(runs.values()) if isinstance(runs, Mapping) else list(runs)
    for run in given:
        if not isinstance(run, str | Path) and not run_folder.is_run(run):
            raise ValueError(
                f"runs: expected finished runs or their folders, got {short_repr(run)}; give results of fit, or paths"
            )
    sources = find(given)
    names: list[str | None] = [str(name) for name in runs] if isinstance(runs, Mapping) else [None] * len(sources)
    if len(names) != len(sources):
        raise ValueError(f"runs: expected one run for each name, got {len(sources)} for {len(names)} names")
    if len(sources) < 2:
        raise ValueError(f"compare: expected two finished runs or more, got {len(sources)}; name their folders")
    return sources, names


def _outcomes(sources: Sequence[Any], names: Sequence[str | None]) -> list[RunOutcome]:
    """What runs reached. Those without a name are named by their folder, or by the settings in which they differ."""
    folders = [_folder(run) for run in sources]
    of_folders = iter(_names([path for path in folders if path is not None]))
    places = [f"run {i}" if path is None else next(of_folders) for i, path in enumerate(folders, 1)]
    texts = [place if name is None else name for place, name in zip(places, names, strict=True)]
    found = [
        read(run, text) if isinstance(run, Path) else outcome(run, text)
        for run, text in zip(sources, texts, strict=True)
    ]
    differing = _differing(found)
    labels = [label(run.settings, differing) for run in found]
    taken = {*texts, *(text for text in labels if labels.count(text) > 1), ""}
    return [
        dataclasses.replace(run, name=text) if name is None and run.folder is None and text not in taken else run
        for run, name, text in zip(found, names, labels, strict=True)
    ]


def compare(
    runs: "Sequence[RunResult | str | Path] | Mapping[str, RunResult | str | Path]",
    *,
    share: float = 0.9,
    target: float | None = None,
    best_first: bool = False,
) -> Comparison:
    """Compare finished runs of one environment.

    Seeds of different runs are treated as independent. A single seed gives numbers without intervals.

    Args:
        runs: two or more: results of `fit`, runs that were read back, run folders, or folders that hold runs, also
            mixed. In a mapping each has a name; otherwise a run is named by its folder, or by the settings in which it
            differs from the others.
        share: of the best run's late return while learning, which a run has to reach; where that return is negative,
            it may be missed by as large a share of its size.
        target: that return itself, in place of a share.
        best_first: order the runs by their mean return; as they were named otherwise.

    Raises:
        ValueError: there are fewer than two, one is not finished or damaged, or their environments differ.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {short_repr(share)}")
    if target is not None and not math.isfinite(target):
        raise ValueError(f"target: expected a finite number, got {short_repr(target)}")
    found = _outcomes(*_sources(runs))
    for run in found[1:]:
        if run.env != found[0].env:
            one, other = (str(each.folder or each.name) for each in (found[0], run))
            raise ValueError(
                f"compare: returns on different environments cannot be compared: {one} is a run of {found[0].env}, "
                f"{other} one of {run.env}; name runs of one (--weights: two runs' networks)"
            )
    if best_first:
        found.sort(key=lambda run: -run.kept.mean() if len(run.kept) else math.inf)
    if target is None:
        late = [run.late for run in found if not math.isnan(run.late)]
        best = max(late) if late else math.nan
        target = best - (1 - share) * abs(best)
    return Comparison(found, _differing(found), target)
