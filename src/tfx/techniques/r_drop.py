"""R-Drop (Liang 2021, arXiv 2106.14448): two passes with different dropout must agree.

Shapes: N target positions, D width, V vocabulary. The rows of both passes alternate, so that a slice of the logits has
both of a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tfx.config.schema import Root, setting
from tfx.errors import UserError
from tfx.model.loss import LogitLoss, LogitSlice
from tfx.model.transformer import Transformer
from tfx.techniques.contract import Instant, Mean, Objective, Technique, TechniqueSettings

_DROPOUTS = ("dropout", "attention_dropout", "ffn_dropout", "token_dropout", "layer_dropout")


@dataclass
class RDropSettings(TechniqueSettings):
    """Settings of `RDrop`."""

    alpha: float = setting(
        2.5,
        "weight of the divergence beside the mean of both passes' losses: half of the paper's alpha, which goes with "
        "their sum and is 5 for translation",
        above=0,
    )


def symmetric_divergence(first_NV: Tensor, second_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(KL(p || q) + KL(q || p)) / 2 of two sets of logits (N,), and its gradients for both (N, V)."""
    log_p_NV, log_q_NV = first_NV.log_softmax(1), second_NV.log_softmax(1)
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
    gap_NV = log_p_NV.sub_(log_q_NV)
    forward_N1 = (p_NV * gap_NV).sum(1, keepdim=True)
    backward_N1 = -(q_NV * gap_NV).sum(1, keepdim=True)
    difference_NV = p_NV - q_NV
    # d KL(p || q) is p (log p - log q - KL) for the logits of p, and q - p for those of q.
    by_first_NV = p_NV.mul_(gap_NV - forward_N1).add_(difference_NV).mul_(0.5)
    by_second_NV = q_NV.mul_(gap_NV.neg_().sub_(backward_N1)).sub_(difference_NV).mul_(0.5)
    return 0.5 * (forward_N1 + backward_N1).squeeze(1), by_first_NV, by_second_NV


class Agreement:
    """The symmetric divergence of alternating rows: a position's loss stands half in each of its rows.

    ``counts_N`` are the weights of the positions, 0 for padding.
    """

    def __init__(self, counts_N: Tensor) -> None:
        self._counts_N = counts_N

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """As in `LogitLoss`."""
        counts_N = self._counts_N[_pairs(piece.rows)]
        loss_N, *errors = symmetric_divergence(piece.logits_NV[::2], piece.logits_NV[1::2])
        half = (0.5 * loss_N * counts_N).repeat_interleave(2)
        error_NV = None
        if needs_error:
            error_NV = torch.stack(errors, 1).mul_(counts_N.view(-1, 1, 1)).flatten(0, 1)
        return half, half, error_NV


class OfBoth:
    """The mean of a loss over both passes, whose rows alternate."""

    def __init__(self, loss: LogitLoss) -> None:
        self._loss = loss

    def __call__(self, piece: LogitSlice, needs_error: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """As in `LogitLoss`."""
        rows = _pairs(piece.rows)
        sides = [self._loss(LogitSlice(rows, piece.logits_NV[side::2], shared=False), needs_error) for side in (0, 1)]
        loss, reported = (torch.stack([side[part] for side in sides], 1).flatten().mul_(0.5) for part in (0, 1))  # type: ignore[misc]
        errors = [error for _, _, error in sides if error is not None]
        return loss, reported, torch.stack(errors, 1).flatten(0, 1).mul_(0.5) if errors else None


def _pairs(rows: slice) -> slice:
    """The positions of alternating rows."""
    assert (rows.start | rows.stop) % 2 == 0, "a slice of the logits ends between both passes of a position"
    return slice(rows.start // 2, rows.stop // 2)


class RDrop(Technique):
    """Runs the model a second time on each batch, and adds the divergence of both outputs to the loss."""

    name = "r_drop"
    Settings = RDropSettings
    effects = ("runs twice",)
    # Losses on the first pass become losses on both.
    after = ("adds a teacher",)

    settings: RDropSettings

    def __init__(self, settings: RDropSettings) -> None:
        super().__init__(settings)
        self._divergence = Mean()

    def check(self, config: Root) -> None:
        if not any(getattr(config.model, name) for name in _DROPOUTS):
            raise UserError(
                "technique.r_drop compares two passes with different dropout, and the model has none: set "
                "model.dropout=0.1, or leave it out"
            )

    def plan(self, model: Transformer) -> list[str]:
        outputs = model.architecture.outputs
        if outputs is not None and outputs.predicts != "one":
            what = "numbers" if outputs.predicts == "number" else "labels that hold or not, each by itself"
            raise UserError(
                "technique.r_drop compares distributions over tokens or labels, and this model's outputs are "
                f"{what}: leave it out"
            )
        return []

    def objective(self, objective: Objective, moment: Instant) -> None:
        if not self.active(moment.progress):
            return
        again_ND = objective.select(objective.forward(objective.model, objective.batch))
        objective.hidden_ND = torch.stack([objective.hidden_ND, again_ND], 1).flatten(0, 1)
        objective.logit_losses = [(name, OfBoth(loss), scale) for name, loss, scale in objective.logit_losses]
        objective.logit_losses.append((self.name, Agreement(objective.counts_N()), self.settings.alpha))

    def report(self, name: str, total: Tensor, count: int) -> None:
        """The divergence that the loop measured."""
        if name == self.name:
            self._divergence.add(total, count)

    def evidence(self) -> dict[str, float]:
        return {"divergence": self._divergence.value}

    def state_dict(self) -> dict[str, Any]:
        return {"divergence": self._divergence.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._divergence.restore(state["divergence"])
