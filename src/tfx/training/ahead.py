"""The next batch, made by a thread while a step runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tfx.config.schema import TrainerConfig
from tfx.model.batch import Batch
from tfx.tasks.batches import TrainingBatches


class Batches(Iterator[Batch], Protocol):
    """The endless batches of a training, as `TrainingBatches` gives them."""

    def state_dict(self) -> dict[str, Any]: ...

    def notes(self) -> list[str]: ...

    def shares(self) -> list[dict[str, Any]]: ...

    def close(self) -> None:
        """Call this when no more batches are needed."""


def made_ahead(batches: TrainingBatches, config: TrainerConfig, device: torch.device) -> Batches:
    """The same batches, each made while the one before is trained on where ``trainer.prefetch`` says so."""
    is_ahead = config.prefetch == "on" or (config.prefetch == "auto" and device.type == "cuda")
    return Ahead(batches, device) if is_ahead else batches


@dataclass(frozen=True)
class _Made:
    """A batch, and what the batches said of themselves when it had been taken from them."""

    batch: Batch
    state: dict[str, Any]
    notes: list[str]
    shares: list[dict[str, Any]]


class Ahead(Iterator[Batch]):
    """Batches in their order, one of them ahead; for a GPU in memory from which it copies while it computes.

    Everything else is told as of the batch that was taken last, so that a saved state knows nothing of the one ahead.
    What making a batch raises is raised where that batch is asked for.
    """

    def __init__(self, batches: TrainingBatches, device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._told = batches.state_dict(), batches.notes(), batches.shares()
        self._pool = ThreadPoolExecutor(1, "tfx-batches", self._begin)
        self._next: Future[_Made] | None = None

    def _begin(self) -> None:
        """Has the thread use the GPU of this process, and not the first one."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def _make(self) -> _Made:
        batch, batches = next(self._batches), self._batches
        if self._device.type == "cuda":
            batch = batch.pinned()
        return _Made(batch, batches.state_dict(), batches.notes(), batches.shares())

    def __next__(self) -> Batch:
        if self._next is None:
            self._next = self._pool.submit(self._make)
        made = self._next.result()
        self._next = self._pool.submit(self._make)
        self._told = made.state, made.notes, made.shares
        return made.batch

    def state_dict(self) -> dict[str, Any]:
        """What going on after the last batch taken needs besides the number of batches."""
        return self._told[0]

    def notes(self) -> list[str]:
        """What is to be said of the rows that were read for the batches taken."""
        return self._told[1]

    def shares(self) -> list[dict[str, Any]]:
        """The parts of the corpora of a mixture in the batches taken."""
        return self._told[2]

    def close(self) -> None:
        """Ends the thread; a batch that it is making is thrown away."""
        self._pool.shutdown(cancel_futures=True)
