"""Rows of JSON, CSV and TSV files, every value as it is written, and the text of a value.

The `datasets` library is not used, because it guesses types and so changes text: "007" would become 7, "NA" nothing,
and a column of dates would become timestamps.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tfx.data.plain_text import TextFile, cr_note, plain_name
from tfx.errors import UserError
from tfx.terminal.console import counted

_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_LONE_CR = re.compile(r"\r(?!\n)")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def text_of(value: Any) -> str:
    """The text of a value: numbers and booleans as JSON writes them, missing ones (null, NaN) as nothing.

    Raises `ValueError` for anything else: an object, a list, bytes that are not UTF-8.
    """
    if isinstance(value, str):
        return str(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8")  # its error is a ValueError
    if isinstance(value, dict):
        inner = f": name one of its values by a path, such as {next(iter(value))}" if value else ""
        raise ValueError(f"an object is not text{inner}")
    if isinstance(value, list | tuple):
        raise ValueError("a list is not text: name a column that holds texts")
    if isinstance(value, int | Decimal) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    raise ValueError(f"{str(value)[:40]} ({type(value).__name__}) is not text")


# --- JSON -------------------------------------------------------------------------------------------


def json_rows(path: Path, notes: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, or of one list, each with the line that it begins in.

    A number keeps its spelling. Raises `UserError` with the line of what is not JSON, no object, or a
    text with half of a surrogate pair; an object in which a key stands twice.
    """
    file = TextFile(path)
    begun = next((piece for piece in file.pieces() if piece.strip()), "")
    # A list is parsed as a whole; objects are read line by line.
    rows = _list_items(path, file.text()) if begun.lstrip()[:1] == "[" else _json_lines(file)
    for line, row in rows:
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {line}: {_as_json(row)[:40]} is not an object: "
                'a file holds one {"column": value} per line, or one list of them'
            )
        yield line, row
    if notes is not None:
        notes += cr_note(path, file.cr)


def _json_lines(file: TextFile) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file.lines(), start=1):
        if line.strip():
            yield number, _parsed(file.path, number, line, lambda line=line: _DECODER.decode(line))


def _list_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    place, line, counted = text.index("[") + 1, 1, 0
    place = _after_space(text, place)
    if text[place : place + 1] == "]":
        place += 1
    else:
        while True:
            line, counted = line + text.count("\n", counted, place), place
            item, end = _parsed(path, line, text, lambda at=place: _DECODER.raw_decode(text, at), place)
            if "\\u" in text[place:end]:
                _parsed(path, line, text[place:end], lambda item=item: item)
            yield line, item
            place = _after_space(text, end)
            if text[place : place + 1] not in (",", "]"):
                line += text.count("\n", counted, place)
                raise UserError(f"{path}, line {line}: not JSON: ',' or ']' is missing in the list of objects")
            place += 1
            if text[place - 1] == "]":
                break
            place = _after_space(text, place)
    if text[place:].strip():
        line = 1 + text.count("\n", 0, _after_space(text, place))
        raise UserError(
            f"{path}, line {line}: there is more after the list: a file holds one list, or one object per line"
        )


def _after_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return place if match is None else match.end()


def _parsed(path: Path, number: int, source: str, parse: Any, start: int | None = None) -> Any:
    try:
        found = parse()
        # A lone surrogate can be written in JSON, and nowhere else.
        if start is None and "\\u" in source and _LONE_SURROGATE.search(json.dumps(found, ensure_ascii=False)):
            raise UserError(f"{path}, line {number}: half of a surrogate pair (\\ud800…) is not text: mend it")
        return found
    except (ValueError, RecursionError) as error:
        at = number
        if isinstance(error, json.JSONDecodeError):
            at = error.lineno if start is not None else error.lineno + number - 1
        raise UserError(
            f"{path}, line {at}: not JSON ({error}): a file holds one object per line, or one list of objects"
        ) from None


def _as_json(value: Any) -> str:
    """A value as it stood in the file: numbers were read as texts."""
    return value if isinstance(value, _Number) else json.dumps(value)


class _Number(str):
    """A number as it is spelled."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key '{double}' is repeated in one object")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        return math.nan  # writers without a null use these for a missing value
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_constant, object_pairs_hook=_object)


# --- CSV and TSV ------------------------------------------------------------------------------------


def csv_rows(
    path: Path, notes: list[str] | None = None, rules: set[str] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a comma or tab separated file with a header, each with the line that it ends in.

    In a CSV file a cell may stand in double quotes. In a TSV file each line is a row, and a quotation mark is one,
    unless the file puts cells in quotes as programs do (`_Quotes.are_written`). ``rules`` gets "tsv quotes" where a
    mark that begins a cell is text. Raises `UserError` with the line of a row that does not fit the header.
    """
    notes = [] if notes is None else notes
    file = TextFile(path)
    if plain_name(path).lower().endswith(".tsv"):
        rows = _tab_rows(file, notes, set() if rules is None else rules)
    else:
        rows = _quoted_rows(file, ",", notes)
    header: list[str] | None = None
    # Within quotes \\r alone is text, and ends no line.
    blank = within = 0
    for line, cells in rows:
        within += sum(len(_LONE_CR.findall(cell)) for cell in cells if "\r" in cell)
        if header is None:
            header = cells
            doubled = [name for name, count in Counter(header).items() if count > 1 and name.strip()]
            if doubled:
                raise UserError(f"{path}, line {line}: two columns are named '{doubled[0]}': rename one of them")
            continue
        if not cells or (len(header) > 1 and cells == [""]):
            blank += 1
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, line {line}: {len(cells)} cells under a header of {len(header)}: "
                'put text with separators, quotes or line ends between double quotes ("")'
                + other_separator(header)
                + "".join(f" ({note})" for note in cr_note(path, _counted(path).cr - within))
            )
        yield line, dict(zip(header, cells, strict=True))
    notes += cr_note(path, file.cr - within) + file.mark_note()
    if blank:
        notes.append(f"{path.name}: {counted(blank, 'blank line')} left out")


def other_separator(columns: Sequence[str]) -> str:
    """What may be wrong with a table of one column, whose name has another separator in it; else nothing."""
    if len(columns) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in columns[0]]):
        return (
            f" (one column: {marks[0]!r} separates nothing; commas do in .csv, tabs in .tsv files: write it with those)"
        )
    return ""


def _counted(path: Path) -> TextFile:
    """A file that was read to its end."""
    file = TextFile(path)
    for _ in file.pieces():
        pass
    return file


def _quoted_rows(file: TextFile, separator: str, notes: list[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    lines = (line for piece in file.pieces(one_line_end=False) for line in io.StringIO(piece, newline=""))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    longer, before, first = 0, 0, 0
    try:
        for cells in reader:
            if reader.line_num > before + 1:
                longer, first = longer + 1, first or before + 1
            before = reader.line_num
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(
            f"{file.path}, line {reader.line_num}: {error}: a cell that begins with a double quote ends with one, "
            f"and those inside it are doubled{other_separator(next(file.lines(), '').split(separator))}"
        ) from None
    if longer:
        notes.append(
            f"{file.path.name}: {counted(longer, 'row')} over several lines, the first from line {first} on: cells in "
            "quotes hold line ends"
        )


def _tab_rows(file: TextFile, notes: list[str], rules: set[str]) -> Iterator[tuple[int, list[str]]]:
    quotes = _Quotes(line.split("\t") for line in file.lines())
    is_written = quotes.begun > 0 and quotes.are_written
    if is_written:
        notes.append(f"{file.path.name}: {quotes.begun:,} cells have double quotes around them, which are removed")
    elif quotes.begun and quotes.is_uneven and _reads_as_quoted(file.path):
        # Cells with tabs or line ends in them, in quotes: only if the whole file reads as such.
        yield from _quoted_rows(file, "\t", notes)
        return
    elif quotes.begun:
        notes.append(f"{file.path.name}: {quotes.begun:,} cells begin with a quotation mark, which is read as text")
        rules.add("tsv quotes")
    for number, line in enumerate(file.lines(), start=1):
        cells = line.split("\t")
        if is_written:
            cells = [cell[1:-1].replace('""', '"') if cell.startswith('"') else cell for cell in cells]
        yield number, cells


def _reads_as_quoted(path: Path) -> bool:
    """Whether all rows of a file with quotes around cells are as long as the first."""
    width = 0
    try:
        for number, (_, cells) in enumerate(_quoted_rows(TextFile(path), "\t", [])):
            width = width if number else len(cells)
            if len(cells) not in (0, width):
                return False
    except UserError:
        return False
    return width > 0


class _Quotes:
    """What the cells of a tab separated file say about the quotation marks that begin some of them."""

    def __init__(self, rows: Iterable[list[str]]) -> None:
        self.begun = 0
        self.is_uneven = False
        self._all_quoted = self._all_begin_or_count = self._all_need_them = True
        self._any_doubled = self._header_begins = False
        width = None
        for cells in rows:
            if width is None:
                width = len(cells)
                self._header_begins = all(cell.startswith('"') for cell in cells)
            self.is_uneven |= len(cells) != width and cells != [""]
            for cell in cells:
                if cell.startswith('"'):
                    self._look_at(cell)
                elif cell and self._all_begin_or_count:
                    self._all_begin_or_count = _NUMBER.fullmatch(cell) is not None

    def _look_at(self, cell: str) -> None:
        self.begun += 1
        self._all_quoted = self._all_quoted and _is_quoted(cell)
        if '""' in cell[1:-1]:
            self._any_doubled = True
        else:
            self._all_need_them = self._all_need_them and "," in cell

    @property
    def are_written(self) -> bool:
        """Whether the quotes around cells come from a program, and not from the authors of the text.

        Programs put quotes around all cells of a file, or all but numbers, its header included; or around those that
        need them: in a line these have a quotation mark inside, which is doubled, or (spreadsheets) a comma besides
        such others.
        """
        if not self._all_quoted:
            return False
        if self._all_begin_or_count:
            return self._header_begins
        return self._any_doubled and self._all_need_them


def _is_quoted(cell: str) -> bool:
    inner = cell[1:-1]
    return len(cell) > 1 and cell.endswith('"') and '"' not in inner.replace('""', "")
