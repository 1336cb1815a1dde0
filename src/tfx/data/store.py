"""Rows of text on disk: written as they come, and read through memory maps whose pages are given back.

A page of a map that was read counts as memory of the process until it is given back. The system keeps it as long as it
has room, so that reading it again costs little.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from tfx.record.cache import cached
from tfx.record.directory import writable_cache

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

# Of the columns that rows are kept in.
_LAYOUT = 3
_ROWS, _FACTS = "rows.arrow", "facts.json"
# A batch of rows is closed at the first of these.
_BATCH_ROWS, _BATCH_CHARACTERS = 5_000, 1 << 22

Batches = Iterable[dict[str, list[Any]]]
_maps: WeakSet[mmap.mmap] = WeakSet()


def kept(
    key: str, columns: dict[str, str], make: Callable[[dict[str, Any]], Batches]
) -> tuple[Dataset, dict[str, Any]]:
    """The rows of a cache entry and the facts about them; ``make`` gives batches of rows and fills the facts first.

    ``columns`` are the names with their Arrow types; ``key`` is a hash of all that decides the rows.
    """

    def write(folder: Path) -> None:
        facts: dict[str, Any] = {}
        facts["stored"] = _write(folder / _ROWS, columns, make(facts))
        (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    def read(folder: Path) -> tuple[Dataset, dict[str, Any]]:
        facts = dict(json.loads((folder / _FACTS).read_text(encoding="utf-8")))
        dataset = _dataset([folder / _ROWS], key)
        if facts.pop("stored") != [len(dataset), (folder / _ROWS).stat().st_size]:
            raise ValueError("rows are missing")  # the format has no length: it may be cut between two batches
        return dataset, facts

    return cached(writable_cache("rows") / f"{key[:32]}-{_LAYOUT}", read, write)


def in_memory(columns: dict[str, str], batches: Batches, key: str) -> Dataset:
    """The same rows without a file, for those that are in memory anyway."""
    import pyarrow

    schema = _schema(columns)
    table = pyarrow.Table.from_batches([pyarrow.record_batch(batch, schema=schema) for batch in batches], schema)
    return _wrapped(table, key)


def mapped(dataset: Dataset) -> Dataset:
    """A data set of the `datasets` library, in memory maps of ours where it lies in files."""
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if not files or dataset._indices is not None:
        return dataset
    found = _dataset(files, dataset._fingerprint, dataset.features)
    return found if len(found) == len(dataset) else dataset


def batches_of(rows: Iterable[tuple[Any, ...]], columns: Iterable[str]) -> Iterator[dict[str, list[Any]]]:
    """Rows as batches of columns, of a bounded number of rows and characters."""
    names = list(columns)
    held: list[tuple[Any, ...]] = []
    characters = 0
    for row in rows:
        held.append(row)
        characters += len(row[0])
        if len(held) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield dict(zip(names, map(list, zip(*held, strict=True)), strict=True))
            held, characters = [], 0
    if held:
        yield dict(zip(names, map(list, zip(*held, strict=True)), strict=True))


def scan(dataset: Dataset, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """The columns of all rows, some rows at a time."""
    for batch in arrow_batches(dataset, columns):
        yield batch.to_pydict()


def arrow_batches(dataset: Dataset, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    """The columns of all rows as Arrow keeps them, some rows at a time."""
    if dataset._indices is None:  # nothing is copied
        tables = [dataset.data.table.select(columns)]
    else:
        tables = dataset.select_columns(columns).with_format("arrow").iter(batch_size=_BATCH_ROWS)
    for table in tables:
        for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
            yield batch
            release()


def watch(array: Any) -> None:
    """Adds the map of a memory-mapped array to those whose pages are given back."""
    if isinstance(held := getattr(array, "_mmap", None), mmap.mmap):
        _maps.add(held)


def release() -> None:
    """Gives back the pages of all maps; what is read again comes from the system's own cache."""
    if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        for held in list(_maps):
            held.madvise(mmap.MADV_DONTNEED)


def _schema(columns: dict[str, str]) -> pyarrow.Schema:
    import pyarrow

    kinds = {"texts": pyarrow.list_(pyarrow.string())}
    return pyarrow.schema([(name, kinds.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in columns.items()])


def _write(path: Path, columns: dict[str, str], batches: Batches) -> list[int]:
    """Returns the number of rows and of bytes."""
    import pyarrow

    schema, rows = _schema(columns), 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(made := pyarrow.record_batch(batch, schema=schema))
            rows += made.num_rows
    return [rows, path.stat().st_size]


def _dataset(files: list[Path], key: str, features: Any = None) -> Dataset:
    import pyarrow

    tables = []
    for path in files:
        with open(path, "rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _maps.add(held)
        tables.append(pyarrow.ipc.open_stream(pyarrow.py_buffer(held)).read_all())
    return _wrapped(pyarrow.concat_tables(tables), key, features)


def _wrapped(table: pyarrow.Table, key: str, features: Any = None) -> Dataset:
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table), info=DatasetInfo(features=features), fingerprint=key[:32])
