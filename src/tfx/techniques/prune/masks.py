"""Masks of single weights: those with the smallest scores go, a share of them or by an n:m pattern."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tfx.errors import UserError
from tfx.model.device import is_asynchronous


def smallest(scores: Tensor, count: int) -> Tensor:
    """True at the ``count`` smallest of each row of (R, C); among equals the first go first."""
    gone = torch.zeros_like(scores, dtype=torch.bool)
    if count <= 0:
        return gone
    if is_asynchronous(scores.device) or scores.device.type == "mps":
        # There `kthvalue` has no deterministic kernel, and CUDA's gives a row to one block of threads.
        threshold_R1 = scores.sort(dim=1).values[:, count - 1 : count]
    else:
        threshold_R1 = scores.kthvalue(count, dim=1, keepdim=True).values
    gone = scores < threshold_R1
    tied = scores == threshold_R1
    missing_R1 = count - gone.sum(1, keepdim=True)
    return gone | (tied & (tied.cumsum(1) <= missing_R1))


def share_masks(scores: Mapping[str, Tensor], sparsity: float, scope: str) -> dict[str, Tensor]:
    """Masks (True: stays) that zero this share by score, over all tensors, in each tensor or in each row.

    A vector is one row. The number of zeros is the product rounded to the nearest integer, in each unit of comparison.
    """
    if scope == "global":
        flat = torch.cat([score.flatten() for score in scores.values()])
        gone = smallest(flat.unsqueeze(0), round(sparsity * flat.numel()))[0]
        pieces = gone.split([score.numel() for score in scores.values()])
        return {name: ~piece.view_as(scores[name]) for name, piece in zip(scores, pieces, strict=True)}
    return {name: share_mask(score, sparsity, scope) for name, score in scores.items()}


def share_mask(score: Tensor, sparsity: float, scope: str) -> Tensor:
    """The mask of one tensor, as in `share_masks`: by ``tensor`` or by ``row``."""
    rows = score if scope == "row" and score.ndim == 2 else score.reshape(1, -1)
    return ~smallest(rows, round(sparsity * rows.shape[1])).view_as(score)


def pattern_mask(score: Tensor, keep: int, of: int) -> Tensor:
    """True at the ``keep`` largest of every ``of`` consecutive columns."""
    return ~smallest(score.reshape(-1, of), of - keep).view_as(score)


def parse_pattern(pattern: str) -> tuple[int, int]:
    """``"2:4"`` as (2, 4). Raises `UserError` for anything that is not n:m with 0 < n < m."""
    keep, _, of = pattern.partition(":")
    if not (keep.isdecimal() and of.isdecimal() and 0 < int(keep) < int(of)):
        raise UserError(f"technique.prune.pattern={pattern} is not n:m with 0 < n < m, as 2:4 is")
    return int(keep), int(of)
