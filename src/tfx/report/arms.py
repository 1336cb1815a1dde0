"""Arms: runs of one config, and how two of them are compared over the sentences that they share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfx.record.metric_vocabulary import higher_is_better, scorer
from tfx.report.labels import label_arms, name_by_folders
from tfx.report.runs import Run
from tfx.report.statistics import Difference, compare, resample_sentences, seed_interval, sentence_weights


@dataclass(frozen=True)
class Caution:
    """What makes an arm hard to compare: its kind, what that means for the reader, and the particulars."""

    kind: str
    consequence: str
    details: str = ""


@dataclass
class Arm:
    """One config, run with one or more seeds; ``repetitions`` are runs whose seed is in ``runs`` already.

    ``settings`` are those that tell it from other arms, where ``label`` is the name of its folder and not these.
    """

    label: str
    runs: list[Run]
    repetitions: list[Run] = field(default_factory=list)
    difference: Difference | None = None
    p_holm: float | None = None
    p_worse_holm: float | None = None
    fronts: dict[str, bool] = field(default_factory=dict)
    warnings: list[Caution] = field(default_factory=list)
    settings: str = ""

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


def group(runs: Sequence[Run]) -> tuple[list[Arm], str]:
    """Runs of one config become an arm, their seeds and those of the runs that they start from aside.

    One run a seed counts: another of the same config and seed, from the same model, is no further sample of anything.
    Labels are the names of their folders where these tell the arms apart (`name_by_folders`), else the settings that
    do; the second result is what these leave out (`label_arms`).
    """
    by_config: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        key = (run.techniques, *sorted((name, repr(value)) for name, value in run.identity.items()))
        by_config[key].append(run)
    arms = []
    for members in by_config.values():
        by_seed: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
        for run in sorted(members, key=lambda run: (run.seed, len(str(run.path)), str(run.path))):
            by_seed[run.sample].append(run)
        arms.append(
            Arm("", [same[0] for same in by_seed.values()], [run for _, *more in by_seed.values() for run in more])
        )
    labels, usual = label_arms([arm.runs[0] for arm in arms])
    names = name_by_folders([[*arm.runs, *arm.repetitions] for arm in arms])
    for place, (arm, label) in enumerate(zip(arms, labels, strict=True)):
        arm.label = label if names is None else names[place]
        if arm.label != label:
            arm.settings = label.removeprefix(f"{arm.label} ")
    return arms, usual


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
            if run.metric == "bits_per_byte":  # in the unit of the summary, not in bits a token
                whole = scorer(run.metric).corpus(run.statistics_NK.sum(0, dtype=np.float64))
                sampled_R = sampled_R * (run.test[run.metric] / float(whole))
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
