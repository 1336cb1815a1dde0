"""A device without memory or values, to find what would stall a GPU or fail there, on a machine that has none.

Tensors are torch's fake tensors on a backend of their own. An operation on tensors of two devices raises, as does every
operation that reads a value back: `float`, `bool`, `.cpu()`, indexing with a mask. Registering the backend cannot be
undone, so this is for a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "gpu"


class _Module:
    """What torch looks up as ``torch.gpu``."""

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def is_available() -> bool:
        return True

    is_initialized = is_available

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return True

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


_CPU_GENERATOR = torch.Generator


class _Generator(_CPU_GENERATOR):
    """A CPU generator that stands for one of the device it was made for."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, "cpu")
        made.of = torch.device(device).type
        return made

    def manual_seed(self, seed: int) -> _Generator:
        super().manual_seed(seed)
        return self


class _Draws(TorchFunctionMode):
    """Checks that each draw is on the device of its generator."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        drawn = function(*args, **kwargs)
        generator = kwargs.get("generator")
        if isinstance(generator, _Generator) and isinstance(drawn, torch.Tensor):
            assert generator.of == drawn.device.type, f"a generator of {generator.of} draws on {drawn.device}"
        return drawn


class _Copies(TorchDispatchMode):
    """Refuses copies that wait: from the device to the CPU, and to the device where the host does not go on."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            is_copy = function is torch.ops.aten.copy_.default
            source = args[1] if is_copy else args[0]
            goes_on = (args[2] if is_copy and len(args) > 2 else (kwargs or {}).get("non_blocking")) is True
            if source.device.type == NAME and result.device.type == "cpu":
                raise AssertionError("a copy from the device to the CPU")
            if source.device.type == "cpu" and result.device.type == NAME and source.ndim and not goes_on:
                raise AssertionError("a copy to the device for which the host waits")
        return result


@contextmanager
def fake_gpu() -> Iterator[torch.device]:
    """Inside, tensors of this device have no values, and nothing can be read from them."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module)
    guard, hooks, autocast = _Guard(), _Hooks(), torch.library.Library("_", "IMPL")
    torch._C._acc.register_python_privateuseone_device_guard(guard)
    torch._C._acc.register_python_privateuseone_hook(hooks)
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    torch.Generator = _Generator
    with FakeTensorMode(allow_non_fake_inputs=True), _Copies(), _Draws():
        yield torch.device(NAME, 0)
