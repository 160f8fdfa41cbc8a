"""The pages of docs/reproductions: one for each experiment, with the numbers of the stored reports."""

import json
import re
from pathlib import Path

import pages
import pytest

from jaxmarket.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "reproductions").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_the_numbers_of_the_stored_reports(page):
    assert pages.filled(page.read_text()) == page.read_text(), "run python docs/pages.py"


def test_the_index_counts_the_stored_verdicts():
    index = pages.INDEX.read_text()
    assert "<!-- verdicts -->" in index
    assert pages.counted(index) == index, "run python docs/pages.py"


def test_every_experiment_has_one_place_and_the_index_links_every_page():
    shown = [name for page in PAGES for name in re.findall(r"<!-- results of ([\w-]+) -->", page.read_text())]
    assert sorted(shown) == sorted(EXPERIMENTS)
    index = (ROOT / "docs" / "reproductions.md").read_text()
    assert set(re.findall(r"\(reproductions/([\w-]+)\.md\)", index)) == {page.stem for page in PAGES}


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda p: p.stem
)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_a_stored_report_is_shown_as_it_is(tmp_path, monkeypatch):
    described = [
        {"name": "arms", "title": "two arms", "note": "a\nb", "shown": True, "columns": ["arm", "x", "n", "p"]},
        {"name": "seeds", "title": "every seed", "note": "", "shown": False, "columns": ["seed"]},
    ]
    rows = [
        {"arm": "a|b", "x": 0.25, "x low": 0.125, "x high": 0.5, "n": 12000, "p": None},
        {"arm": "c", "x": 2000.4, "x low": 2000.4, "x high": 2000.4, "n": 1, "p": 1e-5},
    ]
    verdict = {"claim": "a beats c", "standing": "not confirmed", "kind": "every_seed", "evidence": "1 < 2"}
    report = {"experiment": "small", "source": "s", "seeds": 2, "quick": False, "full": False, "versions": {"jax": "1"}}
    report |= {"failed": {}, "table": rows, "tables": {"seeds": [{"seed": 1}]}, "described": described}
    (tmp_path / "report.json").write_text(json.dumps(report | {"verdicts": [verdict]}))
    monkeypatch.setattr(pages, "RESULTS", tmp_path / "results")
    pages.store(tmp_path)
    page = pages.filled("before\n<!-- results of small -->\nold\n<!-- end of results -->\nafter\n")
    assert page == (
        "before\n<!-- results of small -->\n`jaxmarket reproduce small`: 2 seeds, jax 1.\n\n"
        "**two arms**\n\n| arm | x | n | p |\n|---|---|---|---|\n| a\\|b | 0.250 [0.125, 0.500] | 12,000 | – |\n"
        "| c | 2,000 | 1 | 1.0e-05 |\n\na<br>\nb\n\n| claim | verdict | decided by | numbers |\n|---|---|---|---|\n"
        "| a beats c | not confirmed | every seed | 1 < 2 |\n<!-- end of results -->\nafter\n"
    )
    assert pages.filled(page) == page
    (tmp_path / "report.json").write_text(json.dumps(report | {"quick": True, "verdicts": []}))
    with pytest.raises(ValueError, match=r"folder: .* is a quick run"):
        pages.store(tmp_path)
