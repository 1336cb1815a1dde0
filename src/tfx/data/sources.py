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
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.config.tasks import TASKS
from tfx.data.files import SPLITS, find_files
from tfx.data.reading import COMPRESSED, cr_note, file_digest, mark_note, read_bytes, read_text
from tfx.data.tables import csv_rows as _csv_rows
from tfx.data.tables import json_rows as _json_rows
from tfx.data.tables import text_of
from tfx.errors import UserError, suggest
from tfx.record.directory import cache_folder
from tfx.record.files import write_bytes

if TYPE_CHECKING:
    from datasets import Dataset

_EMBEDDED_SEED = 1
# Of the columns that rows are kept in, in the cache of hub and parquet data.
_LAYOUT = 2
# What can be said of a row: a bit each, kept beside its text so that one pass is enough to count.
_STRIPPED, _LACKING, _DECODED, _WITHOUT_EMPTY, _SEVERAL, _SOURCE_FORM, _TARGET_FORM, _RETOLD = (
    1 << bit for bit in range(8)
)


@dataclass(frozen=True)
class SourceFile:
    """A file of a split, with its folder where others have its name, and the rows in it.

    Rows are lines of aligned files, else records; None for a text as a whole.
    """

    file: str
    rows: int | None


def describe_files(files: list[SourceFile]) -> str:
    """Files with their rows, as many as a line can take."""
    shown = [file.file if file.rows is None else f"{file.file} ({file.rows:,} rows)" for file in files[:6]]
    return ", ".join(shown) + (f" and {len(files) - 6} more" if len(files) > 6 else "")


@dataclass
class Corpus:
    """Text before tokenizing. ``splits`` lacks ``test`` where the data have none; ``notes`` say what was done.

    ``files`` are those that each split was read from; of the hub, the repository and its split.
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
    # By which rules texts are read otherwise than when runs were first recorded. The fingerprint covers those that
    # the data meet and no others, so that it changes with the text alone.
    rules: set[str] = set()
    if config.path is not None:
        raw, content, files = _read_local(config, notes, rules)
    elif config.hub is not None:
        raw, content, files = _read_hub(config, notes)
    elif config.format in _EMBEDDED:
        raw, content = _generate(config)
    else:
        raise UserError(f"dataset '{config.name}' needs its files: name a folder, file or glob with dataset.path=…")
    settings = repr([1, content, config.task, config.format, config.source, config.target, config.text])
    settings += repr([config.join, config.empty, config.limit, config.valid_fraction, config.splits])
    key = hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()
    # Only the hub and parquet files come as they are; all else was read into the canonical columns.
    is_raw = (config.path is None and config.hub is not None) or config.format == "parquet"
    if TASKS[config.task].is_stream and is_raw and len(raw["train"]) == 1:  # one text, which may have to be cut in two
        raw = {
            name: _to_texts(config, name, dataset, f"{key} whole ", notes, rules, is_raw=True)[0]
            for name, dataset in raw.items()
        }
        is_raw = False
    _cut_valid(config, raw, notes)
    splits = {}
    keys: dict[str, np.ndarray] = {}
    for name, dataset in raw.items():
        cap = getattr(config.limit, name)
        if cap is not None and cap < len(dataset):
            notes.append(f"{name}: the first {cap:,} of {len(dataset):,} examples")
            dataset = dataset.select(range(cap))
        if not TASKS[config.task].is_stream:
            splits[name], keys[name] = _to_pairs(config, name, dataset, key, notes, rules, is_raw=is_raw)
        else:
            texts, own = _to_texts(config, name, dataset, key, notes, rules, is_raw=is_raw)
            if config.join is not None:
                splits[name] = _text_dataset([config.join.join(texts["text"])])
            else:
                splits[name], keys[name] = _without_empty(name, texts, own, notes)
        if not _has_text(config, splits[name]):
            raise UserError(
                f"the {name} split of dataset '{config.name}' is empty ({_where(config)}): "
                f"give it text, or name other data with dataset.splits.{name}"
            )
    notes += _repetitions(keys)
    fingerprint = hashlib.sha256(f"{key}\0{sorted(rules)}".encode()).hexdigest() if rules else key
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
    return len(dataset) > 0 and (not TASKS[config.task].is_stream or any(row["text"] for row in dataset))


# --- the three kinds of origin ----------------------------------------------------------------------


def _generate(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from tfx.data import normalize, stdlib

    try:
        is_stdlib = config.format == "stdlib"
        splits, digest = _made(stdlib.read) if is_stdlib else _made(normalize.generate, _EMBEDDED_SEED)
    except FileNotFoundError as error:
        raise UserError(f"dataset '{config.name}': {error}; take another data set") from None
    return dict(splits), digest


@lru_cache(maxsize=2)
def _made(make: Callable[..., dict[str, list[dict[str, str]]]], *arguments: int) -> tuple[dict[str, Dataset], str]:
    """What a program makes, and its fingerprint. Kept, for a process may train a teacher or try arms on it as well."""
    from datasets import Dataset

    rows = make(*arguments)
    digest = hashlib.sha256()
    for name in SPLITS:
        for row in rows[name]:
            digest.update("\0".join([name, *row.values(), ""]).encode("utf-8", "surrogatepass"))
    return {name: Dataset.from_list(rows[name]) for name in SPLITS}, digest.hexdigest()


def _read_hub(config: DatasetConfig, notes: list[str]) -> tuple[dict[str, Dataset], str, dict[str, list[SourceFile]]]:
    """Splits as they are in their repository, the client's fingerprints, and in the place of files its splits."""
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
    files: dict[str, list[SourceFile]] = {}
    unused = list(map(str, found))
    for split in SPLITS:
        for candidate in getattr(config.splits, split):
            if candidate in found:
                splits[split] = found[candidate]
                files[split] = [SourceFile(f"{config.hub}: {candidate}", len(splits[split]))]
                unused = [name for name in unused if name != candidate]
                break
    if "train" not in splits:
        raise UserError(
            f"{config.hub} has no split {' or '.join(config.splits.train)} "
            f"(dataset.splits.train){suggest('train', map(str, found))}"
        )
    if unused:
        notes.append(f"splits of {config.hub} left out: {', '.join(unused)}")
    # The hub client's own fingerprint covers repository, revision and files.
    return splits, repr([(name, dataset._fingerprint) for name, dataset in splits.items()]), files


def _read_local(
    config: DatasetConfig, notes: list[str], rules: set[str]
) -> tuple[dict[str, Dataset], str, dict[str, list[SourceFile]]]:
    """Splits as they are in their files, a digest of their content, and the files."""
    from datasets import Dataset

    digest = hashlib.sha256()
    splits: dict[str, Dataset] = {}
    files: dict[str, list[SourceFile]] = {}
    found = find_files(config, notes)
    names = Counter(path.name for paths in found.values() for path in paths)
    for split, paths in found.items():
        content = hashlib.sha256()
        for path in paths:
            content.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + file_digest(path))
        digest.update(split.encode() + content.digest())
        counts: list[int] | list[None]
        if config.format == "parallel":
            sides, counts = _read_parallel(paths, notes, rules)
            splits[split] = Dataset.from_dict(sides)
        elif config.format == "text":
            splits[split], counts = _read_texts(paths, notes, rules), [None] * len(paths)
        elif config.format == "parquet":
            splits[split], counts = _read_parquet(paths, content.hexdigest())
        else:
            splits[split], counts = _read_rows(config, paths, notes, rules)
        shown = [path.name if names[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]
        files[split] = [SourceFile(name, count) for name, count in zip(shown, counts, strict=True)]
        if len(paths) > (2 if config.format == "parallel" else 1):
            notes.append(f"{split}: {len(paths)} files joined: {describe_files(files[split])}")
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


def _read_parallel(paths: list[Path], notes: list[str], rules: set[str]) -> tuple[dict[str, list[str]], list[int]]:
    """Both sides, and the lines of each file."""
    sides: dict[str, list[str]] = {"source": [], "target": []}
    counts = []
    for pair in zip(paths[::2], paths[1::2], strict=True):
        found = [read_text(path) for path in pair]
        lines = [text.lines for text in found]
        odd = [note for path, text in zip(pair, found, strict=True) for note in cr_note(path, text.cr)]
        if len(lines[0]) != len(lines[1]):
            raise UserError(
                f"{pair[0]} has {len(lines[0]):,} lines and {pair[1]} has {len(lines[1]):,}: "
                f"aligned files have one line for each other{''.join(f' ({note})' for note in odd)}"
            )
        notes += odd
        for path, text in zip(pair, found, strict=True):
            notes += mark_note(path, text.text)
        if odd:
            rules.add("line ends")
        sides["source"] += lines[0]
        sides["target"] += lines[1]
        counts += [len(lines[0]), len(lines[1])]
    return sides, counts


def _read_texts(paths: list[Path], notes: list[str], rules: set[str]) -> Dataset:
    texts = []
    for path in paths:
        found = read_text(path)
        notes += cr_note(path, found.cr) + mark_note(path, found.text)
        if found.crlf:  # here a line end is text like another
            notes.append(f"{path.name}: {found.crlf:,} lines end in \\r\\n, of which \\n is kept")
        if found.crlf or found.cr:
            rules.add("line ends")
        texts.append(found.text)
    return _text_dataset(texts)


def _read_parquet(paths: list[Path], content: str) -> tuple[Dataset, list[int]]:
    import pyarrow.parquet
    from datasets import Dataset, load_dataset

    # A cache folder named by the content: the library's own key is the path and the time of the last change.
    cache = writable_cache(f"files/{content[:32]}")
    plain = [_unpacked(path, cache) for path in paths]
    try:
        kinds = [pyarrow.parquet.read_schema(path) for path in plain]
        counts = [pyarrow.parquet.read_metadata(path).num_rows for path in plain]
        for path, kind in zip(paths, kinds, strict=True):
            if doubled := [name for name, count in Counter(kind.names).items() if count > 1]:
                raise UserError(f"{path}: two columns are named '{doubled[0]}': rename one of them")
        _check_alike(paths, [dict(zip(kind.names, map(_kind, kind.types), strict=True)) for kind in kinds])
        filled = [str(path.resolve()) for path, count in zip(plain, counts, strict=True) if count]
        if not filled:  # the library fails on them
            return Dataset.from_dict({name: [] for name in kinds[0].names}), counts
        return load_dataset("parquet", data_files=filled, split="train", cache_dir=str(cache)), counts
    except UserError:
        raise
    except Exception as error:  # the reader raises arrow and value errors of many kinds
        raise UserError(
            f"{paths[0]} is not readable as dataset.format=parquet: {_first_line(error.__cause__ or error)}"
        ) from error


def _kind(kind: Any) -> str:
    """What an Arrow type holds, however wide: the library turns one into the other where files differ in it."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if any(match(kind) for match in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)):
        return "text"
    return next((name for name in ("integer", "floating", "nested") if getattr(types, f"is_{name}")(kind)), str(kind))


def _check_alike(paths: list[Path], columns: list[dict[str, str]]) -> None:
    """Refuses files of one split with other columns or types: "007" would become 7 where the first has numbers."""
    for path, own in zip(paths, columns, strict=True):
        for name in [*columns[0], *own]:
            kinds = [each.get(name, "missing") for each in (columns[0], own)]
            if kinds[0] != kinds[1]:
                raise UserError(
                    f"column '{name}' is {kinds[0]} in {paths[0]} and {kinds[1]} in {path.name}: files of one split "
                    "have the same columns; write them anew, or name those that belong together with dataset.path"
                )


def _unpacked(path: Path, cache: Path) -> Path:
    """A file that Arrow can open: the file itself, or where it is compressed as a whole its content in the cache."""
    if path.suffix.lower() not in COMPRESSED:
        return path
    # Files of several folders may have one name.
    plain = cache / f"{file_digest(path).hex()[:32]}-{path.name.removesuffix(path.suffix)}"
    if not plain.is_file():
        write_bytes(plain, read_bytes(path))
    return plain


def _read_rows(
    config: DatasetConfig, paths: list[Path], notes: list[str], rules: set[str]
) -> tuple[Dataset, list[int]]:
    """The canonical columns of JSON or CSV files, and the rows of each file."""
    from datasets import Dataset

    settings = TASKS[config.task].columns
    readers = {setting: _Reader(config, setting) for setting in settings}
    columns: dict[str, list[Any]] = {setting: [] for setting in (*settings, "flags")}
    known: dict[str, None] = {}
    counts = []
    for path in paths:
        before = len(columns[settings[0]])
        for line, row in _json_rows(path, notes) if config.format == "json" else _csv_rows(path, notes, rules):
            known.update(dict.fromkeys(row))
            flags = 0
            for setting, reader in readers.items():
                try:
                    columns[setting].append(reader.texts(row) if setting == "target" else reader.text(row))
                except ValueError as error:
                    raise UserError(f"{path}, line {line}: dataset.{setting}={reader.spec}: {error}") from None
                flags |= reader.flags
            columns["flags"].append(flags)
        counts.append(len(columns[settings[0]]) - before)
    if columns[settings[0]]:
        for reader in readers.values():
            reader.check(list(known))
    if not TASKS[config.task].is_stream:
        return Dataset.from_dict(columns), counts
    dataset = _text_dataset(columns["text"])
    return (dataset.add_column("flags", columns["flags"]) if any(columns["flags"]) else dataset), counts


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# --- from rows to text ------------------------------------------------------------------------------


class _Reader:
    """Reads from a row what ``dataset.<setting>`` names: a column, a path a.b, or a '{template}' of those.

    ``flags`` are those of the text that was read last.
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
                found = suggest(column, columns)
                if len(columns) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in columns[0]]):
                    found += f" (one column: {marks[0]!r} separates nothing; commas do in .csv, tabs in .tsv files)"
                raise UserError(f"{self.setting}: column '{column}' is not in {self._where}{found}")
            needed.append(column)
        return needed

    def text(self, row: dict[str, Any]) -> str:
        """The text in a row, "" where it is missing. Raises `ValueError` for what is no text."""
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
        """The texts of a list each, else the one text. Raises `ValueError` as `text`."""
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
                raise ValueError(f"'{path}' leads through a list ('{key}' is asked of it), and a path through objects")
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
    readers = {setting: _Reader(config, setting) for setting in settings}
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
    """Replaces all columns, batch by batch; data of the hub are written to its cache and found there again."""
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


def _text_dataset(texts: list[str]) -> Dataset:
    from datasets import Dataset, Features, Value

    # One text may be longer than the 2 GB that the offsets of an ordinary column reach.
    return Dataset.from_dict({"text": texts}, features=Features({"text": Value("large_string")}))


def _to_texts(
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
    """The texts without the columns ``flags``, which become notes, and ``key``, which is returned."""
    flags, keys = (np.asarray(dataset.data.column(name)) for name in ("flags", "key"))
    if np.any(flags & _RETOLD):
        rules.add("values as JSON writes them")
    notes += _said(split, lambda flag: int(((flags & flag) > 0).sum()))
    return dataset.remove_columns(["flags", "key"]), keys


def _said(split: str, count: Callable[[int], int]) -> Iterator[str]:
    """What is to be said of the rows of a split, of which so many have a flag."""
    if rows := count(_DECODED):
        yield f"{split}: {rows:,} rows hold bytes in the place of text, which are read as UTF-8"
    if rows := count(_LACKING):
        yield f"{split}: {rows:,} rows lack a value of a template, and have nothing in its place"
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


def _to_pairs(
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
                    f"{'target' if source else 'source'} is empty ({_where(config)}; "
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


def _without_empty(split: str, texts: Dataset, keys: np.ndarray, notes: list[str]) -> tuple[Dataset, np.ndarray]:
    """The documents that hold text, and their keys: an empty one would be nothing but an end token."""
    if len(texts) < 2:
        return texts, keys
    kept = [row for row, text in enumerate(texts["text"]) if text]
    if len(kept) == len(texts):
        return texts, keys
    notes.append(f"{split}: {len(texts) - len(kept):,} rows without text left out")
    return texts.select(kept), keys[kept]


def _repetitions(keys: dict[str, np.ndarray]) -> Iterator[str]:
    """Says how many rows stand twice in a split, and how many of one that is scored also stand in training."""
    keys = {split: own for split, own in keys.items() if len(own) > 1}
    for split, own in keys.items():
        if doubled := len(own) - len(np.unique(own)):
            yield f"{split}: {doubled:,} rows are repetitions of others in it, and are kept"
    for split in ("valid", "test"):
        for other in ("train", "valid"):
            both = split in keys and other in keys and split != other
            if both and (shared := int(np.isin(keys[split], keys[other]).sum())):
                yield f"{split}: {shared:,} rows also stand in {other}, and are kept"


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

    if TASKS[config.task].is_stream and len(train) == 1:
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
