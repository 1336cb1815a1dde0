"""Where raw splits come from: embedded generators, local files, the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.plain_text import COMPRESSED, Unchanged, file_digest, unpacked
from tfx.data.records import Reading, parallel_rows, table_rows, whole_texts
from tfx.data.rows import Batch, canonical, columns_of
from tfx.data.split_files import SPLITS
from tfx.data.store import in_memory, kept, mapped
from tfx.errors import UserError, suggest
from tfx.record.directory import writable_cache
from tfx.record.files import replacing
from tfx.terminal.console import counted

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_EMBEDDED_SEED = 1


@dataclass(frozen=True)
class SourceFile:
    """A file of a split, with its folder if others have the same name, and its number of rows.

    Rows are lines of aligned files, else records; None for a whole text.
    """

    file: str
    rows: int | None


def shown_names(paths: list[Path], names: Counter[str]) -> list[str]:
    """The names of files as they are shown, with the folder where ``names``, of all that are read, has one twice."""
    return [path.name if names[path.name] == 1 else f"{path.parent.name}/{path.name}" for path in paths]


def describe_files(files: list[SourceFile]) -> str:
    """Files with their rows, as many as fit on a line."""
    shown = [file.file if file.rows is None else f"{file.file} ({counted(file.rows, 'row')})" for file in files[:6]]
    return ", ".join(shown) + (f" and {len(files) - 6} more" if len(files) > 6 else "")


def generated(config: DatasetConfig) -> tuple[dict[str, Dataset], str]:
    """Splits that a program makes, and their fingerprint; raises `UserError` where it cannot."""
    from tfx.data import normalize, stdlib

    try:
        if config.format == "stdlib":
            splits, digest = _made("lm", stdlib.read)
        elif config.format == "kinds":
            splits, digest = _made("classification", normalize.kinds, _EMBEDDED_SEED)
        else:
            splits, digest = _made("seq2seq", normalize.generate, _EMBEDDED_SEED)
    except FileNotFoundError as error:
        raise UserError(f"dataset '{config.name}': {error}; choose another data set") from None
    return dict(splits), digest


def label_settings(config: DatasetConfig) -> list[str]:
    """The settings of labels that decide what is read; none for other tasks, whose keys stay what they were."""
    if config.task != "classification":
        return []
    return [config.pair or "", config.label, config.predict, config.label_separator]


@lru_cache(maxsize=3)
def _made(
    task: str, make: Callable[..., dict[str, list[dict[str, str]]]], *arguments: int
) -> tuple[dict[str, Dataset], str]:
    """What a program makes, and its fingerprint. Kept, for a process may train a teacher or try arms on it as well."""
    rows = make(*arguments)
    digest = hashlib.sha256()
    for name in SPLITS:
        for row in rows[name]:
            digest.update("\0".join([name, *row.values(), ""]).encode("utf-8", "surrogatepass"))
    key = digest.hexdigest()
    splits = {}
    named = [column for column in TASKS[task].columns if column in rows["train"][0]]
    for name in SPLITS:
        texts = ((*(row[column] for column in named), 0) for row in rows[name])
        own_key = hashlib.sha256(f"{key}\0{name}".encode()).hexdigest()
        splits[name] = in_memory(columns_of(task), canonical(task, texts), own_key)
    return splits, key


def from_hub(config: DatasetConfig, notes: list[str]) -> tuple[dict[str, Dataset], str, dict[str, list[SourceFile]]]:
    """Raw splits of a repository, the client's fingerprints, and the splits in place of files."""
    from datasets import load_dataset

    assert config.hub is not None
    cache = writable_cache("hub")
    try:
        found = load_dataset(config.hub, config.hub_config, revision=config.hub_revision, cache_dir=str(cache))
    except Exception as error:  # the hub client raises a dozen kinds, from timeouts to parser errors
        raise UserError(_not_loaded(config, error)) from error
    names = _hub_names(config, list(map(str, found)), notes)
    splits = {split: mapped(found[name]) for split, name in names.items()}
    files = {split: [SourceFile(f"{config.hub}: {name}", len(splits[split]))] for split, name in names.items()}
    # The hub client's own fingerprint covers repository, revision and files.
    return splits, repr([(name, dataset._fingerprint) for name, dataset in splits.items()]), files


def _hub_names(config: DatasetConfig, found: list[str], notes: list[str]) -> dict[str, str]:
    """The name of each split in a repository. Raises `UserError` if none is the training split."""
    names = {}
    for split in SPLITS:
        if name := next((each for each in getattr(config.splits, split) if each in found), None):
            names[split] = name
    if "train" not in names:
        raise UserError(
            f"{config.hub} has no split {' or '.join(config.splits.train)} "
            f"(dataset.splits.train){suggest('train', found)}"
        )
    if unused := [name for name in found if name not in names.values()]:
        notes.append(f"splits of {config.hub} left out: {', '.join(unused)}")
    return names


def streamed_from_hub(
    config: DatasetConfig, notes: list[str]
) -> tuple[dict[str, Callable[[], IterableDataset]], str, dict[str, list[SourceFile]]]:
    """What opens each split of a repository without a download, a fingerprint of its files, and the splits."""
    from datasets import load_dataset_builder

    assert config.hub is not None
    try:
        cache = str(writable_cache("hub"))
        builder = load_dataset_builder(config.hub, config.hub_config, revision=config.hub_revision, cache_dir=cache)
        found = list(map(str, builder.as_streaming_dataset()))
    except Exception as error:
        raise UserError(_not_loaded(config, error)) from error
    names = _hub_names(config, found, notes)
    files = {split: [SourceFile(f"{config.hub}: {name}", None)] for split, name in names.items()}
    splits: dict[str, Callable[[], IterableDataset]] = {
        split: partial(builder.as_streaming_dataset, split=name) for split, name in names.items()
    }
    return splits, f"{builder.config_id}\0{builder.hash}", files


def with_columns(stream: IterableDataset) -> IterableDataset:
    """A stream that knows its columns: where no one told it, the first rows do."""
    return stream if stream.column_names else stream._resolve_features()


def _not_loaded(config: DatasetConfig, error: BaseException) -> str:
    return (
        f"dataset '{config.name}' cannot be loaded from the hub ({config.hub}): {_first_line(error)}; "
        "to use a local copy, name it with dataset.path=…"
    )


def from_files(
    config: DatasetConfig, found: dict[str, list[Path]], notes: list[str], rules: set[str]
) -> tuple[dict[str, Dataset], tuple[str, str], dict[str, list[SourceFile]]]:
    """Splits of the files ``found``, digests of their content with and without their names, and the files of each."""
    digest, nameless = hashlib.sha256(), hashlib.sha256()
    splits: dict[str, Dataset] = {}
    files: dict[str, list[SourceFile]] = {}
    names = Counter(path.name for paths in found.values() for path in paths)
    for split, paths in found.items():
        content, nameless_content = hashlib.sha256(), hashlib.sha256()
        unchanged = Unchanged(paths)
        for path in paths:
            own = file_digest(path)
            content.update(path.name.encode("utf-8", "surrogatepass") + b"\0" + own)
            nameless_content.update(own)
        digest.update(split.encode() + content.digest())
        nameless.update(split.encode() + nameless_content.digest())
        counts: list[int | None]
        if config.format == "parquet":
            splits[split], counts = _read_parquet(paths, content.hexdigest())
            unchanged.check()
        else:
            splits[split], counts = _read(config, paths, content.hexdigest(), unchanged, notes, rules)
        files[split] = [SourceFile(name, count) for name, count in zip(shown_names(paths, names), counts, strict=True)]
        if len(paths) > (2 if config.format == "parallel" else 1):
            are_apart = config.format == "text" and config.document_mask
            what = "kept apart, each a document" if are_apart else "joined"
            notes.append(f"{split}: {len(paths)} files {what}: {describe_files(files[split])}")
    return splits, (digest.hexdigest(), nameless.hexdigest()), files


def _read(
    config: DatasetConfig, paths: list[Path], content: str, unchanged: Unchanged, notes: list[str], rules: set[str]
) -> tuple[Dataset, list[int | None]]:
    """The rows of text files, all of them, and the rows of each file: read once, and then kept in the cache."""
    # What decides the rows, or whether they are refused.
    settings = [config.task, config.format, config.source, config.target, config.text, config.empty]
    settings += label_settings(config)
    settings += [str(any(asdict(config.limit).values())), content]
    key = hashlib.sha256(repr(settings).encode("utf-8", "surrogatepass")).hexdigest()
    read = {"parallel": parallel_rows, "text": whole_texts}.get(config.format, table_rows)

    def make(facts: dict[str, Any]) -> Iterator[Batch]:
        reading = Reading()
        yield from canonical(config.task, read(config, paths, reading))
        unchanged.check()  # the entry that is made is that of this content for ever
        facts |= asdict(reading) | {"rules": sorted(reading.rules)}

    dataset, facts = kept(key, columns_of(config.task), make)
    notes += facts["notes"]
    rules.update(facts["rules"])
    return dataset, facts["counts"]


def _read_parquet(paths: list[Path], content: str) -> tuple[Dataset, list[int | None]]:
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
        return mapped(load_dataset("parquet", data_files=filled, split="train", cache_dir=str(cache))), counts
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
    unchanged = Unchanged([path])
    # Files in several folders may have the same name.
    plain = cache / f"{file_digest(path).hex()[:32]}-{path.name.removesuffix(path.suffix)}"
    if not plain.is_file():
        with replacing(plain) as temporary, open(temporary, "wb") as file:
            file.writelines(unpacked(path))
            unchanged.check()
    return plain


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
