"""What a part of the check is: a function of the bench that gives rows, found by its name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tfx.config.compose import compose
from tfx.model import device as devices
from tfx.run.setup import Parts, Setup
from tfx.training.loop import Observer, Trainer

# On a CPU, to see that a part runs: a model and data that take no time.
SMALL = [
    *("model.width=16", "model.heads=2", "model.kv_heads=2", "model.ffn_width=16", "model.decoder_layers=1"),
    *("model.context=64", "dataset.batch_tokens=256", "dataset.tokenizer.kind=char"),
]
SMALL_PAIRS = [
    *("model.encoder_layers=1", "dataset.limit.train=60", "dataset.limit.valid=8", "dataset.limit.test=8"),
]
SMALL_TEXT = ["dataset.limit.train=40", "dataset.limit.valid=2", "dataset.limit.test=2"]


@dataclass(frozen=True)
class Row:
    """One line of the table. ``good`` is None where there is nothing to pass."""

    what: str
    value: str
    good: bool | None = None
    number: float | None = None


@dataclass(frozen=True)
class Bench:
    """Where to run, in which sizes, and the data that the user has."""

    device: torch.device
    small: bool
    shakespeare: Path | None = None
    # What one part measured and another one needs: the rate of matrix products, in FLOP/s.
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        """Whether this is the real thing."""
        return self.device.type == "cuda"

    def words(self, *words: str) -> list[str]:
        """Overrides of a run here; in small sizes if those are asked for."""
        kinds = {"dataset=normalize": SMALL_PAIRS, "dataset=stdlib": SMALL_TEXT}
        small = [*SMALL, *kinds.get(words[1], [])] if self.small else []
        return [*words[:2], *small, *words[2:], f"trainer.device={self.device}"]

    def prepare(self, *words: str) -> Parts:
        """The parts of a run that these overrides describe."""
        return Setup(compose(self.words(*words))).prepare({})

    @contextmanager
    def asynchronous(self) -> Iterator[None]:
        """Inside, even a CPU is a device that is not waited for."""
        before = devices._SYNCHRONOUS
        devices._SYNCHRONOUS = ()
        try:
            yield
        finally:
            devices._SYNCHRONOUS = before

    def wait(self) -> None:
        """Waits until the device has done its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {}


def part(work: Callable[[Bench], Iterator[Row]]) -> Callable[[Bench], Iterator[Row]]:
    """Registers a part under the name of its function."""
    PARTS[work.__name__] = work
    return work


class Told(Observer):
    """Keeps what a training tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rows: list[dict[str, float]] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)

    def stepped(self, row: dict[str, float], **place: Any) -> None:
        self.rows.append({**row, **place})


def trainer_of(parts: Parts, observer: Observer, **changes: Any) -> Trainer:
    """A trainer of these parts; ``changes`` are settings of its `TrainerConfig`."""
    config = replace(parts.config, trainer=replace(parts.config.trainer, **changes))
    return Trainer(config, parts.model, parts.data, parts.device, observer, parts.stack)


class _Reads(TorchDispatchMode):
    """Counts the operations that read a value back from the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function._schema.name.partition("::")[2] in self.WAITING
        return function(*args, **(kwargs or {}))


@contextmanager
def counted_waits(bench: Bench) -> Iterator[list[int]]:
    """Inside, counts how often the host waits for the device; the number is in the list at the end.

    On a GPU torch counts; on a CPU every operation that reads a value counts.
    """
    found: list[int] = []
    if bench.is_cuda:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
        found.append(sum("synchronizing" in str(each.message) for each in seen))
        return
    with _Reads() as reads:
        yield found
    found.append(reads.count)


def as_json(rows: dict[str, list[Row]]) -> dict[str, list[dict[str, Any]]]:
    """The rows by part, as JSON values."""
    return {name: [asdict(row) for row in found] for name, found in rows.items()}
