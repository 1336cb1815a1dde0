"""What a search is for: limits, and what is made best within them. Plain numbers, no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from tfx.config.schema import Root
from tfx.config.search import SearchConfig
from tfx.config.task_facts import TASKS
from tfx.errors import UserError, unknown
from tfx.record.metric_vocabulary import LOSS_METRICS, higher_is_better
from tfx.record.summary import Summary

BYTES, LATENCY = "bytes", "latency"
_TRACE = 1e-6


def _range(metric: str) -> tuple[float, float]:
    """The least and the largest value that a metric can have."""
    if metric.startswith("bleu") or metric == "chrf":
        return 0.0, 100.0
    if metric in ("matthews", "pearson", "spearman"):
        return -1.0, 1.0
    return 0.0, math.inf if metric in (*LOSS_METRICS, "squared_error") else 1.0


@dataclass(frozen=True)
class Measured:
    """What counts of one config: quality on validation data in the units of the metric, bytes, ms for one input.

    ``other`` is the value of another metric, with a sign so that more is better: it decides between equals, such as
    short trainings without one exact match.
    """

    quality: float
    bytes: float
    latency_ms: float
    other: float = 0.0

    @classmethod
    def of(cls, summary: Summary, metric: str) -> Measured | None:
        """From the summary of a trial; None if it has no result."""
        if (result := summary.result) is None:
            return None
        # The losses come first, and losses per token say little over vocabularies: of texts, the last is taken.
        name = [name for name in result.valid if name != metric or len(result.valid) == 1][-1]
        other = float(result.valid[name]) * (1 if higher_is_better(name) else -1)
        latency = result.inference["file"].latency_ms["p50"]
        return cls(float(result.valid[metric]), float(result.bytes.file), latency, other)

    @classmethod
    def mean(cls, found: Sequence[Measured]) -> Measured:
        """The mean over seeds."""
        return cls(*(mean(getattr(one, name) for one in found) for name in ("quality", "bytes", "latency_ms", "other")))


@dataclass(frozen=True)
class Goal:
    """Limits (None: none), the ``metric`` that quality means, and the objective: that metric, ``bytes`` or ``latency``.

    ``spread`` is how far beyond ``max_bytes`` files are still of interest.
    """

    metric: str
    objective: str
    max_bytes: int | None = None
    max_latency_ms: float | None = None
    min_quality: float | None = None
    spread: float = 1.0

    @classmethod
    def of(cls, settings: SearchConfig, config: Root) -> Goal:
        """Raises `UserError` for an unknown objective, and for limits that contradict it or each other."""
        task = TASKS[config.dataset.task]
        metrics = [*config.dataset.metrics, *(name for name in task.watchable if name not in config.dataset.metrics)]
        # A loss per token cannot be compared over vocabularies; bits per byte can.
        primary = "bits_per_byte" if "bits_per_byte" in metrics else metrics[0]
        objective = settings.objective or primary
        if objective not in (*metrics, BYTES, LATENCY):
            raise unknown("objective", objective, (*metrics, BYTES, LATENCY))
        goal = cls(
            metric=primary if objective in (BYTES, LATENCY) else objective,
            objective=objective,
            max_bytes=settings.max_bytes,
            max_latency_ms=settings.max_latency_ms,
            min_quality=settings.min_quality,
            spread=settings.spread,
        )
        goal._check()
        return goal

    def _check(self) -> None:
        if not self.is_of_quality and self.min_quality is None:
            raise UserError(
                f"objective={self.objective} has no end but a model that can do nothing: name the worst {self.metric} "
                "that you accept with min_quality=…"
            )
        if self.spread > 1 and (self.max_bytes is None or not self.is_of_quality):
            raise UserError("spread says how far around max_bytes files are tried: name max_bytes, and no objective")
        least, largest = _range(self.metric)
        if self.min_quality is not None and not least <= self.min_quality <= largest:
            best = f"{least:g} to {largest:g}" if math.isfinite(largest) else f"{least:g} and more"
            raise UserError(
                f"min_quality={self.min_quality:g} cannot be reached: {self.metric} is {best}; name one in this range"
            )

    @property
    def is_of_quality(self) -> bool:
        """Whether the objective is the quality itself."""
        return self.objective not in (BYTES, LATENCY)

    @property
    def is_of_time(self) -> bool:
        """Whether latency counts."""
        return self.max_latency_ms is not None or self.objective == LATENCY

    @property
    def largest_of_interest(self) -> float:
        """Files of more bytes are not looked at."""
        return math.inf if self.max_bytes is None else self.max_bytes * self.spread

    def gain(self, quality: float) -> float:
        """The quality with a sign, so that more is better."""
        return quality if higher_is_better(self.metric) else -quality

    def gain_of(self, found: Measured) -> float:
        """The gain of a quality, with a trace of the other metric, which decides between equals alone."""
        return self.gain(found.quality) + _TRACE * found.other / (1 + abs(found.other))

    def violations(self, found: Measured) -> list[float]:
        """By how much each limit is passed, relative to it; zero or less where it is kept."""
        over = [
            value / limit - 1
            for value, limit in ((found.bytes, self.max_bytes), (found.latency_ms, self.max_latency_ms))
            if limit is not None
        ]
        if self.min_quality is not None:
            missing = self.gain(self.min_quality) - self.gain(found.quality)
            over.append(missing / max(abs(self.min_quality), 1e-9))
        return over

    def is_met(self, found: Measured) -> bool:
        """Whether every limit is kept."""
        return all(over <= 0 for over in self.violations(found))

    def merit(self, found: Measured) -> float:
        """The objective with a sign, so that more is better, limits aside."""
        if self.objective == BYTES:
            return -math.log(found.bytes)
        if self.objective == LATENCY:
            return -math.log(max(found.latency_ms, 1e-9))
        return self.gain_of(found)

    def key(self, found: Measured) -> tuple[float, float]:
        """Sorts the best first in descending order: what meets the limits by merit, the rest by how nearly it does."""
        worst = max((0.0, *self.violations(found)))
        return (-worst, self.merit(found))

    def describe(self) -> str:
        """One line for people."""
        ways = {BYTES: "the smallest file", LATENCY: "the lowest latency"}
        parts = [ways.get(self.objective, f"the best {self.objective}")]
        limits = (
            ("at most {:,.0f} bytes", self.max_bytes),
            ("at most {:g} ms for one input", self.max_latency_ms),
        )
        parts += [text.format(limit) for text, limit in limits if limit is not None]
        if self.min_quality is not None:
            word = "at least" if higher_is_better(self.metric) else "at most"
            parts.append(f"{self.metric} {word} {self.min_quality:g}")
        return ", ".join(parts)
