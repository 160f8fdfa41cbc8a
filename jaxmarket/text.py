"""What the library shows on a terminal, whatever the text, the encoding and the width.

Names, paths, settings and agents' messages are data. `plain` makes the characters visible that a terminal would obey or
hide, and `cell` makes a `rich.text.Text` of them, in which rich finds no markup. `DataTable` is a table of such cells
that becomes a list where it would not fit. `Screen` and `emit` print: characters that the stream's encoding lacks are
replaced, and output that nobody reads any more (``| head``) is dropped.
"""

import codecs
import contextlib
import dataclasses
import io
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["DataTable", "Screen", "cell", "emit", "plain"]


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
    text = str.__str__(text)  # an agent may have sent a class of its own, whose methods lie
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or unicodedata.category(char) == "Zs" or (lines and char == "\n") else _escape(char)
        for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def cell(value: object, style: str = "") -> Text:
    """A value as text for a table, a title or a message: `plain`, and never markup. `Text` stays as it is."""
    return value if isinstance(value, Text) else Text(plain(str(value)), style)


# --- streams


_STAND_INS = {
    "±": "+-",
    "·": ".",
    "•": "*",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "×": "x",
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "≈": "~",
    "√": "sqrt ",
    "µ": "u",
    "γ": "gamma",
    "λ": "lambda",
    "ε": "epsilon",
}
_ERRORS = "jaxmarket.stand_ins"


def _stand_ins(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_STAND_INS.get(char) or _escape(char) for char in missing), error.end


codecs.register_error(_ERRORS, _stand_ins)


class _Stream:
    """A text stream that writes what its encoding lacks in other characters, and that outlives its reader."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.StringIO() if stream is None else stream  # a closed standard stream is None

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":  # would lead rich past this object
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None)
        if encoding:
            text = text.encode(encoding, _ERRORS).decode(encoding)
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        """Once the reader is gone, the rest goes nowhere: a run that writes files is worth finishing."""
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def emit(line: str, stream: TextIO | None = None) -> None:
    """Print a line as it is, whatever its length: on standard output, or on ``stream``."""
    out = _Stream(sys.stdout if stream is None else stream)
    out.write(f"{line}\n")
    out.flush()


class Screen(Console):
    """rich's console for data: a string is `plain` text, never markup, emoji codes or numbers to highlight.

    Args:
        stream: standard output by default.
        options: as of `rich.console.Console`.
    """

    def __init__(self, stream: TextIO | None = None, **options: Any) -> None:
        file: Any = _Stream(sys.stdout if stream is None else stream)
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)
        self.width = max(self.width, _NARROWEST)  # a terminal may claim to have no column at all

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """A string as `plain` text of one or several lines."""
        return super().render_str(plain(text, lines=True), **options)

    def message(self, text: str, style: str = "") -> None:
        """Print a message, which only the terminal breaks into lines: paths in it can be copied."""
        self.print(cell(text, style), soft_wrap=True)


_NARROWEST = 20


# --- tables


@dataclasses.dataclass
class _Column:
    header: Text
    name: str
    justify: Any
    wrap: int
    below: bool
    style: str


class DataTable:
    """A table whose strings are data (`cell`), for any console.

    Where the width does not do, columns that were added with ``below=True`` leave the table, and follow it as a list.
    Where that does not do, all of it becomes a list: a paragraph ``column: value · column: value`` per row.

    Args:
        headers: of the first columns, as `add_column` takes them.
        title: above it.
        caption: below it, of one or several lines.
        box: rich's, the frame.
        show_header: whether columns have headers.
    """

    def __init__(
        self,
        *headers: str,
        title: str = "",
        caption: str = "",
        box: Box | None = SIMPLE_HEAD,
        show_header: bool = True,
    ) -> None:
        self.title, self.caption = title, caption
        self._box, self._show_header = box, show_header
        self._columns: list[_Column] = []
        self._rows: list[list[Text]] = []
        for header in headers:
            self.add_column(header)

    def add_column(
        self,
        header: str | Text,
        *,
        justify: str = "left",
        wrap: int = 0,
        below: bool = False,
        style: str = "",
        name: str = "",
    ) -> None:
        """Add a column.

        Args:
            header: its name; `Text` may have several lines.
            justify: ``left``, ``right`` or ``center``.
            wrap: how narrow it may become, its cells broken into lines; 0 where they may not.
            below: whether it may leave the table where the width does not do.
            style: of its cells.
            name: in a list; the header by default.
        """
        header = cell(header)
        self._columns.append(_Column(header, plain(name) or header.plain, justify, wrap, below, style))

    def add_row(self, *values: object) -> None:
        """Add a row: strings and numbers, or `Text` in colours; one per column."""
        if len(values) != len(self._columns):
            raise ValueError(f"values: expected one per column, {len(self._columns)}, got {len(values)}")
        self._rows.append([cell(value) for value in values])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        every = range(len(self._columns))
        inside = [i for i in every if not self._columns[i].below]
        below = [i for i in every if self._columns[i].below]
        if self.title:
            yield Text(plain(self.title), "bold")
        for shown, rest in ((every, []), (inside, below)):
            table, width = self._table(shown)
            if shown and width <= options.max_width:
                yield table
                if rest:
                    yield from self._list([inside[0], *rest], options)
                break
        else:
            yield from self._list(every, options)
        if self.caption:
            yield Text(plain(self.caption, lines=True) + "\n", "table.caption")

    def _table(self, chosen: Sequence[int]) -> tuple[Table, int]:
        """A table of some columns, and how many columns of a terminal it takes at least."""
        least = len(chosen) + (0 if self._box is None else len(chosen) + 1)  # padding, and the box's own
        table = Table(box=self._box, show_header=self._show_header, padding=(0, 1, 0, 0))
        for i in chosen:
            column, cells = self._columns[i], [row[i] for row in self._rows]
            width = max(line.cell_len for text in (column.header, *cells) for line in text.split(allow_blank=True))
            table.add_column(
                column.header,
                justify=column.justify,
                style=column.style,
                no_wrap=column.wrap == 0,
                overflow="fold",
            )
            least += min(width, column.wrap or width)
        for row in self._rows:
            table.add_row(*(row[i] for i in chosen))
        return table, least

    def _list(self, chosen: Sequence[int], options: ConsoleOptions) -> Iterator[RenderableType]:
        """Every row as a heading, and below it what else is in it, ``column: value``."""
        names = [self._columns[i].name for i in chosen]
        for row in self._rows:
            cells = [row[i] for i in chosen]
            named = [Text.assemble(f"{n}: " if n else "", c) for n, c in zip(names, cells, strict=True) if c.plain]
            yield Text.assemble(named[0] if named else "", style="bold")
            lines: list[Text] = []
            for item in named[1:]:
                if not lines or lines[-1].cell_len + len(" · ") + item.cell_len > options.max_width - 2:
                    lines.append(item)
                else:
                    lines[-1] = Text.assemble(lines[-1], " · ", item)
            for line in lines:
                line.overflow = "fold"
                yield Padding(line, (0, 0, 0, 2), expand=False)
        yield Text("")
