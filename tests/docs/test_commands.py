"""Every command in the documentation is one that the programs accept: names, options and values, without running it."""

import argparse
import importlib.util
import os
import re
import shlex
import sys
import tomllib
from unittest import mock

import cyclopts
import pytest
from documentation import PAGES, ROOT, blocks, name_of, python

from benchmarks.__main__ import main as benchmarks
from jaxmarket import cli
from jaxmarket.environments import OURS
from jaxmarket.experiments import EXPERIMENTS
from jaxmarket.runs import sweeps

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# The beginning of a command, after variables of its environment.
COMMAND = re.compile(r"([A-Z_]+=\S+ )*(\.venv/bin/)?(jaxmarket|python3?|pip|pre-commit|source|\.ci/run|\.ci/full)( |$)")
# What stands for a value in a sentence, such as `jaxmarket watch RUN --html FILE`.
PLACEHOLDERS = {"ENV": "Chain-v0", "RUN": "runs/a", "FILE": "file.gif", "NAME": "chain", "I": "0", "MODULE": "json"}
# Files that pages tell their readers to write: the page, and the number of its block.
MODULES = {"my_market": ("extending", 0), "my_agents": ("extending", 2), "my_experiment": ("experiments", 0)}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """The modules that pages write, in a folder of their own."""
    for module, (page, number) in MODULES.items():
        (tmp_path / f"{module}.py").write_text(python(ROOT / "docs" / f"{page}.md")[number])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    for module in MODULES:
        sys.modules.pop(module, None)


def commands(page, *, sentences=True):
    """The commands of a page: the lines of its shell blocks, and inline code in sentences that begins like one."""
    lines = []
    for block in blocks(page):
        if block.language in ("bash", "sh") and not block.not_run:
            lines += block.text.replace("\\\n", " ").splitlines()
    for line in lines:
        assert COMMAND.match(line), f"not a known program: {line}"
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`", text)]
    if sentences:
        lines += [code for code in inline if COMMAND.match(code) and " " in code]
    for line in lines:
        for command in re.sub(r"<\(.*\)", "constraints", line).split(" && "):
            words = shlex.split(command, comments=True)
            while "=" in words[0]:
                words.pop(0)  # an environment variable
            words = [PLACEHOLDERS.get(word, word) for word in words if word != "…"]
            yield re.sub(r"^\.venv/bin/|(?<=^python)3$", "", words[0]), *words[1:]


def check(program, *words):
    """Raise an error unless the program accepts these words."""
    if program == "jaxmarket":
        check_jaxmarket(list(words))
    elif program == "python":
        check_python(list(words))
    elif program == "pip":
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(EXTRAS), extra
    elif program.startswith(".ci/"):
        assert (ROOT / program).exists()


def check_jaxmarket(words):
    if words[0] == "bench":
        check_python(["-m", "benchmarks", *words[1:]])
        return
    words = [word for word in cli._imported(words) if word != cli._NOT_CACHED]
    if words[-1] == "--help" or len(words) == 1:  # the name of a command in a sentence
        assert words[0] in cli.app
        return
    function, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    if function is cli.launch:
        check_jaxmarket(list(bound.args))
    elif function is cli.sweep:
        for variation in bound.arguments["vary"]:
            sweeps.parse(variation)
    elif function is cli.reproduce and "name" in bound.arguments:
        assert bound.arguments["name"] in {*EXPERIMENTS, "my_experiment:EXPERIMENT"}


class ParsedError(Exception):
    """Raised in place of running a benchmark."""


def check_python(words):
    if words[0] != "-m":
        assert (ROOT / words[0]).exists(), words[0]
        return
    assert importlib.util.find_spec(words[1]), words[1]
    if words[1] == "pytest":
        assert all((ROOT / word).exists() for word in words[2:] if "/" in word)
    elif words[1] == "benchmarks":
        parse = argparse.ArgumentParser.parse_args

        def parsed(parser, arguments=None, namespace=None):
            parse(parser, arguments, namespace)
            raise ParsedError

        with mock.patch.dict(os.environ), mock.patch.object(argparse.ArgumentParser, "parse_args", parsed):
            try:
                code = benchmarks(words[2:])
            except ParsedError:
                return
        raise ValueError(f"exit code {code}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_are_accepted(page):
    for command in commands(page):
        try:
            check(*command)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{shlex.join(command)}: {error}") from error


@pytest.mark.parametrize(
    "wrong",
    [
        "jaxmarket train Chain-v0 --seed-count 8",
        "jaxmarket train Chain-v9",
        "jaxmarket train Chain-v0 --auction dutch",
        "jaxmarket watch runs/a --htm a.html",
        "jaxmarket show runs/a",
        "jaxmarket sweep Chain-v0 --vary speed=1,2",
        "jaxmarket reproduce chains",
        "jaxmarket launch --processes 2 train Chain-v9",
        "python -m benchmarks steps",
        "python -m benchmarks step --slow",
        "python -m benchmarks soak --hours 1",
        "python tests/powers.py",
        "python -m pytest tests/core/test_auction.py",
        "pip install 'jaxmarket[everything]'",
    ],
)
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises((AssertionError, SystemExit, ValueError, cyclopts.CycloptsError)):
        check(*shlex.split(wrong))


def test_the_commands_of_a_page_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n```bash\nA=1 jaxmarket train \\\n  Chain-v0   # why\npython3 -m x && .venv/bin/pip y\n```\n"
        "text `jaxmarket watch RUN` and `a b`\n<!-- not run: it is wrong -->\n```sh\njaxmarket z\n```\n"
    )
    expected = ["jaxmarket train Chain-v0", "python -m x", "pip y", "jaxmarket watch runs/a"]
    assert [shlex.join(command) for command in commands(page)] == expected


# --- run


@pytest.mark.full
@pytest.mark.parametrize("stem", ["quickstart", "extending", "replay", "transfer"])
def test_the_commands_of_a_page_run(stem, tmp_path, capsys):
    """In order, with less training. Experiments and runs of several processes have tests of their own."""
    exec("\n".join(python(ROOT / "docs" / "host.md")[:1]), {})  # the log that a page watches
    if stem == "extending":
        exec(python(ROOT / "docs" / "extending.md")[1], {})
    for program, *words in commands(ROOT / "docs" / f"{stem}.md", sentences=False):
        if program != "jaxmarket" or words[0] in ("reproduce", "launch", "bench"):
            continue
        if words[0] in ("train", "sweep") and "--resume" not in words:
            if "--steps" in words:
                place = words.index("--steps")
                del words[place : place + 2]
            words += ["--steps", "8192"]
        cli.main(words)
        capsys.readouterr()


def test_the_environments_of_the_quickstart_exist():
    (row,) = re.findall(r"^\| environments \|(.*)", (ROOT / "docs" / "quickstart.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`([\w]+-v\d)`", row)) <= set(OURS)
