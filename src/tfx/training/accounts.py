"""What a training counts: means over an interval of steps, FLOPs, the device's peak speed and memory used."""

from __future__ import annotations

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


# Dense bfloat16 peaks from the vendors' data sheets, in FLOP/s.
_PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's peak in FLOP/s if it is known, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)


def peak_memory(device: torch.device) -> int:
    """The most memory used so far: allocated on a GPU, resident of the process on a CPU; bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
