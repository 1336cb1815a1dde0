"""Training steps that must not be taken: not finite, or a loss far above its own history."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tfx.config.schema import InstabilityConfig
from tfx.model.device import is_asynchronous

_HISTORY = 50
# With fewer steps the history is too short to judge by.
_LEAST = 20


class UnstableError(Exception):
    """The loss or a gradient is not finite, or the loss diverges, and the policy is to stop."""


@dataclass(frozen=True)
class Verdict:
    """What a guard says of a step: either its ``fault`` in words, or where that is not known yet, ``refused``.

    ``refused`` is a number on the device: 1 where the step must change nothing, 0 where it is taken. Both None: the
    step is good.
    """

    fault: str | None = None
    refused: Tensor | None = None


@dataclass(frozen=True)
class Refusals:
    """Steps that a guard refused since it was last asked: how many, and number and fault of the last."""

    count: int
    step: int
    fault: str


class Guard(ABC):
    """Judges each step by its loss and gradient norm before it is taken, and applies the policy."""

    # What the learning rate is multiplied by: halved by each refusal if the policy is to back off.
    learning_rate_factor: float | Tensor

    def __init__(self, config: InstabilityConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def skipped(self) -> int:
        """How many steps were refused."""

    @abstractmethod
    def judge(self, nll: Tensor, targets: int, norm: Tensor, step: int) -> Verdict:
        """Judges a step by its summed loss in nats, over how many targets that is, and its gradient norm."""

    def look(self) -> Refusals | None:
        """What was refused on the device since the last look, for which this waits; None: nothing."""
        return None

    @abstractmethod
    def respond(self, fault: str) -> str:
        """Says in words what becomes of a refused step; raises `UnstableError` if the run must stop."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` of either guard needs to resume."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""

    def _answer(self, fault: str, in_a_row: int) -> str:
        remedy = "try a smaller optimizer.lr, a longer schedule.warmup or trainer.precision=fp32"
        if self.config.policy == "stop":
            raise UnstableError(f"{fault}: {remedy}, or trainer.instability.policy=skip or back_off")
        if in_a_row >= self.config.patience:
            raise UnstableError(f"{fault}, {in_a_row} steps in a row: {remedy}")
        if self.config.policy == "skip":
            return "the step is skipped"
        factor = float(self.learning_rate_factor)
        return f"the step is skipped, and the learning rate is {factor:g} of its schedule from now on"


def build_guard(config: InstabilityConfig, device: torch.device) -> Guard:
    """A guard that judges where the loss is, without waiting for it."""
    return DeviceGuard(config, device) if is_asynchronous(device) else HostGuard(config)


class HostGuard(Guard):
    """Reads loss and norm of each step: on a CPU they are there already."""

    def __init__(self, config: InstabilityConfig) -> None:
        super().__init__(config)
        self.learning_rate_factor = 1.0
        self._skipped = self._in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_HISTORY)

    @property
    def skipped(self) -> int:
        return self._skipped

    def judge(self, nll: Tensor, targets: int, norm: Tensor, step: int) -> Verdict:
        return Verdict(self.fault(float(nll) / targets, float(norm)))

    def fault(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step of this loss (nats per token) and gradient norm; None: nothing."""
        usual = statistics.median(self._losses) if len(self._losses) >= _LEAST else None
        fault = _fault(loss, norm, usual, self.config.spike)
        if fault is None:
            self._losses.append(loss)
            self._in_a_row = 0
        return fault

    def respond(self, fault: str) -> str:
        self._skipped += 1
        self._in_a_row += 1
        if self.config.policy == "back_off":
            self.learning_rate_factor /= 2
        return self._answer(fault, self._in_a_row)

    def state_dict(self) -> dict[str, Any]:
        return {
            "learning_rate_factor": self.learning_rate_factor,
            "skipped": self._skipped,
            "in_a_row": self._in_a_row,
            "losses": list(self._losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learning_rate_factor = state["learning_rate_factor"]
        self._skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        self._losses.extend(state["losses"])


class DeviceGuard(Guard):
    """Judges on the device, by the rules of `HostGuard`, so that no step waits to be launched.

    Once the run must stop, all further steps are refused: the weights stay as they were before the fault, however late
    `look` finds it.
    """

    def __init__(self, config: InstabilityConfig, device: torch.device) -> None:
        super().__init__(config)
        self._device = device
        self._losses_H = torch.full((_HISTORY,), math.nan, dtype=torch.float64, device=device)
        self.learning_rate_factor = torch.ones((), device=device) if config.policy == "back_off" else 1.0
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._stopped = torch.zeros((), dtype=torch.bool, device=device)
        # Of the last fault: step, loss, norm, and the usual loss.
        self._fault = torch.zeros(4, dtype=torch.float64, device=device)
        self._known = 0

    @property
    def skipped(self) -> int:
        return int(self._skipped)

    def judge(self, nll: Tensor, targets: int, norm: Tensor, step: int) -> Verdict:
        loss, norm = nll.double() / targets, norm.double()
        usual = self._usual()
        fault = ~(loss.isfinite() & norm.isfinite())
        if self.config.spike is not None:
            fault = fault | (loss > usual + self.config.spike)
        refused = fault | self._stopped
        found = fault & ~self._stopped
        self._losses_H = torch.where(refused, self._losses_H, torch.cat([self._losses_H[1:], loss.view(1)]))
        self._fault = torch.where(found, torch.stack([torch.full_like(loss, step), loss, norm, usual]), self._fault)
        self._skipped = self._skipped + found
        self._in_a_row = torch.where(self._stopped, self._in_a_row, (self._in_a_row + 1) * fault)
        if torch.is_tensor(self.learning_rate_factor):
            self.learning_rate_factor = torch.where(found, self.learning_rate_factor / 2, self.learning_rate_factor)
        patience = 1 if self.config.policy == "stop" else self.config.patience
        self._stopped = self._stopped | (self._in_a_row >= patience)
        return Verdict(refused=refused.float())

    def _usual(self) -> Tensor:
        """The median of the last losses; NaN, which no loss is above, while they are too few."""
        ordered_H = self._losses_H.sort().values  # missing ones are NaN, and last
        count = (~self._losses_H.isnan()).sum()
        middle = torch.stack([(count - 1).clamp(min=0) // 2, count // 2]).clamp(max=_HISTORY - 1)
        return torch.where(count >= _LEAST, ordered_H.gather(0, middle).mean(), math.nan)

    def look(self) -> Refusals | None:
        skipped, step, loss, norm, usual = torch.cat([self._skipped.double().view(1), self._fault]).tolist()
        count, self._known = int(skipped) - self._known, int(skipped)
        if not count:
            return None
        fault = _fault(loss, norm, None if math.isnan(usual) else usual, self.config.spike)
        return Refusals(count, int(step), str(fault))

    def respond(self, fault: str) -> str:
        return self._answer(fault, int(self._in_a_row))

    def state_dict(self) -> dict[str, Any]:
        return {
            "learning_rate_factor": float(self.learning_rate_factor),
            "skipped": int(self._skipped),
            "in_a_row": int(self._in_a_row),
            "losses": [loss for loss in self._losses_H.tolist() if not math.isnan(loss)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        factor = state["learning_rate_factor"]
        is_fixed = self.config.policy != "back_off"
        self.learning_rate_factor = factor if is_fixed else torch.tensor(factor, device=self._device)
        self._skipped.fill_(state["skipped"])
        self._in_a_row.fill_(state["in_a_row"])
        self._known = state["skipped"]
        losses = torch.tensor(state["losses"], dtype=torch.float64, device=self._device)
        self._losses_H = torch.cat([self._losses_H, losses])[-_HISTORY:]


def _fault(loss: float, norm: float, usual: float | None, spike: float | None) -> str | None:
    """What is wrong with a step in words, where ``usual`` is the loss of the steps before, if it is known."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(norm):
        return f"the loss is {loss:.4g} and the gradient norm {norm}"
    if usual is not None and spike is not None and loss > usual + spike:
        return f"the loss is {loss:.4g}, and was {usual:.4g} in the steps before"
    return None
