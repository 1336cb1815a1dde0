"""Soft targets: divergences between a teacher's and a student's distribution, in closed form, slice by slice.

Shapes: N target positions, V vocabulary, K cached logits, E teacher width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tfx.model.linear import reduce_rows
from tfx.model.loss import LogitSlice

# The logit of a token whose probability is 0: finite, so that 0 times it is 0.
ABSENT = -1e30


class SoftTargets:
    """Divergence between temperature-softened teacher and student, times T squared, at each position (N,).

    ``forward_kl`` is KL(p || q) with teacher p and student q, ``reverse_kl`` KL(q || p), ``jensen_shannon`` the
    mean KL of both to their mixture. Gradients are those of the student's logits, in closed form. ``counts_N`` are
    the weights of the positions, 0 for padding; None: 1 everywhere.
    """

    def __init__(self, kind: str, temperature: float, counts_N: Tensor | None) -> None:
        self.kind, self.temperature, self._counts = kind, temperature, counts_N

    def teacher_logits(self, rows: slice) -> Tensor:
        """The teacher's logits (n, V) at a slice of positions, a new tensor."""
        raise NotImplementedError

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        loss_N, error_NV = self.divergence(piece, needs_error)
        if self._counts is not None:
            counts_N = self._counts[piece.rows]
            loss_N = loss_N * counts_N
            if error_NV is not None:
                error_NV.mul_(counts_N.unsqueeze(1))
        return loss_N, loss_N, error_NV

    def divergence(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor | None]:
        """At each position of a slice (n,), and its gradient for the student's logits (n, V)."""
        return divergence(self.kind, self.teacher_logits(piece.rows), piece, self.temperature, needs_error)


def divergence(
    kind: str, teacher_NV: Tensor, piece: LogitSlice, temperature: float, needs_error: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The divergence (N,) between teacher's and student's logits (N, V), times T^2, and its gradient for the latter.

    A teacher logit of `ABSENT` (not among its cached ones) has probability 0, which ``reverse_kl`` has no value for.
    The teacher's tensor is used up.
    """
    if temperature != 1.0:
        teacher_NV = teacher_NV.div_(temperature)
        piece = LogitSlice(piece.rows, piece.logits_NV / temperature)
    scale = temperature**2
    if kind == "forward_kl":
        # Every pass over (N, V) matters: a small model spends half of its step here. With log p = t - log Z_t,
        # sum p (log p - log q) = p . t - log Z_t - (p . s - log Z_s).
        log_normalizer_N1 = teacher_NV.logsumexp(1, keepdim=True)
        p_NV = (teacher_NV - log_normalizer_N1).exp_()
        loss_N = _dot(p_NV, teacher_NV.sub_(piece.logits_NV)) + (piece.log_normalizer_N1 - log_normalizer_N1).squeeze(1)
        error_NV = torch.sub(piece.probabilities_NV, p_NV, out=p_NV) if needs_error else None
    elif kind == "reverse_kl":
        q_NV = piece.probabilities_NV
        gap_NV = piece.logits_NV - piece.log_normalizer_N1 - teacher_NV.log_softmax(1)
        loss_N = _dot(q_NV, gap_NV)
        error_NV = gap_NV.sub_(loss_N.unsqueeze(1)).mul_(q_NV) if needs_error else None
    else:
        log_p_NV, q_NV = teacher_NV.log_softmax(1), piece.probabilities_NV
        log_q_NV = piece.logits_NV - piece.log_normalizer_N1
        log_m_NV = torch.logaddexp(log_p_NV, log_q_NV).sub_(math.log(2.0))
        to_mixture_NV = log_q_NV.sub_(log_m_NV)
        kl_q_N = _dot(q_NV, to_mixture_NV)
        kl_p_N = _dot(log_p_NV.exp(), log_p_NV - log_m_NV)
        loss_N = 0.5 * (kl_p_N + kl_q_N)
        # d JS / d log q = q (log q - log m) / 2: the mixture's own derivatives cancel.
        error_NV = to_mixture_NV.sub_(kl_q_N.unsqueeze(1)).mul_(q_NV).mul_(0.5) if needs_error else None
    if error_NV is not None and temperature != 1.0:
        error_NV.mul_(temperature)
    return loss_N * scale, error_NV


def _dot(a_NV: Tensor, b_NV: Tensor) -> Tensor:
    """Dot products row by row, without the elementwise product as a tensor."""
    return torch.linalg.vecdot(a_NV, b_NV)


class FromHidden(SoftTargets):
    """Teacher logits, projected from its hidden states slice by slice: the whole matrix is never in memory."""

    def __init__(
        self,
        kind: str,
        temperature: float,
        counts_N: Tensor | None,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(kind, temperature, counts_N)
        self._hidden, self._weight, self._dtype = hidden_NE, weight_VE.to(dtype), dtype

    def teacher_logits(self, rows: slice) -> Tensor:
        hidden = self._hidden[rows]
        return (reduce_rows(hidden, self._dtype) @ self._weight.t())[: len(hidden)].float()


class FromTopK(SoftTargets):
    """Teacher logits from a cache of the k largest: renormalised over them."""

    def __init__(
        self,
        kind: str,
        temperature: float,
        counts_N: Tensor | None,
        ids_NK: Tensor,
        logits_NK: Tensor,
        vocab: int,
    ) -> None:
        super().__init__(kind, temperature, counts_N)
        self._ids, self._logits, self._vocab = ids_NK, logits_NK, vocab

    def divergence(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor | None]:
        if self.kind != "forward_kl":
            return super().divergence(piece, needs_error)
        # Where the teacher's probability is 0 the student's logit counts only in the normaliser: no pass over
        # (N, V) but those of the student's own softmax.
        softened = piece if self.temperature == 1.0 else LogitSlice(piece.rows, piece.logits_NV / self.temperature)
        ids_NK = self._ids[piece.rows]
        log_p_NK = (self._logits[piece.rows] / self.temperature).log_softmax(1)
        p_NK, log_q_NK = log_p_NK.exp(), softened.logits_NV.gather(1, ids_NK) - softened.log_normalizer_N1
        loss_N = _dot(p_NK, log_p_NK - log_q_NK) * self.temperature**2
        if not needs_error:
            return loss_N, None
        error_NV = softened.probabilities_NV.scatter_add(1, ids_NK, -p_NK)
        return loss_N, error_NV if self.temperature == 1.0 else error_NV.mul_(self.temperature)

    def teacher_logits(self, rows: slice) -> Tensor:
        ids = self._ids[rows]
        full = torch.full((len(ids), self._vocab), ABSENT, device=ids.device)
        return full.scatter_(1, ids, self._logits[rows])
