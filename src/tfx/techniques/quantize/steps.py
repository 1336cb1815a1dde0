"""Steps for the trellis: for each matrix, and where it pays each of its rows, so that all levels take a rate together.

A squared error of a weight costs what its row's gradients say (Choi 2017, arXiv 1612.01543), less what GPTQ makes up
for in later columns. One bit more is worth the same everywhere where steps go with 1 / sqrt(cost). An embedding has
rows of words that hardly occur: they take few bits, and the others more.

Shapes: R rows and C columns of a matrix, P points at which its bits are measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tfx.compression.grid import Grid
from tfx.compression.trellis import EXPONENTS, quantizers, row_scales
from tfx.techniques.columns import inverse_factor
from tfx.techniques.quantize.bisection import finest
from tfx.techniques.quantize.rounding import entropy_bits
from tfx.techniques.quantize.trellis import LEVELS, error_share, group_of, search

# Steps whose bits are measured, as logarithms to base 2 of their ratio to the root mean square.
_POINTS = (-4.0, -3.0, -2.0, -1.25, -0.5, 0.25, 1.0)
# Rows of a matrix that are measured: at least the first number, and one in as many as the second.
_SAMPLE, _ONE_IN = 64, 8
# Bits that the steps of rows must save, each, to be worth their bytes and the noise in what a few batches say of them.
_ROW_BITS = 16.0
# A row costs at least this share of the mean: calibration batches lack words that other texts have.
_LEAST_COST = 1 / 4
# How many more bits a uniform quantizer takes for the same error, about; and the largest logarithm of its step in units
# of the root mean square.
_SAVED = 0.15
_COARSEST = 1.5


@dataclass(frozen=True)
class Matrix:
    """What choosing steps needs to know of one matrix.

    ``log_step_R``, or a single value, are the logarithms of the steps where one bit is worth 1, and ``least_R`` of the
    finest that levels reach. ``log_spread`` is that of the root mean square, and ``bits_P`` are the bits of a weight
    at the points.
    """

    log_step_R: Tensor
    least_R: Tensor
    log_spread: float
    bits_P: tuple[float, ...]
    count: int

    def log_steps(self, shift: float) -> Tensor:
        """The logarithms of the steps of the rows where a bit is worth 2^(2 shift)."""
        middle = float(self.log_step_R.mean())
        # No coarser than the coarsest that was measured: a matrix must not become empty because it hardly matters.
        shift = min(shift, self.log_spread + _POINTS[-1] - middle)
        return torch.maximum(self.log_step_R + shift, self.least_R)

    def scale(self, shift: float, dtype: torch.dtype) -> Tensor:
        """The steps (R, 1) or (1, 1), in fp32, with bases of ``dtype`` (`row_scales`)."""
        log_R = self.log_steps(shift)
        finer_R = torch.minimum((2 * (log_R.max() - log_R)).round(), (2 * (log_R.max() - self.least_R)).floor())
        bases = 2.0 ** (log_R.max() - torch.tensor([0.0, 0.5]))
        return row_scales(bases.to(dtype), finer_R.clamp(0, EXPONENTS - 1).long())

    def bits(self, shift: float) -> float:
        """Bits of a weight at this shift, between the points that were measured."""
        at = float(self.log_steps(shift).mean()) - self.log_spread
        if at <= _POINTS[0]:
            return self.bits_P[0] + _POINTS[0] - at
        above = next((i for i, point in enumerate(_POINTS) if point >= at), len(_POINTS) - 1)
        share = min(1.0, (at - _POINTS[above - 1]) / (_POINTS[above] - _POINTS[above - 1]))
        return self.bits_P[above - 1] + share * (self.bits_P[above] - self.bits_P[above - 1])


def measure(weight_RC: Tensor, moments_CC: Tensor, square_R: Tensor, by_row: bool | None) -> Matrix:
    """Measures one matrix, given its inputs' second moments and each row's share of the mean square of its gradient.

    ``by_row`` says whether rows have steps of their own; None: where that saves more than it takes.
    """
    weight_RC = weight_RC.float().cpu()
    rows = len(weight_RC)
    factor_CC = inverse_factor(moments_CC)
    spread = float(weight_RC.square().mean().sqrt().clamp(min=1e-12))
    # Gradients know the mean of the squared inputs; GPTQ leaves a share of it.
    share = error_share(factor_CC) / float(moments_CC.diagonal().mean().clamp(min=1e-30))
    log_step_R = relative_steps(square_R, weight_RC.shape, by_row) - 0.5 * math.log2(share)
    peak_R = weight_RC.abs().amax(1) if len(log_step_R) > 1 else weight_RC.abs().max().view(1)
    least_R = (peak_R.double() / (2 * (LEVELS - 2))).clamp(min=2.0**-24).log2()
    every = max(1, min(rows // _SAMPLE, _ONE_IN))
    relative_R = (log_step_R - log_step_R.mean()).expand(rows)[::every]
    sample_RC = weight_RC[::every]
    scaled = [sample_RC / (spread * 2.0 ** (relative_R + point)).unsqueeze(1).float() for point in _POINTS]
    levels = search(torch.cat(scaled), factor_CC).split(len(sample_RC))
    bits = tuple(entropy(level_RC, rows_RC) for level_RC, rows_RC in zip(levels, scaled, strict=True))
    return Matrix(log_step_R, least_R, torch.tensor(spread).log2().item(), bits, weight_RC.numel())


def relative_steps(square_R: Tensor, shape: tuple[int, ...], by_row: bool | None) -> Tensor:
    """Logarithms to base 2 of steps at which one bit is worth the same: of each row (R,), or one for the matrix (1,).

    ``square_R`` and ``by_row`` are as in `measure`.
    """
    rows, columns = shape
    square_R = square_R.double().cpu()
    cost_R = square_R * rows if square_R.ndim else square_R.expand(rows)
    cost_R = cost_R.clamp(min=float(cost_R.mean()) * _LEAST_COST).clamp(min=1e-30)
    log_step_R = -0.5 * cost_R.log2()
    together = -0.5 * cost_R.mean().log2().view(1)
    saved = float(log_step_R.mean() - together)
    return together if by_row is False or (by_row is None and saved * columns < _ROW_BITS) else log_step_R


def scalar_steps(
    weights: Mapping[str, Tensor], squares: Mapping[str, Tensor], rate: float, by_row: bool | None
) -> dict[str, Tensor]:
    """Steps of uniform quantizers, (R, 1) or (1, 1) in fp32, with about the error of a trellis at this rate.

    For training on a grid that rounds each weight alone. Their levels' bits are those of normal weights.
    """
    log_steps = {name: relative_steps(squares[name], tuple(w.shape), by_row) for name, w in weights.items()}
    spreads = {
        name: w.float().square().mean(1 if len(log_steps[name]) > 1 else (0, 1)).double().cpu().reshape(-1).sqrt()
        for name, w in weights.items()
    }
    count = sum(w.numel() for w in weights.values())

    def bits(shift: float) -> float:
        ratios = {name: spreads[name].clamp(min=1e-12).log2() - log_steps[name] - shift for name in weights}
        return sum(w.numel() * float(_normal_bits(ratios[name]).mean()) for name, w in weights.items())

    coarse = finest(lambda shift: bits(shift) <= (rate + _SAVED) * count)
    steps = {}
    for name, w in weights.items():
        most = float(spreads[name].square().mean().sqrt().clamp(min=1e-12).log2()) + _COARSEST
        log_R = log_steps[name] + min(coarse, most - float(log_steps[name].mean()))
        steps[name] = (2.0**log_R).float().unsqueeze(1).to(w.device)
    return steps


def _normal_bits(log_ratio: Tensor) -> Tensor:
    """The entropy of normal weights in steps of a uniform quantizer, from the logarithm of their deviation in steps."""
    points, bits = _normal_curve()
    place = ((log_ratio - points[0]) / (points[1] - points[0])).clamp(0, len(points) - 1.001)
    below = place.long()
    within = bits[below] + (place - below) * (bits[below + 1] - bits[below])
    return within + (log_ratio - points[-1]).clamp(min=0)


@cache
def _normal_curve() -> tuple[Tensor, Tensor]:
    points = torch.arange(-3.0, 6.01, 0.25, dtype=torch.float64)
    edges = torch.arange(-1024, 1025, dtype=torch.float64) + 0.5
    mass = torch.special.ndtr(edges / 2.0 ** points.unsqueeze(1)).diff(dim=1)
    return points, torch.special.entr(mass).sum(1) / math.log(2)


def entropy(levels_RC: Tensor, rows_RC: Tensor) -> float:
    """Bits of a level: the entropy given the quantizer, and how large the row is."""
    context_RC = 2 * group_of(rows_RC).unsqueeze(1) + quantizers(levels_RC)
    total = 0.0
    for context in context_RC.unique():
        codes = levels_RC[context_RC == context] + LEVELS
        total += entropy_bits(codes)
    return total / levels_RC.numel()


def coded_bits(grid: Grid) -> float:
    """Bits of all codes of a grid, about as the file has them."""
    if not grid.trellis or grid.scale is None:
        return entropy_bits(grid.codes_RC)
    return entropy(grid.levels(), grid.values() / grid.scale.float()) * grid.codes_RC.numel()


def choose(matrices: Mapping[str, Matrix], rate: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The steps of all matrices, (1, 1) or (R, 1), with which their levels take ``rate`` bits per weight together."""
    count = sum(matrix.count for matrix in matrices.values())

    def is_cheap(log_factor: float) -> bool:
        return sum(matrix.count * matrix.bits(log_factor) for matrix in matrices.values()) <= rate * count

    found = finest(is_cheap)
    return {name: matrix.scale(found, dtype) for name, matrix in matrices.items()}
