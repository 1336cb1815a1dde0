"""Where examples come from: embedded generators, local files, the Hugging Face hub.

Whatever the source, a `Corpus` comes out: `datasets.Dataset` splits with the columns ``source``, ``target``
and ``references`` (text to text), or ``text`` (language modelling), and a fingerprint of their content.
"""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import DatasetConfig
from tfx.errors import UserError, suggest
from tfx.run.directory import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "valid", "test")
_EMBEDDED_SEED = 1
_VERSION = 1


@dataclass
class Corpus:
    """Text before tokenizing. ``splits`` lacks ``test`` where the data have none; ``notes`` say what was done."""

    task: str
    splits: dict[str, Dataset]
    fingerprint: str
    notes: list[str] = field(default_factory=list)


def replace_targets(corpus: Corpus, targets: list[str], tag: str) -> Corpus:
    """The corpus with other training targets; ``tag`` says where they are from, for the fingerprint."""
    from datasets import Dataset

    train = Dataset.from_dict({"source": corpus.splits["train"]["source"], "target": targets})
    fingerprint = hashlib.sha256(f"{corpus.fingerprint}\0{tag}".encode()).hexdigest()
    return Corpus(corpus.task, corpus.splits | {"train": train}, fingerprint, corpus.notes)


def load_corpus(config: DatasetConfig) -> Corpus:
    """Reads the data set; raises `UserError` for missing, broken, misaligned, badly encoded or empty data."""
    import datasets

    datasets.disable_progress_bars()
    # What goes wrong is raised, too: the library's log lines would only stand above our message.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    _check_task(config)
    if config.path is not None:
        raw, content = _read_local(config)
    elif config.hub is not None:
        raw, content = _read_hub(config)
    elif config.format in _EMBEDDED:
        raw, content = _generate(config)
    else:
        raise UserError(f"dataset '{config.name}' needs its files: name a folder, file or glob with dataset.path=…")
    settings = repr([_VERSION, content, config.task, config.format, config.source, config.target, config.text])
    settings += repr([config.join, config.empty, config.limit, config.valid_fraction, config.splits])
    fingerprint = hashlib.sha256(settings.encode("utf-8", "surrogatepass")).hexdigest()
    notes: list[str] = []
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
            splits[name] = texts if config.join is None else _text_dataset([config.join.join(texts["text"])])
        if not _has_text(config, splits[name]):
            raise UserError(
                f"the {name} split of dataset '{config.name}' is empty ({_where(config)}): "
                f"give it text, or name other data with dataset.splits.{name}"
            )
    return Corpus(config.task, splits, fingerprint, notes)


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


def _read_local(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from datasets import Dataset

    digest = hashlib.sha256()
    splits: dict[str, Dataset] = {}
    for split, paths in _find_files(config).items():
        content = hashlib.sha256()
        for path in paths:
            content.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + _file_digest(path))
        digest.update(split.encode() + content.digest())
        if config.format == "parallel":
            splits[split] = Dataset.from_dict(_read_parallel(config, paths))
        elif config.format == "text":
            splits[split] = _text_dataset([_read_text(path) for path in paths])
        elif config.format == "parquet":
            splits[split] = _read_parquet(paths, content.hexdigest())
        else:
            splits[split] = _read_rows(config, paths)
    return splits, digest.hexdigest()


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

_SUFFIXES = {
    "text": (".txt", ".text", ".tokens", ".md", ".raw", ""),
    "json": (".json", ".jsonl", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}


def _find_files(config: DatasetConfig) -> dict[str, list[Path]]:
    """The files of each split: by their names, or all of them as the training split where no name tells."""
    assert config.path is not None
    given = Path(config.path).expanduser()
    try:
        if given.is_dir():
            found = sorted(path for path in given.iterdir() if path.is_file() and not path.name.startswith("."))
            found = [path for path in found if _belongs(config, path)]
        elif given.is_file():
            return {"train": _both_sides(config, [given])}
        else:
            # Links can lead to one file by many names: the first counts.
            names = sorted(glob.glob(str(given), recursive=True), reverse=True)
            found = sorted({os.path.realpath(name): Path(name) for name in names if Path(name).is_file()}.values())
    except OSError as error:
        raise UserError(f"dataset.path={config.path} cannot be read: {error.strerror}") from error
    if not found:
        if given.is_dir():
            raise UserError(
                f"dataset.path={config.path} holds no file for dataset.format={config.format} "
                f"({', '.join('*' + suffix for suffix in _suffixes(config))})"
            )
        raise UserError(f"dataset.path={config.path} does not exist, and matches no file as a glob")
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        for name in getattr(config.splits, split):
            exact = [path for path in found if _stem(config, path) == name]
            sharded = [path for path in found if _stem(config, path).startswith((f"{name}-", f"{name}.", f"{name}_"))]
            if exact or sharded:
                splits[split] = _both_sides(config, exact or sharded)
                break
    if not splits:
        return {"train": _both_sides(config, found)}
    if "train" not in splits:
        raise UserError(
            f"dataset.path={config.path} holds no training split: no file is named {' or '.join(config.splits.train)} "
            "(set dataset.splits.train to the name it has)"
        )
    return splits


def _suffixes(config: DatasetConfig) -> tuple[str, ...]:
    if config.format == "parallel":
        return tuple(f".{side.removeprefix('.')}" for side in (config.source, config.target))
    return _SUFFIXES[config.format]


def _belongs(config: DatasetConfig, path: Path) -> bool:
    if config.format == "parallel":
        return path.name.endswith(_suffixes(config))
    return path.suffix.lower() in _suffixes(config) and not path.name.lower().startswith(("readme", "license"))


def _stem(config: DatasetConfig, path: Path) -> str:
    if config.format == "parallel":
        for suffix in _suffixes(config):
            if path.name.endswith(suffix):
                return path.name.removesuffix(suffix)
    return path.name.removesuffix(path.suffix)


def _both_sides(config: DatasetConfig, paths: list[Path]) -> list[Path]:
    """Aligned files: source and target in turn, also where only one of them was named; else the paths as given."""
    if config.format != "parallel":
        return paths
    suffixes = dict(zip(("source", "target"), _suffixes(config), strict=True))
    for side, suffix in suffixes.items():
        if "/" in suffix or os.sep in suffix:
            raise UserError(f"dataset.{side}={getattr(config, side)} is not the suffix of a file: it names a folder")
    if suffixes["source"] == suffixes["target"]:
        raise UserError(f"dataset.source and dataset.target are both '{config.source}': name the suffix of each side")
    both = []
    for stem in dict.fromkeys(path.with_name(_stem(config, path)) for path in paths):
        for side, suffix in suffixes.items():
            path = stem.with_name(stem.name + suffix)
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: dataset.{side}={getattr(config, side)} names the suffix of that side"
                )
            both.append(path)
    return both


def _file_digest(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _read_text(path: Path) -> str:
    """A whole UTF-8 file, a byte order mark removed; raises `UserError` for other encodings and binary files."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UserError(f"{path}, line {line}: a NUL byte; the file is binary or UTF-16, and UTF-8 text is needed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}): convert the file to UTF-8"
        ) from None


def _read_lines(path: Path) -> list[str]:
    # Only \n and \r\n end a line: str.splitlines would also cut at U+2028 and misalign the two sides.
    lines = _read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _read_parallel(config: DatasetConfig, paths: list[Path]) -> dict[str, list[str]]:
    sides: dict[str, list[str]] = {"source": [], "target": []}
    for source, target in zip(paths[::2], paths[1::2], strict=True):
        lines = _read_lines(source), _read_lines(target)
        if len(lines[0]) != len(lines[1]):
            raise UserError(
                f"{source} has {len(lines[0]):,} lines and {target} has {len(lines[1]):,}: "
                "aligned files have one line for each other"
            )
        sides["source"] += lines[0]
        sides["target"] += lines[1]
    return sides


def _read_parquet(paths: list[Path], content: str) -> Dataset:
    from datasets import load_dataset

    # A cache folder named by the content: the library's own key is the path and the time of the last change.
    cache = writable_cache(f"files/{content[:32]}")
    try:
        return load_dataset(
            "parquet", data_files=[str(path.resolve()) for path in paths], split="train", cache_dir=str(cache)
        )
    except Exception as error:  # the reader raises arrow and value errors of many kinds
        raise UserError(
            f"{paths[0]} is not readable as dataset.format=parquet: {_first_line(error.__cause__ or error)}"
        ) from error


def _read_rows(config: DatasetConfig, paths: list[Path]) -> Dataset:
    """The canonical columns of JSON or CSV files.

    They are not read with the `datasets` library, which guesses types and so changes text: "007" would become
    7, "NA" nothing, and a column of dates that of times of the day.
    """
    from datasets import Dataset

    settings = ("source", "target") if config.task == "seq2seq" else ("text",)
    readers = {setting: _Reader(config, setting) for setting in settings}
    columns: dict[str, list[Any]] = {setting: [] for setting in settings}
    known: dict[str, None] = {}
    rows_of = _json_rows if config.format == "json" else _csv_rows
    for path in paths:
        for row in rows_of(path):
            known.update(dict.fromkeys(row))
            for setting, reader in readers.items():
                value = reader.value(row)
                columns[setting].append(_references(value) if setting == "target" else _text(value))
    if columns[settings[0]]:
        for reader in readers.values():
            reader.check(list(known))
    return _text_dataset(columns["text"]) if config.task == "lm" else Dataset.from_dict(columns)


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, or of one list; a number with a point keeps its spelling."""
    text = _read_text(path)
    is_list = text.lstrip()[:1] == "["
    for number, line in enumerate([text] if is_list else text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line, parse_float=str)
            if "\\u" in line:  # a lone surrogate can be written in JSON, and nowhere else
                json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{path}, line {number}: half of a surrogate pair (\\ud800…) is not text: mend it"
            ) from None
        except (ValueError, RecursionError) as error:
            at = error.lineno + number - 1 if isinstance(error, json.JSONDecodeError) else number
            raise UserError(
                f"{path}, line {at}: not JSON ({error}): a file holds one object a line, or one list of objects"
            ) from None
        for row in found if is_list else [found]:
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}, line {number}: {json.dumps(row)[:40]} is not an object: "
                    'a file holds one {"column": value} a line, or one list of them'
                )
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a comma or tab separated file with a header, every cell as it is written."""
    csv.field_size_limit(2**31 - 1)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=separator, strict=True)
    try:
        header = next(reader, [])
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells under a header of {len(header)}: "
                    'put text with separators, quotes or line ends between double quotes ("")'
                )
            if cells:
                yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}: a cell that begins with a double quote ends with one, "
            "and those inside it are doubled"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# --- from rows to text ------------------------------------------------------------------------------


class _Reader:
    """Reads from a row what ``dataset.<setting>`` names: a column, a path a.b, or a '{template}' of those."""

    def __init__(self, config: DatasetConfig, setting: str, *, column: str | None = None) -> None:
        self._setting = f"dataset.{setting}"
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
                raise UserError(f"{self._setting}: column '{column}' is not in {self._where}{suggest(column, columns)}")
            needed.append(column)
        return needed

    def value(self, row: dict[str, Any]) -> Any:
        """The value in a row; None where it is missing."""
        if self._pieces and self.spec not in row:
            return "".join(
                literal + ("" if name is None else _text(self._follow(row, name))) for literal, name in self._pieces
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
            if not isinstance(value, dict) or key not in value:
                inside = suggest(key, value) if isinstance(value, dict) else ""
                raise UserError(f"{self._setting}: '{path}' is not in {self._where} (no '{key}'){inside}")
            value = value[key]
        return value


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _references(value: Any) -> list[str]:
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


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
        return {"text": [_text(reader.value(row)) for row in _rows(batch)]}

    return _map(needed, make, {"text": Value("large_string")}, key)


def _to_pairs(
    config: DatasetConfig, split: str, dataset: Dataset, key: str, notes: list[str], *, is_raw: bool
) -> Dataset:
    """The columns source, target, references; empty sides are an error or dropped, as set."""
    from datasets import List, Value

    (source_reader, target_reader), needed = _readers(config, dataset, is_raw, "source", "target")

    def make(batch: Any, indices: list[int]) -> dict[str, list[Any]]:
        pairs: dict[str, list[Any]] = {"source": [], "target": [], "references": []}
        for row, index in zip(_rows(batch), indices, strict=True):
            source = _text(source_reader.value(row)).strip()
            references = [text.strip() for text in _references(target_reader.value(row))]
            references = [text for text in references if text]
            if source and references:
                pairs["source"].append(source)
                pairs["target"].append(references[0])
                pairs["references"].append(references)
            elif config.empty == "error":
                raise UserError(
                    f"the {split} split of dataset '{config.name}', example {index + 1}: the "
                    f"{'target' if source else 'source'} is empty ({_where(config)}; "
                    "dataset.empty=drop leaves such pairs out)"
                )
        return pairs

    features = {"source": Value("string"), "target": Value("string"), "references": List(Value("string"))}
    pairs = _map(needed, make, features, key + split)
    if len(pairs) < len(dataset):
        notes.append(f"{split}: {len(dataset) - len(pairs):,} pairs with an empty side dropped")
    return pairs


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
    splits["train"], splits["valid"] = train.select(range(cut)), train.select(range(cut, len(train)))
    notes.append(f"valid: the last {share} of the training examples")
