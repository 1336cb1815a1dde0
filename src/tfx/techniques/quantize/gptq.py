"""GPTQ (Frantar 2022, arXiv 2210.17323): rounds column by column, and later columns compensate the error.

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tfx.compression.grid import Grid
from tfx.techniques.columns import Ahead, inverse_factor, replace_columns
from tfx.techniques.quantize.rounding import GridKind, fit, to_grid


def gptq(
    weight_RC: Tensor,
    moments_CC: Tensor,
    kind: GridKind,
    mask_RC: Tensor | None = None,
    given: tuple[Tensor, Tensor | None] | None = None,
) -> Grid:
    """The grid of a weight that keeps W x close for inputs x with these second moments E[x x^T].

    Scales come from the weights as they are when their first column is reached. Where ``mask`` is False the
    level is 0, and later columns compensate that too (as in SparseGPT, Frantar 2023, arXiv 2301.00774).
    ``given`` are scales (1, 1) or (R, 1) and zero points to take instead.
    """
    size = kind.group or weight_RC.shape[1]
    whole = replace(kind, group=None if kind.group is None else 0)
    scales: list[Tensor] = []
    zeros: list[Tensor] = []
    if given is not None:
        scales.append(given[0].cpu())
        zeros += [] if given[1] is None else [given[1].cpu()]
    codes_RC = torch.empty(weight_RC.shape, dtype=torch.uint8)

    def rounded(column: int, ahead: Ahead) -> Tensor:
        if column % size == 0 and given is None:
            scale, zero = fit(ahead(size).float(), whole)
            scales.append(scale)
            if zero is not None:
                zeros.append(zero)
        scale, zero_now = scales[-1], zeros[-1] if zeros else None
        grid = to_grid(ahead(1).float(), scale, zero_now, kind)
        if mask_RC is not None:
            nought = torch.full_like(scale, 2 ** (kind.bits - 1), dtype=torch.uint8) if zero_now is None else zero_now
            kept = mask_RC[:, column : column + 1].cpu()
            grid = Grid(torch.where(kept, grid.codes_RC, nought), kind.bits, scale, zero_now)
        codes_RC[:, column : column + 1] = grid.codes_RC
        return grid.values().double()

    replace_columns(weight_RC, inverse_factor(moments_CC), rounded)
    grid = Grid(codes_RC, kind.bits, torch.cat(scales, 1), torch.cat(zeros, 1) if zeros else None)
    return grid.to(weight_RC.device)
