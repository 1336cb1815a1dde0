"""Dropout (Srivastava 2014), with cheap random bits on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zeroes each element with probability ``rate`` in training and scales the rest by 1 / (1 - rate).

    On a CPU, torch draws a float for each element, which costs a small model more than its matrix products.
    Here four elements share one 64-bit draw. The rate is therefore rounded to a multiple of 2^-16, and the
    scale is exact for that multiple.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(x, self.rate)
        keep, scale = keep_mask(x.shape, self.rate)
        return x * keep.to(x.dtype).mul_(scale)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def keep_mask(shape: torch.Size, rate: float) -> tuple[Tensor, float]:
    """Returns a boolean CPU mask, True on what is kept, and the scale that makes the expectation exact.

    Draws from torch's global CPU generator, which the training loop seeds by (seed, step).
    """
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64)
    # The whole range of int64: the default would leave the top bit of every fourth element zero.
    bits.random_(torch.iinfo(torch.int64).min, None)
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)
    keep = bits.view(torch.int16)[:count].view(shape) >= dropped - _LEVELS // 2
    return keep, _LEVELS / (_LEVELS - dropped)


class TokenDropout(nn.Module):
    """Zeroes whole token embeddings (Gal 2016, arXiv 1512.05287); shape (..., D) in and out."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = functional.dropout(torch.ones(x.shape[:-1], device=x.device, dtype=x.dtype), self.rate)
        return x * kept.unsqueeze(-1)
