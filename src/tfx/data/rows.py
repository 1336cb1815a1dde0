"""From rows to text: the columns that a config names, as strings, with what has to be said of each row."""

from __future__ import annotations

import hashlib
import string
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.data.tables import text_of
from tfx.errors import UserError, suggest

if TYPE_CHECKING:
    from datasets import Dataset

# Of the columns that rows are kept in, in the cache of hub and parquet data.
_LAYOUT = 2
# Facts about a row, one bit each: kept beside its text, so that one pass can count them.
_STRIPPED, _LACKING, _DECODED, _WITHOUT_EMPTY, _SEVERAL, _SOURCE_FORM, _TARGET_FORM, _RETOLD = (
    1 << bit for bit in range(8)
)


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
                found = suggest(column, columns)
                if len(columns) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in columns[0]]):
                    found += f" (one column: {marks[0]!r} separates nothing; commas do in .csv, tabs in .tsv files)"
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


def _written(
    config: DatasetConfig, dataset: Dataset, is_raw: bool, *settings: str
) -> tuple[Dataset, Callable[[Any, list[int]], Iterator[tuple[Any, ...]]]]:
    """A split with the columns that are needed, and what reads a batch of it: text or texts by setting, and flags."""
    if not is_raw:
        columns = [*settings, *({"flags"} & set(dataset.column_names))]

        def canonical(batch: Any, indices: list[int]) -> Iterator[tuple[Any, ...]]:
            return zip(*(batch[name] for name in settings), batch.get("flags") or [0] * len(indices), strict=True)

        return dataset.select_columns(columns), canonical
    readers = {setting: Reader(config, setting) for setting in settings}
    needed = {column for reader in readers.values() for column in reader.check(dataset.column_names)}

    def read(batch: Any, indices: list[int]) -> Iterator[tuple[Any, ...]]:
        for row, index in zip(_rows(batch), indices, strict=True):
            flags = 0
            texts = []
            for setting, reader in readers.items():
                try:
                    texts.append(reader.texts(row) if setting == "target" else reader.text(row))
                except ValueError as error:
                    raise UserError(f"{reader.setting}={reader.spec}, row {index + 1}: {error}") from None
                flags |= reader.flags
            yield *texts, flags

    return dataset.select_columns(sorted(needed)), read


def _map(dataset: Dataset, make: Callable[[Any, list[int]], Any], features: dict[str, Any], key: str) -> Dataset:
    """Replaces all columns, batch by batch; hub data is written to its cache and reused from there."""
    from datasets import Features

    return dataset.map(
        make,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        new_fingerprint=hashlib.sha256(f"{_LAYOUT}\0{key}".encode()).hexdigest()[:32],
    )


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    names = list(batch)
    return (dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True))


def where(config: DatasetConfig) -> str:
    """Where the data are, for a message."""
    return f"see {config.path or config.hub or config.format}"


def text_dataset(texts: list[str]) -> Dataset:
    """A data set of these texts, one a row."""
    from datasets import Dataset, Features, Value

    # One text may be longer than the 2 GB that the offsets of an ordinary column reach.
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("large_string")}))


def to_texts(
    config: DatasetConfig, split: str, dataset: Dataset, key: str, notes: list[str], rules: set[str], *, is_raw: bool
) -> tuple[Dataset, np.ndarray]:
    """The column ``text`` alone, and a key of each row."""
    from datasets import Value

    needed, written = _written(config, dataset, is_raw, "text")

    def make(batch: Any, indices: list[int]) -> dict[str, list[Any]]:
        rows = list(written(batch, indices))
        return {
            "text": [text for text, _ in rows],
            "flags": [flags for _, flags in rows],
            "key": [_key(text) for text, _ in rows],
        }

    features = {"text": Value("large_string"), "flags": Value("int16"), "key": Value("int64")}
    texts = _map(needed, make, features, key + split)
    return _without_marks(split, texts, notes, rules) if len(texts) else (texts, np.zeros(0, dtype=np.int64))


def _key(*texts: str) -> int:
    """A hash of 64 bits that is the same in every process, so that it can be cached beside the texts."""
    content = "\0".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def _without_marks(split: str, dataset: Dataset, notes: list[str], rules: set[str]) -> tuple[Dataset, np.ndarray]:
    """The texts without ``flags``, which become notes, and without ``key``, which is returned."""
    flags, keys = (np.asarray(dataset.data.column(name)) for name in ("flags", "key"))
    if np.any(flags & _RETOLD):
        rules.add("values as JSON writes them")
    notes += _said(split, lambda flag: int(((flags & flag) > 0).sum()))
    return dataset.remove_columns(["flags", "key"]), keys


def _said(split: str, count: Callable[[int], int]) -> Iterator[str]:
    """Notes on the rows of a split, by how many have each flag."""
    if rows := count(_DECODED):
        yield f"{split}: {rows:,} rows hold bytes instead of text, which are read as UTF-8"
    if rows := count(_LACKING):
        yield f"{split}: {rows:,} rows lack a value of a template, which is left empty"
    if rows := count(_STRIPPED):
        yield f"{split}: {rows:,} pairs with white space around a text, which is removed"
    if rows := count(_WITHOUT_EMPTY):
        yield f"{split}: {rows:,} pairs with empty references besides others, which are left out"
    if split == "train" and (rows := count(_SEVERAL)):
        yield f"{split}: {rows:,} pairs have several targets, of which only the first trains"
    if rows := count(_SOURCE_FORM | _TARGET_FORM):
        yield (
            f"{split}: {count(_SOURCE_FORM):,} sources and the targets of {count(_TARGET_FORM):,} pairs are not in "
            "Unicode's composed form (NFC); texts are compared character by character, so that another form of the "
            "same text does not match"
        )


def to_pairs(
    config: DatasetConfig, split: str, dataset: Dataset, key: str, notes: list[str], rules: set[str], *, is_raw: bool
) -> tuple[Dataset, np.ndarray]:
    """The columns source, target, references, and a key of each pair; empty sides are an error or dropped, as set."""
    from datasets import List, Value

    needed, written = _written(config, dataset, is_raw, "source", "target")

    def make(batch: Any, indices: list[int]) -> dict[str, list[Any]]:
        pairs: dict[str, list[Any]] = {"source": [], "target": [], "references": [], "flags": [], "key": []}
        for (whole, targets, flags), index in zip(written(batch, indices), indices, strict=True):
            targets = targets if isinstance(targets, list) else [targets]
            source, stripped = whole.strip(), [text.strip() for text in targets]
            references = [text for text in stripped if text]
            if source and references:
                flags |= _STRIPPED if source != whole or stripped != targets else 0
                flags |= _WITHOUT_EMPTY if len(references) < len(stripped) else 0
                flags |= _SEVERAL if len(references) > 1 else 0
                flags |= _SOURCE_FORM if _is_decomposed(source) else 0
                flags |= _TARGET_FORM if any(map(_is_decomposed, references)) else 0
                pairs["source"].append(source)
                pairs["target"].append(references[0])
                pairs["references"].append(references)
                pairs["flags"].append(flags)
                pairs["key"].append(_key(source, references[0]))
            elif config.empty == "error":
                raise UserError(
                    f"the {split} split of dataset '{config.name}', example {index + 1}: the "
                    f"{'target' if source else 'source'} is empty ({where(config)}; "
                    "dataset.empty=drop leaves such pairs out)"
                )
        return pairs

    texts = {"source": Value("string"), "target": Value("string"), "references": List(Value("string"))}
    pairs = _map(needed, make, texts | {"flags": Value("int16"), "key": Value("int64")}, key + split)
    if not len(dataset):
        return pairs, np.zeros(0, dtype=np.int64)
    if len(pairs) < len(dataset):
        notes.append(f"{split}: {len(dataset) - len(pairs):,} pairs with an empty side dropped")
    return _without_marks(split, pairs, notes, rules)


def _is_decomposed(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)


def without_empty(split: str, texts: Dataset, keys: np.ndarray, notes: list[str]) -> tuple[Dataset, np.ndarray]:
    """The documents with text, and their keys: an empty one would be only an end token."""
    if len(texts) < 2:
        return texts, keys
    kept = [row for row, text in enumerate(texts["text"]) if text]
    if len(kept) == len(texts):
        return texts, keys
    notes.append(f"{split}: {len(texts) - len(kept):,} rows without text left out")
    return texts.select(kept), keys[kept]
