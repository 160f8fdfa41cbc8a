"""Text that others supplied does nothing to a terminal but appear on it."""

import io
import os
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from jaxmarket.validation import escaped
from jaxmarket.view.text import DataTable, Screen, cell, emit

HOSTILE = {
    "\x1b[2J": r"\x1b[2J",  # clears the screen
    "\x1b]0;title\x07": r"\x1b]0;title\x07",  # names the window
    "\x9b31m": r"\x9b31m",  # the same as ESC [, as one C1 character
    "\x7f\b\r": r"\x7f\x08\r",
    "a\nb\tc": r"a\nb\tc",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2066\u2069\u200e\u200f\u061c": r"\u2066\u2069\u200e\u200f\u061c",
    "\u200b\u2060\ufeff\u00ad": r"\u200b\u2060\ufeff\xad",
    "\u2028\u2029\x85": r"\u2028\u2029\x85",
    "\ud800\udcff": r"\ud800\udcff",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_what_a_terminal_would_obey_or_hide_is_shown_as_an_escape(text, shown):
    assert escaped(text) == shown
    assert cell(text).plain == shown


@pytest.mark.parametrize(
    "text", ["", "Chain-v0", r"C:\runs\[x]", "Grüße 世界 µ² é", "a\u00a0b\u3000c", "$x$ [/b] %s {0}"]
)
def test_other_text_stays(text):
    assert escaped(text) == text


def test_no_character_with_power_over_a_terminal_is_left():
    everything = escaped("".join(map(chr, range(0x110000))))
    assert not {unicodedata.category(char) for char in set(everything)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_a_string_of_a_class_of_its_own_is_read_as_it_is():
    class Liar(str):
        def isprintable(self):
            return True

        def __str__(self):
            return self

        def __iter__(self):
            return iter("harmless")

    assert escaped(Liar("\x1b[2J")) == cell(Liar("\x1b[2J")).plain == r"\x1b[2J"


def test_lines_may_stay():
    assert escaped("a\r\nb\x1bc", lines=True) == "a\\r\nb\\x1bc"


def test_cells_are_no_markup():
    console = Console(width=80)
    with console.capture() as shown:
        console.print(cell("Maze[/easy] [bold]x[/] :smile:"))
    assert shown.get() == "Maze[/easy] [bold]x[/] :smile:\n"
    assert cell(3).plain == "3"


# --- tables and streams


def stream(encoding="utf-8"):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


def printed(file):
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)


def shown(what, width=80, console=Screen):
    file = io.StringIO()
    screen = Screen(file, width=width) if console is Screen else Console(file=file, width=width)
    screen.print(what)
    return file.getvalue()


def sample(**options):
    table = DataTable("run", title="a title [/b]", caption="one line\nanother", **options)
    table.add_column("return", justify="right")
    table.add_column("auction", below=True)
    table.add_column("hidden", below=True)
    table.add_row("good [bold]", "0.900", "ccv", "64x64")
    table.add_row("bad\x1b[2J", 1, "vickrey", "")
    return table


def test_a_table_is_data_on_any_console():
    for console in (Screen, Console):
        text = shown(sample(), console=console)
        for part in ("a title [/b]", "good [bold]", r"bad\x1b[2J", "one line\nanother", "64x64"):
            assert part in text
        assert "\x1b" not in text


def test_columns_that_may_leave_the_table_follow_it_where_it_is_narrow():
    wide, narrow = shown(sample(), 60), shown(sample(), 28)
    assert ":" not in wide
    assert "good [bold]   0.900" in narrow
    assert "run: good [bold]\n  auction: ccv\n  hidden: 64x64\n" in narrow
    assert "run: bad\\x1b[2J\n  auction: vickrey\n" in narrow  # what is empty is left out


def test_a_table_that_does_not_fit_is_a_list():
    text = shown(sample(), 20)
    assert "run: good [bold]\n  return: 0.900\n  auction: ccv\n  hidden: 64x64\n" in text
    assert "─" not in text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=10)), min_size=1, max_size=3), st.integers(20, 90))
def test_no_cell_is_cut_or_wider_than_the_screen(rows, width):
    table = DataTable("name", "value")
    for row in rows:
        table.add_row(*row)
    text = shown(table, width)
    kept = "".join(text.split())
    for row in rows:
        for value in row:
            assert "".join(escaped(value).split()) in kept
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert escaped(text, lines=True) == text


def test_a_row_has_a_value_for_every_column():
    with pytest.raises(ValueError, match="one per column, 1, got 2"):
        DataTable("name").add_row("a", "b")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "shift_jis", "utf-16"])
def test_any_encoding_will_do(encoding):
    file = stream(encoding)
    screen = Screen(file, width=80)
    screen.print(sample())
    screen.message("0.9 ± 0.1 · 世界 → \ud800 …", "yellow")
    emit("± 世界", file)
    text = printed(file)
    assert "good [bold]" in text
    if encoding == "ascii":
        assert "0.9 +- 0.1 . \\u4e16\\u754c -> \\ud800 ..." in text
        assert text.endswith("+- \\u4e16\\u754c\n")


def test_messages_are_not_broken_into_lines():
    file = io.StringIO()
    Screen(file, width=20).message("written to " + "/folder" * 20)
    assert file.getvalue() == "written to " + "/folder" * 20 + "\n"


def test_strings_are_no_markup_wherever_they_are_printed():
    assert shown("[/b] :smile: \x1b[2J\n2") == "[/b] :smile: \\x1b[2J\n2\n"


@pytest.mark.parametrize("columns", ["0", "1", "5"])
def test_a_terminal_without_width(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    file = io.StringIO()
    Screen(file).print(sample())
    assert "return: 0.900" in file.getvalue()


def test_closed_pipe_does_not_raise():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as file:
        for _ in range(3):
            emit("a line", file)
            Screen(file).print(sample())


def test_a_closed_stream_ends_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    emit("a line")
    Screen().print(sample())
