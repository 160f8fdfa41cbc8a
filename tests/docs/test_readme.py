"""The Python in the README and in docs/ runs as it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
SNIPPETS = PYTHON.findall(README)
PAGES = sorted((Path(__file__).parents[2] / "docs").glob("[!a]*.md"))  # architecture.md has a test of its own


FAST = 2  # the rest train for longer


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, marks=[pytest.mark.slow] * (i >= FAST), id=str(i)) for i, s in enumerate(SNIPPETS)],
)
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    namespace = {}
    for snippet in PYTHON.findall(page.read_text()):
        exec(compile(snippet, page.name, "exec"), namespace)


def test_there_are_snippets_and_the_two_commands():
    assert len(SNIPPETS) == 10
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert [("jaxmarket train" in c, "pytest" in c) for c in commands] == [(True, False), (False, True)]
