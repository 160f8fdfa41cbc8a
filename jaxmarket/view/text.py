"""Terminal output for any text, encoding and width.

Names, paths, settings and agents' messages are data. `validation.escaped` escapes the characters that a terminal would
interpret or hide, and `cell` returns a `rich.text.Text` in which rich interprets no markup. `DataTable` is a table of
such cells; it becomes a list if the terminal is too narrow. `Screen` and `emit` print: they replace characters that the
stream's encoding lacks, and drop output after the reader has closed the stream (``| head``).
"""

import codecs
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD, Box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxmarket.validation import escaped

__all__ = ["DataTable", "Screen", "cell", "emit", "notebook_text"]


def cell(value: object, style: str = "") -> Text:
    """A value as `escaped` text without markup, for a table, a title or a message. A `Text` is returned unchanged."""
    return value if isinstance(value, Text) else Text(escaped(str(value)), style)


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
    return "".join(_STAND_INS.get(char) or char.encode("unicode_escape").decode("ascii") for char in missing), error.end


codecs.register_error(_ERRORS, _stand_ins)


class _Stream:
    """A text stream that replaces characters its encoding lacks, and ignores a closed reader."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = io.StringIO() if stream is None else stream  # a closed standard stream is None

    def __getattr__(self, name: str) -> Any:
        if name == "rich_proxied_file":  # rich would write to that file instead of this object
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
        """Discard output once the reader is gone, so that a run that writes files can finish."""
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def emit(line: str, stream: TextIO | None = None) -> None:
    """Print a line without wrapping, on standard output or on ``stream``."""
    out = _Stream(sys.stdout if stream is None else stream)
    out.write(f"{line}\n")
    out.flush()


class Screen(Console):
    """A rich console for data: strings are `escaped` text, without markup, emoji codes or highlighting.

    Args:
        stream: standard output by default.
        options: as of `rich.console.Console`.
    """

    def __init__(self, stream: TextIO | None = None, **options: Any) -> None:
        file: Any = _Stream(sys.stdout if stream is None else stream)
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)
        self.width = max(self.width, _NARROWEST)  # a terminal may report a width of 0

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """A string as `escaped` text of one or several lines."""
        return super().render_str(escaped(text, lines=True), **options)

    def message(self, text: str, style: str = "") -> None:
        """Print a message and leave wrapping to the terminal, so that paths in it can be copied."""
        self.print(cell(text, style), soft_wrap=True)


_NARROWEST = 20


def notebook_text(*renderables: RenderableType, width: int = 100) -> dict[str, str]:
    """What a `Screen` would print, as plain text and as HTML, by media type.

    Args:
        renderables: strings, tables and other objects that rich prints.
        width: in characters.
    """
    screen = Screen(io.StringIO(), record=True, width=width, force_jupyter=False)
    screen.print(*renderables, sep="\n")
    # A notebook's own style may give another font, in which columns would not be aligned.
    style = "font-family: Menlo, 'DejaVu Sans Mono', Consolas, monospace; line-height: normal; white-space: pre"
    form = f'<pre style="{style}; overflow-x: auto">{{code}}</pre>'
    return {
        "text/plain": screen.export_text(clear=False),
        "text/html": screen.export_html(inline_styles=True, code_format=form),
    }


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

    If the console is too narrow, columns that were added with ``below=True`` move to a list below the table. If that
    is not enough, the whole table becomes a list: a paragraph ``column: value | column: value`` per row.

    Args:
        headers: headers of the first columns, see `add_column`.
        title: text above the table.
        caption: text below the table, of one or several lines.
        box: the frame, see `rich.box`.
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
            header: the header; `Text` may have several lines.
            justify: ``left``, ``right`` or ``center``.
            wrap: smallest width at which cells are wrapped; 0 for no wrapping.
            below: whether the column may move to the list below the table.
            style: style of the cells.
            name: name of the column in a list; default: the header.
        """
        header = cell(header)
        self._columns.append(_Column(header, escaped(name) or header.plain, justify, wrap, below, style))

    def add_row(self, *values: object) -> None:
        """Add a row: one string, number or `Text` per column."""
        if len(values) != len(self._columns):
            raise ValueError(f"values: expected one per column, {len(self._columns)}, got {len(values)}")
        self._rows.append([cell(value) for value in values])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        every = range(len(self._columns))
        inside = [i for i in every if not self._columns[i].below]
        below = [i for i in every if self._columns[i].below]
        if self.title:
            yield Text(escaped(self.title), "bold")
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
            yield Text(escaped(self.caption, lines=True) + "\n", "table.caption")

    def _table(self, chosen: Sequence[int]) -> tuple[Table, int]:
        """A table of some columns, and its smallest width in characters."""
        least = len(chosen) + (0 if self._box is None else len(chosen) + 1)  # padding, and the lines of the box
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
        """Each row as a heading, followed by its other cells as ``column: value``."""
        names = [self._columns[i].name for i in chosen]
        for row in self._rows:
            cells = [row[i] for i in chosen]
            named = [Text.assemble(f"{n}: " if n else "", c) for n, c in zip(names, cells, strict=True) if c.plain]
            yield Text.assemble(named[0] if named else "", style="bold")
            lines: list[Text] = []
            for item in named[1:]:
                if not lines or lines[-1].cell_len + len(" | ") + item.cell_len > options.max_width - 2:
                    lines.append(item)
                else:
                    lines[-1] = Text.assemble(lines[-1], " | ", item)
            for line in lines:
                line.overflow = "fold"
                yield Padding(line, (0, 0, 0, 2), expand=False)
        yield Text("")
