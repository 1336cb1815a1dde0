"""Movement scores (Sanh 2020, arXiv 2005.07683): a weight that training moves towards zero goes first.

The score of a weight is its first-order effect on the loss, added up over the steps: S = - sum of w dL/dw'. Here w' is
the masked weight that the forward pass sees, so that the score of a pruned weight goes on, and it can come back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tfx.model.rewiring import Rewiring
from tfx.techniques.rows import ALL_ROWS, Rows

# Soft scores are compared with a threshold, so their size counts: Adam moves them, as it does in the paper's code.
_LEARNING_RATE = 1e-2
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class MovementScores:
    """The scores of weights by name. Hard ones are plain sums; soft ones are learned, with a penalty."""

    def __init__(self, *, is_soft: bool) -> None:
        self.is_soft = is_soft
        # Steps that each weight has had: layers that are dropped have fewer.
        self._steps: dict[str, int] = {}
        self._scores: dict[str, Tensor] = {}
        self._moments: dict[str, dict[str, Tensor]] = {"first": {}, "second": {}}

    @property
    def steps(self) -> int:
        """The steps that were added."""
        return max(self._steps.values(), default=0)

    def get(self, name: str, weight: Tensor) -> Tensor:
        """The scores of a weight; 0 where no gradient has come yet."""
        return self._scores[name] if name in self._scores else torch.zeros_like(weight)

    def follow(self, name: str, weight: Tensor, gradient: Tensor, penalty: float, rows: Rows = ALL_ROWS) -> None:
        """Adds a step to the scores of these rows, given the gradient of the loss by the masked weight.

        ``penalty`` is the derivative of the loss by the sigmoid of one soft score.
        """
        if name not in self._scores:
            self._scores[name] = rows.room(weight)
        self._steps[name] = self._steps.get(name, 0) + 1
        score = rows.of(self._scores[name])
        by_score = weight * gradient
        if not self.is_soft:
            score.sub_(by_score)
            return
        gate = score.sigmoid()
        score.sub_(_LEARNING_RATE * self._adam(name, by_score + penalty * gate * (1 - gate), rows))

    def _adam(self, name: str, gradient: Tensor, rows: Rows) -> Tensor:
        """The direction of Adam (Kingma 2015, arXiv 1412.6980)."""
        corrected = []
        for beta, which, value in zip(_BETAS, self._moments, (gradient, gradient.square()), strict=True):
            moments = self._moments[which]
            if name not in moments:
                moments[name] = rows.room(value)
            moment = rows.of(moments[name])
            moment.lerp_(value, 1 - beta)
            corrected.append(moment / (1 - beta ** self._steps[name]))
        return corrected[0] / (corrected[1].sqrt() + _EPSILON)

    def by_rows(self) -> Iterator[tuple[str, Tensor]]:
        """Scores and moments, by the name of their weight."""
        for held in (self._scores, *self._moments.values()):
            yield from held.items()

    def rewired(self, rewiring: Rewiring) -> None:
        """Keeps the scores of what stays."""
        self._scores = rewiring.carry(self._scores)
        self._moments = {which: rewiring.carry(moments) for which, moments in self._moments.items()}
        origins = rewiring.origins.items()
        self._steps = {name: self._steps[origin.name] for name, origin in origins if origin.name in self._steps}

    def state_dict(self) -> dict[str, Any]:
        """Steps, scores and moments."""
        return {"steps": self._steps, "scores": self._scores, **self._moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._steps, self._scores = dict(state["steps"]), dict(state["scores"])
        self._moments = {which: dict(state[which]) for which in self._moments}
