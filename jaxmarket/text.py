"""Text that a user, a file or an agent supplied, made safe to show on a terminal.

Names, paths, settings and agents' messages are data. `plain` makes the characters visible that a terminal would obey or
hide; `cell` makes a piece of a table of it, in which rich finds no markup.
"""

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["cell", "plain"]


def plain(text: str, *, lines: bool = False) -> str:
    r"""The text on one line, with every character that a terminal would obey or hide written as its escape.

    These are the control characters (C0, DEL, C1), marks and overrides of the direction of writing, zero-width and
    other format characters, separators of lines and paragraphs, lone surrogates, and code points that are unassigned or
    for private use. Spaces, letters, combining marks and symbols of any script stay. Escapes are Python's.

    >>> print(plain("a\x1b[2Jb\u202ec\n"))
    a\x1b[2Jb\u202ec\n

    Args:
        text: any string.
        lines: keep newlines, for text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or unicodedata.category(char) == "Zs" or (lines and char == "\n")
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def cell(value: object, style: str = "") -> "Text":
    """A value as `rich.text.Text` for a table, a title or a message: `plain`, and never markup."""
    from rich.text import Text  # noqa: PLC0415  the module itself imports nothing heavy

    return Text(plain(str(value)), style)
