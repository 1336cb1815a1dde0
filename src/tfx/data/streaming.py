"""A training split that is read while it is trained on: a hub data set without a download, or large local files.

The `datasets` library reads it, and its state says where: a reader that loads the state goes on with the next row.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.loaders import shown_names, with_columns
from tfx.data.plain_text import COMPRESSED, Unchanged, refuse_pointer
from tfx.data.records import Reading, parallel_rows, table_rows
from tfx.data.rows import Reader, RowReader, is_without_text, readable, reading_table, row_maker
from tfx.errors import UserError

if TYPE_CHECKING:
    from datasets import IterableDataset

# Besides its size, what identifies a local file: its first and its last bytes.
_TELLING_BYTES = 1 << 20
# What a resumed run also compares: this many blocks at even distances, which are all of a file of at most 4 MiB.
_BLOCK_BYTES, _BLOCKS = 1 << 18, 16

Row = tuple[Any, ...]
"""A row in the columns that rows are kept in: texts, flags and key."""


@dataclass(frozen=True)
class RowStream:
    """The rows of a training split in the order of its files. Any number of readers read it, each from its own place.

    ``open`` gives the rows from the start, with a state of their own each time. ``read`` gives the texts and flags of
    such a row, or a list of notes where that stands in a row's place.
    ``files`` are digests of blocks of local files, by their names; ``modified`` is when the last of them was changed.
    """

    config: DatasetConfig
    open: Callable[[], IterableDataset]
    read: Callable[[dict[str, Any]], Row | list[str]]
    files: dict[str, str] = field(default_factory=dict)
    modified: str = ""

    def texts(self, count: int) -> Iterator[str]:
        """The texts of the first ``count`` rows."""
        columns = len(TASKS[self.config.task].texts)
        for row in StreamReader(self).take(count):
            yield from row[:columns]


class StreamReader:
    """Reads one pass over a stream, on from a place. ``seen`` rows were read so far; ``notes`` are those of its files.

    ``flags`` counts the rows by their flags.
    """

    def __init__(self, stream: RowStream, state: dict[str, Any] | None = None) -> None:
        self.stream = stream
        self.seen = 0
        self.notes: list[str] = []
        self.flags: Counter[int] = Counter()
        self._source = stream.open()
        self._make = row_maker(stream.config.task)
        if state is not None:
            self.seen, self.notes = state["seen"], list(state["notes"])
            self.flags.update({int(flags): count for flags, count in state["flags"].items()})
            self._source.load_state_dict(state["source"])
        # An error of the hub's network is not the data's, and one in the text of a file says where by itself.
        is_local_table = stream.config.format == "parquet" and stream.config.path is not None
        self._rows = readable(self._source, stream.config, lambda: self.seen) if is_local_table else iter(self._source)

    def take(self, count: int) -> Iterator[Row]:
        """The next rows with text, at most ``count``; fewer only at the end of the pass.

        Raises `UserError` for a pair with an empty side where the config asks for it.
        """
        config, taken = self.stream.config, 0
        while taken < count and self.seen != config.limit.train and (raw := next(self._rows, None)) is not None:
            found = self.stream.read(raw)
            if isinstance(found, list):
                self.notes += [note for note in found if note not in self.notes]
                continue
            self.seen += 1
            row = self._make(found)
            flags = row[-2]
            self.flags[flags] += 1
            if not is_without_text(flags):
                taken += 1
                yield row
            elif config.empty == "error" and not TASKS[config.task].is_stream:
                raise UserError(
                    f"the training stream of dataset '{config.name}', row {self.seen:,}: a side is empty "
                    "(dataset.empty=drop leaves such rows out)"
                )

    def state_dict(self) -> dict[str, Any]:
        """The place after the last row taken, and what was counted."""
        flags = {str(flags): count for flags, count in self.flags.items()}
        return {"seen": self.seen, "notes": list(self.notes), "flags": flags, "source": self._source.state_dict()}


def local_stream(config: DatasetConfig, paths: list[Path]) -> tuple[RowStream, str]:
    """The rows of local files, and a fingerprint of the files that needs no reading of all of them."""
    stream, fingerprint = _local_stream(config, paths)
    blocks = [_blocks(path) for path in paths]
    unchanged = [Unchanged([path]) for path in paths]

    def open_unchanged() -> IterableDataset:
        for path, stamp, own in zip(paths, unchanged, blocks, strict=True):
            if not stamp.holds() and _blocks(path) != own:
                raise UserError(f"{path} changed while the run reads it: put it back as it was, and resume the run")
        return stream.open()

    files = dict(zip(shown_names(paths, Counter(path.name for path in paths)), blocks, strict=True))
    modified = datetime.fromtimestamp(max(path.stat().st_mtime for path in paths), UTC)
    return replace(stream, open=open_unchanged, files=files, modified=modified.isoformat()), fingerprint


def _local_stream(config: DatasetConfig, paths: list[Path]) -> tuple[RowStream, str]:
    from datasets import IterableDataset, load_dataset_builder

    fingerprint = hashlib.sha256(b"".join(map(_telling, paths))).hexdigest()
    names = [str(path.resolve()) for path in paths]
    if config.format == "parquet":
        for path in paths:
            if path.suffix.lower() in COMPRESSED:
                raise UserError(f"{path} is compressed, and Parquet is not streamed out of such a file: unpack it")
        builder = load_dataset_builder("parquet", data_files=names)
        return table_stream(config, lambda: builder.as_streaming_dataset(split="train")), fingerprint
    files = [names[i : i + 2] for i in range(0, len(names), 2)] if config.format == "parallel" else [[n] for n in names]
    arguments = {"files": files, "config": config}
    return RowStream(
        config, lambda: IterableDataset.from_generator(_local_rows, gen_kwargs=arguments), _local_row
    ), fingerprint


def _telling(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            refuse_pointer(path, file)
            size = path.stat().st_size
            first = file.read(_TELLING_BYTES)
            file.seek(max(0, size - _TELLING_BYTES))
            content = first + file.read(_TELLING_BYTES)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return hashlib.sha256(f"{path.name}\0{size}\0".encode("utf-8", "surrogatepass") + content).digest()


def _blocks(path: Path) -> str:
    """A digest of blocks of a file. `_telling` has no middle, and must stay as it is for runs that have recorded it."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            last = max(0, path.stat().st_size - _BLOCK_BYTES)
            for place in sorted({last * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
                file.seek(place)
                digest.update(file.read(_BLOCK_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _local_rows(files: list[list[str]], config: DatasetConfig) -> Iterator[dict[str, Any]]:
    """The rows of each file, and after them the notes of the file."""
    for names in files:
        reading = Reading()
        read = parallel_rows if config.format == "parallel" else table_rows
        for *texts, flags in read(config, list(map(Path, names)), reading):
            yield {"texts": texts, "flags": flags}
        yield {"notes": reading.notes}


def _local_row(row: dict[str, Any]) -> Row | list[str]:
    return row["notes"] if "notes" in row else (*row["texts"], row["flags"])


def table_stream(config: DatasetConfig, open: Callable[[], IterableDataset]) -> RowStream:
    """The rows of a table, in the columns that the config names."""
    reader = RowReader(config)
    with reading_table(config, lambda: "columns"):
        columns = with_columns(open()).column_names
    needed = sorted({column for each in reader.readers.values() for column in each.check(columns)})

    def place(each: Reader) -> str:
        return f"{each.setting}={each.spec}, a row of the training stream"

    return RowStream(config, lambda: open().select_columns(needed), lambda row: reader.read(row, place))
