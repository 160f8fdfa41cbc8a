"""Tables of a run and the progress bar, with names that a user may give."""

import io
import re
import threading

import numpy as np
import pytest
from rich.console import Console

from jaxmarket import TrainConfig
from jaxmarket.runs.result import FitResult
from jaxmarket.view import tables

HOSTILE = "Maze[/easy] [bold]x\x1b[2J\u202e\n:smile: {0}"
SHOWN = r"Maze[/easy] [bold]x\x1b[2J\u202e\n:smile: {0}"

SUMMARY = {
    "env": HOSTILE,
    "auction": "ccv",
    "learner": "ppo",
    "clones": 2,
    "bid_error": None,
    "seeds": 1,
    "return_mean": 0.0,
    "return_std": 0.0,
    "return_seeds": [0.0],
    "sampled_return_mean": 0.0,
    "diverged": [],
    "unfinished_share": 0.0,
    "sampled_unfinished_share": 0.0,
}


class Terminal(io.StringIO):
    """Standard error or output as a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


def terminal(monkeypatch, columns=120):
    """Standard error as a terminal; not a fixture, because pytest replaces the streams after setting up."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    err = Terminal()
    monkeypatch.setattr("sys.stderr", err)
    return err


def lines(text):
    """All text that was shown on the screen, without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", text)


def test_a_name_in_a_title_is_data():
    file = io.StringIO()
    result = FitResult(SUMMARY, None, {}, TrainConfig("Bandit-v0", learner="ppo", entropy=0.25))
    Console(file=file, width=120).print(tables.returns_table(result))
    assert file.getvalue().startswith(f"{SHOWN} · ccv auction · ppo · 2 clones\n")
    assert "entropy 0.25" in file.getvalue()  # the effective settings


@pytest.mark.parametrize(
    ("share", "settings", "shown"),
    [
        (0.5, {"bid_high": 2.0}, True),
        (0.05, {"bid_high": 2.0}, False),
        (0.5, {}, False),
        (None, {"bid_low": 0.0}, False),
    ],
)
def test_a_fixed_range_that_is_too_narrow_is_named_with_the_remedy(share, settings, shown):
    result = FitResult(SUMMARY | {"saturation": share}, None, {}, TrainConfig("Bandit-v0", learner="ppo", **settings))
    file = io.StringIO()
    Console(file=file, width=160).print(tables.returns_table(result))
    assert ("50%" in file.getvalue()) == ("saturated: share" in file.getvalue()) == shown
    assert ("bid_low" in file.getvalue().split("settings:")[0]) == shown


def test_names_in_a_bar_are_data(monkeypatch):
    err = terminal(monkeypatch)
    with tables.progress(HOSTILE) as show:
        show(1, 2, f"{HOSTILE} note")
        show.say(f"runs/[/x] {HOSTILE}")
        show.phase(f"[/saving] {HOSTILE}")
    seen = lines(err.getvalue())
    for text in (SHOWN, "runs/[/x] " + SHOWN, "[/saving] "):
        assert text in seen
    assert "\u202e" not in seen


def test_what_has_no_number_is_named_below_the_bar_and_then_gone(monkeypatch):
    err = terminal(monkeypatch)
    with tables.progress("Chain-v0") as show:
        show(2, 2)
        before = len(err.getvalue())
        show.phase("evaluating")
        show.phase("saving")
        show._bar.refresh()
        seen = lines(err.getvalue()[before:])
        assert "saving" in seen
        assert "100%" in seen  # the bar stays
        assert [task.description for task in show._bar.tasks] == ["Chain-v0", "saving"]
        assert not show._bar.tasks[1].finished  # so that it spins
    assert [task.description for task in show._bar.tasks] == ["Chain-v0"]


def test_before_the_first_number_the_bar_itself_names_it(monkeypatch):
    terminal(monkeypatch)
    with tables.progress("Chain-v0") as show:
        show.phase("drawing")
        assert [task.description for task in show._bar.tasks] == ["Chain-v0: drawing"]
    assert show._bar.tasks == []  # nothing was counted, nothing is left


def test_where_nothing_is_counted_nothing_is_left_in_a_log(monkeypatch):
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    with tables.progress("Chain-v0") as show:
        show.phase("drawing")
    assert err.getvalue().strip() == ""


def test_runs_on_several_threads_share_a_bar(monkeypatch):
    terminal(monkeypatch)
    with tables.progress("sweep") as show:
        show(0, 100)

        def work():
            for i in range(50):
                show.phase("evaluating")
                show(i, 100)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(show._bar.tasks) == 1


def rendered(show, columns):
    """The lines of a bar in a terminal of that width."""
    console = Console(file=io.StringIO(), width=columns)
    lines = console.render_lines(show._bar.make_tasks_table(show._bar.tasks))
    return ["".join(segment.text for segment in line).rstrip() for line in lines]


def add_points(show, count=40):
    for i in range(count):
        show.point(i, np.array([float(i), np.nan]), np.zeros(2, bool))


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_bar_keeps_to_one_line(columns, monkeypatch):
    terminal(monkeypatch, columns)
    with tables.progress("Chain-v0 with a very long name, as a user may give one") as show:
        add_points(show)
        show(1, 2, "return -123.456, and more notes than there is room for")
        assert len(rendered(show, columns)) == 1


@pytest.mark.parametrize(("columns", "blocks", "bar"), [(120, 24, True), (80, 12, True), (60, 0, False)])
def test_a_narrow_terminal_shows_numbers_before_the_curve(columns, blocks, bar, monkeypatch):
    terminal(monkeypatch, columns)
    with tables.progress("Chain-v0") as show:
        add_points(show)
        show(1, 2, "return 0.797")
        show._bar.tasks[0].finished_speed = 1_553_930
        (line,) = rendered(show, columns)
    for text in ("Chain-v0", "50%", "1.55 M steps/s", "ETA", "return 0.797"):
        assert text in line
    shown = sum(line.count(block) for block in "▁▂▃▄▅▆▇█")
    assert blocks <= shown <= 24
    assert ("━" in line) == bar


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_other_encodings_have_no_curve(encoding, monkeypatch):
    err = terminal(monkeypatch)
    monkeypatch.setattr(err, "encoding", encoding, raising=False)
    with tables.progress("Chain-v0") as show:
        add_points(show)
        show(1, 2)
    assert "50%" in err.getvalue()
    assert not re.search(r"[▁▂▃▄▅▆▇█]|\\u", err.getvalue())


def test_output_that_goes_to_a_file_stays_out_of_the_bar(monkeypatch):
    err = terminal(monkeypatch)
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    with tables.progress("Chain-v0") as show:
        show(1, 2)
        print("printed by a logger")
    assert out.getvalue() == "printed by a logger\n"
    assert "printed" not in err.getvalue()


def test_a_bar_on_a_stream_of_another_encoding(monkeypatch):
    err = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stderr", err)
    with tables.progress("Chäin") as show:
        show(1, 2, "0.9 ± 0.1")
        show.say("a … b")
    assert "a ... b" in err.buffer.getvalue().decode("ascii")
    assert "Ch\\xe4in" in err.buffer.getvalue().decode("ascii")


def test_a_result_is_one_line():
    result = FitResult(SUMMARY | {"interrupted": True}, np.zeros(10_000), {"m": np.zeros((100, 100))}, None)
    assert repr(result) == f"FitResult({SHOWN}: 1 seeds, return 0.000, interrupted)"
