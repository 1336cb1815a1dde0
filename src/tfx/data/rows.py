"""From rows to text: the columns that a config names, as strings, with what has to be said of each row."""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.store import arrow_batches, batches_of, in_memory, release
from tfx.data.table_rows import other_separator, text_of
from tfx.errors import UserError, suggest
from tfx.terminal.console import counted

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Facts about a row, one bit each: kept beside its text, so that one pass can count them.
_STRIPPED, _LACKING, _DECODED, _WITHOUT_EMPTY, _SEVERAL, _SOURCE_FORM, _TARGET_FORM, _RETOLD, _NO_SOURCE, _NO_TARGET = (
    1 << bit for bit in range(10)
)
_TRIMMED = 1 << 10
_EMPTY = _NO_SOURCE | _NO_TARGET
# The columns of a task's rows with their Arrow types. One text may be longer than the 2 GB that the offsets of an
# ordinary column reach.
_COLUMNS = {
    "seq2seq": {"source": "string", "target": "string", "references": "texts"},
    "lm": {"text": "large_string"},
    "classification": {"text": "large_string", "pair": "large_string", "labels": "texts"},
}
_MARKS = {"flags": "int16", "key": "int64"}
Batch = dict[str, list[Any]]


class Reader:
    """Reads from a row what ``dataset.<setting>`` names: a column, a path a.b, or a '{template}' of those.

    ``flags`` belong to the text that was read last.
    """

    def __init__(self, config: DatasetConfig, setting: str) -> None:
        self.setting = f"dataset.{setting}"
        self._where = config.path or config.hub
        self.spec: str = getattr(config, setting)
        self.flags = 0
        self._pieces: list[tuple[str, str | None]] = []
        if "{" not in self.spec:
            return
        try:
            parsed = list(string.Formatter().parse(self.spec))
        except ValueError as error:
            raise UserError(f"dataset.{setting}='{self.spec}' is not a template: {error}") from None
        for literal, name, format_spec, conversion in parsed:
            if name == "" or format_spec or conversion:
                raise UserError(f"dataset.{setting}='{self.spec}': only a column or path may stand between braces")
            self._pieces.append((literal, name))

    def check(self, columns: list[str]) -> list[str]:
        """The columns that are needed; raises `UserError` if one is missing from the data."""
        if self.spec in columns:
            return [self.spec]
        paths = [name for _, name in self._pieces if name is not None] if self._pieces else [self.spec]
        needed = []
        for path in paths:
            column = path if path in columns else path.split(".")[0]
            if column not in columns:
                found = suggest(column, columns) + other_separator(columns)
                raise UserError(f"{self.setting}: column '{column}' is not in {self._where}{found}")
            needed.append(column)
        return needed

    def missing(self, row: dict[str, Any]) -> str | None:
        """The column that a row has not, where the text is that of one column or path; None of templates."""
        column = self.spec.split(".")[0]
        return None if self._pieces or self.spec in row or column in row else column

    def text(self, row: dict[str, Any]) -> str:
        """The text in a row, "" if it is missing. Raises `ValueError` for a value that is not text."""
        self.flags = 0
        if not self._pieces or self.spec in row:
            return self._text_of(self._follow(row, self.spec))
        text = ""
        for literal, name in self._pieces:
            text += literal
            if name is not None:
                value = self._text_of(self._follow(row, name))
                self.flags |= 0 if value else _LACKING
                text += value
        return text

    def texts(self, row: dict[str, Any]) -> list[str]:
        """All texts of a list, else the one text. Raises `ValueError` as `text` does."""
        value = None if self._pieces and self.spec not in row else self._follow(row, self.spec)
        if not isinstance(value, list):
            return [self.text(row)]
        self.flags = 0
        return [self._text_of(item) for item in value]

    def _text_of(self, value: Any) -> str:
        if not isinstance(value, str) and value is not None:
            self.flags |= _DECODED if isinstance(value, bytes) else 0
            self.flags |= _RETOLD if text_of(value) != str(value) else 0
        return text_of(value)

    def _follow(self, row: dict[str, Any], path: str) -> Any:
        if path in row:
            return row[path]
        column, *keys = path.split(".")
        value: Any = row.get(column)
        for key in keys:
            if value is None:
                return None
            if isinstance(value, list):
                raise ValueError(f"'{path}' leads through a list (at '{key}'), but a path goes through objects")
            if not isinstance(value, dict) or key not in value:
                inside = suggest(key, value) if isinstance(value, dict) else ""
                raise UserError(f"{self.setting}: '{path}' is not in {self._where} (no '{key}'){inside}")
            value = value[key]
        return value


class RowReader:
    """Reads from a row, a mapping of columns, what the config names: a text or the texts of each setting, and flags."""

    def __init__(self, config: DatasetConfig) -> None:
        named = [setting for setting in TASKS[config.task].columns if getattr(config, setting) is not None]
        self.readers = {setting: Reader(config, setting) for setting in named}
        # Of a label that is a text and no list: what stands between several.
        self._separator = config.label_separator if config.predict == "several" else None

    def read(self, row: dict[str, Any], place: Callable[[Reader], str]) -> tuple[Any, ...]:
        """The texts and the flags; raises `UserError` that begins with ``place`` for what is not text."""
        flags = 0
        texts: list[Any] = []
        for setting, reader in self.readers.items():
            try:
                texts.append(self._labels(reader, row) if setting in ("target", "label") else reader.text(row))
            except ValueError as error:
                raise UserError(f"{place(reader)}: {error}") from None
            flags |= reader.flags
        return *texts, flags

    def _labels(self, reader: Reader, row: dict[str, Any]) -> list[str]:
        found = reader.texts(row)
        if reader.setting != "dataset.label" or self._separator is None:
            return found
        # Of several labels there may be none.
        parts = found[0].split(self._separator) if self._separator and len(found) == 1 else found
        return [part for part in parts if part.strip()]


def columns_of(task: str) -> dict[str, str]:
    """The columns that the rows of a task are kept in, with their Arrow types."""
    return _COLUMNS[task] | _MARKS


def canonical(task: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[Batch]:
    """Batches of the columns of a task from its texts and flags, each row with a key; empty rows are marked."""
    return batches_of(map(row_maker(task), rows), columns_of(task))


def row_maker(task: str) -> Callable[[Any], tuple[Any, ...]]:
    """What turns the texts and flags of a row into the columns that rows of a task are kept in."""
    return {"seq2seq": _pair, "classification": _labelled}.get(task, _document)


def is_without_text(flags: int) -> bool:
    """Whether the flags of a row say that a side of it, or all of it, is empty."""
    return flags & _EMPTY > 0


def _pair(row: tuple[str, str | list[str], int]) -> tuple[Any, ...]:
    whole, given, flags = row
    targets = given if isinstance(given, list) else [given]
    source, stripped = whole.strip(), [text.strip() for text in targets]
    references = [text for text in stripped if text]
    if not (source and references):
        empty = (0 if source else _NO_SOURCE) | (0 if references else _NO_TARGET)
        return source, references[0] if references else "", references, empty, 0
    flags |= _STRIPPED if source != whole or stripped != targets else 0
    flags |= _WITHOUT_EMPTY if len(references) < len(stripped) else 0
    flags |= _SEVERAL if len(references) > 1 else 0
    flags |= _SOURCE_FORM if _is_decomposed(source) else 0
    flags |= _TARGET_FORM if any(map(_is_decomposed, references)) else 0
    return source, references[0], references, flags, _key(source, references[0])


def _labelled(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """From one text or two, the labels and the flags; a row without a label has an empty list of them."""
    *whole, given, flags = row
    written = given if isinstance(given, list) else [given]
    texts, labels = [text.strip() for text in whole], [label.strip() for label in written]
    flags |= _TRIMMED if texts != whole or labels != written else 0
    labels = [label for label in labels if label]
    flags |= 0 if all(texts) else _NO_SOURCE
    flags |= _NO_TARGET if written and not labels else 0
    return texts[0], texts[1] if len(texts) > 1 else "", labels, flags, _key(*texts)


def _document(row: tuple[str, int]) -> tuple[Any, ...]:
    text, flags = row
    return text, flags if text else flags | _NO_SOURCE, _key(text)


def raw_rows(config: DatasetConfig, dataset: Dataset | IterableDataset) -> Iterator[tuple[Any, ...]]:
    """The texts and flags of the rows of a table, in the columns that the config names."""
    reader = RowReader(config)
    needed = sorted({column for each in reader.readers.values() for column in each.check(dataset.column_names)})
    number = 0

    def place(each: Reader) -> str:
        return f"{each.setting}={each.spec}, row {number}"

    def seen() -> int:
        return number

    named = _named_labels(config, dataset)
    for batch in readable(dataset.select_columns(needed).iter(batch_size=1_000), config, seen):
        columns = [map(named[name], batch[name]) if name in named else batch[name] for name in needed]
        for values in zip(*columns, strict=True):
            number += 1
            yield reader.read(dict(zip(needed, values, strict=True)), place)
        release()


def readable(rows: Iterable[Any], config: DatasetConfig, seen: Callable[[], int]) -> Iterator[Any]:
    """The rows of a table on this machine, or batches of them; raises `UserError` where its reader fails.

    ``seen`` gives the number of rows that were read before.
    """
    found = iter(rows)
    while True:
        with reading_table(config, lambda: f"rows after the first {seen():,}"):
            row = next(found, None)
        if row is None:
            return
        yield row


@contextmanager
def reading_table(config: DatasetConfig, what: Callable[[], str]) -> Iterator[None]:
    """Inside nothing but a library reads a table: what it raises for a file that is damaged becomes `UserError`."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:  # those that Arrow's errors derive from
        raise UserError(
            f"the {what()} of dataset '{config.name}' cannot be read ({where(config)}): {type(error).__name__}: {error}"
        ) from error


def _named_labels(config: DatasetConfig, dataset: Dataset | IterableDataset) -> dict[str, Callable[[Any], Any]]:
    """What turns the numbers of a column of labels into the names that the table has for them; -1 is no label."""
    feature = (dataset.features or {}).get(config.label) if config.task == "classification" else None
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is None:
        return {}

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(each) for each in value]
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None

    return {config.label: name}


def text_dataset(texts: list[str]) -> Dataset:
    """A data set of these texts, one a row, in memory."""
    return in_memory(columns_of("lm"), canonical("lm", ((text, 0) for text in texts)), _text_key(texts))


def _text_key(texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def _key(*texts: str) -> int:
    """A hash of 64 bits that is the same in every process, so that it can be cached beside the texts."""
    content = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def finish(
    config: DatasetConfig, split: str, dataset: Dataset, notes: list[str], rules: set[str]
) -> tuple[Dataset, np.ndarray]:
    """The texts of a split alone, without empty pairs or documents, and a key of each row.

    What the flags of its rows say becomes ``notes``. Raises `UserError` for an empty pair where the config asks for it.
    """
    flags, keys = (_numbers(dataset, name) for name in _MARKS)
    is_pairs = not TASKS[config.task].is_stream
    is_empty = (flags & _EMPTY) > 0
    if not is_pairs and (config.join is not None or len(dataset) < 2):
        is_empty[:] = False  # part of a text, or the only one
    texts = dataset.remove_columns(list(_MARKS))
    if not is_empty.any():
        _say(split, flags, notes, rules)
        return texts, keys
    facts = TASKS[config.task]
    if is_pairs and config.empty == "error":
        first = int(is_empty.argmax())
        raise UserError(
            f"the {split} split of dataset '{config.name}', example {first + 1}: the "
            f"{_empty_side(config, texts[first])} is empty ({where(config)}; {_counted(split, rules)}"
            f"dataset.empty=drop leaves such {facts.empty.partition(' ')[0]} out)"
        )
    count = int(is_empty.sum())
    if is_pairs:
        notes.append(f"{split}: {count:,} {facts.empty} dropped")
        flags = flags[~is_empty]
    _say(split, flags, notes, rules)
    if not is_pairs:
        notes.append(f"{split}: {counted(count, 'row')} without text left out")
    return texts.select(np.flatnonzero(~is_empty), keep_in_memory=True), keys[~is_empty]


def _counted(split: str, rules: set[str]) -> str:
    """How the examples of a split are counted, where that is not by the rows of its file."""
    is_part = "limited at random" in rules or (split in ("train", "valid") and "held out at random" in rules)
    return "counted among those that were taken from all over the file; " if is_part else ""


def _empty_side(config: DatasetConfig, row: Mapping[str, Any]) -> str:
    """What of an empty row is empty: one of its texts, else what it is to be turned into."""
    facts = TASKS[config.task]
    texts = [column for column in facts.texts if column in row and getattr(config, column) is not None]
    return next((column for column in texts if not row[column]), facts.columns[-1])


def _numbers(dataset: Dataset, column: str) -> np.ndarray:
    """A column of numbers, copied out of the file that holds it."""
    parts = [batch.column(0).to_numpy().copy() for batch in arrow_batches(dataset, [column])]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def remarks(split: str, flags: Counter[int]) -> Iterator[str]:
    """Notes on rows by how many have which flags; those without text are counted as left out."""
    if empty := sum(count for own, count in flags.items() if own & _EMPTY):
        yield f"{split}: {counted(empty, 'row')} with an empty side or without text left out"
    yield from _said(split, lambda flag: sum(n for own, n in flags.items() if own & flag and not own & _EMPTY))


def _say(split: str, flags: np.ndarray, notes: list[str], rules: set[str]) -> None:
    if np.any(flags & _RETOLD):
        rules.add("values as JSON writes them")
    notes += _said(split, lambda flag: int(((flags & flag) > 0).sum()))


def where(config: DatasetConfig) -> str:
    """Where the data are, for a message."""
    return f"see {config.path or config.hub or config.format}"


def _said(split: str, count: Callable[[int], int]) -> Iterator[str]:
    """Notes on the rows of a split, by how many have each flag."""
    if rows := count(_DECODED):
        yield f"{split}: {counted(rows, 'row')} with bytes instead of text, which are read as UTF-8"
    if rows := count(_LACKING):
        yield f"{split}: {counted(rows, 'row')} without a value of a template, which is left empty"
    if rows := count(_STRIPPED):
        yield f"{split}: {counted(rows, 'pair')} with white space around a text, which is removed"
    if rows := count(_TRIMMED):
        yield f"{split}: {counted(rows, 'row')} with white space around a text or label, which is removed"
    if rows := count(_WITHOUT_EMPTY):
        yield f"{split}: {counted(rows, 'pair')} with empty references besides others, which are left out"
    if split == "train" and (rows := count(_SEVERAL)):
        yield f"{split}: {counted(rows, 'pair')} with several targets, of which only the first trains"
    if rows := count(_SOURCE_FORM | _TARGET_FORM):
        yield (
            f"{split}: {count(_SOURCE_FORM):,} sources and the targets of {count(_TARGET_FORM):,} pairs are not in "
            "Unicode's composed form (NFC); texts are compared character by character, so that another form of the "
            "same text does not match"
        )


def _is_decomposed(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)
