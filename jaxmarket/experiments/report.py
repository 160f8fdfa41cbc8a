"""Reports of experiments: tables, figures, and a verdict for each claim."""

import dataclasses
import io
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from jaxmarket.experiments.claims import Standing, Verdict
from jaxmarket.experiments.results import one_line
from jaxmarket.runs import files
from jaxmarket.runs.estimates import ResultTable
from jaxmarket.runs.run_folder import to_json, versions
from jaxmarket.view import plotting
from jaxmarket.view.text import DataTable, Screen, cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Report"]

_STYLES: dict[Standing, str] = {"confirmed": "green", "not confirmed": "red"}  # others are yellow


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of one experiment; the first table is the main one."""

    settings: dict[str, Any]
    tables: list[ResultTable]
    verdicts: Sequence[Verdict]
    figures: "dict[str, Figure]"
    errors: Mapping[str, Exception] = dataclasses.field(default_factory=dict)  # of what failed, by name
    name: str = ""
    source: str = ""
    folder: Path | None = None
    written: tuple[str, ...] = ()  # files in the folder

    @property
    def failed(self) -> dict[str, str]:
        """The reasons of what failed, by name."""
        return {name: one_line(error) for name, error in self.errors.items()}

    def to_json(self) -> str:
        """One line of JSON: the main table, other tables, verdicts and settings."""
        return to_json(
            {
                "experiment": self.name,
                "source": self.source,
                **self.settings,
                "failed": self.failed,
                "table": self.tables[0].as_rows() if self.tables else [],
                "tables": {table.name: table.as_rows() for table in self.tables[1:]},
                "described": [table.description() for table in self.tables],
                "versions": versions(),
                "verdicts": [dataclasses.asdict(verdict) for verdict in self.verdicts],
            }
        )

    def write(self, folder: Path) -> "Report":
        """Write tables as CSV, figures as PNG, and the whole report as ``report.json`` and ``report.txt``.

        Tables and figures of an earlier report that this one lacks are removed. ``errors.txt`` has the tracebacks of
        what failed.
        """
        names = [f"{table.name}.csv" for table in self.tables] + [f"{name}.png" for name in self.figures]
        names += ["errors.txt"] if self.errors else []
        found = dataclasses.replace(self, folder=folder, written=(*self.written, *names, "report.json", "report.txt"))
        for name in _earlier(folder / "report.json") - set(found.written):
            (folder / name).unlink(missing_ok=True)
        for table in self.tables:
            rows = table.as_rows()
            files.write_rows(folder / f"{table.name}.csv", list(rows[0]), [list(row.values()) for row in rows])
        for name, fig in self.figures.items():
            plotting.save(fig, folder / f"{name}.png")
        if self.errors:
            parts = [f"{name}\n\n{''.join(traceback.format_exception(e))}" for name, e in self.errors.items()]
            files.write_text(folder / "errors.txt", "\n".join(parts))
        content = json.loads(self.to_json()) | {"files": list(found.written)}
        files.write_text(folder / "report.json", json.dumps(content, indent=2) + "\n")
        printed = io.StringIO()
        Screen(printed, width=160).print(self.view())
        files.write_text(
            folder / "report.txt", "".join(f"{line.rstrip()}\n" for line in printed.getvalue().splitlines())
        )
        return found

    def view(self) -> Group:
        """Tables and verdicts for a terminal."""
        head = [cell(f"{self.name}: {self.source}", "bold")]
        if self.settings.get("quick"):
            head.append(
                Text("quick: a smaller budget and fewer seeds; a functional check, not evidence", style="yellow")
            )
        head += [Text(f"{name} failed: {reason}", style="red") for name, reason in self.failed.items()]
        title = "verdicts (quick: not evidence)" if self.settings.get("quick") else "verdicts"
        verdicts = DataTable("", title=title, box=None, show_header=False)
        verdicts.add_column("", wrap=24)
        verdicts.add_column("", wrap=24)
        for verdict in self.verdicts:
            evidence = f"{verdict.evidence} ({verdict.kind})"
            verdicts.add_row(Text(verdict.standing, _STYLES.get(verdict.standing, "yellow")), verdict.claim, evidence)
        return Group(*head, *(table.as_rich() for table in self.tables if table.shown), verdicts)


def _earlier(document: Path) -> set[str]:
    """The tables and figures of the report in a folder."""
    try:
        names = json.loads(document.read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {name for name in names if isinstance(name, str) and name == Path(name).name}
