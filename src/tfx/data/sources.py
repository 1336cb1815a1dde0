"""Where examples come from: embedded generators, local files, the Hugging Face hub.

Whatever the source, a `Corpus` comes out: `datasets.Dataset` splits with the columns ``source``, ``target``
and ``references`` (text to text), or ``text`` (language modelling), and a fingerprint of their content.
"""

from __future__ import annotations

import glob
import hashlib
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


def load_corpus(config: DatasetConfig) -> Corpus:
    """Reads the data set; raises `UserError` for missing, broken, misaligned, badly encoded or empty data."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    if config.path is not None:
        raw, content = _read_local(config)
    elif config.hub is not None:
        raw, content = _read_hub(config)
    elif config.format in ("normalize", "stdlib"):
        raw, content = _generate(config)
    else:
        raise UserError(f"dataset '{config.name}' needs its files: name a folder, file or glob with dataset.path=…")
    notes: list[str] = []
    _cut_valid(config, raw, notes)
    splits = {}
    for name, dataset in raw.items():
        cap = getattr(config.limit, name)
        if cap is not None and cap < len(dataset):
            notes.append(f"{name}: the first {cap:,} of {len(dataset):,} examples")
            dataset = dataset.select(range(cap))
        splits[name] = _to_pairs(config, name, dataset, notes) if config.task == "seq2seq" else dataset
        if len(splits[name]) == 0:
            raise UserError(f"the {name} split of dataset '{config.name}' is empty: {_where(config)}")
    settings = repr([_VERSION, content, config.task, config.source, config.target, config.text, config.empty])
    settings += repr([config.limit, config.valid_fraction, config.splits])
    return Corpus(config.task, splits, hashlib.sha256(settings.encode()).hexdigest(), notes)


def _where(config: DatasetConfig) -> str:
    return f"see {config.path or config.hub or config.format}"


# --- the three kinds of origin ----------------------------------------------------------------------


def _generate(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from datasets import Dataset

    rows: dict[str, list[dict[str, str]]]
    if config.format == "normalize":
        from tfx.data import normalize

        rows = normalize.generate(_EMBEDDED_SEED)
    else:
        from tfx.data import stdlib

        rows = stdlib.read()
    digest = hashlib.sha256()
    for name in SPLITS:
        for row in rows[name]:
            digest.update("\0".join(row.values()).encode("utf-8", "surrogatepass"))
    return {name: Dataset.from_list(rows[name]) for name in SPLITS}, digest.hexdigest()


def _read_hub(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from datasets import load_dataset

    assert config.hub is not None
    try:
        found = load_dataset(
            config.hub, config.hub_config, revision=config.hub_revision, cache_dir=str(cache_folder() / "hub")
        )
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
        raise UserError(f"{config.hub} has no split {config.splits.train}{suggest('train', map(str, found))}")
    if config.task == "lm":
        splits = {name: _texts(config, dataset) for name, dataset in splits.items()}
    # The hub client's own fingerprint covers repository, revision and what was done to the rows.
    return splits, repr([(name, dataset._fingerprint) for name, dataset in splits.items()])


def _read_local(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    from datasets import Dataset

    files = _find_files(config)
    digest = hashlib.sha256()
    splits: dict[str, Dataset] = {}
    for split, paths in files.items():
        for path in paths:
            digest.update(f"{split}/{path.name}\0".encode("utf-8", "surrogatepass"))
            digest.update(_file_digest(path))
        if config.format == "parallel":
            splits[split] = Dataset.from_dict(_read_parallel(config, paths))
        elif config.format == "text":
            if config.task == "seq2seq":
                raise UserError("dataset.format=text is for dataset.task=lm; aligned files are dataset.format=parallel")
            splits[split] = Dataset.from_dict({"text": [_read_text(path) for path in paths]})
        else:
            table = _read_table(config, paths)
            splits[split] = _texts(config, table) if config.task == "lm" else table
    return splits, digest.hexdigest()


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
            found = [given]
        else:
            found = sorted(Path(name) for name in glob.glob(str(given), recursive=True) if os.path.isfile(name))
    except OSError as error:
        raise UserError(f"dataset.path={config.path} cannot be read: {error.strerror}") from error
    if not found:
        if given.is_dir():
            raise UserError(f"dataset.path={config.path} holds no file for dataset.format={config.format}")
        raise UserError(f"dataset.path={config.path} does not exist, and matches nothing as a glob")
    splits: dict[str, list[Path]] = {}
    for split in SPLITS:
        for name in getattr(config.splits, split):
            exact = [path for path in found if _stem(path) == name]
            sharded = [path for path in found if _stem(path).startswith((f"{name}-", f"{name}.", f"{name}_"))]
            if exact or sharded:
                splits[split] = exact or sharded
                break
    if not splits:
        return {"train": found}
    if "train" not in splits:
        raise UserError(
            f"dataset.path={config.path} holds no training split: no file is named {' or '.join(config.splits.train)} "
            "(set dataset.splits.train to the name it has)"
        )
    return splits


def _belongs(config: DatasetConfig, path: Path) -> bool:
    if config.format == "parallel":
        return path.suffix in (f".{config.source}", f".{config.target}")
    return path.suffix.lower() in _SUFFIXES[config.format] and not path.name.lower().startswith(("readme", "license"))


def _stem(path: Path) -> str:
    return path.name[: -len(path.suffix)] if path.suffix else path.name


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
    stems = list(dict.fromkeys(path.with_suffix("") for path in paths))
    for stem in stems:
        pair = {side: stem.with_name(f"{stem.name}.{getattr(config, side)}") for side in sides}
        for side, path in pair.items():
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: dataset.{side}={getattr(config, side)} names the suffix of that side"
                )
        lines = {side: _read_lines(path) for side, path in pair.items()}
        if len(lines["source"]) != len(lines["target"]):
            raise UserError(
                f"{pair['source']} has {len(lines['source']):,} lines and {pair['target']} has "
                f"{len(lines['target']):,}: aligned files have one line for each other"
            )
        for side in sides:
            sides[side] += lines[side]
    return sides


def _read_table(config: DatasetConfig, paths: list[Path]) -> Dataset:
    from datasets import load_dataset

    options = {"sep": "\t"} if config.format == "csv" and paths[0].suffix.lower() == ".tsv" else {}
    for path in paths:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty")
    try:
        return load_dataset(
            config.format,
            data_files=[str(path.resolve()) for path in paths],
            split="train",
            cache_dir=str(cache_folder() / "files"),
            **options,
        )
    except Exception as error:  # the readers raise parser, arrow and value errors of many kinds
        cause = error.__cause__ or error
        raise UserError(
            f"{paths[0]} is not readable as dataset.format={config.format}: {_first_line(cause)}"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


# --- from rows to text ------------------------------------------------------------------------------


def _reader(config: DatasetConfig, setting: str, columns: list[str]) -> Callable[[dict[str, Any]], Any]:
    """A function from a row to the value that ``dataset.<setting>`` names: a column, a path a.b, a '{template}'."""
    spec: str = getattr(config, setting)

    def check(column: str) -> None:
        if column not in columns:
            raise UserError(f"dataset.{setting}: column '{column}' is unknown{suggest(column, columns)}")

    def follow(row: dict[str, Any], path: str) -> Any:
        value: Any = row
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise UserError(f"dataset.{setting}: '{path}' is not in the data (no '{key}')")
            value = value[key]
        return value

    if spec in columns:
        return lambda row: row[spec]
    if "{" not in spec:
        check(spec.split(".")[0])
        return lambda row: follow(row, spec)
    try:
        pieces = [(literal, name) for literal, name, _, _ in string.Formatter().parse(spec)]
    except ValueError as error:
        raise UserError(f"dataset.{setting}='{spec}' is not a template: {error}") from None
    for _, name in pieces:
        if name is not None:
            check(name.split(".")[0])
    return lambda row: "".join(literal + ("" if name is None else str(follow(row, name))) for literal, name in pieces)


def _texts(config: DatasetConfig, dataset: Dataset) -> Dataset:
    """The ``text`` column of a language-model table; with ``dataset.join``, one text of all rows."""
    from datasets import Dataset

    read = _reader(config, "text", dataset.column_names)
    texts = [str(read(row) or "") for row in dataset]
    return Dataset.from_dict({"text": texts if config.join is None else [config.join.join(texts)]})


def _to_pairs(config: DatasetConfig, split: str, dataset: Dataset, notes: list[str]) -> Dataset:
    """The columns source, target, references; empty sides are an error or dropped, as set."""
    from datasets import Dataset

    # Generated and aligned data already have the canonical columns, whatever the suffixes are called.
    canonical = {"source", "target"} <= set(dataset.column_names)
    columns = dataset.column_names
    read_source = (lambda row: row["source"]) if canonical else _reader(config, "source", columns)
    read_target = (lambda row: row["target"]) if canonical else _reader(config, "target", columns)

    def rows() -> Iterator[tuple[str, list[str]]]:
        for row in dataset:
            target = read_target(row)
            references = [str(item) for item in target] if isinstance(target, list) else [target]
            yield _text(read_source(row)), [_text(item) for item in references] or [""]

    pairs: dict[str, list[Any]] = {"source": [], "target": [], "references": []}
    dropped = 0
    for number, (source, references) in enumerate(rows(), start=1):
        if not source or not references[0]:
            if config.empty == "error":
                side = "target" if source else "source"
                raise UserError(
                    f"the {split} split of dataset '{config.name}', example {number}: the {side} is empty "
                    "(dataset.empty=drop leaves such pairs out)"
                )
            dropped += 1
            continue
        pairs["source"].append(source)
        pairs["target"].append(references[0])
        pairs["references"].append(references)
    if dropped:
        notes.append(f"{split}: {dropped:,} pairs with an empty side dropped")
    return Dataset.from_dict(pairs)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _cut_valid(config: DatasetConfig, splits: dict[str, Dataset], notes: list[str]) -> None:
    """Cuts a validation split from the end of the training split where there is none."""
    from datasets import Dataset

    if "valid" in splits:
        return
    if config.valid_fraction == 0:
        raise UserError(
            f"dataset '{config.name}' has no validation split ({_where(config)}): name it with dataset.splits.valid, "
            "or cut it from the training split with dataset.valid_fraction=0.05"
        )
    train = splits["train"]
    kept = 1.0 - config.valid_fraction
    if config.task == "lm" and len(train) == 1:
        text = train[0]["text"]
        end = int(len(text) * kept)
        splits["train"] = Dataset.from_dict({"text": [text[:end]]})
        splits["valid"] = Dataset.from_dict({"text": [text[end:]]})
        notes.append(f"valid: the last {config.valid_fraction:.0%} of the text")
        return
    end = int(len(train) * kept)
    splits["train"], splits["valid"] = train.select(range(end)), train.select(range(end, len(train)))
    notes.append(f"valid: the last {config.valid_fraction:.0%} of the training examples")
