"""Position information: sinusoidal embeddings, rotary angles, ALiBi slopes, buckets of relative positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tfx.model.architecture import Architecture


def sinusoidal_table(context: int, width: int) -> Tensor:
    """The (context, width) table of Vaswani 2017, section 3.5: sines in the even columns, cosines in the odd."""
    position = torch.arange(context, dtype=torch.float64).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    table = torch.empty(context, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table.float()


def rotary_table(architecture: Architecture) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, head_width), of rotary embeddings (Su 2021, arXiv 2104.09864)."""
    head_width = architecture.head_width
    frequency = architecture.rotary_base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    frequency = _scaled(frequency, architecture)
    angle = torch.arange(architecture.context, dtype=torch.float64).unsqueeze(1) * frequency
    angle = torch.cat([angle, angle], dim=1)
    return angle.cos().float(), angle.sin().float()


def _scaled(frequency_K: Tensor, architecture: Architecture) -> Tensor:
    """The frequencies for a longer context: divided by the factor (Chen 2023, arXiv 2306.15595), or as Llama 3 does.

    Llama 3 (Grattafiori 2024, arXiv 2407.21783) divides those of long wavelengths alone, with a ramp between.
    """
    if architecture.rotary_scaling == "none":
        return frequency_K
    slow_K = frequency_K / architecture.rotary_factor
    if architecture.rotary_scaling == "linear":
        return slow_K
    turns_K = architecture.rotary_context * frequency_K / (2 * math.pi)
    ramp_K = (turns_K - architecture.rotary_low) / (architecture.rotary_high - architecture.rotary_low)
    return torch.lerp(slow_K, frequency_K, ramp_K.clamp(0.0, 1.0))


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
    """Position of each key minus that of each query, (queries, keys); query i is at position ``offset + i``."""
    query = torch.arange(offset, offset + queries, device=device).unsqueeze(1)
    key = torch.arange(keys, device=device).unsqueeze(0)
    return key - query


def document_places(tokens_BT: Tensor, start: int) -> Tensor:
    """The position (B, T) of each token in its document; the token ``start`` begins one, and so does each row."""
    index_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    return index_T - torch.where(tokens_BT == start, index_T, 0).cummax(1).values


def document_mask(places_BT: Tensor) -> Tensor:
    """Where a query may see a key, (B, 1, T, T): on itself and on earlier tokens of its document."""
    index_T = torch.arange(places_BT.shape[1], device=places_BT.device)
    begin_BT1 = (index_T - places_BT).unsqueeze(2)
    return ((index_T >= begin_BT1) & (index_T <= index_T.unsqueeze(1))).unsqueeze(1)


def alibi_bias(slopes_H: Tensor, distance_TS: Tensor) -> Tensor:
    """The bias -slope * |distance| of every head, (1, H, T, S) (Press 2021); an encoder has it on later keys too."""
    return (-slopes_H.view(-1, 1, 1) * distance_TS.abs()).unsqueeze(0)


def relative_buckets(distance_TS: Tensor, architecture: Architecture, *, is_causal: bool) -> Tensor:
    """The bucket of each distance (Raffel 2020, arXiv 1910.10683): half of them exact, the others on a log scale.

    Where later keys are seen too, they have the upper half of the buckets.
    """
    buckets = architecture.relative_buckets if is_causal else architecture.relative_buckets // 2
    later_TS = torch.zeros_like(distance_TS) if is_causal else (distance_TS > 0) * buckets
    distance_TS = (-distance_TS).clamp(min=0) if is_causal else distance_TS.abs()
    exact = buckets // 2
    growth = (distance_TS.clamp(min=1) / exact).log() / math.log(architecture.relative_distance / exact)
    far_TS = exact + (growth * (buckets - exact)).long()
    return later_TS + torch.where(distance_TS < exact, distance_TS, far_TS.clamp(max=buckets - 1))
