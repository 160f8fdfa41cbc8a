"""The Python in the documentation runs as it stands there, and no other block is left without a test."""

import re

import pytest
from documentation import PAGES, ROOT, blocks, name_of, python

README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
SNIPPETS = python(README) + python(QUICKSTART)
ELSEWHERE = {README, QUICKSTART, ROOT / "docs" / "architecture.md", ROOT / "docs" / "extending.md"}
LONG = {
    f"docs/{stem}"
    for stem in ("embedding", "experiments", "options", "functions", "transfer", "tuning", "learned_primitives")
}  # several trainings

RUN = {"python"}  # by this file, test_architecture.py and test_extending.py
CHECKED = {"bash", "sh"}  # by test_commands.py
NO_CODE = {"mermaid", "{toctree}", "text", "json"}


def shortened(snippet):
    """The same code with less training: no budget of three digits or more stays."""
    return re.sub(
        r'(steps"?(?:=|: )|rounds=)\d[\d_]{2,}', lambda m: m[1] + ("4096" if "steps" in m[1] else "2"), snippet
    )


@pytest.mark.parametrize("snippet", python(README))
def test_snippet_runs_shortened(snippet):
    exec(compile(shortened(snippet), "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md or quickstart.md", "exec"), {})


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.full if name_of(page) in LONG else pytest.mark.slow, id=name_of(page))
        for page in PAGES
        if python(page) and page not in ELSEWHERE
    ],
)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    namespace = {}
    for snippet in python(page):
        exec(compile(snippet, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_test_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in RUN | CHECKED | NO_CODE, f"{page.name}: a block of {block.language or 'no language'}"
        assert not block.not_run or len(block.not_run.split()) > 2, f"{page.name}: give a reason"
    assert page.read_text().count("\n```") % 2 == 0


def test_there_are_snippets_and_the_two_commands():
    assert SNIPPETS
    commands = re.findall(r"^python3 -m venv .*$", README.read_text(), flags=re.MULTILINE)
    assert [("jaxmarket train" in c, "pytest" in c) for c in commands] == [(True, False), (False, True)]
