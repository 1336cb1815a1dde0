"""Losses on the logits, computed in slices that fit the cache.

The logits of a batch are its largest tensor (4,096 x 10,000 in fp32 take 160 MB). Writing and reading them
costs more than the matrix products that compute them. So losses and their gradients are computed slice by
slice. All losses share each slice, and only one slice of logits exists at a time.

Shapes: N target positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from tfx.model.device import is_asynchronous
from tfx.model.linear import reduce_rows

_SLICE_ELEMENTS_CPU = 128 * 8192
_SLICE_ELEMENTS_GPU = 4096 * 8192
# Of the gradients of logits that a CPU keeps for one product, in the dtype of the products.
_ERROR_ELEMENTS_CPU = 1024 * 8192
# A GPU's products are several times slower where a side is no multiple of a few elements, as most vocabularies are.
_GPU_MULTIPLE = 64


@dataclass
class LogitSlice:
    """The logits of the positions ``rows``; the losses share them and must not change them.

    On a CPU the exponentials cost as much as a product, so they are taken once, and all else follows from them.
    """

    rows: slice
    logits_NV: Tensor
    # Whether several losses read this slice; a single one may overwrite the probabilities.
    shared: bool = True

    @cached_property
    def probabilities_NV(self) -> Tensor:
        """Softmax of the logits."""
        return self.logits_NV.softmax(1)

    @cached_property
    def log_normalizer_N1(self) -> Tensor:
        """Log-sum-exp of the logits: the largest logit less the log of its probability."""
        return self.logits_NV.amax(1, keepdim=True) - self.probabilities_NV.amax(1, keepdim=True).log_()

    def own_probabilities(self) -> Tensor:
        """The softmax as a tensor that the caller may change; read `log_normalizer_N1` before."""
        return self.probabilities_NV.clone() if self.shared else self.probabilities_NV


class LogitLoss(Protocol):
    """A loss that sums a function of the logits over the positions."""

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """The loss (N,), the value to report (N,), and d loss / d logits (N, V), which the caller may overwrite."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy with one or more weighted targets per position.

    ``targets`` are pairs of ids (N,) and weights (N,), None for 1; negative ids do not count. ``smoothing``
    mixes the target with the uniform distribution (Szegedy 2016, arXiv 1512.00567). The reported value is
    the negative log-likelihood without smoothing, in nats.
    """

    targets: Sequence[tuple[Tensor, Tensor | None]]
    smoothing: float = 0.0

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        logits_NV, log_normalizer_N1, rows = piece.logits_NV, piece.log_normalizer_N1, piece.rows
        vocab = logits_NV.shape[1]
        # Whether each position has one target of weight 1. On a GPU the answer would have to be waited for.
        may_read = logits_NV.device.type == "cpu" and not is_asynchronous(logits_NV.device)
        is_plain = may_read and len(self.targets) == 1 and self.targets[0][1] is None
        plain_N1 = torch.zeros_like(log_normalizer_N1)
        mass_N1 = torch.zeros_like(log_normalizer_N1)
        picked: list[tuple[Tensor, Tensor]] = []
        for target_N, weight_N in self.targets:
            target_N1 = target_N[rows].unsqueeze(1)
            weight_N1 = (target_N1 >= 0).to(logits_NV.dtype)
            is_plain = is_plain and bool(weight_N1.all())
            if weight_N is not None:
                weight_N1 = weight_N1 * weight_N[rows].unsqueeze(1)
            target_N1 = target_N1.clamp(min=0)
            plain_N1 += weight_N1 * (log_normalizer_N1 - logits_NV.gather(1, target_N1))
            mass_N1 += weight_N1
            picked.append((target_N1, weight_N1))
        loss_N1 = plain_N1
        if self.smoothing:
            uniform_N1 = mass_N1 * (log_normalizer_N1 - logits_NV.mean(1, keepdim=True))
            loss_N1 = (1.0 - self.smoothing) * plain_N1 + self.smoothing * uniform_N1
        error_NV = None
        if needs_error:
            # d loss / d logits = softmax - smoothed one-hot.
            error_NV = piece.own_probabilities()
            if not is_plain:
                error_NV.mul_(mass_N1)
            if self.smoothing:
                error_NV.sub_(self.smoothing / vocab if is_plain else mass_N1 * (self.smoothing / vocab))
            for target_N1, weight_N1 in picked:
                error_NV.scatter_add_(1, target_N1, weight_N1 * (self.smoothing - 1.0))
        return loss_N1.squeeze(1), plain_N1.squeeze(1), error_NV


class _ProjectedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, losses: Sequence[tuple[LogitLoss, float]], dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        vocab, count = weight_VD.shape[0], hidden_ND.shape[0]
        needs_error = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        is_cpu = hidden_ND.device.type == "cpu"
        size = _rows(_SLICE_ELEMENTS_CPU if is_cpu else _SLICE_ELEMENTS_GPU, vocab)
        weight = output_matrix(weight_VD, dtype)
        grad_hidden = torch.empty_like(hidden_ND, dtype=torch.float32) if needs_error else None
        grad_weight = None
        total = torch.zeros((), device=hidden_ND.device)
        reported = [torch.zeros(count, device=hidden_ND.device) for _ in losses]
        # The errors of several slices are multiplied together: to add a gradient of the whole matrix for each slice
        # would move more bytes than the logits have.
        at_once = max(size, _rows(_ERROR_ELEMENTS_CPU, vocab) // size * size) if is_cpu else size
        for begin in range(0, count, at_once):
            block = slice(begin, min(begin + at_once, count))
            hidden = reduce_rows(hidden_ND[block], dtype)
            errors = hidden.new_empty(len(hidden), len(weight)) if needs_error else None
            for start in range(0, len(hidden), size):
                part = slice(start, start + size)
                rows = slice(begin + start, min(begin + start + size, block.stop))
                logits = (hidden[part] @ weight.t())[: rows.stop - rows.start, :vocab].float()
                piece = LogitSlice(rows, logits, shared=len(losses) > 1)
                error: Tensor | None = None
                for (loss, scale), report in zip(losses, reported, strict=True):
                    value, report[rows], gradient = loss(piece, needs_error)
                    total += scale * value.sum()
                    if gradient is None:
                        continue
                    if error is None:
                        error = gradient if scale == 1.0 else gradient.mul_(scale)
                    else:
                        error.add_(gradient, alpha=scale)
                if errors is not None and error is not None:
                    errors[start : start + len(error), :vocab] = error
            if errors is not None and grad_hidden is not None:
                errors[block.stop - begin :] = 0
                errors[:, vocab:] = 0
                grad_hidden[block] = (errors @ weight)[: block.stop - begin]
                product = errors.t() @ hidden
                grad_weight = product.float() if grad_weight is None else grad_weight.add_(product)
        if needs_error:
            if grad_weight is None:  # no position
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            assert grad_hidden is not None
            ctx.save_for_backward(grad_hidden.to(hidden_ND.dtype), grad_weight[:vocab])
        ctx.mark_non_differentiable(*reported)
        return total, *reported

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if not is_asynchronous(grads[0].device) and float(grads[0]) == 1.0:
            return grad_hidden, grad_weight, None, None
        return grad_hidden * grads[0], grad_weight * grads[0], None, None


def _rows(elements: int, vocab: int) -> int:
    """How many rows of logits have about this many elements: a multiple of 128."""
    return max(128, elements // vocab // 128 * 128)


def output_matrix(weight_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix that hidden states are multiplied with: on a GPU with rows of zeros beyond the vocabulary.

    The logits of these must be left out.
    """
    weight = weight_VD.to(dtype)
    beyond = _columns(len(weight), weight.device) - len(weight)
    return functional.pad(weight, (0, 0, 0, beyond)) if beyond else weight


def _columns(vocab: int, device: torch.device) -> int:
    """How many columns the product with the output matrix has."""
    return vocab if device.type == "cpu" else -(-vocab // _GPU_MULTIPLE) * _GPU_MULTIPLE


def projected_losses(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    losses: Sequence[tuple[LogitLoss, float]],
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, list[Tensor]]:
    """Losses on the logits hidden @ weight^T, each times its scale, summed over positions and losses.

    ``dtype`` is the dtype of the matrix products; sums are in fp32. Returns the total, which has gradients for
    hidden and weight, and each loss's reported values (N,), which have none.
    """
    total, *reported = _ProjectedLosses.apply(hidden_ND, weight_VD, losses, dtype)
    return total, reported
