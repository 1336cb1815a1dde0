"""The rows of local text files, one by one: aligned files, whole texts, JSON, CSV and TSV.

Each function gives the texts and the flags of its rows (`tfx.data.rows`), and fills a `Reading` on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.plain_text import TextFile, cr_note
from tfx.data.rows import Reader, RowReader
from tfx.data.table_rows import csv_rows, json_rows
from tfx.errors import UserError


@dataclass
class Reading:
    """What is said of files that were read: the rows of each (None for a whole text), notes, and the rules met."""

    counts: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rules: set[str] = field(default_factory=set)


def parallel_rows(config: DatasetConfig, paths: list[Path], reading: Reading) -> Iterator[tuple[str, str, int]]:
    """The lines of aligned files, which stand in ``paths`` as source and target in turn."""
    for pair in zip(paths[::2], paths[1::2], strict=True):
        sides = [TextFile(path) for path in pair]
        counts = [0, 0]
        for lines in zip_longest(*(side.lines() for side in sides)):
            counts = [count + (line is not None) for count, line in zip(counts, lines, strict=True)]
            if counts[0] == counts[1]:
                yield lines[0], lines[1], 0
        odd = [note for side in sides for note in cr_note(side.path, side.cr)]
        if counts[0] != counts[1]:
            raise UserError(
                f"{pair[0]} has {counts[0]:,} lines and {pair[1]} has {counts[1]:,}: "
                f"aligned files have one line for each other{''.join(f' ({note})' for note in odd)}"
            )
        reading.notes += odd
        for side in sides:
            reading.notes += side.mark_note()
        if odd:
            reading.rules.add("line ends")
        reading.counts += counts


def whole_texts(config: DatasetConfig, paths: list[Path], reading: Reading) -> Iterator[tuple[str, int]]:
    """The text of each file."""
    for path in paths:
        file = TextFile(path)
        text = file.text()
        reading.notes += cr_note(path, file.cr) + file.mark_note()
        if file.crlf:  # here a line end is text
            reading.notes.append(f"{path.name}: {file.crlf:,} lines end in \\r\\n, of which \\n is kept")
        if file.crlf or file.cr:
            reading.rules.add("line ends")
        reading.counts.append(None)
        yield text, 0


def table_rows(config: DatasetConfig, paths: list[Path], reading: Reading) -> Iterator[tuple[Any, ...]]:
    """The rows of JSON or CSV files, in the columns that the config names."""
    reader = RowReader(config)
    known: dict[str, None] = {}
    lacking = ""
    last: tuple[Path, dict[str, Any]] = paths[0], {}
    path, line = paths[0], 0

    def place(each: Reader) -> str:
        return f"{path}, line {line}: {each.setting}={each.spec}"

    for path in paths:
        count = 0
        is_json = config.format == "json"
        rows = json_rows(path, reading.notes) if is_json else csv_rows(path, reading.notes, reading.rules)
        for line, row in rows:
            count += 1
            last = path, row
            known.update(dict.fromkeys(row))
            yield reader.read(row, place)
            for setting, each in reader.readers.items():
                if not lacking and (missing := each.missing(row)):
                    lacking = f"{path}, line {line}: the key '{missing}' is missing (dataset.{setting})"
        reading.counts.append(count)
    if total := sum(count or 0 for count in reading.counts):
        if total == len(known) == 1:
            _check_nested(*last)
        for each in reader.readers.values():
            each.check(list(known))
    # Documents without text are counted and left out; and where there are limits, a row may be one that nothing reads.
    is_wanted = not TASKS[config.task].is_stream and not any(asdict(config.limit).values())
    if lacking and is_wanted and config.empty == "error":
        raise UserError(f"{lacking}: add it, or leave such rows out with dataset.empty=drop")


def _check_nested(path: Path, row: dict[str, Any]) -> None:
    """Refuses a file of one object with one key that holds the rows themselves, as ``{"data": [{…}, …]}``."""
    ((key, inner),) = row.items()
    if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
        raise UserError(
            f"{path}: its rows are a list in one object, under the key '{key}': write that list alone "
            f"(`jq '.{key}' {path.name}`), or an object a line"
        )
