"""Soft targets: divergences between a teacher's and a student's distribution, in closed form, slice by slice.

Shapes: N target positions, V vocabulary, K cached logits, E teacher width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tfx.model.label_loss import BinaryCrossEntropy, SquaredError
from tfx.model.linear import reduce_rows
from tfx.model.loss import LogitLoss, LogitSlice, output_matrix

# The logit of a token whose probability is 0: finite, so that 0 times it is 0.
ABSENT = -1e30


@dataclass(frozen=True)
class Measure:
    """How far a student's distribution is from a teacher's, both softened by the temperature T; times T squared.

    ``forward_kl`` is KL(p || q) with teacher p and student q, ``reverse_kl`` KL(q || p), ``jensen_shannon``
    beta KL(p || m) + (1 - beta) KL(q || m) with their mixture m = beta p + (1 - beta) q (Agarwal 2023).
    """

    kind: str
    temperature: float = 1.0
    beta: float = 0.5


class SoftTargets:
    """The distance of the student from a teacher at each position (N,), with its gradient in closed form.

    ``counts_N`` are the weights of the positions, 0 for padding; None: 1 everywhere.
    """

    def __init__(self, measure: Measure, counts_N: Tensor | None) -> None:
        self.measure, self._counts = measure, counts_N

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
        return divergence(self.measure, self.teacher_logits(piece.rows), piece, needs_error)


def divergence(
    measure: Measure, teacher_NV: Tensor, piece: LogitSlice, needs_error: bool = True
) -> tuple[Tensor, Tensor | None]:
    """The divergence (N,) between teacher's and student's logits (N, V), times T^2, and its gradient for the latter.

    A teacher logit of `ABSENT` (not among its cached ones) has probability 0, which ``reverse_kl`` has no value for.
    The teacher's tensor is used up.
    """
    kind, temperature, beta = measure.kind, measure.temperature, measure.beta
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
        log_m_NV = torch.logaddexp(log_p_NV + math.log(beta), log_q_NV + math.log(1.0 - beta))
        to_mixture_NV = log_q_NV.sub_(log_m_NV)
        kl_q_N = _dot(q_NV, to_mixture_NV)
        kl_p_N = _dot(log_p_NV.exp(), log_p_NV - log_m_NV)
        loss_N = beta * kl_p_N + (1.0 - beta) * kl_q_N
        # d loss / d q = (1 - beta) (log q - log m): the mixture's own derivatives cancel.
        error_NV = to_mixture_NV.sub_(kl_q_N.unsqueeze(1)).mul_(q_NV).mul_(1.0 - beta) if needs_error else None
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
        measure: Measure,
        counts_N: Tensor | None,
        hidden_NE: Tensor,
        weight_VE: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(measure, counts_N)
        self._hidden, self._vocab, self._dtype = hidden_NE, len(weight_VE), dtype
        self._weight = output_matrix(weight_VE, dtype)

    def teacher_logits(self, rows: slice) -> Tensor:
        hidden = self._hidden[rows]
        return (reduce_rows(hidden, self._dtype) @ self._weight.t())[: len(hidden), : self._vocab].float()


class Average(SoftTargets):
    """Several teachers as one: the mean of their probabilities (Freitag 2017, arXiv 1702.01802).

    Its logits are the logs of the mean, so that a temperature softens the mean, as it would soften one teacher's.
    """

    def __init__(self, measure: Measure, counts_N: Tensor | None, teachers: Sequence[SoftTargets]) -> None:
        super().__init__(measure, counts_N)
        self._teachers = teachers

    def teacher_logits(self, rows: slice) -> Tensor:
        return mean_of_probabilities(teacher.teacher_logits(rows) for teacher in self._teachers)


class FromAnswers:
    """Teachers' answers that are no choice of one: for each label whether it holds, or a number (N, C).

    The loss is the KL divergence of each label's probability, the mean over the labels, or the squared error of the
    number. The mean of several teachers counts.
    """

    def __init__(self, predicts: str, logits: Sequence[Tensor], counts_N: Tensor) -> None:
        self._least: Tensor | None = None
        if predicts == "several":
            values_NC = torch.stack([each_NC.sigmoid() for each_NC in logits]).mean(0)
            # What is left of the cross-entropy where student and teachers agree.
            entropy_NC = functional.binary_cross_entropy(values_NC, values_NC, reduction="none")
            self._least = entropy_NC.mean(1) * counts_N
            self._loss: LogitLoss = BinaryCrossEntropy(values_NC, counts_N)
        else:
            self._loss = SquaredError(torch.stack(list(logits)).mean(0), counts_N)

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        loss_N, _, error_NC = self._loss(piece, needs_error)
        if self._least is not None:
            loss_N = loss_N - self._least[piece.rows]
        return loss_N, loss_N, error_NC


def mean_of_probabilities(logits: Iterable[Tensor]) -> Tensor:
    """Logs (N, V) of the mean of distributions, given the logits (N, V) of each."""
    logs_NV = [logits_NV.log_softmax(1) for logits_NV in logits]
    total_NV = logs_NV[0]
    for log_NV in logs_NV[1:]:
        total_NV = torch.logaddexp(total_NV, log_NV)
    return total_NV - math.log(len(logs_NV))


class FromTopK(SoftTargets):
    """Teacher logits from a cache of the k largest: renormalised over them."""

    def __init__(
        self,
        measure: Measure,
        counts_N: Tensor | None,
        ids_NK: Tensor,
        logits_NK: Tensor,
        vocab: int,
    ) -> None:
        super().__init__(measure, counts_N)
        self._ids, self._logits, self._vocab = ids_NK, logits_NK, vocab

    def divergence(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor | None]:
        if self.measure.kind != "forward_kl":
            return super().divergence(piece, needs_error)
        # Where the teacher's probability is 0 the student's logit counts only in the normaliser: no pass over
        # (N, V) but those of the student's own softmax.
        temperature = self.measure.temperature
        softened = piece if temperature == 1.0 else LogitSlice(piece.rows, piece.logits_NV / temperature)
        ids_NK = self._ids[piece.rows]
        log_p_NK = (self._logits[piece.rows] / temperature).log_softmax(1)
        p_NK, log_q_NK = log_p_NK.exp(), softened.logits_NV.gather(1, ids_NK) - softened.log_normalizer_N1
        loss_N = _dot(p_NK, log_p_NK - log_q_NK) * temperature**2
        if not needs_error:
            return loss_N, None
        error_NV = softened.probabilities_NV.scatter_add(1, ids_NK, -p_NK)
        return loss_N, error_NV if temperature == 1.0 else error_NV.mul_(temperature)

    def teacher_logits(self, rows: slice) -> Tensor:
        ids = self._ids[rows]
        full = torch.full((len(ids), self._vocab), ABSENT, device=ids.device)
        return full.scatter_(1, ids, self._logits[rows])
