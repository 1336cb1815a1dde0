"""Where examples come from: embedded generators, local files, the Hugging Face hub.

Whatever the source, a `Corpus` comes out: `datasets.Dataset` splits with the columns ``source``, ``target``
and ``references`` (text to text), or ``text`` (language modelling), and a fingerprint of their content. Nothing is
dropped, changed or joined without a note that says what and how many.
"""

from __future__ import annotations

import errno
import hashlib
import os
import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.data.files import SPLITS, find_files
from tfx.data.reading import COMPRESSED, file_digest, read_bytes, read_lines, read_text
from tfx.data.tables import csv_rows as _csv_rows
from tfx.data.tables import json_rows as _json_rows
from tfx.data.tables import references_of, text_of
from tfx.errors import UserError, suggest
from tfx.record.directory import cache_folder
from tfx.record.files import write_bytes

if TYPE_CHECKING:
    from datasets import Dataset

_EMBEDDED_SEED = 1
# Of how each format is read; the fingerprint covers it. Tables have been read as JSON writes their values since 2.
_VERSIONS = {"json": 2, "csv": 2, "parquet": 2}


@dataclass(frozen=True)
class SourceFile:
    """A file of a split and the rows in it: lines of aligned files, else records; None for a text as a whole."""

    file: str
    rows: int | None


@dataclass
class Corpus:
    """Text before tokenizing. ``splits`` lacks ``test`` where the data have none; ``notes`` say what was done.

    ``files`` are those that each split was read from, where they are local.
    """

    task: str
    splits: dict[str, Dataset]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    files: dict[str, list[SourceFile]] = field(default_factory=dict)


def replace_targets(corpus: Corpus, targets: list[str], tag: str) -> Corpus:
    """The corpus with other training targets; ``tag`` says where they are from, for the fingerprint."""
    from datasets import Dataset

    train = Dataset.from_dict({"source": corpus.splits["train"]["source"], "target": targets})
    fingerprint = hashlib.sha256(f"{corpus.fingerprint}\0{tag}".encode()).hexdigest()
    return Corpus(corpus.task, corpus.splits | {"train": train}, fingerprint, corpus.notes, corpus.files)


def load_corpus(config: DatasetConfig) -> Corpus:
    """Reads the data set; raises `UserError` for missing, broken, misaligned, badly encoded or empty data."""
    import datasets

    datasets.disable_progress_bars()
    # What goes wrong is raised, too: the library's log lines would only stand above our message.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _check_task(config)
    notes: list[str] = []
    files: dict[str, list[SourceFile]] = {}
    if config.path is not None:
        raw, content, files = _read_local(config, notes)
    elif config.hub is not None:
        raw, content = _read_hub(config)
    elif config.format in _EMBEDDED:
        raw, content = _generate(config)
    else:
        raise UserError(f"dataset '{config.name}' needs its files: name a folder, file or glob with dataset.path=…")
    settings = repr(
        [
            _VERSIONS.get(config.format, 1),
            content,
            config.task,
            config.format,
            config.source,
            config.target,
            config.text,
        ]
    )
    settings += repr([config.join, config.empty, config.limit, config.valid_fraction, config.splits])
    fingerprint = hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()
    # Only the hub and parquet files come as they are; all else was read into the canonical columns.
    is_raw = (config.path is None and config.hub is not None) or config.format == "parquet"
    if config.task == "lm" and is_raw and len(raw["train"]) == 1:  # one text, which may have to be cut in two
        raw = {name: _to_texts(config, dataset, fingerprint + name, is_raw=True) for name, dataset in raw.items()}
        is_raw = False
    _cut_valid(config, raw, notes)
    splits = {}
    for name, dataset in raw.items():
        cap = getattr(config.limit, name)
        if cap is not None and cap < len(dataset):
            notes.append(f"{name}: the first {cap:,} of {len(dataset):,} examples")
            dataset = dataset.select(range(cap))
        if config.task == "seq2seq":
            splits[name] = _to_pairs(config, name, dataset, fingerprint, notes, is_raw=is_raw)
        else:
            texts = _to_texts(config, dataset, fingerprint + name, is_raw=is_raw)
            if config.join is not None:
                splits[name] = _text_dataset([config.join.join(texts["text"])])
            else:
                splits[name] = _without_empty(name, texts, notes)
        if not _has_text(config, splits[name]):
            raise UserError(
                f"the {name} split of dataset '{config.name}' is empty ({_where(config)}): "
                f"give it text, or name other data with dataset.splits.{name}"
            )
    notes += _repetitions(splits)
    return Corpus(config.task, splits, fingerprint, notes, files)


# What each format is read as; the tables can be either.
_EMBEDDED = {"normalize": "seq2seq", "stdlib": "lm"}
_TASKS = _EMBEDDED | {"parallel": "seq2seq", "text": "lm"}


def _check_task(config: DatasetConfig) -> None:
    if config.path is None and config.hub is not None:
        return
    if config.path is not None and config.format in _EMBEDDED:
        raise UserError(
            f"dataset.format={config.format} is made by the program and reads no dataset.path: leave the path out, "
            "or name the format of the files (parallel, text, json, csv, parquet)"
        )
    task = _TASKS.get(config.format, config.task)
    if task != config.task:
        hint = "; aligned files are dataset.format=parallel" if config.format == "text" else ""
        raise UserError(f"dataset.format={config.format} is for dataset.task={task}, not {config.task}{hint}")


def _where(config: DatasetConfig) -> str:
    return f"see {config.path or config.hub or config.format}"


def _has_text(config: DatasetConfig, dataset: Dataset) -> bool:
    return len(dataset) > 0 and (config.task == "seq2seq" or any(row["text"] for row in dataset))


# --- the three kinds of origin ----------------------------------------------------------------------


def _generate(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from datasets import Dataset

    rows: dict[str, list[dict[str, str]]]
    if config.format == "normalize":
        from tfx.data import normalize

        rows = normalize.generate(_EMBEDDED_SEED)
    else:
        from tfx.data import stdlib

        try:
            rows = stdlib.read()
        except FileNotFoundError as error:
            raise UserError(f"dataset '{config.name}': {error}; take another data set") from None
    digest = hashlib.sha256()
    for name in SPLITS:
        for row in rows[name]:
            digest.update("\0".join([name, *row.values(), ""]).encode("utf-8", "surrogatepass"))
    return {name: Dataset.from_list(rows[name]) for name in SPLITS}, digest.hexdigest()


def _read_hub(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from datasets import load_dataset

    assert config.hub is not None
    cache = writable_cache("hub")
    try:
        found = load_dataset(config.hub, config.hub_config, revision=config.hub_revision, cache_dir=str(cache))
    except Exception as error:  # the hub client raises a dozen kinds, from timeouts to parser errors
        raise UserError(
            f"dataset '{config.name}' cannot be loaded from the hub ({config.hub}): {_first_line(error)}; "
            "to use a local copy, name it with dataset.path=…"
        ) from error
    splits: dict[str, Dataset] = {}
    for split in SPLITS:
        for candidate in getattr(config.splits, split):
            if candidate in found:
                splits[split] = found[candidate]
                break
    if "train" not in splits:
        raise UserError(
            f"{config.hub} has no split {' or '.join(config.splits.train)} "
            f"(dataset.splits.train){suggest('train', map(str, found))}"
        )
    # The hub client's own fingerprint covers repository, revision and files.
    return splits, repr([(name, dataset._fingerprint) for name, dataset in splits.items()])


def _read_local(config: DatasetConfig, notes: list[str]) -> tuple[dict[str, Dataset], str, dict[str, list[SourceFile]]]:
    """Splits as they are in their files, a digest of their content, and the files."""
    from datasets import Dataset

    digest = hashlib.sha256()
    splits: dict[str, Dataset] = {}
    files: dict[str, list[SourceFile]] = {}
    for split, paths in find_files(config, notes).items():
        content = hashlib.sha256()
        for path in paths:
            content.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + file_digest(path))
        digest.update(split.encode() + content.digest())
        counts: list[int] | list[None]
        if config.format == "parallel":
            sides, counts = _read_parallel(config, paths)
            splits[split] = Dataset.from_dict(sides)
        elif config.format == "text":
            splits[split], counts = _text_dataset([read_text(path) for path in paths]), [None] * len(paths)
        elif config.format == "parquet":
            splits[split], counts = _read_parquet(paths, content.hexdigest())
        else:
            splits[split], counts = _read_rows(config, paths, notes)
        files[split] = [SourceFile(path.name, count) for path, count in zip(paths, counts, strict=True)]
    return splits, digest.hexdigest(), files


def writable_cache(name: str) -> Path:
    """A folder of the cache, made where it is missing; raises `UserError` where it cannot be written."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"the cache folder {folder} cannot be written ({error.strerror}): name another one with TFX_CACHE"
        ) from error
    return folder


# --- local files ------------------------------------------------------------------------------------


def _read_parallel(config: DatasetConfig, paths: list[Path]) -> tuple[dict[str, list[str]], list[int]]:
    """Both sides, and the lines of each file."""
    sides: dict[str, list[str]] = {"source": [], "target": []}
    counts = []
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        lines = read_lines(source), read_lines(target)
        if len(lines[0]) != len(lines[1]):
            raise UserError(
                f"{source} has {len(lines[0]):,} lines and {target} has {len(lines[1]):,}: "
                "aligned files have one line for each other"
            )
        sides["source"] += lines[0]
        sides["target"] += lines[1]
        counts += [len(lines[0]), len(lines[1])]
    return sides, counts


def _read_parquet(paths: list[Path], content: str) -> tuple[Dataset, list[int]]:
    import pyarrow.parquet
    from datasets import load_dataset

    # A cache folder named by the content: the library's own key is the path and the time of the last change.
    cache = writable_cache(f"files/{content[:32]}")
    plain = [_unpacked(path, cache) for path in paths]
    try:
        found = load_dataset(
            "parquet", data_files=[str(path.resolve()) for path in plain], split="train", cache_dir=str(cache)
        )
        return found, [pyarrow.parquet.read_metadata(path).num_rows for path in plain]
    except Exception as error:  # the reader raises arrow and value errors of many kinds
        raise UserError(
            f"{paths[0]} is not readable as dataset.format=parquet: {_first_line(error.__cause__ or error)}"
        ) from error


def _unpacked(path: Path, cache: Path) -> Path:
    """A file that Arrow can open: the file itself, or where it is compressed as a whole its content in the cache."""
    if path.suffix.lower() not in COMPRESSED:
        return path
    plain = cache / path.name.removesuffix(path.suffix)
    if not plain.is_file():
        write_bytes(plain, read_bytes(path))
    return plain


def _read_rows(config: DatasetConfig, paths: list[Path], notes: list[str]) -> tuple[Dataset, list[int]]:
    """The canonical columns of JSON or CSV files, and the rows of each file."""
    from datasets import Dataset

    settings = ("source", "target") if config.task == "seq2seq" else ("text",)
    readers = {setting: _Reader(config, setting) for setting in settings}
    columns: dict[str, list[Any]] = {setting: [] for setting in settings}
    known: dict[str, None] = {}
    counts = []
    rows_of = _json_rows if config.format == "json" else _csv_rows
    for path in paths:
        before = len(columns[settings[0]])
        for line, row in rows_of(path, notes):
            known.update(dict.fromkeys(row))
            for setting, reader in readers.items():
                try:
                    value = reader.value(row)
                    columns[setting].append(references_of(value) if setting == "target" else text_of(value))
                except ValueError as error:
                    raise UserError(f"{path}, line {line}: dataset.{setting}={reader.spec}: {error}") from None
        counts.append(len(columns[settings[0]]) - before)
    if columns[settings[0]]:
        for reader in readers.values():
            reader.check(list(known))
    dataset = _text_dataset(columns["text"]) if config.task == "lm" else Dataset.from_dict(columns)
    return dataset, counts


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# --- from rows to text ------------------------------------------------------------------------------


class _Reader:
    """Reads from a row what ``dataset.<setting>`` names: a column, a path a.b, or a '{template}' of those."""

    def __init__(self, config: DatasetConfig, setting: str, *, column: str | None = None) -> None:
        self.setting = f"dataset.{setting}"
        self._where = config.path or config.hub
        self.spec: str = column or getattr(config, setting)
        self._pieces: list[tuple[str, str | None]] = []
        if column is not None or "{" not in self.spec:
            return
        try:
            parsed = list(string.Formatter().parse(self.spec))
        except ValueError as error:
            raise UserError(f"dataset.{setting}='{self.spec}' is not a template: {error}") from None
        for literal, name, format_spec, conversion in parsed:
            if name == "" or format_spec or conversion:
                raise UserError(f"dataset.{setting}='{self.spec}': between braces stands a column or path, only that")
            self._pieces.append((literal, name))

    def check(self, columns: list[str]) -> list[str]:
        """The columns that are needed, of those that the data have; raises `UserError` where one is missing."""
        if self.spec in columns:
            return [self.spec]
        paths = [name for _, name in self._pieces if name is not None] if self._pieces else [self.spec]
        needed = []
        for path in paths:
            column = path if path in columns else path.split(".")[0]
            if column not in columns:
                raise UserError(f"{self.setting}: column '{column}' is not in {self._where}{suggest(column, columns)}")
            needed.append(column)
        return needed

    def value(self, row: dict[str, Any]) -> Any:
        """The value in a row; None where it is missing."""
        if self._pieces and self.spec not in row:
            return "".join(
                literal + ("" if name is None else text_of(self._follow(row, name))) for literal, name in self._pieces
            )
        return self._follow(row, self.spec)

    def _follow(self, row: dict[str, Any], path: str) -> Any:
        if path in row:
            return row[path]
        column, *keys = path.split(".")
        value: Any = row.get(column)
        for key in keys:
            if value is None:
                return None
            if isinstance(value, list):
                raise ValueError(f"'{path}' leads through a list ('{key}' is asked of it), and a path through objects")
            if not isinstance(value, dict) or key not in value:
                inside = suggest(key, value) if isinstance(value, dict) else ""
                raise UserError(f"{self.setting}: '{path}' is not in {self._where} (no '{key}'){inside}")
            value = value[key]
        return value


def _readers(config: DatasetConfig, dataset: Dataset, is_raw: bool, *settings: str) -> tuple[list[_Reader], Dataset]:
    """Readers of the rows of a split, and the split with the columns that they need."""
    readers = [_Reader(config, setting, column=None if is_raw else setting) for setting in settings]
    needed = {column for reader in readers for column in reader.check(dataset.column_names)}
    return readers, dataset.select_columns(sorted(needed))


def _map(dataset: Dataset, make: Callable[[Any, list[int]], Any], features: dict[str, Any], key: str) -> Dataset:
    """Replaces all columns, batch by batch; data of the hub are written to its cache and found there again."""
    from datasets import Features

    return dataset.map(
        make,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features(features),
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
    )


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    names = list(batch)
    return (dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True))


def _text_dataset(texts: list[str]) -> Dataset:
    from datasets import Dataset, Features, Value

    # One text may be longer than the 2 GB that the offsets of an ordinary column reach.
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("large_string")}))


def _to_texts(config: DatasetConfig, dataset: Dataset, key: str, *, is_raw: bool) -> Dataset:
    """The column ``text`` alone."""
    from datasets import Value

    (reader,), needed = _readers(config, dataset, is_raw, "text")

    def make(batch: Any, indices: list[int]) -> dict[str, list[str]]:
        return {"text": [_as_text(reader, row, index) for row, index in zip(_rows(batch), indices, strict=True)]}

    return _map(needed, make, {"text": Value("large_string")}, key)


def _as_text(reader: _Reader, row: dict[str, Any], index: int) -> str:
    return str(_checked(reader, row, index, text_of))


def _checked(reader: _Reader, row: dict[str, Any], index: int, convert: Callable[[Any], Any]) -> Any:
    """A value of a row as text or texts; raises `UserError` with the number of the row where it is neither."""
    try:
        return convert(reader.value(row))
    except ValueError as error:
        raise UserError(f"{reader.setting}={reader.spec}, row {index + 1}: {error}") from None


def _to_pairs(
    config: DatasetConfig, split: str, dataset: Dataset, key: str, notes: list[str], *, is_raw: bool
) -> Dataset:
    """The columns source, target, references; empty sides are an error or dropped, as set."""
    from datasets import List, Value

    (source_reader, target_reader), needed = _readers(config, dataset, is_raw, "source", "target")

    def make(batch: Any, indices: list[int]) -> dict[str, list[Any]]:
        pairs: dict[str, list[Any]] = {"source": [], "target": [], "references": [], "stripped": []}
        for row, index in zip(_rows(batch), indices, strict=True):
            written = [_as_text(source_reader, row, index), *_checked(target_reader, row, index, references_of)]
            source, *references = (text.strip() for text in written)
            references = [text for text in references if text]
            if source and references:
                pairs["source"].append(source)
                pairs["target"].append(references[0])
                pairs["references"].append(references)
                pairs["stripped"].append(any(text != text.strip() for text in written))
            elif config.empty == "error":
                raise UserError(
                    f"the {split} split of dataset '{config.name}', example {index + 1}: the "
                    f"{'target' if source else 'source'} is empty ({_where(config)}; "
                    "dataset.empty=drop leaves such pairs out)"
                )
        return pairs

    texts = {"source": Value("string"), "target": Value("string"), "references": List(Value("string"))}
    pairs = _map(needed, make, texts | {"stripped": Value("bool")}, key + split)
    if not len(dataset):
        return pairs
    if len(pairs) < len(dataset):
        notes.append(f"{split}: {len(dataset) - len(pairs):,} pairs with an empty side dropped")
    if stripped := int(np.sum(pairs["stripped"])):
        notes.append(f"{split}: {stripped:,} pairs with white space around a text, which is removed")
    pairs = pairs.remove_columns("stripped")
    if split != "train" and (decomposed := sum(map(_is_decomposed, pairs["target"]))):
        notes.append(
            f"{split}: {decomposed:,} targets are not in Unicode's composed form (NFC); texts are compared character "
            "by character, so that an output in another form does not match"
        )
    return pairs


def _is_decomposed(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)


def _without_empty(split: str, texts: Dataset, notes: list[str]) -> Dataset:
    """The documents that hold text: an empty one would be nothing but an end token."""
    if len(texts) < 2:
        return texts
    kept = [row for row, text in enumerate(texts["text"]) if text]
    if len(kept) == len(texts):
        return texts
    notes.append(f"{split}: {len(texts) - len(kept):,} rows without text left out")
    return texts.select(kept)


def _repetitions(splits: dict[str, Dataset]) -> list[str]:
    """Says how many rows stand twice in a split, and how many of one that is scored also stand in training."""
    notes = []
    keys: dict[str, np.ndarray] = {}
    for split, dataset in splits.items():
        if len(dataset) < 2:
            continue
        columns = [name for name in ("source", "target", "text") if name in dataset.column_names]
        batches = dataset.select_columns(columns).iter(batch_size=10_000)
        rows = (hash(row) for batch in batches for row in zip(*(batch[name] for name in columns), strict=True))
        keys[split] = np.fromiter(rows, np.int64, len(dataset))
        if doubled := len(dataset) - len(np.unique(keys[split])):
            notes.append(f"{split}: {doubled:,} rows are repetitions of others in it, and are kept")
    for split in ("valid", "test"):
        for other in ("train", "valid"):
            both = split in keys and other in keys and split != other
            if both and (shared := int(np.isin(keys[split], keys[other]).sum())):
                notes.append(f"{split}: {shared:,} rows also stand in {other}, and are kept")
    return notes


def _cut_valid(config: DatasetConfig, splits: dict[str, Dataset], notes: list[str]) -> None:
    """Cuts a validation split from the end of the training split where there is none."""
    if "valid" in splits:
        return
    if config.valid_fraction == 0:
        raise UserError(
            f"dataset '{config.name}' has no validation split ({_where(config)}): name it with dataset.splits.valid, "
            "or cut it from the training split with dataset.valid_fraction=0.05"
        )
    train = splits["train"]
    share = f"{100 * config.valid_fraction:g} %"

    def end(length: int) -> int:
        return int(length * (1.0 - config.valid_fraction) + 1e-6)  # 1 - 0.9 is a little below 0.1

    if config.task == "lm" and len(train) == 1:
        text = train[0]["text"]
        cut = end(len(text))
        splits["train"], splits["valid"] = _text_dataset([text[:cut]]), _text_dataset([text[cut:]])
        notes.append(f"valid: the last {share} of the text")
        return
    cut = end(len(train))
    if cut == 0 and len(train):
        raise UserError(
            f"dataset '{config.name}' has too few training examples ({len(train)}): dataset.valid_fraction="
            f"{config.valid_fraction:g} cuts all of them off for validation; give more, or "
            "name a validation split with dataset.splits.valid"
        )
    splits["train"], splits["valid"] = train.select(range(cut)), train.select(range(cut, len(train)))
    notes.append(f"valid: the last {share} of the training examples")
