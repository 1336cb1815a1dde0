"""Integer grids: scales and zero points from the range of the weights, and rounding to the nearest level.

Shapes: R rows, C columns, G groups of columns; scales are (1, 1), (R, 1) or (R, G).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tfx.compression.grid import Grid, spread
from tfx.techniques.quantize.bisection import finest

# Relative to the most sensitive matrix: one without any gradient still has a step, if one of a hundred times the size.
_LEAST_SENSITIVITY = 1e-4
# Largest step, in units of the root mean square: 2 % of normal weights stay non-zero on each side. Coarser ones leave a
# matrix of zeros, and a layer must not vanish by accident, as queries and keys of an attention did.
_COARSEST = 4.0
# The codes of a matrix reach its largest weight, or this multiple of the root mean square of those that are not zero if
# that is less, however sensitive it is.
_REACH = 8.0

# Shares of the full range that clipping by error tries.
_CLIPS = tuple(1.0 - 0.025 * step for step in range(25))


@dataclass(frozen=True)
class GridKind:
    """How scales are made: bits, one range per tensor, row or group, symmetric or affine, clipped or not.

    ``group`` is the number of columns that share a scale; 0: a whole row does; None: the whole tensor.
    """

    bits: int
    symmetric: bool = True
    group: int | None = 0
    clip: bool = False
    scale_dtype: torch.dtype = torch.float16

    def units(self, weight_RC: Tensor) -> Tensor:
        """The weight as (R', G, size): what shares a scale stands along the last dimension."""
        rows, columns = weight_RC.shape
        if self.group is None:
            return weight_RC.reshape(1, 1, -1)
        size = self.group or columns
        return weight_RC.reshape(rows, columns // size, size)


def fit(weight_RC: Tensor, kind: GridKind) -> tuple[Tensor, Tensor | None]:
    """Scales, as they will be stored, and zero points (uint8; None: symmetric), from the minimum and maximum.

    Symmetric: codes -2^(b-1) to 2^(b-1) - 1 times the scale cover the range. Affine (Jacob 2018, arXiv
    1712.05877): 2^b levels from min(w, 0) to max(w, 0), and the zero point is an integer, so 0 is a level.
    With ``clip`` the share of the range with the smallest squared error is taken, unit by unit.
    """
    units = kind.units(weight_RC)
    low, high = units.amin(-1).clamp(max=0), units.amax(-1).clamp(min=0)
    best_scale, best_zero = _scale(low, high, kind)
    if not kind.clip:
        return best_scale, best_zero
    best_error = _error(units, best_scale, best_zero, kind)
    for share in _CLIPS[1:]:
        scale, zero = _scale(low * share, high * share, kind)
        error = _error(units, scale, zero, kind)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        if best_zero is not None and zero is not None:
            best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def entropy_bits(codes: Tensor) -> float:
    """The order-0 entropy of these codes (uint8), in bits for all of them."""
    counts = torch.bincount(codes.flatten(), minlength=2).double()
    return float((counts * (counts.sum().log2() - counts.clamp(min=1).log2())).sum())


def scales_for_rate(
    weights: Mapping[str, Tensor], rate: float, kind: GridKind, sensitivities: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """Scales with which the codes of all matrices together take ``rate`` bits per weight at their order-0 entropy.

    Without sensitivities each scale is the same multiple of the root mean square of its unit. A uniform step whose
    codes are entropy coded is, at a rate, close to the smallest squared error that any scalar quantizer has (Gish &
    Pierce 1968, IEEE Trans. Inf. Theory 14(5), 676-683). Groups with a few levels each over their range are about as
    close at that rate alone, where weights are normal, and the bits of all their scales come on top.

    With ``sensitivities``, the mean square of the gradient of each matrix, the loss counts instead of the squared
    error. What rounding adds to the loss is in proportion to sensitivity * step^2, and the same holds of what one bit
    more takes away: it is worth the same in every matrix where steps go with 1 / sqrt(sensitivity) (Choi 2017, arXiv
    1612.01543, weighs errors so too). Within a matrix they still go with the root mean square of their unit, and no
    step is coarser than `_COARSEST` times that.

    No step is so fine that codes of ``kind.bits`` would cut weights short of `_REACH` times the root mean square of
    their unit, zeros left out: a rate that the weights do not have, as where most are zero, is missed. Where a few
    weights are larger, as in pretrained encoders, whose largest weights meet the largest inputs (Kovaleva 2021, arXiv
    2105.06990), their rows have coarser steps of their own.
    """
    count = sum(weight.numel() for weight in weights.values())
    spreads = {name: kind.units(weight).square().mean(-1).sqrt() for name, weight in weights.items()}
    least = {name: _finest(kind.units(weight), spreads[name], kind.bits) for name, weight in weights.items()}
    levels = 2 ** (kind.bits - 1) - 1
    ends = {name: weight.abs().amax(1, keepdim=True) / levels for name, weight in weights.items()}
    if sensitivities is not None:
        steps = _relative_steps(weights, sensitivities)
        # If weights are uniform, as at first, the largest is closer than that.
        most = {}
        for name, spread in spreads.items():
            peaks = kind.units(weights[name]).abs().amax(-1) / spread.clamp(min=1e-30)
            most[name] = torch.maximum(least[name], spread * min(_COARSEST, 1.9 * float(peaks.max())))
        spreads = {name: spread * steps[name] for name, spread in spreads.items()}

    def scales(log_factor: float) -> dict[str, Tensor]:
        chosen = {name: torch.maximum(spread * 2.0**log_factor, least[name]) for name, spread in spreads.items()}
        if sensitivities is not None:
            chosen = {name: torch.minimum(scale, most[name]) for name, scale in chosen.items()}
        if not kind.group:
            chosen = {name: _reaching(scale, ends[name]) for name, scale in chosen.items()}
        return {name: _held(scale, kind.scale_dtype) for name, scale in chosen.items()}

    def is_cheap(log_factor: float) -> bool:
        at = scales(log_factor)
        bits = sum(entropy_bits(to_grid(weight, at[name], None, kind).codes_RC) for name, weight in weights.items())
        return bits <= rate * count

    # Normal weights need about 4.1 / 2^rate; from there it is bracketed, and halved in.
    fine = coarse = 2.0 - rate
    reach = 2.0**-4
    while is_cheap(fine) and fine > -16.0:
        fine, reach = fine - reach, 2 * reach
    while not is_cheap(coarse) and coarse < 16.0:
        coarse, reach = coarse + reach, 2 * reach
    return scales(finest(is_cheap, fine, coarse))


def _finest(units: Tensor, spread: Tensor, bits: int) -> Tensor:
    """The finest step of each unit: with it, codes just reach the lesser of two weights.

    These are the largest one, and `_REACH` times the root mean square of those that are not zero, which is that of all,
    ``spread``, over the root of their share.
    """
    share = (units != 0).float().mean(-1).clamp(min=1e-12)
    levels = 2 ** (bits - 1)
    return torch.minimum(units.abs().amax(-1) / (levels - 1), _REACH * spread / share.sqrt() / levels)


def _reaching(scale: Tensor, least_R1: Tensor) -> Tensor:
    """The scale of a matrix, (1, 1), or of its rows where codes must reach further than that: at least ``least``."""
    return torch.maximum(scale, least_R1) if bool((least_R1 > scale).any()) else scale


def _relative_steps(weights: Mapping[str, Tensor], sensitivities: Mapping[str, float]) -> dict[str, float]:
    """The factor on each matrix's steps, which go with the root mean square; about 1 on average."""
    most = max(sensitivities[name] for name in weights)
    squares = {name: float(weight.square().mean()) for name, weight in weights.items()}
    # A matrix of zeros can have any step, and must not influence the others.
    counts = {name: weight.numel() for name, weight in weights.items() if squares[name] > 0.0}
    if most == 0.0 or not counts:
        return dict.fromkeys(weights, 1.0)
    logs = {
        name: 0.5 * math.log2(squares[name] * max(sensitivities[name], _LEAST_SENSITIVITY * most)) for name in counts
    }
    mean = sum(logs[name] * count for name, count in counts.items()) / sum(counts.values())
    return {name: 2.0 ** (mean - logs.get(name, mean)) for name in weights}


def _scale(low: Tensor, high: Tensor, kind: GridKind) -> tuple[Tensor, Tensor | None]:
    levels = 2**kind.bits
    if kind.symmetric:
        scale = torch.maximum(high / (levels // 2 - 1), -low / (levels // 2))
        return _held(scale, kind.scale_dtype), None
    scale = _held((high - low) / (levels - 1), kind.scale_dtype)
    zero = (-low / scale.float()).round().clamp(0, levels - 1)
    return scale, zero.to(torch.uint8)


def _held(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Positive scales in the dtype of the file, rounded up: rounding down would cut the range."""
    # A unit of zeros has no range: any scale works, also the smallest of the dtype.
    held = scale.clamp(min=2.0**-24 if dtype == torch.float16 else 2.0**-126).to(dtype)
    bits = held.view(torch.int16 if dtype == torch.float16 else torch.int32)
    return (bits + (held.float() < scale)).to(bits.dtype).view(dtype)


def to_grid(weight_RC: Tensor, scale: Tensor, zero: Tensor | None, kind: GridKind) -> Grid:
    """The nearest levels under given scales. 0 becomes the zero point's level, which is 0 again."""
    columns = weight_RC.shape[1]
    start = float(2 ** (kind.bits - 1)) if zero is None else spread(zero.float(), columns)
    codes = (weight_RC / spread(scale.float(), columns)).round_().add_(start).clamp_(0, 2**kind.bits - 1)
    return Grid(codes.to(torch.uint8), kind.bits, scale, zero)


def nearest(weight_RC: Tensor, kind: GridKind) -> Grid:
    """Round to nearest: the weight on the grid that its own range gives."""
    return to_grid(weight_RC, *fit(weight_RC, kind), kind)


def _error(units: Tensor, scale: Tensor, zero: Tensor | None, kind: GridKind) -> Tensor:
    """Squared error of rounding, unit by unit."""
    step = scale.float().unsqueeze(-1)
    start = float(2 ** (kind.bits - 1)) if zero is None else zero.float().unsqueeze(-1)
    codes = (units / step).round_().add_(start).clamp_(0, 2**kind.bits - 1)
    return (codes.sub_(start).mul_(step).sub_(units)).square_().sum(-1)
