"""The budget and the clock: how long to train, and how much of that is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tfx.config.schema import Budget
from tfx.processes.group import ALONE, Group


class Clock:
    """Counts steps, tokens and training seconds, and turns them into progress.

    Seconds include steps and compilation; time inside `paused` (validation) is not counted. ``progress``, the
    fraction of the budget in [0, 1] that is spent, changes only at the end of a step, so that all readers agree; a zero
    budget is spent at once.

    A budget of seconds allows other steps on every machine: ``history`` then keeps the progress after each step, and a
    clock that gets a history as ``recorded`` repeats it. Of a ``group`` of processes, the first one's clock counts.
    """

    def __init__(self, budget: Budget, recorded: Sequence[float] = (), group: Group = ALONE) -> None:
        self.budget, self._group = budget, group
        self.steps = 0
        self.tokens = 0
        self.history: list[float] = []
        self._recorded = recorded
        self._before = 0.0
        self._started: float | None = time.perf_counter()
        self._step_share = 0.5 / budget.steps if budget.steps else 0.0
        self.progress = self._spent()

    @property
    def seconds(self) -> float:
        """Training seconds so far, without the time inside `paused`."""
        if self._started is None:
            return self._before
        return self._before + time.perf_counter() - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count; raises `AssertionError` inside another pause."""
        assert self._started is not None, "the clock is paused already"
        self._before, self._started = self.seconds, None
        try:
            yield
        finally:
            self._started = time.perf_counter()

    def _spent(self) -> float:
        assert self.budget.unit, "a budget has exactly one value"
        if self.budget.is_zero:
            return 1.0
        seconds = self.seconds if self.steps else 0.0
        if self.budget.unit == "seconds":
            seconds = self._group.first(seconds)
        spent = {"steps": self.steps, "tokens": self.tokens, "seconds": seconds}[self.budget.unit]
        return min(1.0, spent / self.budget.amount)

    def middle_of_step(self) -> float:
        """Progress at the middle of the step that begins; its learning rate is read there."""
        return min(1.0, self.progress + self._step_share)

    def advance(self, tokens: int) -> None:
        """Counts one optimizer step over this number of tokens."""
        before = self.progress
        self.steps += 1
        self.tokens += tokens
        self.progress = self._recorded[self.steps - 1] if self.steps <= len(self._recorded) else self._spent()
        self._step_share = 0.5 * (self.progress - before)
        if self.budget.unit == "seconds":
            self.history.append(self.progress)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to resume."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "step_share": self._step_share,
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of another clock; with a longer budget, less of it is spent."""
        self.steps, self.tokens, self._step_share = state["steps"], state["tokens"], state["step_share"]
        self.history = list(state["history"])
        self._before, self._started = state["seconds"], time.perf_counter()
        self.progress = self._recorded[self.steps - 1] if 0 < self.steps <= len(self._recorded) else self._spent()
