"""The code blocks of the documentation, for the tests that run and check them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "api"),  # written by docs/conf.py
    ROOT / "benchmarks" / "NOTES.md",
]
_BLOCK = re.compile(r"^(?P<mark><!-- .*? -->\n)?```(?P<language>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- not run: (.+) -->\n")


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    text: str
    not_run: str  # the reason in the comment ``<!-- not run: REASON -->`` above it; "" of a block that is tested


def blocks(page):
    """The code blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(page.read_text()):
        mark = _MARK.fullmatch(match["mark"] or "")
        found.append(Block(match["language"], match["text"], mark[1] if mark else ""))
    return found


def python(page):
    """The Python of a page's code blocks."""
    return [block.text for block in blocks(page) if block.language == "python" and not block.not_run]


def name_of(page):
    """A page's path, for the names of tests."""
    return str(page.relative_to(ROOT).with_suffix(""))
