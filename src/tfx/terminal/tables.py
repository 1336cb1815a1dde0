"""A table that never cuts a cell: it folds names, and drops the least needed columns, naming them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

# The narrowest width of a folded text; and the longest word that is not broken while a column can be dropped.
_NARROWEST, _LONGEST_WORD = 12, 24


@dataclass(frozen=True)
class Column:
    """A column: numbers are right-aligned and never folded, texts may be.

    ``spare`` orders which columns are dropped if there is no room: the largest first, 0 never.
    """

    name: str
    number: bool = False
    spare: int = 0
    wrap: bool = True
    style: str | None = None


class Sheet:
    """A table for `rich`, which decides what to show when it knows how wide the console is.

    If even the columns that must stay do not fit side by side, each row becomes a few lines, ``name: value``.
    """

    def __init__(self, *columns: Column, title: str | None = None, lines: bool = True) -> None:
        """``lines``: with borders. The head is left out if no column has a name."""
        self._columns, self._title, self._lines = columns, title, lines
        self._head = any(column.name for column in columns)
        self._rows: list[tuple[tuple[str | Text, ...], str | None]] = []
        self._ends: set[int] = set()

    def add_row(self, *cells: str | Text, style: str | None = None) -> None:
        """Adds a row, with one cell per column."""
        assert len(cells) == len(self._columns)
        self._rows.append((cells, style))

    def end_section(self) -> None:
        """A line below the last row."""
        self._ends.add(len(self._rows) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._title is not None:
            yield Text(self._title, style="bold", overflow="fold")
        shown = list(range(len(self._columns)))
        while self._least_width(shown) > options.max_width:
            spare = [index for index in shown if self._columns[index].spare]
            if not spare:  # lines have room for all
                yield from self._as_lines(range(len(self._columns)))
                return
            shown.remove(max(spare, key=lambda index: self._columns[index].spare))
        else:
            yield self._table(shown)
        if len(shown) < len(self._columns):
            names = [column.name for index, column in enumerate(self._columns) if index not in shown]
            yield Text(f"no room for: {', '.join(names)}", style="dim", overflow="fold")

    def _least_width(self, shown: Sequence[int]) -> int:
        width = 0
        for index in shown:
            column = self._columns[index]
            texts = [column.name]
            texts += [line for cells, _ in self._rows for line in _plain(cells[index]).split("\n")]
            longest = max(map(cell_len, texts), default=0)
            if column.wrap and not column.number:
                word = max((cell_len(word) for text in texts for word in text.split()), default=0)
                longest = min(longest, max(_NARROWEST, min(word, _LONGEST_WORD)))
            width += longest
        return width + (3 * len(shown) + 1 if self._lines else 2 * len(shown))

    def _table(self, shown: Sequence[int]) -> Table:
        table = Table(show_header=self._head, pad_edge=self._lines)
        if not self._lines:
            table.box = None
        for index in shown:
            column = self._columns[index]
            rigid = column.number or not column.wrap
            side = "right" if column.number else "left"
            table.add_column(column.name, justify=side, no_wrap=rigid, overflow="fold", style=column.style)  # type: ignore[arg-type]
        for number, (cells, style) in enumerate(self._rows):
            table.add_row(*(cells[index] for index in shown), style=style, end_section=number in self._ends)
        return table

    def _as_lines(self, shown: Sequence[int]) -> Iterator[RenderableType]:
        for cells, style in self._rows:
            for index in shown:
                name = self._columns[index].name if index else ""
                if text := _plain(cells[index]):
                    yield Text(f"  {name}: {text}" if name else text, style=style or "", overflow="fold")


def _plain(cell: str | Text) -> str:
    return cell.plain if isinstance(cell, Text) else cell


def settings_sheet(rows: Sequence[tuple[str, str, str]], second: str = "default") -> Sheet:
    """Settings for a help text: rows of key, default (or what ``second`` calls it) and what it is."""
    sheet = Sheet(Column("key"), Column(second), Column("what it is"), lines=False)
    for row in rows:
        sheet.add_row(*row)
    return sheet
