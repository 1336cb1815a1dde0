"""Logits of a teacher with another tokenizer: the likelihoods of spans of text that both tokenize (Minixhofer 2025).

Shapes: N target positions, D width, V vocabulary, C spans.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfx.model.linear import reduce_rows
from tfx.model.loss import LogitSlice, output_matrix

# Elements of the logits that exist at a time.
_SLICE_ELEMENTS = 1 << 23
# The log of a likelihood stays below this: that of its complement must be finite.
_CERTAIN = -1e-6


class SpanLikelihood:
    """Approximate likelihood matching (Minixhofer 2025, arXiv 2503.20083): a loss on the student's logits.

    For each span of text the teacher says how likely it is, p, and the student, q: each the product of the
    probabilities of its tokens. The loss is KL between the two-valued distributions p^(1/T), 1 - p^(1/T) and q^(1/T),
    1 - q^(1/T), times T. ``span`` (N,) is the number of the span of each target, -1 for none.
    """

    def __init__(
        self,
        teacher_C: Tensor,
        span_N: Tensor,
        target_N: Tensor,
        factors: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        temperature: float,
    ) -> None:
        """``teacher`` are the logs of p; ``factors`` give the student's logits (`Transformer.output_factors`)."""
        with torch.no_grad():
            counted_N = span_N >= 0
            hidden_ND = factors[0].detach()[counted_N]
            log_q_N = log_likelihoods(hidden_ND, factors[1].detach(), target_N[counted_N], dtype)
            student_C = sums(log_q_N, span_N[counted_N], len(teacher_C))
        with torch.enable_grad():
            student_C.requires_grad_()
            loss_C = span_loss(teacher_C, student_C, temperature)
            (gradient_C,) = torch.autograd.grad(loss_C.sum(), student_C) if len(loss_C) else (student_C,)
        sizes_C = sums(torch.ones_like(log_q_N), span_N[counted_N], len(teacher_C)).clamp(min=1)
        self._target = target_N.clamp(min=0)
        place_N = span_N.clamp(min=0)
        # Each token of a span gets an equal part of its loss, and all of its gradient: log q is their sum.
        self._loss, self._gradient = (
            torch.where(counted_N, values_C[place_N], 0.0) if len(values_C) else torch.zeros_like(counted_N).float()
            for values_C in (loss_C.detach() / sizes_C, gradient_C)
        )

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        loss_N, gradient_N1 = self._loss[piece.rows], self._gradient[piece.rows].unsqueeze(1)
        if not needs_error:
            return loss_N, loss_N, None
        # d log q / d logits is the one-hot target minus the probabilities.
        error_NV = piece.probabilities_NV * -gradient_N1
        return loss_N, loss_N, error_NV.scatter_add_(1, self._target[piece.rows].unsqueeze(1), gradient_N1)


def span_loss(teacher_C: Tensor, student_C: Tensor, temperature: float) -> Tensor:
    """The loss of each span (C,), from the logs of its likelihood in teacher and student."""
    log_p_C, log_q_C = (logs.clamp(max=_CERTAIN) / temperature for logs in (teacher_C, student_C))
    p_C = log_p_C.exp()
    not_p_C, not_q_C = (torch.log(-torch.expm1(logs)) for logs in (log_p_C, log_q_C))
    return temperature * (p_C * (log_p_C - log_q_C) + (1.0 - p_C) * (not_p_C - not_q_C))


@torch.no_grad()
def log_likelihoods(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, dtype: torch.dtype) -> Tensor:
    """The log-probability of each target (N,), from hidden states and the output matrix, slice by slice."""
    weight, vocab = output_matrix(weight_VD, dtype), len(weight_VD)
    size = max(128, _SLICE_ELEMENTS // vocab)
    found = []
    for start in range(0, len(hidden_ND), size):
        hidden = hidden_ND[start : start + size]
        logits_NV = (reduce_rows(hidden, dtype) @ weight.t())[: len(hidden), :vocab].float()
        picked_N = logits_NV.gather(1, target_N[start : start + size].unsqueeze(1)).squeeze(1)
        found.append(picked_N - logits_NV.logsumexp(1))
    return torch.cat(found) if found else hidden_ND.new_zeros(0)


def sums(values_N: Tensor, span_N: Tensor, count: int) -> Tensor:
    """The sum of the values of each span (C,)."""
    return values_N.new_zeros(count).index_add_(0, span_N, values_N)
