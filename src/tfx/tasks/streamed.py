"""A training split that is read while it is trained on: some rows at a time are tokenized and cut into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from tfx.config.schema import DatasetConfig
from tfx.config.task_facts import TASKS
from tfx.data.ragged import ArrayLists
from tfx.data.rows import columns_of, remarks
from tfx.data.store import batches_of, in_memory
from tfx.data.streaming import RowStream, StreamReader
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.record.seeds import derive_seed
from tfx.tasks.contract import Split, Task
from tfx.tasks.unnumbered import UnnumberedSplit


@dataclass
class Streamed(UnnumberedSplit):
    """The training split of a streamed data set. Nothing that needs all of it at once can be done with it."""

    task: Task
    config: DatasetConfig
    stream: RowStream
    tokenizer: Tokenizer
    context: int

    def __len__(self) -> int:
        self.refuse("the number of its rows")

    @property
    def size(self) -> None:
        return None

    @property
    def longest(self) -> int:
        """At most, for the rows are not known yet."""
        if TASKS[self.config.task].is_stream:
            return 0
        return min(self.context, (self.config.max_tokens or self.context) + 1)

    @property
    def tokens_of_all(self) -> Iterator[np.ndarray]:
        self.refuse("all of its tokens")

    def refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"the training split of dataset '{self.config.name}' is streamed, and something in this run needs {what}: "
            "leave it out, or prepare the data with dataset.streaming=false"
        )


class Buffers:
    """The endless batches of a streamed split: of ``dataset.buffer`` rows at a time, in a random order of their own.

    The order of a buffer is keyed by (seed, its number), so that a resumed run reads the rows of the buffer that it was
    in once more and goes on with its next batch.
    """

    def __init__(self, split: Streamed, *, batch_tokens: int, seed: int, purpose: str, state: dict[str, Any] | None):
        self._split, self._batch_tokens, self._seed, self._purpose = split, batch_tokens, seed, purpose
        state = state or {"reader": None, "passes": 0, "number": 0, "made": 0, "taken": 0, "counts": {}}
        self._passes, self._number, self._made = state["passes"], state["number"], state["made"]
        self._counts: Counter[str] = Counter(state["counts"])
        self._reader = StreamReader(split.stream, state["reader"])
        self._part: Split | None = None
        self._order: list[np.ndarray] = []
        self._taken = 0
        # What the current buffer begins with.
        self._before = self._place()
        if state["taken"]:
            self._fill()
            self._taken = state["taken"]

    def take(self) -> Batch:
        """The next batch."""
        while self._taken == len(self._order):
            self._fill()
        assert self._part is not None
        batch = self._part.collate(self._order[self._taken], self._split.context, self._split.tokenizer)
        self._taken += 1
        return batch

    def first_part(self) -> Split:
        """The rows of the first buffer of which some can be trained on."""
        while self._part is None:
            self._fill()
        return self._part

    def state_dict(self) -> dict[str, Any]:
        """Where the current buffer begins, and how many of its batches are taken."""
        return self._before | {"taken": self._taken}

    def notes(self) -> list[str]:
        """What is to be said of the rows that were read so far."""
        reader = self._reader
        place = f" in pass {self._passes + 1}" if self._passes else ""
        rows = f"train: {reader.seen:,} rows of the stream read{place}"
        said = [f"train: {count:,} {what}" for what, count in self._counts.items() if count]
        return [rows, *reader.notes, *remarks("train", reader.flags), *said]

    def _place(self) -> dict[str, Any]:
        numbers = {"passes": self._passes, "number": self._number, "made": self._made}
        return {"reader": self._reader.state_dict(), "counts": dict(self._counts), **numbers}

    def _fill(self) -> None:
        """Reads the next buffer; at the end of the stream it begins again."""
        split, self._before = self._split, self._place()
        self._number += 1
        self._taken, self._order = 0, []
        rows = list(self._reader.take(split.config.buffer))
        if not rows:
            if not self._made:
                raise UserError(
                    f"no row of the training stream of dataset '{split.config.name}' can be trained on: each is empty, "
                    "or does not fit model.context, dataset.max_tokens and dataset.max_length_ratio"
                )
            self._passes, self._made = self._passes + 1, 0
            again = StreamReader(split.stream)
            again.notes = self._reader.notes
            self._reader = again
            return
        self._part = self._tokenized(rows)
        if self._part is not None:
            rng = np.random.Generator(np.random.PCG64(derive_seed(self._seed, self._purpose, self._number)))
            self._order = self._part.epoch(self._batch_tokens, split.context, rng)
            self._made += len(self._order)

    def _tokenized(self, rows: list[tuple[Any, ...]]) -> Split | None:
        split = self._split
        columns = columns_of(split.config.task)
        dataset = in_memory(columns, batches_of(rows, columns), f"buffer {self._number}")
        arrays = ArrayLists()
        split.task.tokenize(dataset, split.tokenizer, arrays, is_part=True)
        return split.task.part(arrays.close(), split.config, split.tokenizer, split.context, self._counts)
