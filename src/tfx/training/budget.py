"""The budget and the clock: how much training there is, and how much of it is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tfx.config.schema import BudgetConfig


class Clock:
    """Counts steps, tokens and training seconds, and turns them into progress.

    Seconds are those of steps, compilation and whatever else trains; what runs inside `paused` (validation)
    is not counted.
    """

    def __init__(self, budget: BudgetConfig) -> None:
        self.budget = budget
        self.steps = 0
        self.tokens = 0
        self._before = 0.0
        self._started: float | None = time.perf_counter()
        self._last_progress = 0.0
        self._step_share = 0.5 / budget.steps if budget.steps else 0.0

    @property
    def seconds(self) -> float:
        """Training seconds so far; they stand still inside `paused`."""
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

    @property
    def progress(self) -> float:
        """Fraction of the budget that is spent, in [0, 1]; a zero budget is spent at once."""
        for spent, whole in (
            (self.steps, self.budget.steps),
            (self.tokens, self.budget.tokens),
            (self.seconds, self.budget.seconds),
        ):
            if whole is not None:
                return min(1.0, spent / whole) if whole else 1.0
        raise AssertionError("a budget has exactly one value")

    def middle_of_step(self) -> float:
        """Progress at the middle of the step that begins: where its learning rate is taken."""
        return min(1.0, self.progress + self._step_share)

    def advance(self, tokens: int) -> None:
        """One optimizer step over so many tokens is done."""
        self.steps += 1
        self.tokens += tokens
        now = self.progress
        self._step_share = 0.5 * (now - self._last_progress)
        self._last_progress = now
