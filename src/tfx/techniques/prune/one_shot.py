"""Pruning in one pass over the blocks of a trained model: Wanda and SparseGPT (Frantar 2023, arXiv 2301.00774).

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from tfx.techniques.calibration import Calibration, in_order
from tfx.techniques.columns import Ahead, inverse_factor, output_error, replace_columns
from tfx.techniques.prune.masks import pattern_mask, share_mask
from tfx.techniques.prune.settings import PruneSettings

# SparseGPT chooses what goes of this many columns at once: later ones by weights that have made up for the loss so far.
_CHOICE = 128


def prune_blocks(
    chosen: Mapping[str, Tensor], calibration: Calibration, settings: PruneSettings
) -> tuple[dict[str, Tensor], float]:
    """Prunes matrices in place, in the order of the forward pass: each sees the inputs that those before it leave.

    Returns their masks (True: stays), and the error of all their outputs relative to the outputs.
    """
    masks: dict[str, Tensor] = {}
    lost = whole = 0.0
    calibration.request(settings.calibration)
    for name, moments in in_order(calibration.inputs(chosen)):
        weight = chosen[name]
        if settings.score == "wanda":
            scores = wanda_scores(weight, moments)
            mask = _mask(scores, settings.sparsity, settings.unit, settings.kept_of)
            pruned = weight * mask
        else:
            pruned, mask = sparsegpt(weight, moments, settings.sparsity, settings.unit, settings.kept_of)
        error, size = output_error(weight, pruned, moments)
        lost, whole = lost + error, whole + size
        weight.copy_(pruned)
        masks[name] = mask
    return masks, sqrt(lost / whole) if whole else 0.0


def wanda_scores(weight_RC: Tensor, moments_CC: Tensor) -> Tensor:
    """|w| times the norm of its input over the calibration data, up to a common factor (Sun 2023, arXiv 2306.11695)."""
    return weight_RC.abs() * moments_CC.diagonal().sqrt().to(weight_RC)


def sparsegpt(
    weight_RC: Tensor, moments_CC: Tensor, sparsity: float, unit: str, kept_of: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """The pruned weight, and its mask: column by column, later ones make up for what goes (Frantar 2023).

    Of a group of columns those weights go that cost least: w^2 / [H^-1]_cc, with the columns before c taken out of H.
    That is a share of the group (``unit`` is ``tensor``) or of each of its rows (``row``), or all but n of m in each
    row (``kept_of``). What is 0 stays 0, and counts.
    """
    factor_CC = inverse_factor(moments_CC)
    cost_C = factor_CC.diagonal().square()
    mask_RC = weight_RC.cpu() != 0
    pruned_RC = torch.empty_like(weight_RC, device="cpu")
    width = _CHOICE if kept_of is None else kept_of[1]

    def kept(column: int, ahead: Ahead) -> Tensor:
        if column % width == 0:
            group = slice(column, column + width)
            score = (ahead(width).square() / cost_C[group]).masked_fill(~mask_RC[:, group], -1.0)
            mask_RC[:, group] &= _mask(score, sparsity, unit, kept_of)
        value = ahead(1) * mask_RC[:, column : column + 1]
        pruned_RC[:, column : column + 1] = value
        return value

    replace_columns(weight_RC, factor_CC, kept)
    return pruned_RC.to(weight_RC.device), mask_RC.to(weight_RC.device)


def _mask(scores: Tensor, sparsity: float, unit: str, kept_of: tuple[int, int] | None) -> Tensor:
    return share_mask(scores, sparsity, unit) if kept_of is None else pattern_mask(scores, *kept_of)
