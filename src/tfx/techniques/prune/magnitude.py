"""Masks of single weights by their magnitude (Zhu & Gupta 2017, arXiv 1710.01878), and n:m patterns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tfx.errors import UserError
from tfx.model.device import is_asynchronous


def smallest(magnitude: Tensor, count: int) -> Tensor:
    """True at the ``count`` smallest of each row of (R, C); among equals the first go first."""
    gone = torch.zeros_like(magnitude, dtype=torch.bool)
    if count <= 0:
        return gone
    if is_asynchronous(magnitude.device) or magnitude.device.type == "mps":
        # There `kthvalue` has no deterministic kernel, and CUDA's gives a row to one block of threads.
        threshold_R1 = magnitude.sort(dim=1).values[:, count - 1 : count]
    else:
        threshold_R1 = magnitude.kthvalue(count, dim=1, keepdim=True).values
    gone = magnitude < threshold_R1
    tied = magnitude == threshold_R1
    missing_R1 = count - gone.sum(1, keepdim=True)
    return gone | (tied & (tied.cumsum(1) <= missing_R1))


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: str) -> dict[str, Tensor]:
    """Masks (True: stays) that zero this share by magnitude, over all tensors, in each tensor or in each row.

    A vector is one row. The number of zeros is the product rounded to the nearest integer, in each unit of comparison.
    """
    if scope == "global":
        flat = torch.cat([weight.abs().flatten() for weight in weights.values()])
        gone = smallest(flat.unsqueeze(0), round(sparsity * flat.numel()))[0]
        pieces = gone.split([weight.numel() for weight in weights.values()])
        return {name: ~piece.view_as(weights[name]) for name, piece in zip(weights, pieces, strict=True)}
    masks = {}
    for name, weight in weights.items():
        rows = weight.abs() if scope == "row" and weight.ndim == 2 else weight.abs().reshape(1, -1)
        masks[name] = ~smallest(rows, round(sparsity * rows.shape[1])).view_as(weight)
    return masks


def pattern_mask(weight: Tensor, keep: int, of: int) -> Tensor:
    """True at the ``keep`` largest of every ``of`` consecutive columns."""
    groups = weight.abs().reshape(-1, of)
    return ~smallest(groups, of - keep).view_as(weight)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """``"2:4"`` as (2, 4). Raises `UserError` for anything that is not n:m with 0 < n < m."""
    keep, _, of = pattern.partition(":")
    if not (keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of)):
        raise UserError(f"technique.prune.pattern={pattern} is not n:m with 0 < n < m, as 2:4 is")
    return int(keep), int(of)
