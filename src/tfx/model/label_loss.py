"""The task's own loss on the outputs of a model: of tokens or labels by cross-entropy, of others as they are.

Shapes: N target positions, B rows, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tfx.model.architecture import Architecture
from tfx.model.batch import IGNORE, Batch
from tfx.model.loss import CrossEntropy, LogitLoss, LogitSlice


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """For each label whether it holds: the mean over the labels of their cross-entropies.

    ``values_NC`` are 0 or 1, or what examples are mixed of; ``smoothing`` moves them towards one half. The reported
    value has no smoothing. ``counts_N`` are what the rows count.
    """

    values_NC: Tensor
    counts_N: Tensor
    smoothing: float = 0.0

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        logits_NC, values_NC = piece.logits_NV, self.values_NC[piece.rows]
        counts_N = self.counts_N[piece.rows]
        smooth_NC = torch.lerp(values_NC, torch.full_like(values_NC, 0.5), self.smoothing)
        loss_N = _binary(logits_NC, smooth_NC) * counts_N
        plain_N = _binary(logits_NC, values_NC) * counts_N if self.smoothing else loss_N
        if not needs_error:
            return loss_N, plain_N, None
        error_NC = (logits_NC.sigmoid() - smooth_NC) * (counts_N / logits_NC.shape[1]).unsqueeze(1)
        return loss_N, plain_N, error_NC


@dataclass(frozen=True)
class SquaredError:
    """The squared error of one number, in units of its scale."""

    values_NC: Tensor
    counts_N: Tensor

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        gap_NC = piece.logits_NV - self.values_NC[piece.rows]
        counts_N1 = self.counts_N[piece.rows].unsqueeze(1)
        loss_N = (gap_NC.square() * counts_N1).squeeze(1)
        return loss_N, loss_N, 2.0 * gap_NC * counts_N1 if needs_error else None


def _binary(logits_NC: Tensor, values_NC: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits_NC, values_NC, reduction="none").mean(1)


def task_loss(
    architecture: Architecture,
    batch: Batch,
    targets: Sequence[tuple[Tensor, Tensor | None]],
    keep_N: Tensor | None,
    smoothing: float,
) -> LogitLoss:
    """The loss of a batch at the positions ``keep`` (None: all), of which ``targets`` are the ids and their weights."""
    counts = None if batch.counts_B is None else _kept(batch.counts_B, keep_N)
    if batch.values_BC is None:
        if counts is not None:
            counted = [(targets[0][0], _product(targets[0][1], counts))]
            if batch.mix is not None and batch.mix.partner_counts_B is not None:
                others = _kept(batch.mix.partner_counts_B, keep_N)
                counted.append((targets[1][0], _product(targets[1][1], others)))
            targets = counted
        return CrossEntropy(targets, smoothing)
    values_NC = _kept(batch.values_BC, keep_N)
    real_N = (targets[0][0] >= 0).to(values_NC.dtype)
    counts_N = real_N if counts is None else real_N * counts
    if architecture.outputs is not None and architecture.outputs.predicts == "several":
        return BinaryCrossEntropy(values_NC, counts_N, smoothing)
    return SquaredError(values_NC, counts_N)


def plain_losses(architecture: Architecture, logits_NC: Tensor, target_N: Tensor, values_BC: Tensor | None) -> Tensor:
    """The loss (N,) of each position without smoothing, 0 where there is no target."""
    if values_BC is None:
        return functional.cross_entropy(logits_NC.float(), target_N, reduction="none", ignore_index=IGNORE)
    real_N = (target_N >= 0).float()
    if architecture.outputs is not None and architecture.outputs.predicts == "several":
        return _binary(logits_NC.float(), values_BC) * real_N
    return (logits_NC.float() - values_BC).square().squeeze(1) * real_N


def _kept(values_BX: Tensor, keep_N: Tensor | None) -> Tensor:
    return values_BX if keep_N is None else values_BX[keep_N]


def _product(weight_N: Tensor | None, counts_N: Tensor) -> Tensor:
    return counts_N if weight_N is None else weight_N * counts_N
