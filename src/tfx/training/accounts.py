"""What a training counts: means over an interval of steps, FLOPs, the device's peak speed and memory used."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tfx.model.batch import Batch
from tfx.model.flops import forward_flops
from tfx.model.transformer import Transformer
from tfx.training.budget import Clock


class Interval:
    """Means over the steps since the last row, without waiting for the device at every step."""

    _SUMS = ("tokens", "seconds", "nll", "norm", "targets", "real", "positions")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tokens, self._seconds = clock.tokens, clock.seconds
        self._nll: Tensor | None = None
        self._norm: Tensor | None = None
        # Counts; tensors where the device decides which steps count.
        self._targets: int | Tensor = 0
        self._real: int | Tensor = 0
        self._positions: int | Tensor = 0

    def add(self, nll: Tensor, norm: Tensor, batches: Sequence[Batch], refused: Tensor | None = None) -> None:
        """Adds a step with its summed negative log-likelihood and gradient norm, unless ``refused`` is 1."""
        counts: list[int | Tensor] = [
            sum(batch.targets for batch in batches),
            sum(batch.tokens for batch in batches),
            sum(batch.positions for batch in batches),
        ]
        if refused is not None:
            is_refused = refused > 0
            counts = [torch.where(is_refused, 0, count) for count in counts]
            nll = torch.where(is_refused, torch.zeros_like(nll), nll)
            norm = torch.where(is_refused, torch.zeros_like(norm) if self._norm is None else self._norm, norm)
        self._nll = nll if self._nll is None else self._nll + nll
        self._norm = norm
        self._targets, self._real, self._positions = (
            before + count for before, count in zip((self._targets, self._real, self._positions), counts, strict=True)
        )

    @property
    def loss(self) -> float:
        """The mean loss per target, in nats."""
        return 0.0 if self._nll is None else float(self._nll) / max(1, int(self._targets))

    def row(self, learning_rate: float) -> dict[str, float]:
        """What is logged for the interval."""
        seconds = max(self._clock.seconds - self._seconds, 1e-9)
        return {
            "loss": self.loss,
            "learning_rate": learning_rate,
            "gradient_norm": 0.0 if self._norm is None else float(self._norm),
            "tokens_per_second": (self._clock.tokens - self._tokens) / seconds,
            "padding": 1.0 - int(self._real) / max(1, int(self._positions)),
        }

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {name: getattr(self, f"_{name}") for name in self._SUMS}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name in self._SUMS:
            setattr(self, f"_{name}", state[name])


def batch_flops(model: Transformer, batch: Batch) -> float:
    """FLOPs of one forward pass."""
    rows, length = batch.target_in_BT.shape
    source = 0 if batch.source_BS is None else batch.source_BS.shape[1]
    return forward_flops(model.architecture, rows, source, length)


# Peaks of the tensor cores without sparsity in FLOP/s: bfloat16 (T4 and V100, which have none: float16), accumulated in
# fp32. The first pattern that the whole name matches counts.
_PEAKS = (
    (r"GRID .*", None),  # a part of one
    (r".*\bB200\b.*", 2250e12),
    (r".*\bGH200\b.*", 989e12),
    (r".*\bH200 NVL\b.*", 835e12),
    (r".*\bH200\b.*", 989e12),
    (r".*\bH100 PCIe\b.*", 756e12),
    (r".*\bH100 NVL\b.*", 835e12),
    (r".*\bH100\b.*HBM3.*", 989e12),
    (r".*\bA[18]00\b.*", 312e12),
    (r".*\bA30\b.*", 165e12),
    (r".*\bA10", 125e12),
    (r".*\bA40", 149.7e12),
    (r".*\bL40S", 362e12),
    (r".*\bL40", 181e12),
    (r".*\bL4", 121e12),
    (r".*\bRTX 6000 Ada\b.*", 364e12),
    (r".*\bRTX A6000", 155e12),
    (r".*\bRTX 5090", 209e12),
    (r".*\bRTX 4090", 165e12),
    (r".*\bRTX 3090", 71e12),
    (r".*\bT4", 65e12),
    (r".*\bV100\b.*", 125e12),
)


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in FLOP/s if it is known, else None."""
    return named_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def named_peak(name: str) -> float | None:
    """The peak of a GPU in FLOP/s by the name that its driver gives; None for a part of one, and for unknown ones.

    Sources: NVIDIA's data sheets of H100 (SXM, whose name has HBM3, PCIe and NVL differ), H200, GH200, DGX B200, A100,
    A800, A30, A10, A40, L40S, L40, L4, RTX 6000 Ada, RTX A6000, T4 and V100, and its white papers on Ada (RTX 4090),
    Ampere GA102 (RTX 3090) and RTX Blackwell (RTX 5090).
    """
    known = () if " MIG " in name else _PEAKS
    return next((peak for pattern, peak in known if re.fullmatch(pattern, name)), None)


def peak_memory(device: torch.device) -> int:
    """The most memory used since `reset_peak_memory` on a GPU, and by the process so far on a CPU; bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Counts the GPU's peak anew: what a reference or a teacher used before is no part of a training."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
