"""The curve of a run while it trains, and the output of a notebook's cell."""

import types
import warnings

import IPython.display
import numpy as np
import pytest
import rich.console

from jaxmarket.view import tables
from jaxmarket.view.live import CellOutput, LiveCurve

NONE = np.zeros(2, bool)


def curve(*returns):
    made = LiveCurve()
    for i, each in enumerate(returns):
        made.add(100.0 * i, np.array(each, float), np.zeros(len(each), bool))
    return made


def test_blocks_are_the_mean_over_seeds_without_unfinished_chunks():
    made = curve([np.nan, np.nan], [0.0, np.nan], [3.0, 4.0], [7.0, 7.0])
    assert made.blocks(10) == "▁▅█"
    assert curve([1.0], [1.0]).blocks(5) == "▁▁"
    assert curve([1.0], [np.nan]).blocks(5) == made.blocks(0) == ""


def test_blocks_are_means_where_the_line_is_short():
    made = curve(*[[float(i)] for i in range(16)])
    assert made.blocks(8) == "▁▂▃▄▅▆▇█"
    assert made.blocks(2) == "▁█"


def test_a_seed_that_diverges_is_left_out_from_the_beginning():
    made = LiveCurve()
    made.add(1, np.array([0.0, 50.0]), NONE)
    made.add(2, np.array([1.0, np.inf]), NONE)
    made.add(3, np.array([2.0, 90.0]), np.array([False, True]))
    made.add(4, np.array([3.0, 90.0]), NONE)
    steps, returns = made.points
    np.testing.assert_array_equal(steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(returns, [[0], [1], [2], [3]])


def test_the_figure_shows_the_mean_and_quartiles():
    (ax,) = curve([0.0, 1.0, 5.0], [np.nan] * 3, [2.0, 2.0, np.nan]).figure().axes
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[0, 2], [200, 2]])
    (band,) = ax.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(0, 0.5), (0, 3.0)}
    assert curve([1.0]).figure() is None


# --- one output


@pytest.fixture
def cell(monkeypatch):
    """What was shown in a cell of a notebook, in order; the first is new, the others replace it."""
    shown = []

    def display(media, *, raw, display_id):
        assert raw and display_id and not shown
        shown.append(media)
        return types.SimpleNamespace(update=lambda media, raw: shown.append(media))

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    return shown


def test_an_output_is_replaced_once_a_second_or_when_that_is_demanded(cell, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxmarket.view.live.time.monotonic", lambda: now[0])
    output = CellOutput()
    for now[0], text in ((10.0, "a"), (10.9, "b"), (11.0, "c"), (11.5, "d")):
        output.show(lambda text=text: {"text/plain": text}, now=text == "d")
    assert [media["text/plain"] for media in cell] == ["a", "c", "d"]


def test_a_figure_is_drawn_for_a_fiftieth_of_the_time(monkeypatch):
    now, costs, drawn = [0.0], [3.0, 0.5, 0.5, 0.5], []
    monkeypatch.setattr("jaxmarket.view.live.time.monotonic", lambda: now[0])
    monkeypatch.setattr("jaxmarket.view.live.time.thread_time", lambda: sum(costs[: len(drawn)]))

    def draw(fig, description):
        drawn.append(now[0])
        return f"<img {len(drawn)}>"

    monkeypatch.setattr("jaxmarket.view.plotting.image_element", draw)
    made = curve([0.0], [1.0])
    assert curve([0.0]).element() == ""
    for _ in range(205):
        now[0] += 1.0
        shown = made.element()
    assert drawn == [1.0, 151.0, 176.0, 201.0] and shown == "<img 4>"
    assert made.element(now=True) == "<img 5>"


def test_an_error_is_one_warning(cell):
    def broken():
        raise RuntimeError("no canvas")

    output = CellOutput()
    with pytest.warns(UserWarning, match="progress: .*no canvas.*the run continues"):
        output.show(broken, now=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output.show(broken, now=True)
    assert cell == []


def test_a_notebook_shows_lines_bar_and_curve_in_one_output(cell, capsys):
    with tables.progress("<script>[/x]") as show:
        assert "compiling" in cell[-1]["text/plain"]
        show.say("continuing <b>")
        for i in range(3):
            show.point(10 * i, np.array([i, i + 1.0]), NONE)
            show(i + 1, 3, f"return {i}.000")
        show.phase("evaluating")
        assert "evaluating" in cell[-1]["text/plain"]
        before = cell[-1]["text/html"]
        show.point(30, np.array([9.0, 9.0]), NONE)
    assert cell[-1]["text/html"].split("<img ")[1] != before.split("<img ")[1]  # the last figure has every point
    last = cell[-1]
    assert [line.split()[0] for line in last["text/plain"].splitlines()] == ["continuing", "<script>[/x]"]
    assert (
        "100%" in last["text/plain"] and "return 2.000" in last["text/plain"] and "evaluating" not in last["text/plain"]
    )
    assert last["text/html"].count("<img ") == 1 and "data:image/png;base64," in last["text/html"]
    assert "&lt;script&gt;" in last["text/html"] and "<script" not in last["text/html"]
    assert capsys.readouterr() == ("", "")


def test_nothing_is_shown_in_a_notebook_if_it_is_switched_off(cell):
    with tables.progress("Chain-v0", shown=False) as show:
        show(1, 2)
        show.say("a line")
    assert cell == []
