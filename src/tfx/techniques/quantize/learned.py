"""Scales that training learns with the weights (Esser 2020, arXiv 1902.08153)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tfx.compression.grid import spread
from tfx.techniques.quantize.rounding import GridKind


class LearnedStep(torch.autograd.Function):
    """The values of a grid whose scales are exp(step) times the chosen ones (Esser 2020)."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, values: Tensor, scale: Tensor, zero: Tensor | None, kind: GridKind
    ) -> Tensor:
        ctx.save_for_backward(weight, scale, zero)
        ctx.kind = kind
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale, zero = ctx.saved_tensors
        passed, by_scale = step_gradient(weight, gradients[0], scale, zero, ctx.kind)
        return passed, by_scale * scale.float(), None, None, None, None


def step_gradient(
    weight_RC: Tensor, gradient_RC: Tensor, scale: Tensor, zero: Tensor | None, kind: GridKind
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight and of its scales from that of the grid's values (Esser 2020, equations 3 and 5).

    Inside the range the weight's passes straight through and the scale's is (code - w / s); outside the weight's
    is 0 and the scale's the outermost level. The latter is scaled by 1 / sqrt(weights a scale * largest level).
    """
    columns = weight_RC.shape[1]
    levels = 2**kind.bits
    start = float(levels // 2) if zero is None else spread(zero.float(), columns)
    ratio = weight_RC / spread(scale.float(), columns)
    inside = (ratio + start >= 0) & (ratio + start <= levels - 1)
    level = (ratio.round() + start).clamp(0, levels - 1) - start
    by_scale = kind.units(gradient_RC * torch.where(inside, level - ratio, level))
    strength = 1.0 / math.sqrt(by_scale.shape[-1] * (levels // 2 - 1 if zero is None else levels - 1))
    return gradient_RC * inside, by_scale.sum(-1) * strength
