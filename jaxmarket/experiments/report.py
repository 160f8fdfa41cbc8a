"""What a reproduction has to show: tables, figures, and a verdict per claim."""

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from scipy import stats

from jaxmarket import plotting
from jaxmarket.runs import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Estimate", "Options", "Report", "Sheet", "Verdict", "interquartile_mean", "tally"]

Standing = Literal["confirmed", "not confirmed", "not testable"]
_STYLES: dict[Standing, str] = {"confirmed": "green", "not confirmed": "red", "not testable": "yellow"}


@dataclasses.dataclass(frozen=True)
class Options:
    """How much of an experiment to run, and where.

    Attributes:
        folder: where finished conditions are kept and looked for.
        seeds: independent seeds per condition (random processes, where those are what varies).
        quick: a smaller budget, to see that it works.
        full: everything as published.
        seed: of all randomness.
        progress: whether to show a progress bar.
        settings: what else the experiment lets one choose, all of it.
    """

    folder: Path
    seeds: int = 16
    quick: bool = False
    full: bool = False
    seed: int = 0
    progress: bool = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number over seeds with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_number(self.value)} [{_number(self.low)}, {_number(self.high)}]"

    @property
    def brief(self) -> str:
        """The number and the larger side of its interval."""
        side = max(self.high - self.value, self.value - self.low)
        if abs(self.value) >= _LARGE:
            return f"{self.value:,.0f} ±{side:,.0f}"
        return f"{self.value:.3f} ±{f'{side:.3f}'.removeprefix('0')}"


_LARGE = 1000


def _number(value: float) -> str:
    """Three decimals, or none for a count in the thousands."""
    return f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.3f}"


def interquartile_mean(values: Any, confidence: float = 0.95) -> Estimate:
    """Mean of the middle half of the seeds, with a percentile bootstrap interval (Agarwal et al. 2021).

    Args:
        values: f [seeds].
        confidence: of the interval.
    """
    values = np.asarray(values, np.float64)

    def middle(sample: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(sample, 0.25, axis=axis)

    value = float(middle(values))
    if np.ptp(values) == 0:
        return Estimate(value, value, value)
    interval = stats.bootstrap(
        (values,),
        middle,
        method="percentile",
        confidence_level=confidence,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def tally(hits: np.ndarray) -> str:
    """How many of how many, as ``13/16``."""
    return f"{int(hits.sum())}/{len(hits)}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a claim came back, and the number that decides it."""

    claim: str
    standing: Standing
    number: float | None
    evidence: str

    @classmethod
    def of(cls, claim: str, confirmed: bool, number: float, evidence: str) -> "Verdict":
        """The verdict of a test that could be made."""
        return cls(claim, "confirmed" if confirmed else "not confirmed", float(number), evidence)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table: equal-keyed rows of text, numbers and `Estimate`s."""

    name: str
    title: str
    rows: list[dict[str, Any]]
    note: str = ""
    shown: bool = True  # on a terminal; it is written in any case
    aside: tuple[str, ...] = ()  # columns that are written and not shown

    def flat(self) -> list[dict[str, Any]]:
        """Rows of plain values; an estimate becomes three columns."""
        return [_flat(row) for row in self.rows]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(
            title=self.title, caption=self.note or None, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1)
        )
        columns = [column for column in self.rows[0] if column not in self.aside]
        for column in columns:
            header = column.replace(" ", "\n") if len(column) > 8 else column
            table.add_column(header, justify="left" if isinstance(self.rows[0][column], str) else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*(_cell(row[column]) for column in columns))
        return table


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of one experiment; the first sheet is the table that matters most."""

    settings: dict[str, Any]
    sheets: list[Sheet]
    verdicts: list[Verdict]
    figures: "dict[str, Figure]"
    name: str = ""
    source: str = ""
    folder: Path | None = None
    written: tuple[str, ...] = ()  # files in it

    def to_json(self) -> str:
        """One line: the table, the other sheets, the verdicts, the settings."""
        return to_json(
            {
                "experiment": self.name,
                "source": self.source,
                **self.settings,
                "table": self.sheets[0].flat(),
                "tables": {sheet.name: sheet.flat() for sheet in self.sheets[1:]},
                "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            }
        )

    def write(self, folder: Path) -> "Report":
        """Every sheet as CSV, every figure as PNG, all of it as ``report.json`` and as ``report.txt``."""
        written = []
        for sheet in self.sheets:
            path = folder / f"{sheet.name}.csv"
            with path.open("w", newline="") as file:
                rows = sheet.flat()
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            written.append(path.name)
        for name, fig in self.figures.items():
            path = folder / f"{name}.png"
            plotting.save(fig, path)
            written.append(path.name)
        document, text = folder / "report.json", folder / "report.txt"
        document.write_text(json.dumps(json.loads(self.to_json()), indent=2) + "\n")
        with text.open("w") as file:
            Console(file=file, width=160).print(self.view())
        return dataclasses.replace(self, folder=folder, written=(*written, document.name, text.name))

    def view(self) -> Group:
        """For a terminal: tables, then verdicts."""
        head = [Text(f"{self.name}: {self.source}", style="bold")]
        if self.settings.get("quick"):
            head.append(
                Text("quick: a smaller budget and fewer seeds; shows that it works, and is no evidence", style="yellow")
            )
        if "programs" in self.settings:
            counts = "{conditions} conditions, {programs} training programs, {compiled_now} compiled now"
            head.append(Text(counts.format(**self.settings)))
        title = "verdicts (quick: no evidence)" if self.settings.get("quick") else "verdicts"
        verdicts = Table(title=title, box=None, show_header=False)
        for verdict in self.verdicts:
            standing = Text(verdict.standing, style=_STYLES[verdict.standing])
            verdicts.add_row(standing, Text(verdict.claim), Text(verdict.evidence))
        return Group(*head, *(sheet.table() for sheet in self.sheets if sheet.shown), verdicts)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            flat |= {name: value.value, f"{name} low": value.low, f"{name} high": value.high}
        else:
            flat[name] = value.item() if isinstance(value, np.generic) else value
    return flat


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return value.brief
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.1e}" if value != 0 and abs(value) < 1e-3 else _number(float(value))
    return str(value)
