"""Project files agree with the package."""

import importlib
import re
import tomllib
from pathlib import Path

import power

import jaxmarket

ROOT = Path(__file__).parents[2]


def test_version_is_the_same_everywhere():
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{jaxmarket.__version__}"' in (ROOT / hatch).read_text()
    assert f"\nversion: {jaxmarket.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_changelog_keeps_its_form():
    """Versions have dates, newest first, and links; this one is among them; sections are those of Keep a Changelog."""
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased, *versions = re.findall(r"^## (.+)", text, re.MULTILINE)
    assert unreleased == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)", version) for version in versions]
    assert all(found), versions
    assert [match[2] for match in found] == sorted((match[2] for match in found), reverse=True)
    assert jaxmarket.__version__ in [match[1] for match in found]
    sections = re.findall(r"^### (.+)", text, re.MULTILINE)
    assert set(sections) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for name in ("Unreleased", *(match[1] for match in found)):
        assert re.search(rf"^\[{re.escape(name)}\]: https://", text, re.MULTILINE), name


def resolve(name):
    """The object of a dotted name in the package; a field of a dataclass is its annotation."""
    parts = name.split(".")
    for split in range(len(parts), -1, -1):
        try:
            found = importlib.import_module(".".join(["jaxmarket", *parts[:split]]))
        except ImportError:
            continue
        for part in parts[split:]:
            found = getattr(found, part, None) or found.__annotations__[part]
        return found
    raise AssertionError(name)


def test_glossary_names_code_that_exists():
    cells = re.findall(r"\| ([^|]*) \|$", (ROOT / "docs" / "glossary.md").read_text(), flags=re.MULTILINE)
    names = re.findall(r"`([\w.]+)`", " ".join(cells))
    assert len(names) > 30
    for name in names:
        assert resolve(name) is not None, name


def test_dictionary_of_replaced_words_is_read_by_the_spell_checker():
    lines = (ROOT / ".codespell").read_text().splitlines()
    assert lines == sorted(lines)
    assert all(re.fullmatch(r"[^,>]+->[^,]+(, [^,]+)*,", line) for line in lines)


def test_every_fault_of_power_can_be_planted():
    """The lines that `tests/power.py` replaces still exist; that program is rarely run."""
    for (_, (file, _)), *changes in power.FAULTS:
        line, fault = changes[-1]
        assert (ROOT / file).read_text().count(line) == 1, (file, line)
        assert line != fault
