"""The Python in the README and in docs/ runs as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
SNIPPETS = PYTHON.findall(README) + PYTHON.findall((ROOT / "docs" / "quickstart.md").read_text())
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.stem not in ("architecture", "quickstart"))


def shortened(snippet):
    """The same code with less training: no budget of three digits or more stays."""
    return re.sub(
        r'(steps"?(?:=|: )|rounds=)\d[\d_]{2,}', lambda m: m[1] + ("4096" if "steps" in m[1] else "2"), snippet
    )


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs_shortened(snippet):
    exec(compile(shortened(snippet), "README.md or quickstart.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s != shortened(s)])
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md or quickstart.md", "exec"), {})


@pytest.mark.full
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.stem
)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    namespace = {}
    for snippet in PYTHON.findall(page.read_text()):
        exec(compile(snippet, page.name, "exec"), namespace)


def test_there_are_snippets_and_the_two_commands():
    assert SNIPPETS
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert [("jaxmarket train" in c, "pytest" in c) for c in commands] == [(True, False), (False, True)]
