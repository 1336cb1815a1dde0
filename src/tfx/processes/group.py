"""How the processes of a run agree: sums over all of them, values of the first, and what becomes of a lost one.

Values that the host needs travel by gloo, whatever the device is: so no message waits for a GPU. Tensors travel
where they are, by gloo on a CPU and by nccl on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tfx.errors import UserError
from tfx.processes.failure import FAILURE, Failure, LostProcessError, last_word
from tfx.processes.launch import was_launched
from tfx.processes.place import NO_LAUNCHER, Place, find_place
from tfx.processes.watch import Watch
from tfx.system.signals import StoppedBySignal, hold_signals

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

Value = TypeVar("Value")

# A process may wait for another as long as that trains a teacher or waits for a cache. A dead one is noticed at once,
# and by the `Watch` where a GPU waits for it.
_PATIENCE = timedelta(days=7)
# Bytes of gradients in one message: large enough for the full speed of a network, small enough for its buffer.
_BUCKET_BYTES = 32 << 20
# What an error of this process's GPU says: CUDA's comes with whatever asks the GPU next, such as a message, and nccl
# hands it on as one of its own.
_GPU_WORDS = ("CUDA error", "Cuda failure", "ncclUnhandledCudaError")
# Keys in the store. It may be the launcher's, which stays when that starts the processes again: each start has its own.
_GPU, _RUN, _PROCESS = "gpu", "run", "process"
# What tells this machine, and on it this set of process numbers, from all others (on Linux).
_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


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

    def show_gpu(self) -> None:
        """Tells the others which GPU this process sees, if it is one alone. This initialises CUDA."""

    def has_own_gpu(self) -> bool:
        """Whether this process sees one GPU alone, and no other process of the run sees that one.

        All of them `show_gpu` before.
        """
        return False

    # --- the end of a process ---------------------------------------------------------------------------

    @contextmanager
    def watched(self, report: Callable[[BaseException], None], *, on_devices: bool) -> Iterator[None]:
        """Inside, the end of another process ends this one too, also where its main thread waits for a device.

        ``report`` records the error before, in another thread. Not ``on_devices`` nothing waits without end.
        """
        yield

    def fail(self, failure: Failure | None) -> None:
        """Tells the others why this process ends; None: another one that was killed. They hear it when it is gone."""

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
        if torch.cuda.is_available() and distributed.is_nccl_available():
            hosts.append("cuda:nccl")
        try:
            self._store: Store = distributed.TCPStore(  # type: ignore[attr-defined]
                place.address,
                place.port,
                # Under torchrun the launcher has a store at this address already.
                is_master=place.is_first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
                timeout=timedelta(minutes=10),
                wait_for_workers=False,
            )
        except RuntimeError as error:
            raise UserError(
                f"process {place.rank} cannot connect to the others of the run at {place.address}:{place.port} "
                f"({_first_line(error)}): check MASTER_ADDR and MASTER_PORT, and that no other program has the port"
            ) from error
        try:
            # Before the others can meet this one: from then on they know where it has gone.
            self._store.set(self._key(_PROCESS, self.rank), f"{_numbering()} {os.getpid()}")
            distributed.init_process_group(
                ",".join(hosts),
                store=distributed.PrefixStore(self._key("group"), self._store),  # type: ignore[attr-defined]
                rank=place.rank,
                world_size=place.size,
                timeout=_PATIENCE,
            )
        except RuntimeError as error:
            if was_launched():  # on one machine, where nothing but an end keeps them apart
                raise LostProcessError(None) from error
            raise UserError(
                f"process {place.rank} cannot connect to the others of the run ({_first_line(error)}): one of them has "
                "ended, or the network between them is closed; GLOO_SOCKET_IFNAME names the interface to take"
            ) from error
        self._connected = True
        self._reports: list[Callable[[BaseException], None]] = []

    def _key(self, *words: object, restarts: int | None = None) -> str:
        """The key of this start of the processes in the store, or of an earlier one."""
        return "/".join(map(str, ("tfx", self.place.restarts if restarts is None else restarts, *words)))

    def greatest(self, *numbers: float) -> list[float]:
        import torch
        from torch import distributed

        values = torch.tensor(numbers, dtype=torch.float64)
        with self._noticing():
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values.tolist()

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
            # Tensors of one process's GPU mean nothing in another.
            distributed.gather_object(mapped(value, lambda tensor: tensor.detach().cpu()), values)
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

    def show_gpu(self) -> None:
        self._store.set(self._key(_GPU, self.rank), _only_gpu() if self.place.local_size > 1 else "")

    def has_own_gpu(self) -> bool:
        seen = [self._store.get(self._key(_GPU, rank)).decode() for rank in range(self.size)]
        return bool(seen[self.rank]) and seen.count(seen[self.rank]) == 1

    # --- the end of a process ---------------------------------------------------------------------------

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Turns the error of a broken connection into `LostProcessError`, with the last word of the lost process.

        An error of the GPU of this process is its own, and may be the first.
        """
        try:
            yield
        except RuntimeError as error:
            import torch

            if isinstance(error, torch.OutOfMemoryError):
                raise
            failure = self._last_word()
            if failure is None and any(words in str(error) for words in _GPU_WORDS):
                raise
            # The launcher sees the loss too, and sends a signal: it must not replace the reason while files are closed.
            hold_signals()
            raise LostProcessError(failure) from error

    def _last_word(self) -> Failure | None:
        return last_word(self._store, self._key(FAILURE))

    @contextmanager
    def watched(self, report: Callable[[BaseException], None], *, on_devices: bool) -> Iterator[None]:
        self._reports.append(report)
        watch = None
        if on_devices and len(self._reports) == 1:  # a run that trains a teacher for another is inside its watch
            with self._noticing():
                own = self._store.clone()  # type: ignore[attr-defined]
                watch = Watch(own, self._key, self.rank, self.size, self._end)
        in_order = False
        try:
            yield
            in_order = True
        finally:
            if watch is not None:
                watch.stop(in_order=in_order)
            self._reports.pop()

    def _end(self, failure: Failure | None) -> int:
        """Records what ended the others, while the main thread waits in vain; returns the exit status."""
        hold_signals()
        error = LostProcessError(None) if failure is None else failure.to_error()
        for report in reversed(self._reports):
            report(error)
        return Failure.of(error, self.rank).status

    def cause(self, error: BaseException) -> BaseException:
        hold_signals()
        failure = None
        if isinstance(error, LostProcessError):
            failure = error.failure
        elif isinstance(error, StoppedBySignal):
            # A launcher sends a signal to those that are left when one has failed, or was killed.
            failure = self._last_word()
            if failure is None and self._one_is_gone():
                return LostProcessError(None)
        return error if failure is None else failure.to_error()

    def _one_is_gone(self) -> bool:
        """Whether another process has ended, as far as this machine knows them.

        One that ends in order leaves a word before.
        """
        own = _numbering()
        with suppress(RuntimeError):  # the store is gone with its process
            keys = [self._key(_PROCESS, rank) for rank in range(self.size) if rank != self.rank]
            for key in (key for key in keys if own and self._store.check([key])):
                numbering, number = self._store.get(key).decode().rsplit(" ", 1)
                if numbering == own and not _is_there(int(number)):
                    return True
        return False

    def fail(self, failure: Failure | None) -> None:
        if self._connected:
            self._connected = False
            if failure is not None:
                failure.tell(self._store, self._key(FAILURE))

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


def is_one_of_several() -> bool:
    """Whether this process has joined others."""
    return _joined is not None and _joined[1] == os.getpid() and _joined[0] is not ALONE


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _numbering() -> str:
    """What processes have in common whose numbers are those of one system; empty where that is not known."""
    try:
        return f"{_BOOT.read_text().strip()} {_NAMESPACE.readlink()}"
    except OSError:
        return ""


def _is_there(number: int) -> bool:
    """Whether the system has a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _only_gpu() -> str:
    """What tells the one GPU that this process sees from all others; empty if it sees none, or several."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.device_count() != 1:
        return ""
    return str(torch.cuda.get_device_properties(0).uuid)


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A nested value with each of its tensors changed."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    return value


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as many at a time as go into one message; each bucket has one dtype."""
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
