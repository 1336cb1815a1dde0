"""Cross-entropy on top of the output projection, in slices that stay in the cache.

The logits of a batch are its largest tensor (4,096 x 10,000 in fp32 are 160 MB), and writing and reading
them costs more than the products that make them. So the loss and its gradients are computed slice by
slice, and no more than one slice of logits exists at a time.

Shapes: N target positions, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tfx.model.linear import reduce_rows

_SLICE_ELEMENTS_CPU = 128 * 8192
_SLICE_ELEMENTS_GPU = 4096 * 8192


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, smoothing: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        vocab = weight_VD.shape[0]
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        elements = _SLICE_ELEMENTS_CPU if hidden_ND.device.type == "cpu" else _SLICE_ELEMENTS_GPU
        size = max(128, elements // vocab // 128 * 128)
        weight = weight_VD.to(dtype)
        grad_hidden = torch.empty_like(hidden_ND, dtype=torch.float32) if needs_grad else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_grad else None
        smoothed = torch.zeros((), device=hidden_ND.device)
        nll_N = torch.zeros(hidden_ND.shape[0], device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], size):
            target = target_N[start : start + size].unsqueeze(1)
            count = len(target)
            hidden = reduce_rows(hidden_ND[start : start + size], dtype)
            valid = target >= 0
            target = target.clamp(min=0)
            logits = (hidden @ weight.t())[:count].float()
            log_normalizer = logits.logsumexp(1, keepdim=True)
            nll = log_normalizer - logits.gather(1, target)
            nll_N[start : start + size] = (nll * valid).squeeze(1)
            if smoothing:
                uniform = log_normalizer - logits.mean(1, keepdim=True)
                smoothed += (((1 - smoothing) * nll + smoothing * uniform) * valid).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            # d loss / d logits = softmax - smoothed one-hot, in place of the logits.
            error = logits.sub_(log_normalizer).exp_()
            if smoothing:
                error.sub_(smoothing / vocab)
            error.scatter_add_(1, target, torch.full_like(nll, smoothing - 1.0))
            error = reduce_rows(error.mul_(valid), dtype)
            grad_hidden[start : start + size] = (error @ weight)[:count]
            if dtype == torch.float32:
                grad_weight.addmm_(error.t(), hidden)
            else:
                grad_weight += error.t() @ hidden
        if not smoothing:
            smoothed = nll_N.sum()
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden.to(hidden_ND.dtype), grad_weight)
        ctx.mark_non_differentiable(nll_N)
        return smoothed, nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None, None


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    smoothing: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of softmax(hidden @ weight^T) against targets.

    Positions whose target is negative count nothing. ``smoothing`` mixes the target with the uniform
    distribution (Szegedy 2016, arXiv 1512.00567). ``dtype`` is that of the matrix products; sums are fp32.
    Returns the smoothed sum, which has gradients, and the plain negative log-likelihood (N,) in nats, which
    has none.
    """
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, target_N, smoothing, dtype)
