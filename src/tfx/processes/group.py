"""How the processes of a run agree: sums over all of them, values of the first, and what becomes of a lost one.

Values that the host needs travel by gloo, whatever the device is: so no message waits for a GPU. Tensors travel
where they are, by gloo on a CPU and by nccl on a GPU.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from tfx.errors import UserError
from tfx.processes.place import NO_LAUNCHER, Place, find_place
from tfx.system.signals import StoppedBySignal, hold_signals

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

Value = TypeVar("Value")

# A process may wait for another as long as that trains a teacher or waits for a cache; a dead one is noticed at once.
_PATIENCE = timedelta(days=7)
# Bytes of gradients in one message: large enough for the full speed of a network, small enough for its buffer.
_BUCKET_BYTES = 32 << 20
# Keys in the store. It may be the launcher's, which stays when that starts the processes again: each start has its own.
_FAILURE, _GPU, _RUN = "failure", "gpu", "run"


class LostProcessError(Exception):
    """Another process of the run ended; ``failure`` is what it said before, None if it was killed."""

    def __init__(self, failure: Failure | None) -> None:
        super().__init__(
            "another process of the run ended without a word: it was killed, or its machine failed"
            if failure is None
            else f"process {failure.rank} failed: {failure.message}"
        )
        self.failure = failure


@dataclass(frozen=True)
class Failure:
    """The last word of a process: ``kind`` is ``user`` (its input is wrong), ``signal`` or ``error``."""

    rank: int
    kind: str
    message: str
    traceback: str
    status: int

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """What an error that ends a process says."""
        text = "".join(traceback.format_exception(error))
        if isinstance(error, UserError):
            return cls(rank, "user", str(error), text, 2)
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "signal", str(error), text, getattr(error, "status", 130))
        return cls(rank, "error", f"{type(error).__name__}: {error}", text, 1)


class Group:
    """The processes of a run. This one is that of a run of a single process, where nothing is to be agreed."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.place.size

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run directory and the console."""
        return self.place.is_first

    def own(self, items: Sequence[Value]) -> Sequence[Value]:
        """The share of this process of work that is divided: every ``size``-th item, from the ``rank``-th on."""
        return items[self.rank :: self.size]

    def greatest(self, *numbers: float) -> list[float]:
        """Of each number the greatest that any process has."""
        return list(numbers)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.greatest(float(flag))[0])

    def first(self, value: Value) -> Value:
        """The first process's value."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, in each of them."""
        return [value]

    def gather_to_first(self, value: Value) -> list[Value]:
        """The values of all processes, by rank, in the first one; in the others an empty list."""
        return [value]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one device, in place, by their sums over all processes: the same bits in each."""

    def begins(self, folder: str) -> None:
        """Call this in the first process where it begins the run of all: the first folder counts."""

    def began(self) -> str | None:
        """The folder of the run that these processes began before their launcher started them again; None: none."""
        return None

    def has_own_gpu(self) -> bool:
        """Whether this process sees one GPU alone, and no other process of the run sees that one."""
        return False

    # --- the end of a process ---------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Tells the others why this process ends. They hear it when it is gone: end it soon."""

    def cause(self, error: BaseException) -> BaseException:
        """The error that ends the run where this one follows from the end of another process; else itself.

        From now on signals do not disturb the report of it.
        """
        return error

    def leave(self) -> None:
        """Call this at the end of a run that did not fail."""


class _Several(Group):
    """A group of several processes, connected by torch.distributed."""

    def __init__(self, place: Place) -> None:
        import torch

        # Its functions have the group that there is when they are loaded as a default, which keeps it for ever: its
        # threads then run on while Python ends, and now and then abort the process. So they are loaded before.
        import torch.distributed.nn.functional
        from torch import distributed

        super().__init__(place)
        hosts = ["cpu:gloo"]
        if torch.cuda.is_available():
            hosts.append("cuda:nccl")
        self._store: Store = distributed.TCPStore(  # type: ignore[attr-defined]
            place.address,
            place.port,
            # Under torchrun the launcher has a store at this address already.
            is_master=place.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            timeout=timedelta(minutes=10),
            wait_for_workers=False,
        )
        # Known to all once they are connected.
        self._store.set(self._key(_GPU, place.rank), _only_gpu() if place.local_size > 1 else "")
        distributed.init_process_group(
            ",".join(hosts),
            store=distributed.PrefixStore(self._key("group"), self._store),  # type: ignore[attr-defined]
            rank=place.rank,
            world_size=place.size,
            timeout=_PATIENCE,
        )
        self._connected = True

    def _key(self, *words: object, restarts: int | None = None) -> str:
        """The key of this start of the processes in the store, or of an earlier one."""
        return "/".join(map(str, ("tfx", self.place.restarts if restarts is None else restarts, *words)))

    def greatest(self, *numbers: float) -> list[float]:
        import torch
        from torch import distributed

        values = torch.tensor(numbers, dtype=torch.float64)
        with self._noticing():
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values.tolist()  # type: ignore[no-any-return]

    def first(self, value: Value) -> Value:
        import torch
        from torch import distributed

        held = [value if self.is_first else None]
        with self._noticing():
            distributed.broadcast_object_list(held, 0, device=torch.device("cpu"))
        return held[0]  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        from torch import distributed

        values: list[Any] = [None] * self.size
        with self._noticing():
            distributed.all_gather_object(values, value)
        return values

    def gather_to_first(self, value: Value) -> list[Value]:
        from torch import distributed

        values: list[Any] | None = [None] * self.size if self.is_first else None
        with self._noticing():
            distributed.gather_object(_on_cpu(value), values)
        return values or []

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        import torch
        from torch import distributed

        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            with self._noticing():
                distributed.all_reduce(flat)
            parts = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(own) for part, own in zip(parts, bucket, strict=True)])

    def begins(self, folder: str) -> None:
        self._store.compare_set(self._key(_RUN), "", folder)

    def began(self) -> str | None:
        keys = [self._key(_RUN, restarts=number) for number in reversed(range(self.place.restarts))]
        return next((self._store.get(key).decode() for key in keys if self._store.check([key])), None)

    def has_own_gpu(self) -> bool:
        seen = [self._store.get(self._key(_GPU, rank)).decode() for rank in range(self.size)]
        return bool(seen[self.rank]) and seen.count(seen[self.rank]) == 1

    # --- the end of a process ---------------------------------------------------------------------------

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Turns the error of a broken connection into `LostProcessError`, with the last word of the lost process."""
        try:
            yield
        except RuntimeError as error:
            import torch

            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise LostProcessError(self._last_word()) from error

    def _last_word(self) -> Failure | None:
        """What the process that failed first said before it ended; None if it said nothing."""
        with suppress(RuntimeError):  # the store is gone with its process
            if self._store.check([self._key(_FAILURE)]):
                return Failure(**json.loads(self._store.get(self._key(_FAILURE))))
        return None

    def cause(self, error: BaseException) -> BaseException:
        hold_signals()
        failure = None
        if isinstance(error, LostProcessError):
            failure = error.failure
        elif isinstance(error, StoppedBySignal):
            # A launcher sends a signal to those that are left when one has failed.
            failure = self._last_word()
        if failure is None:
            return error
        if failure.kind == "user":
            return UserError(failure.message)
        if failure.kind == "signal":
            return StoppedBySignal(failure.status - 128)
        found = LostProcessError(failure)
        found.add_note(failure.traceback)
        return found

    def fail(self, failure: Failure) -> None:
        if self._connected:
            self._connected = False
            with suppress(RuntimeError):
                # The first word counts: what others say is its consequence.
                self._store.compare_set(self._key(_FAILURE), "", json.dumps(asdict(failure)))

    def leave(self) -> None:
        from torch import distributed

        if self._connected:
            self._connected = False
            self.gather(None)
            distributed.destroy_process_group()


# The group of a run of one process.
ALONE = Group(NO_LAUNCHER)
# The group that was joined, and the process that did: one that it forked belongs to another.
_joined: tuple[Group, int] | None = None


def join() -> Group:
    """The group that this process belongs to, connected at the first call. Raises `UserError`."""
    global _joined
    if _joined is None or _joined[1] != os.getpid():
        place = find_place()
        _joined = (ALONE if place.size == 1 else _Several(place)), os.getpid()
    return _joined[0]


def _only_gpu() -> str:
    """What tells the one GPU that this process sees from all others; empty if it sees none, or several."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.device_count() != 1:
        return ""
    return str(torch.cuda.get_device_properties(0).uuid)


def _on_cpu(value: Any) -> Any:
    """A nested value with its tensors on the CPU: those of one process's GPU mean nothing in another."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_on_cpu, value))
    return value


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, so many at a time as go into one message; each bucket has one dtype."""
    bucket: list[Tensor] = []
    size, dtype = 0, None
    for tensor in tensors:
        bytes_ = tensor.numel() * tensor.element_size()
        if bucket and (size + bytes_ > _BUCKET_BYTES or tensor.dtype != dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size, dtype = size + bytes_, tensor.dtype
    if bucket:
        yield bucket
