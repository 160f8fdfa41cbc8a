"""Reports of reproductions: tables, figures, and a verdict for each claim."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Group
from rich.text import Text
from scipy import stats

from jaxmarket.runs import files, sweeps
from jaxmarket.runs.estimates import Estimate, ResultTable, difference, interquartile_mean
from jaxmarket.runs.run_folder import SavedRun, to_json, versions
from jaxmarket.view import plotting
from jaxmarket.view.text import DataTable, Screen, cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Estimate",
    "ExperimentOptions",
    "Report",
    "ResultTable",
    "Verdict",
    "by_chance",
    "difference",
    "interquartile_mean",
    "tally",
]

Standing = Literal["confirmed", "not confirmed", "too short to tell", "not testable"]
_STYLES: dict[Standing, str] = {
    "confirmed": "green",
    "not confirmed": "red",
    "too short to tell": "yellow",
    "not testable": "yellow",
}


@dataclasses.dataclass(frozen=True)
class ExperimentOptions:
    """The size of an experiment, its folder and its settings.

    Attributes:
        folder: of finished conditions, which are not run again.
        seeds: independent seeds per condition (or random processes, in experiments over these).
        quick: a smaller budget, as a functional check.
        full: all published settings.
        seed: of all randomness.
        progress: whether to show a progress bar.
        settings: the experiment's own settings, complete.
    """

    folder: Path
    seeds: int = 16
    quick: bool = False
    full: bool = False
    seed: int = 0
    progress: bool = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def train(
        self, wanted: Sequence[sweeps.Cell], label: str, start: Mapping[str, SavedRun] | None = None
    ) -> dict[str, SavedRun]:
        """Train conditions that are not yet in ``folder``; returns all of them by name.

        Args:
            wanted: the conditions.
            label: of the progress bar.
            start: by a condition's name, the run whose networks it starts from.

        Raises:
            ValueError: the folder holds a condition of that name with other settings or another seed.
        """
        return sweeps.train(wanted, self.folder, seed=self.seed, label=label, progress=self.progress, start=start)


def tally(hits: np.ndarray) -> str:
    """Number of hits and of entries, as ``13/16``."""
    return f"{int(hits.sum())}/{len(hits)}"


def by_chance(hits: np.ndarray, misses: np.ndarray) -> str:
    """The probability of at least as many hits if hits and misses are equally likely, as text: a one-sided sign test.

    Args:
        hits: whether the claim holds for a seed, bool [seeds].
        misses: whether the opposite holds, bool [seeds]; seeds with neither are ties, and do not count.
    """
    better, worse = int(np.sum(hits)), int(np.sum(misses))
    probability = stats.binom.sf(better - 1, better + worse, 0.5)
    return "by chance: " + ("under 0.1%" if probability < 0.001 else f"{probability:.1%}")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a claim is confirmed, and the number that decides it.

    Claims about means are decided by Welch's interval of their difference (`difference`), which the evidence shows: two
    conditions differ if it excludes zero, and cannot be distinguished if it contains zero. Claims about most of the
    seeds are decided by counts; the evidence states how probable these are `by_chance`.
    """

    claim: str
    standing: Standing
    number: float | None
    evidence: str

    @classmethod
    def of(cls, claim: str, confirmed: bool, number: float, evidence: str) -> "Verdict":
        """The verdict on a claim that can be tested."""
        return cls(claim, "confirmed" if confirmed else "not confirmed", float(number), evidence)


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of one experiment; the first table is the main one."""

    settings: dict[str, Any]
    tables: list[ResultTable]
    verdicts: Sequence[Any]
    figures: "dict[str, Figure]"
    name: str = ""
    source: str = ""
    folder: Path | None = None
    written: tuple[str, ...] = ()  # files in the folder

    def to_json(self) -> str:
        """One line of JSON: the main table, other tables, verdicts and settings."""
        return to_json(
            {
                "experiment": self.name,
                "source": self.source,
                **self.settings,
                "table": self.tables[0].as_rows() if self.tables else [],
                "tables": {table.name: table.as_rows() for table in self.tables[1:]},
                "described": [table.description() for table in self.tables],
                "versions": versions(),
                "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            }
        )

    def write(self, folder: Path) -> "Report":
        """Write tables as CSV, figures as PNG, and the whole report as ``report.json`` and ``report.txt``."""
        written = []
        for table in self.tables:
            path = folder / f"{table.name}.csv"
            rows = table.as_rows()
            files.write_rows(path, list(rows[0]), [list(row.values()) for row in rows])
            written.append(path.name)
        for name, fig in self.figures.items():
            path = folder / f"{name}.png"
            plotting.save(fig, path)
            written.append(path.name)
        document, text = folder / "report.json", folder / "report.txt"
        files.write_text(document, json.dumps(json.loads(self.to_json()), indent=2) + "\n")
        printed = io.StringIO()
        Screen(printed, width=160).print(self.view())
        files.write_text(text, printed.getvalue())
        return dataclasses.replace(self, folder=folder, written=(*written, document.name, text.name))

    def view(self) -> Group:
        """Tables and verdicts for a terminal."""
        head = [cell(f"{self.name}: {self.source}", "bold")]
        if self.settings.get("quick"):
            head.append(
                Text("quick: a smaller budget and fewer seeds; a functional check, not evidence", style="yellow")
            )
        for condition, reason in self.settings.get("failed", {}).items():
            head.append(Text(f"{condition} failed: {reason}", style="red"))
        if "programs" in self.settings:
            counts = "{conditions} conditions, {programs} training programs, {compiled_now} compiled now"
            head.append(Text(counts.format(**self.settings)))
        title = "verdicts (quick: not evidence)" if self.settings.get("quick") else "verdicts"
        verdicts = DataTable("", title=title, box=None, show_header=False)
        verdicts.add_column("", wrap=24)
        verdicts.add_column("", wrap=24)
        for verdict in self.verdicts:
            kind = getattr(verdict, "kind", "")
            evidence = f"{verdict.evidence} ({kind})" if kind else verdict.evidence
            verdicts.add_row(Text(verdict.standing, _STYLES[verdict.standing]), verdict.claim, evidence)
        return Group(*head, *(table.as_rich() for table in self.tables if table.shown), verdicts)
