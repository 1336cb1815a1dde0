"""GPTQ (Frantar 2022, arXiv 2210.17323): rounds column by column, and later columns compensate the error.

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfx.compression.grid import Grid
from tfx.techniques.quantize.rounding import GridKind, fit, to_grid

# Number of columns whose errors are passed on in one matrix product.
_BLOCK = 128


def gptq(
    weight_RC: Tensor,
    moments_CC: Tensor,
    kind: GridKind,
    mask_RC: Tensor | None = None,
    given: tuple[Tensor, Tensor | None] | None = None,
    damping: float = 0.01,
) -> Grid:
    """The grid of a weight that keeps W x close for inputs x with these second moments E[x x^T].

    Scales come from the weights as they are when their first column is reached. Where ``mask`` is False the
    level is 0, and later columns compensate that too (as in SparseGPT, Frantar 2023, arXiv 2301.00774).
    ``given`` are scales (1, 1) or (R, 1) and zero points to take instead.
    ``damping``, relative to the mean of the diagonal, is added to it.
    """
    rest_RC = weight_RC.double().cpu().clone()
    columns = rest_RC.shape[1]
    factor_CC = inverse_factor(moments_CC.double().cpu(), damping)
    size = columns if not kind.group else kind.group
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    if given is not None:
        scales.append(given[0].cpu())
        zeros += [] if given[1] is None else [given[1].cpu()]
    codes_RC = torch.empty(rest_RC.shape, dtype=torch.uint8)
    for begin in range(0, columns, _BLOCK):
        end = min(begin + _BLOCK, columns)
        errors = torch.zeros(len(rest_RC), end - begin, dtype=torch.float64)
        for column in range(begin, end):
            if column % size == 0 and given is None:
                # The columns of this group after the block have not received its errors yet.
                group = rest_RC[:, column : column + size].clone()
                if column + size > end:
                    group[:, end - column :] -= errors @ factor_CC[begin:end, end : column + size]
                whole = GridKind(
                    kind.bits, kind.symmetric, None if kind.group is None else 0, kind.clip, kind.scale_dtype
                )
                scale, zero = fit(group.float(), whole)
                scales.append(scale)
                if zero is not None:
                    zeros.append(zero)
            scale, zero_now = scales[-1], zeros[-1] if zeros else None
            part = rest_RC[:, column : column + 1]
            grid = to_grid(part.float(), scale, zero_now, kind)
            if mask_RC is not None:
                nought = (
                    torch.full_like(scale, 2 ** (kind.bits - 1), dtype=torch.uint8) if zero_now is None else zero_now
                )
                kept = mask_RC[:, column : column + 1].cpu()
                grid = Grid(torch.where(kept, grid.codes_RC, nought), kind.bits, scale, zero_now)
            codes_RC[:, column : column + 1] = grid.codes_RC
            error = (part - grid.values().double()) / factor_CC[column, column]
            rest_RC[:, column:end] -= error @ factor_CC[column : column + 1, column:end]
            errors[:, column - begin : column - begin + 1] = error
        rest_RC[:, end:] -= errors @ factor_CC[begin:end, end:]
    grid = Grid(codes_RC, kind.bits, torch.cat(scales, 1), torch.cat(zeros, 1) if zeros else None)
    return grid.to(weight_RC.device)


def inverse_factor(moments_CC: Tensor, damping: float = 0.01) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moments. An input that is always 0 has no effect."""
    diagonal = moments_CC.diagonal()
    mean = diagonal.mean()
    damped = moments_CC + torch.diag(torch.where(diagonal == 0, torch.ones_like(diagonal), damping * mean))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
