"""Decides by validations: when the next one is due, which weights are the best, and when to stop early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tfx.config.schema import Root
from tfx.record.metric_vocabulary import LOSS_METRICS, higher_is_better

_NAMES = ("best", "without_improvement", "next_validation")


def judged_by(config: Root) -> str:
    """The metric by which weights are the best: a named one, else what a classifier is for, and the loss of others.

    The loss of a classifier goes on rising while it still learns to be right more often (Guo 2017, arXiv 1706.04599).
    Text metrics are no choice: no validation before the end decodes.
    """
    named = config.trainer.best_by or config.trainer.early_stopping.metric
    of_labels = config.dataset.metrics if config.dataset.task == "classification" else ()
    return named or next(iter(of_labels), LOSS_METRICS[0])


class Selection:
    """Watches the validations of a training. ``modules`` are those whose weights are kept as the best."""

    def __init__(self, config: Root, modules: Sequence[nn.Module]) -> None:
        self.metric = judged_by(config)
        self._config, self._modules = config.trainer, modules
        # The best weights so far: score (less is better), step, and if they are to be kept the states of the modules.
        self.best: tuple[tuple[float, float], int, list[dict[str, Tensor]]] | None = None
        self.without_improvement = 0
        self.next_validation = 1

    @property
    def decides(self) -> bool:
        """Whether validations decide which weights are kept, or when to stop."""
        return self._config.keep == "best" or self._config.early_stopping.metric is not None

    def is_due(self, progress: float) -> bool:
        """Whether to validate now."""
        return progress >= self.next_validation * self._config.validate_every - 1e-9 or progress >= 1

    def passed(self, progress: float) -> None:
        """Notes a validation at this progress: the next one is due later."""
        due = int((progress + 1e-9) / self._config.validate_every) + 1
        self.next_validation = max(self.next_validation, due)

    def judge(self, metrics: Mapping[str, float], step: int) -> bool:
        """Whether these are the best weights so far; if so, keeps them.

        Of equal scores, which are common among shares of a few hundred texts, the one with less loss is better. The
        modules hold the raw weights, not the masked or rounded view: that is made from them at the end.
        """
        score = metrics[self.metric]
        watched = (-score if higher_is_better(self.metric) else score, metrics[LOSS_METRICS[0]])
        if self.best is not None and watched >= self.best[0]:
            self.without_improvement += 1
            return False
        kept = self._modules if self._config.keep == "best" else []
        states = [{name: t.detach().clone() for name, t in module.state_dict().items()} for module in kept]
        self.best = (watched, step, states)
        self.without_improvement = 0
        return True

    @property
    def stops(self) -> bool:
        """Whether it is time to stop early."""
        stopping = self._config.early_stopping
        return stopping.metric is not None and self.without_improvement >= stopping.patience

    def forget(self) -> None:
        """Call this when the model became smaller: kept weights of the larger one no longer count."""
        self.best = None

    def restore_best(self) -> bool:
        """Loads the best weights into the modules, if they are to be kept and exist; whether it did."""
        if self._config.keep != "best" or self.best is None:
            return False
        for module, weights in zip(self._modules, self.best[2], strict=True):
            module.load_state_dict(weights)
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to resume."""
        return {name: getattr(self, name) for name in _NAMES}

    def load_state_dict(self, state: Mapping[str, Any], progress: float) -> None:
        """The inverse of `state_dict`. With a longer budget less of it is spent, and validations are due again."""
        for name in _NAMES:
            setattr(self, name, state[name])
        if self.best is not None:
            # A file holds tuples as lists; the score was a number once.
            score, step, states = self.best
            first, second = score if isinstance(score, list | tuple) else (score, math.inf)
            self.best = (first, second), step, states
        due = int(progress / self._config.validate_every + 1e-9) + 1
        self.next_validation = min(self.next_validation, due)
