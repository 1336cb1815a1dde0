"""Position information: sinusoidal and learned embeddings, rotary angles, ALiBi slopes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_table(context: int, width: int) -> Tensor:
    """The (context, width) table of Vaswani 2017, section 3.5: sines in the even columns, cosines in the odd."""
    position = torch.arange(context, dtype=torch.float64).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.empty(context, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float()


def rotary_table(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, head_width), of rotary embeddings (Su 2021, arXiv 2104.09864)."""
    frequency = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(context, dtype=torch.float64).unsqueeze(1) * frequency
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Rotates each pair of components (i, i + K/2) of every head by the angle of its position."""
    left, right = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK.to(x_BHTK.dtype) + torch.cat([-right, left], dim=-1) * sin_TK.to(x_BHTK.dtype)


def alibi_slopes(heads: int) -> Tensor:
    """One slope per head (Press 2021, arXiv 2108.12409): geometric; interleaved if heads is not a power of two."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-8.0 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    return torch.tensor(slopes)


def distances(queries: int, keys: int, offset: int, device: torch.device) -> Tensor:
    """Distance in positions between each query and key, (queries, keys); query i is at position ``offset + i``."""
    query = torch.arange(offset, offset + queries, device=device).unsqueeze(1)
    key = torch.arange(keys, device=device).unsqueeze(0)
    return (query - key).abs()


def alibi_bias(slopes_H: Tensor, distance_TS: Tensor) -> Tensor:
    """The bias -slope * distance of every head, (1, H, T, S) (Press 2021); an encoder has it on later keys too."""
    return (-slopes_H.view(-1, 1, 1) * distance_TS).unsqueeze(0)
