"""How much memory some work takes at its peak: what tensors a CPU makes, or what a GPU's allocator counts."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tfx.training.accounts import peak_memory, reset_peak_memory


def peak_of(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that ``work`` takes at its peak: on a GPU with all that is there already, on a CPU beyond that.

    On a CPU these are the bytes of tensors, of code that is not compiled. What an operation needs for itself is not
    seen.
    """
    if device.type == "cuda":
        reset_peak_memory(device)
        work()
        return peak_memory(device)
    with _uncompiled(), _Allocations() as counted:
        work()
    return counted.peak


def _uncompiled() -> AbstractContextManager[Any]:
    """Inside, compiled code runs as it stands: what torch meets while each operation is watched it never compiles."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside, while they live; those that come from outside are free."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        # Each storage that was seen and lives, by its address as an object.
        self._known: dict[int, weakref.finalize[..., Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._see(value, 0)
        result = func(*args, **kwargs)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value, value.untyped_storage().nbytes())
        return result

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._known:
            return
        self._known[id(storage)] = weakref.finalize(storage, self._gone, id(storage), size)
        self._now += size
        self.peak = max(self.peak, self._now)

    def _gone(self, number: int, size: int) -> None:
        del self._known[number]
        self._now -= size
