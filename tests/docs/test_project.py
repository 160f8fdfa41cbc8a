"""Project files agree with the package."""

import re
import tomllib
from pathlib import Path

import jaxmarket

ROOT = Path(__file__).parents[2]


def test_version_is_the_same_everywhere():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{jaxmarket.__version__}"' in (ROOT / hatch).read_text()
    assert f"\nversion: {jaxmarket.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {jaxmarket.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_dictionary_of_replaced_words_is_read_by_the_spell_checker():
    lines = (ROOT / ".codespell").read_text().splitlines()
    assert lines == sorted(lines)
    assert all(re.fullmatch(r"[^,>]+->[^,]+(, [^,]+)*,", line) for line in lines)
