"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


FAST = 2  # the rest train for longer


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, marks=[pytest.mark.slow] * (i >= FAST), id=str(i)) for i, s in enumerate(SNIPPETS)],
)
def test_snippet_runs(snippet):
    exec(compile(snippet, "README.md", "exec"), {})


def test_there_are_snippets_and_the_two_commands():
    assert len(SNIPPETS) == 8
    commands = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert [("jaxmarket train" in c, "pytest" in c) for c in commands] == [(True, False), (False, True)]
