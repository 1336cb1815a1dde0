"""Where raw splits come from: embedded generators, local files, the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import DatasetConfig
from tfx.config.tasks import TASKS
from tfx.data.files import SPLITS, find_files
from tfx.data.reading import COMPRESSED, cr_note, file_digest, mark_note, read_bytes, read_text
from tfx.data.tables import csv_rows as _csv_rows
from tfx.data.tables import json_rows as _json_rows
from tfx.errors import UserError, suggest
from tfx.record.files import write_bytes

if TYPE_CHECKING:
    from datasets import Dataset
from tfx.data.rows import Reader, text_dataset
from tfx.record.directory import writable_cache

_EMBEDDED_SEED = 1


@dataclass(frozen=True)
class SourceFile:
    """A file of a split, with its folder if others have the same name, and its number of rows.

    Rows are lines of aligned files, else records; None for a whole text.
    """

    file: str
    rows: int | None


def describe_files(files: list[SourceFile]) -> str:
    """Files with their rows, as many as fit on a line."""
    shown = [file.file if file.rows is None else f"{file.file} ({file.rows:,} rows)" for file in files[:6]]
    return ", ".join(shown) + (f" and {len(files) - 6} more" if len(files) > 6 else "")


def generated(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    """Splits that a program makes, and their fingerprint; raises `UserError` where it cannot."""
    from tfx.data import normalize, stdlib

    try:
        is_stdlib = config.format == "stdlib"
        splits, digest = _made(stdlib.read) if is_stdlib else _made(normalize.generate, _EMBEDDED_SEED)
    except FileNotFoundError as error:
        raise UserError(f"dataset '{config.name}': {error}; choose another data set") from None
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


def from_hub(config: DatasetConfig, notes: list[str]) -> tuple[dict[str, Dataset], str, dict[str, list[SourceFile]]]:
    """Raw splits of a repository, the client's fingerprints, and the splits in place of files."""
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


def from_files(
    config: DatasetConfig, notes: list[str], rules: set[str]
) -> tuple[dict[str, Dataset], tuple[str, str], dict[str, list[SourceFile]]]:
    """Raw splits of local files, digests of their content with and without the names of the files, and the files."""
    from datasets import Dataset

    digest, nameless = hashlib.sha256(), hashlib.sha256()
    splits: dict[str, Dataset] = {}
    files: dict[str, list[SourceFile]] = {}
    found = find_files(config, notes)
    names = Counter(path.name for paths in found.values() for path in paths)
    for split, paths in found.items():
        content, nameless_content = hashlib.sha256(), hashlib.sha256()
        for path in paths:
            own = file_digest(path)
            content.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + own)
            nameless_content.update(own)
        digest.update(split.encode() + content.digest())
        nameless.update(split.encode() + nameless_content.digest())
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
    return splits, (digest.hexdigest(), nameless.hexdigest()), files


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
        if found.crlf:  # here a line end is text
            notes.append(f"{path.name}: {found.crlf:,} lines end in \\r\\n, of which \\n is kept")
        if found.crlf or found.cr:
            rules.add("line ends")
        texts.append(found.text)
    return text_dataset(texts)


def _read_parquet(paths: list[Path], content: str) -> tuple[Dataset, list[int]]:
    import pyarrow.parquet
    from datasets import Dataset, load_dataset

    # A cache folder named by the content, because the library's own key is path and modification time.
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
    """The kind of an Arrow type, without its width, which the library converts between files."""
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if any(match(kind) for match in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)):
        return "text"
    return next((name for name in ("integer", "floating", "nested") if getattr(types, f"is_{name}")(kind)), str(kind))


def _check_alike(paths: list[Path], columns: list[dict[str, str]]) -> None:
    """Refuses files of one split with different columns or types: "007" would become 7 if the first has numbers."""
    for path, own in zip(paths, columns, strict=True):
        for name in [*columns[0], *own]:
            kinds = [each.get(name, "missing") for each in (columns[0], own)]
            if kinds[0] != kinds[1]:
                raise UserError(
                    f"column '{name}' is {kinds[0]} in {paths[0]} and {kinds[1]} in {path.name}: files of one split "
                    "need the same columns; rewrite them, or name those that belong together with dataset.path"
                )


def _unpacked(path: Path, cache: Path) -> Path:
    """A file that Arrow can open: the file itself, or if it is compressed, its content in the cache."""
    if path.suffix.lower() not in COMPRESSED:
        return path
    # Files in several folders may have the same name.
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
    readers = {setting: Reader(config, setting) for setting in settings}
    columns: dict[str, list[Any]] = {setting: [] for setting in (*settings, "flags")}
    known: dict[str, None] = {}
    lacking: list[str] = []
    counts = []
    last: tuple[Path, dict[str, Any]] = paths[0], {}
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
                if not lacking and (missing := reader.missing(row)):
                    lacking.append(f"{path}, line {line}: the key '{missing}' is missing (dataset.{setting})")
            columns["flags"].append(flags)
            last = path, row
        counts.append(len(columns[settings[0]]) - before)
    if columns[settings[0]]:
        if len(columns[settings[0]]) == len(known) == 1:
            _check_nested(*last)
        for reader in readers.values():
            reader.check(list(known))
    # Documents without text are counted and left out; and where there are limits, a row may be one that nothing reads.
    is_wanted = not TASKS[config.task].is_stream and not any(asdict(config.limit).values())
    if lacking and is_wanted and config.empty == "error":
        raise UserError(f"{lacking[0]}: add it, or leave such pairs out with dataset.empty=drop")
    if not TASKS[config.task].is_stream:
        return Dataset.from_dict(columns), counts
    dataset = text_dataset(columns["text"])
    return (dataset.add_column("flags", columns["flags"]) if any(columns["flags"]) else dataset), counts


def _check_nested(path: Path, row: dict[str, Any]) -> None:
    """Refuses a file of one object with one key that holds the rows themselves, as ``{"data": [{…}, …]}``."""
    ((key, inner),) = row.items()
    if isinstance(inner, list) and inner and all(isinstance(each, dict) for each in inner):
        raise UserError(
            f"{path}: its rows are a list in one object, under the key '{key}': write that list alone "
            f"(`jq '.{key}' {path.name}`), or an object a line"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
