"""Text that others supplied does nothing to a terminal but appear on it."""

import unicodedata

import pytest
from rich.console import Console

from jaxmarket.text import cell, plain

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
    assert plain(text) == shown
    assert cell(text).plain == shown


@pytest.mark.parametrize(
    "text", ["", "Chain-v0", r"C:\runs\[x]", "Grüße 世界 µ² é", "a\u00a0b\u3000c", "$x$ [/b] %s {0}"]
)
def test_other_text_stays(text):
    assert plain(text) == text


def test_no_character_with_power_over_a_terminal_is_left():
    everything = "".join(map(chr, range(0x110000)))
    left = {unicodedata.category(char) for char in plain(everything)}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert plain(plain(everything)) == plain(everything)


def test_lines_may_stay():
    assert plain("a\r\nb\x1bc", lines=True) == "a\\r\nb\\x1bc"


def test_cells_are_no_markup():
    console = Console(width=80)
    with console.capture() as shown:
        console.print(cell("Maze[/easy] [bold]x[/] :smile:"))
    assert shown.get() == "Maze[/easy] [bold]x[/] :smile:\n"
    assert cell(3).plain == "3"
