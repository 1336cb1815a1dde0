"""The device that a model runs on, and the number formats in which it trains there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tfx.errors import UserError
from tfx.model.linear import products_in
from tfx.processes.group import ALONE, Group
from tfx.system.memory import installed_memory

# Instructions without products of bfloat16, as oneDNN's limit names them.
_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
# Devices whose values are read at once: the CPU, and MPS, whose optimizers cannot refuse a step by themselves.
_SYNCHRONOUS = ("cpu", "mps")


def choose_device(name: str, group: Group = ALONE) -> torch.device:
    """The device that ``trainer.device`` names; ``auto`` takes CUDA, then MPS, then the CPU.

    Of several processes, each takes the GPU of its number on this machine, or the only one that it sees if no other
    sees that, or all the CPU. Raises `UserError` where the device is not there.
    """
    device, place = _named_device(name), group.place
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # until `cudnn_attention`
    if place.size == 1:
        is_any = device.type == "cuda" and device.index is None
        return torch.device("cuda", torch.cuda.current_device()) if is_any else device
    if device.type == "mps" and name == "auto":
        return torch.device("cpu")
    if device.type == "mps" or device.index is not None:
        raise UserError(f"trainer.device={name} is one device, and there are {place.size} processes: use cuda or cpu")
    if device.type != "cuda":
        return device
    if place.local_size > (count := torch.cuda.device_count()):
        if count == 1 and group.has_own_gpu():
            torch.cuda.set_device(0)
            return torch.device("cuda", 0)
        raise UserError(
            f"there are {place.local_size} processes and {count} CUDA devices: each process needs one of its own "
            "(or trainer.device=cpu)"
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def _named_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        if name.isdecimal():
            raise UserError(
                f"trainer.device={name} is not a device: for {name} processes, each on a GPU of its own, set "
                f"trainer.devices={name}; for one GPU by its number trainer.device=cuda:{name}"
            ) from None
        raise UserError(f"trainer.device={name} is not a device: use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"trainer.device={name}: this machine or this build of torch has no CUDA; use trainer.device=auto"
            )
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise UserError(f"trainer.device={name}: there are {count} CUDA devices, numbered from 0")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer.device=mps: this machine has no MPS; use trainer.device=auto")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"trainer.device={name} is not supported: use auto, cpu, cuda, cuda:N or mps")
    return device


@contextmanager
def cudnn_attention(allowed: bool) -> Iterator[None]:
    """Inside, a GPU may attend by cuDNN, which torch prefers on new ones.

    It plans each new shape for tens of milliseconds, forwards and backwards, and texts come in hundreds of shapes.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def is_asynchronous(device: torch.device) -> bool:
    """Whether work on a device is queued, so that reading a value from it waits for all work before."""
    return device.type not in _SYNCHRONOUS


def running_sums(x: Tensor, dim: int) -> Tensor:
    """The sums of all entries up to each one along ``dim``.

    Torch has no deterministic kernel for that on a GPU, but for whole numbers it has. So entries become multiples of
    2^-60 of the sum of their magnitudes or less, which is finer than double precision.
    """
    if not is_asynchronous(x.device):
        return x.cumsum(dim)
    whole = x.double().abs().sum(dim, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    unit = torch.exp2(whole.log2().ceil() - 61)
    return ((x.double() / unit).round().long().cumsum(dim) * unit).to(x.dtype)


def device_memory(device: torch.device) -> int | None:
    """Total memory of a device in bytes, used or free; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return installed_memory()


def carried(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A value of the CPU on a device; a GPU copies it by itself, from pinned memory, while the host goes on."""
    if device.type == "cuda" and not value.is_pinned():
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


def drop_unused_memory(device: torch.device) -> None:
    """Gives a GPU's memory back that models take of which only cycles of references are left, as of compiled ones."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Precision:
    """The number formats of training, for a model and its teachers: an autocast dtype or None, and that of products."""

    name: str
    autocast: torch.dtype | None
    products: torch.dtype

    @contextmanager
    def forward(self, device: torch.device) -> Iterator[None]:
        """Inside, the forward passes of every model use these formats."""
        with self.backward() if self.autocast is None else torch.autocast(device.type, self.autocast):
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Inside, blocks that run again for the backward pass use these formats; autocast sees to that itself."""
        with products_in(self.products) if self.autocast is None else nullcontext():
            yield


FULL_PRECISION = Precision("fp32", None, torch.float32)


def choose_precision(name: str, device: torch.device) -> Precision:
    """What ``trainer.precision`` means on a device.

    ``auto`` is bfloat16 autocast on a GPU that supports it. On a CPU that multiplies bfloat16 matrices, it
    is bfloat16 for the products alone, because autocast costs a small model more there than it gains (see
    docs/RESULTS.md). Elsewhere it is fp32.
    """
    if name == "auto":
        on_bf16 = {"cuda": "bf16", "cpu": "mixed"}
        name = on_bf16.get(device.type, "fp32") if multiplies_bf16(device) else "fp32"
    if name == "bf16":
        return Precision(name, torch.bfloat16, torch.bfloat16)
    return Precision(name, None, torch.bfloat16 if name == "mixed" else torch.float32)


def scoring_numbers(name: str, device: torch.device, *, is_result: bool) -> str:
    """The number format that ``evaluation.precision`` means on a device: fp32, tf32 or bf16.

    ``auto`` is fp32 for what is a result, and TF32 for what only guides a training: its 10 bits of a factor move a loss
    by far less than the choice between two weights needs, and numbers that are compared stay the same on every device.
    """
    if name == "auto":
        name = "fp32" if is_result else "tf32"
    return "fp32" if name == "tf32" and device.type != "cuda" else name


@contextmanager
def scoring_in(numbers: str, device: torch.device) -> Iterator[None]:
    """Inside, forward passes of evaluation and decoding use this number format (`scoring_numbers`)."""
    if numbers == "bf16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
        return
    if device.type != "cuda":
        yield
        return
    was_rounded = torch.backends.cuda.matmul.fp32_precision == "tf32"
    _round_products(numbers == "tf32")
    try:
        yield
    finally:
        _round_products(was_rounded)


def _round_products(to_tf32: bool) -> None:
    """Of fp32 on a GPU. Parts of torch's compiler read the older of two settings, and fail where only one is set."""
    torch.set_float32_matmul_precision("high" if to_tf32 else "highest")


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware; MPS is taken to. A CPU that does not is many times
    slower than in fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or _cpu_multiplies_bf16()


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has AVX512-BF16 or AMX, and torch's library for products may use them."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if allowed.upper() in _WITHOUT_BF16:
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def sums_int8_exactly() -> bool:
    """Whether the CPU adds products of 8-bit numbers in 32 bits. An x86 CPU without VNNI adds two in 16, which overflow
    where a library uses all 8 bits.
    """
    found = torch.cpu.get_capabilities()
    return found["architecture"] != "x86_64" or any(found[name] for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
