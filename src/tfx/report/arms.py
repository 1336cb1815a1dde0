"""Arms: runs of one config, and how two of them are compared over the sentences that they share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfx.report.runs import Run
from tfx.report.scores import higher_is_better, scorer
from tfx.report.statistics import Difference, compare, resample_sentences, seed_interval, sentence_weights

_LABEL_KEYS = 3


@dataclass
class Arm:
    """One config, run with one or more seeds."""

    label: str
    runs: list[Run]
    difference: Difference | None = None
    p_holm: float | None = None
    p_worse_holm: float | None = None
    fronts: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """The primary metric."""
        return self.runs[0].metric

    @property
    def scores(self) -> list[float]:
        """The primary metric of each run."""
        return [run.test[self.metric] for run in self.runs]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean over seeds."""
        return seed_interval(self.scores)

    def mean(self, read: Callable[[Run], float | None]) -> float | None:
        """The mean of a number over the runs; None where a run lacks it."""
        values = [read(run) for run in self.runs]
        return None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))


def group(runs: Sequence[Run]) -> list[Arm]:
    """Runs of one config become an arm, their seeds and those of the runs that they start from aside.

    Labels name what tells the arms apart.
    """
    by_config: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        key = (run.techniques, *sorted((name, repr(value)) for name, value in run.identity.items()))
        by_config[key].append(run)
    members = [sorted(arm, key=lambda run: (run.seed, str(run.path))) for arm in by_config.values()]
    return [Arm(label, arm) for label, arm in zip(_labels([arm[0] for arm in members]), members, strict=True)]


def _labels(runs: Sequence[Run]) -> list[str]:
    """Techniques, and the settings that differ from those of the plainest config, or commonest for a technique."""
    common: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for name, value in run.identity.items():
            common[name][repr(value)] += 1
    plain = min(runs, key=lambda run: len(run.techniques)).identity
    labels = []
    for run in runs:
        words = []
        for name, value in sorted(run.identity.items()):
            if name.startswith("technique"):
                differs = common[name].most_common(1)[0][0] != repr(value)
            else:
                differs = name in plain and plain[name] != value
            if differs and value is not None and not name.endswith((".name", ".path")):
                words.append(f"{'.'.join(name.split('.')[-2:])}={run.config[name]}")
        stack = "+".join(run.techniques) or "no technique"
        more = f" and {len(words) - _LABEL_KEYS} more" if len(words) > _LABEL_KEYS else ""
        labels.append(" ".join([stack, *words[:_LABEL_KEYS]]) + more)
    counts = Counter(labels)
    numbers: Counter[str] = Counter()
    for index, label in enumerate(labels):
        if counts[label] > 1:
            numbers[label] += 1
            labels[index] = f"{label} ({numbers[label]})"
    return labels


class Sentences:
    """Common bootstrap samples of the test sentences of an arm; each run is resampled once."""

    def __init__(self, arm: Arm) -> None:
        keys = {run.sentences for run in arm.runs}
        self._key = keys.pop() if len(keys) == 1 else ""
        self._weights_RN: np.ndarray | None = None
        self._sampled: dict[int, np.ndarray] = {}

    def shared_by(self, arm: Arm) -> bool:
        """Whether all its runs stored statistics of these very sentences."""
        return bool(self._key) and all(run.sentences == self._key and run.statistics_NK is not None for run in arm.runs)

    def resampled(self, arm: Arm) -> np.ndarray | None:
        """The metric of its runs in each bootstrap sample: (runs, resamples); None where it does not share them."""
        return np.stack([self._of(run) for run in arm.runs]) if self.shared_by(arm) else None

    def _of(self, run: Run) -> np.ndarray:
        if id(run) not in self._sampled:
            assert run.statistics_NK is not None
            if self._weights_RN is None:
                self._weights_RN = sentence_weights(len(run.statistics_NK))
            sampled_R = resample_sentences(run.statistics_NK, self._weights_RN, scorer(run.metric))
            if run.metric == "bits_per_byte":  # in the unit of the summary, not in nats a token
                sampled_R = sampled_R * (run.test[run.metric] / run.test["loss"])
            self._sampled[id(run)] = sampled_R
        return self._sampled[id(run)]


def difference_between(arm: Arm, other: Arm, sentences: Sentences, margin: float | None = None) -> Difference | None:
    """``arm`` minus ``other`` in the primary metric; None where nothing can be said."""
    return compare(
        arm.scores,
        other.scores,
        sentences.resampled(arm),
        sentences.resampled(other),
        higher_is_better=higher_is_better(arm.metric),
        margin=margin,
    )
