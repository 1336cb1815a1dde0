"""Training steps that must not be taken: not finite, or a loss far above its own history."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from tfx.config.schema import InstabilityConfig

_HISTORY = 50
# With fewer steps the history is too short to judge by.
_LEAST = 20


class UnstableError(Exception):
    """The loss or a gradient is not finite, or the loss diverges, and the policy is to stop."""


class Guard:
    """Checks the loss and the gradient norm of each step before it is taken."""

    def __init__(self, config: InstabilityConfig) -> None:
        self.config = config
        self.learning_rate_factor = 1.0
        self.skipped = 0
        self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_HISTORY)

    def fault(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step of this loss (nats per token) and gradient norm; None: nothing."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the loss is {loss:.4g} and the gradient norm {norm}"
        if self.config.spike is not None and len(self._losses) >= _LEAST:
            usual = statistics.median(self._losses)
            if loss > usual + self.config.spike:
                return f"the loss is {loss:.4g}, and was {usual:.4g} in the steps before"
        self._losses.append(loss)
        self._in_a_row = 0
        return None

    def respond(self, fault: str) -> str:
        """Applies the policy and returns in words what it did; raises `UnstableError` if the run must stop."""
        remedy = "try a smaller optimizer.lr, a longer schedule.warmup or trainer.precision=fp32"
        if self.config.policy == "stop":
            raise UnstableError(f"{fault}: {remedy}, or trainer.instability.policy=skip or back_off")
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self.config.patience:
            raise UnstableError(f"{fault}, {self._in_a_row} steps in a row: {remedy}")
        if self.config.policy == "skip":
            return "the step is skipped"
        self.learning_rate_factor /= 2
        return (
            f"the step is skipped, and the learning rate is {self.learning_rate_factor:g} of its schedule from now on"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to resume."""
        return {
            "learning_rate_factor": self.learning_rate_factor,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.learning_rate_factor, self.skipped = state["learning_rate_factor"], state["skipped"]
        self._in_a_row = state["in_a_row"]
        self._losses.extend(state["losses"])
