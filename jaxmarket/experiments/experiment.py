"""Experiments as data: conditions, measures, claims, tables and figures; and the engine that runs them.

An experiment says what is compared, measured and claimed; ``docs/experiments.md`` has an example.

`run` computes what is not in its folder yet (`jaxmarket.runs.jobs`), so that a repeated call, also with a changed
experiment, reuses what is still valid.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmarket.experiments.claims import Claim, at
from jaxmarket.experiments.conditions import Condition, Scope, Train
from jaxmarket.experiments.report import Report
from jaxmarket.experiments.results import Measure, Results
from jaxmarket.runs import files
from jaxmarket.runs.estimates import ResultTable, interquartile_mean
from jaxmarket.runs.interrupts import retained
from jaxmarket.runs.jobs import PlannedJob, run_jobs
from jaxmarket.view import tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Quick", "Table", "by_condition", "column", "report", "run", "table_of"]

Rows = Iterable[dict[str, Any]]
Column = str | Callable[[Results, str], Any]
"""The name of a measure, or ``(results, condition) -> cell``."""


@dataclasses.dataclass(frozen=True)
class Quick:
    """The budget of a quick run.

    Attributes:
        seeds: independent seeds per condition.
        steps: the share of its steps that a `Train` condition runs.
    """

    seeds: int = 4
    steps: float = 1.0


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of an experiment.

    Attributes:
        name: of its files; unique in the experiment.
        title: shown above it; text, or a function of the results.
        rows: equal-keyed rows of text, numbers and values of type `Estimate`, a function of the results. Without a row
            there is no table.
        note: shown below it; text, or a function of the results.
        shown: whether it is shown on a terminal; files contain it anyway.
        aside: columns that are written to files only.
        below: columns that move to a list below the table on narrow terminals.
    """

    name: str
    title: str | Callable[[Results], str]
    rows: Callable[[Results], Rows]
    note: str | Callable[[Results], str] = ""
    shown: bool = True
    aside: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is compared, measured and claimed.

    Attributes:
        name: of the experiment and of its folder.
        shows: a one-line summary.
        source: paper, section, figure.
        conditions: what is compared, or a function of the `Scope`.
        measures: by name, the values of a condition's result, f [seeds].
        claims: what is tested, or a function of the `Scope`.
        tables: by default one with a row for each condition and a column for each measure.
        figures: functions of the results by name.
        seeds: independent seeds per condition.
        quick: the budget of a quick run.
        settings: the experiment's own settings and their defaults.
        facts: other entries of ``report.json``, a function of the results.
        extras: other files by name, written by a function of the results and the path.
    """

    name: str
    shows: str
    source: str
    conditions: Sequence[Condition] | Callable[[Scope], Sequence[Condition]]
    measures: Mapping[str, Measure] = dataclasses.field(default_factory=dict)
    claims: Sequence[Claim] | Callable[[Scope], Sequence[Claim]] = ()
    tables: Sequence[Table] = ()
    figures: "Mapping[str, Callable[[Results], Figure]]" = dataclasses.field(default_factory=dict)
    seeds: int = 16
    quick: Quick = Quick()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Callable[[Results], Mapping[str, Any]] = lambda results: {}
    extras: Mapping[str, Callable[[Results, Path], None]] = dataclasses.field(default_factory=dict)

    def planned(self, scope: Scope) -> list[Condition]:
        """The conditions of that scope."""
        return list(self.conditions(scope) if callable(self.conditions) else self.conditions)

    def claimed(self, scope: Scope) -> list[Claim]:
        """The claims of that scope."""
        return list(self.claims(scope) if callable(self.claims) else self.claims)


def by_condition(
    columns: Mapping[str, Column], *, first: str | None = "condition", names: Sequence[str] | None = None
) -> Callable[[Results], Rows]:
    """The rows of a `Table` with one row for each condition.

    Args:
        columns: by heading; of a measure, the interquartile mean over seeds, or nothing where it does not apply.
        first: heading of the names of conditions; None for no such column.
        names: the conditions, without those that have failed; all by default.
    """

    def cell(results: Results, name: str, column: Column) -> Any:
        if callable(column):
            return column(results, name)
        try:
            return interquartile_mean(results.measure(name, column))
        except (AttributeError, KeyError, TypeError, IndexError):
            if isinstance(results[name], Mapping):  # a measure of runs does not apply to a `Compute` condition
                return None
            raise

    def rows(results: Results) -> Rows:
        for name in results if names is None else names:
            if name not in results.failed:
                named = {} if first is None else {first: name}
                yield named | {heading: cell(results, name, column) for heading, column in columns.items()}

    return rows


def column(measure: str, show: Callable[[np.ndarray], Any]) -> Column:
    """A column for `by_condition`: what a function, such as `numpy.mean`, makes of the values of a measure."""
    return lambda results, name: show(results.measure(name, measure))


@retained()
def run(experiment: Experiment, scope: Scope, folder: Path, *, progress: bool = True) -> Results:
    """Compute the conditions of an experiment that are not in a folder yet.

    A condition that raises is recorded as failed, like those that need it; the others continue (`run_jobs`).

    Args:
        experiment: the experiment.
        scope: its size and settings.
        folder: of the conditions, each in a folder named by its content address.
        progress: whether to show a progress bar.

    Raises:
        ValueError: names of conditions, inputs or claims are not unique or unknown; nothing has been computed then.
    """
    conditions = experiment.planned(scope)
    _check_claims(experiment, scope, conditions)
    planned = [PlannedJob(each.name, each.needs, functools.partial(each.job, scope)) for each in conditions]
    with tables.progress(experiment.name, unit="conditions", shown=progress) as show:
        finished, failed = run_jobs(planned, folder, show)
    return Results(scope, finished, failed, experiment.measures)


def _check_claims(experiment: Experiment, scope: Scope, conditions: Sequence[Condition]) -> None:
    """Check the names of conditions and measures in claims before anything is computed."""
    by_name = {condition.name: condition for condition in conditions}
    for claim in experiment.claimed(scope):
        for values in claim.values:
            if not isinstance(values, at):
                continue
            condition, measures = by_name.get(values.condition), experiment.measures
            if condition is None:
                wrong, names = f"condition {values.condition!r}", by_name
            elif isinstance(condition, Train) and values.measure not in measures:
                wrong, names = f"measure {values.measure!r} of a run", measures
            else:
                continue
            raise ValueError(f"claims: {claim.text!r} names the {wrong}; choose from {', '.join(names)}")


def table_of(table: Table, results: Results) -> ResultTable | None:
    """The table of these results; None without a row, or if it fails."""

    def make() -> ResultTable | None:
        rows = list(table.rows(results))
        title, note = (text(results) if callable(text) else text for text in (table.title, table.note))
        return ResultTable(**(vars(table) | {"title": title, "rows": rows, "note": note})) if rows else None

    return results.attempt(f"table {table.name}", make)


def write_seeds(results: Results, path: Path) -> None:
    """Write every measure of every condition as CSV, a row for each seed."""
    rows = [
        [condition, measure, seed, value]
        for condition in results
        for measure, values in results.measured(condition).items()
        for seed, value in enumerate(values.tolist())
    ]
    files.write_rows(path, ["condition", "measure", "seed", "value"], rows)


def report(experiment: Experiment, results: Results, folder: Path) -> Report:
    """Test the claims, and write tables, figures and verdicts to a folder, and all measures to ``seeds.csv``.

    A table, a figure or a claim that fails, or that needs a condition that has failed, is left out or "not testable";
    ``errors.txt`` has the tracebacks.
    """
    scope, attempt = results.scope, results.attempt
    defaults = [Table("conditions", experiment.shows, by_condition({name: name for name in experiment.measures}))]
    made = [table_of(table, results) for table in experiment.tables or defaults]
    figures = {name: attempt(f"figure {name}", draw, results) for name, draw in experiment.figures.items()}
    facts = attempt("facts", experiment.facts, results) or {}
    verdicts = [claim.verdict(results) for claim in experiment.claimed(scope)]
    extras = {"seeds.csv": write_seeds, **experiment.extras}
    with files.writing(folder):
        for name, write in extras.items():
            attempt(f"file {name}", write, results, folder / name)
    return Report(
        settings={"seeds": scope.seeds, "quick": scope.quick, "full": scope.full, **scope.settings, **facts},
        tables=[table for table in made if table is not None],
        verdicts=verdicts,
        figures={name: figure for name, figure in figures.items() if figure is not None},
        errors=results.errors,
        name=experiment.name,
        source=experiment.source,
        written=tuple(name for name in extras if f"file {name}" not in results.errors),
    ).write(folder)
