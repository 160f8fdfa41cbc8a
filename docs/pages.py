"""The results on the pages of docs/reproductions, written from stored reports so that they cannot disagree.

    python docs/pages.py                                  # write all pages again
    python docs/pages.py reproductions/two-rooms          # store that report first; several folders are possible

A page shows the results of NAME between the lines ``<!-- results of NAME -->`` and ``<!-- end of results -->``: the
shown tables and all verdicts of ``docs/reproductions/results/NAME.json``. The index,
``docs/reproductions.md``, counts the verdicts of all stored reports.
"""

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["counted", "filled", "main", "rendered", "store"]

PAGES = Path(__file__).parent / "reproductions"
INDEX = Path(__file__).parent / "reproductions.md"
RESULTS = PAGES / "results"
_BLOCK = re.compile(r"(<!-- results of ([\w-]+) -->\n).*?(<!-- end of results -->)", flags=re.DOTALL)
_INDEX = re.compile(r"(<!-- verdicts -->\n).*?(<!-- end of verdicts -->)", flags=re.DOTALL)
_LARGE = 1000


def store(folder: Path) -> Path:
    """Store the report of a full run, without hidden tables.

    Raises:
        ValueError: it is the report of a quick run, or a condition failed.
    """
    report = json.loads((folder / "report.json").read_text())
    name = report["experiment"]
    if report["quick"] or report.get("failed"):
        raise ValueError(f"folder: {folder} is a quick run of {name}, or one with failed conditions; store a full one")
    rows = {table["name"]: report["table"] for table in report["described"][:1]} | report["tables"]
    shown = [{**table, "rows": rows[table["name"]]} for table in report["described"] if table["shown"]]
    kept = {key: report[key] for key in ("experiment", "source", "seeds", "full", "versions", "verdicts")}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(kept | {"tables": shown}, indent=1) + "\n")
    return path


def rendered(stored: dict[str, Any]) -> str:
    """Tables and verdicts of a stored report, in Markdown."""
    full = ", `--full`" if stored["full"] else ""
    versions = " ".join(
        f"{name} {stored['versions'][name]}" for name in ("jaxmarket", "jax") if name in stored["versions"]
    )
    parts = [f"`jaxmarket reproduce {stored['experiment']}`{full}: {stored['seeds']} seeds, {versions}."]
    for table in stored["tables"]:
        columns = table["columns"]
        rows = [[_cell(row, column) for column in columns] for row in table["rows"]]
        note = table["note"].replace("± the larger side of its", "with its")  # a page shows both sides
        note = "<br>\n".join(note.splitlines())
        parts.append("\n".join([f"**{table['title']}**", "", *_table(columns, rows), *(["", note] if note else [])]))
    verdicts = [[v["claim"], v["standing"], v["kind"].replace("_", " "), v["evidence"]] for v in stored["verdicts"]]
    if verdicts:
        parts.append("\n".join(_table(["claim", "verdict", "decided by", "numbers"], verdicts)))
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (columns, *rows)]
    head, *body = [f"| {' | '.join(row)} |" for row in escaped]
    return [head, f"|{'---|' * len(columns)}", *body]


def _cell(row: dict[str, Any], column: str) -> str:
    value, low, high = (row.get(name) for name in (column, f"{column} low", f"{column} high"))
    if low is None or high is None or low == high == value:
        return _text(value)
    return f"{_text(value)} [{_text(low)}, {_text(high)}]"


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) >= _LARGE:
            return f"{value:,.0f}"
        return f"{value:.1e}" if 0 < abs(value) < 1 / _LARGE else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def filled(page: str) -> str:
    """A page with the stored results of every name that it mentions; without stored results it says so."""

    def block(match: re.Match[str]) -> str:
        path = RESULTS / f"{match[2]}.json"
        missing = f"There are no stored results of `{match[2]}` yet.\n"
        return match[1] + (rendered(json.loads(path.read_text())) if path.exists() else missing) + match[3]

    return _BLOCK.sub(block, page)


def counted(index: str) -> str:
    """The index with the numbers of confirmed claims, and the claims that are not; variants of a claim are one."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        claims: dict[str, list[bool]] = {}
        for verdict in json.loads(path.read_text())["verdicts"]:
            variant = re.sub(r"^\[.*?\] ", "", verdict["claim"])
            claims.setdefault(variant, []).append(verdict["standing"] == "confirmed")
        denied = [
            claim if len(held) == 1 else f"{claim} (confirmed in {sum(held)} of {len(held)})"
            for claim, held in claims.items()
            if not all(held)
        ]
        every = [held for variants in claims.values() for held in variants]
        rows.append([f"`{path.stem}`", f"{sum(every)} of {len(every)}", "<br>".join(denied)])
    table = "\n".join(_table(["experiment", "confirmed", "not confirmed"], rows))
    return _INDEX.sub(lambda match: f"{match[1]}{table}\n{match[2]}", index)


def main(arguments: Sequence[str]) -> int:
    """Store the reports in these folders, and write all pages."""
    for folder in arguments:
        print(f"stored {store(Path(folder))}")
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(filled(path.read_text()))
    INDEX.write_text(counted(INDEX.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
