"""What the trials of a search say about its configs: each by its longest training, and by the mean over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tfx.config.schema import Budget
from tfx.errors import UserError
from tfx.experiments.search.book import Book, Entry, Trial
from tfx.experiments.search.goal import Goal, Measured
from tfx.experiments.search.halving import at_full_length
from tfx.experiments.search.sampler import Outcome
from tfx.experiments.search.space import Space
from tfx.record.directory import RunDirectory
from tfx.record.summary import Result, Summary


@dataclass
class Findings:
    """A search's ``book`` read with the summaries of its trials, which lie in ``folder``.

    ``budgets`` are those of the rungs, and ``seed`` is that of all first trials of a config.
    """

    goal: Goal
    book: Book
    folder: Path
    budgets: Sequence[Budget]
    space: Space
    seed: int
    _known: dict[Trial, Summary] = field(default_factory=dict)

    def summary(self, trial: Trial) -> Summary | None:
        """The summary of a trial that has a result; each is read once."""
        if trial not in self._known:
            try:
                found = RunDirectory(trial.folder(self.folder)).read_summary()
            except UserError:
                return None
            if found.result is None:
                return None
            self._known[trial] = found
        return self._known[trial]

    def results(self) -> Iterator[tuple[Trial, Result]]:
        """All trials that have a result, in the order in which they were planned."""
        for trial in self.book.trials:
            summary = self.summary(trial)
            if summary is not None and summary.result is not None:
                yield trial, summary.result

    def measured(self, trial: Trial) -> Measured | None:
        """What one trial of the search measured; None if it has no result.

        What has trained for a short time does not know where its outputs end, so that its latency is not that of the
        config: where latency counts, the predicted one stands for it.
        """
        summary = self.summary(trial) if trial in self.book.trials else None
        if summary is None:
            return None
        found = Measured.of(summary, self.goal.metric)
        assert found is not None
        predicted = self.book.entries[trial.number].predicted.latency_ms
        is_short = trial.rung < len(self.budgets) - 1
        return replace(found, latency_ms=predicted) if is_short and predicted is not None else found

    def first(self, entry: Entry, rung: int) -> Measured | None:
        """What a config measured at a rung with the seed that all have."""
        return self.measured(Trial(entry.number, rung, self.seed))

    def at_full(self, entry: Entry, below: float = math.inf) -> list[tuple[int, Measured]]:
        """What a config measured at full length, with the seed; of seeds ``below`` one alone."""
        last = len(self.budgets) - 1
        trials = [t for t in self.book.trials if (t.number, t.rung) == (entry.number, last) and t.seed < below]
        return [(trial.seed, found) for trial in trials if (found := self.measured(trial)) is not None]

    def longest(self, entry: Entry) -> tuple[int, list[Trial]]:
        """The last rung at which a config has results, and its trials there; -1 if it has none."""
        done = [t for t in self.book.trials if t.number == entry.number and self.measured(t) is not None]
        rung = max((trial.rung for trial in done), default=-1)
        return rung, [trial for trial in done if trial.rung == rung]

    def is_whole(self, entry: Entry) -> bool:
        """Whether a config has a result of a whole training."""
        return self.longest(entry)[0] == len(self.budgets) - 1

    @property
    def ended(self) -> list[Entry]:
        """The configs that have a result."""
        return [entry for entry in self.book.entries if self.longest(entry)[0] >= 0]

    def mean_of(self, entry: Entry) -> Measured:
        """The mean over seeds of what a config measured at its longest training."""
        found = [one for trial in self.longest(entry)[1] if (one := self.measured(trial)) is not None]
        return Measured.mean(found)

    def best(self) -> Entry | None:
        """The leader: it meets the limits if any does, had the longest training of those, and is the best of these."""

        def key(entry: Entry) -> tuple[float, ...]:
            found = self.mean_of(entry)
            return (self.goal.is_met(found), self.longest(entry)[0], *self.goal.key(found))

        return max(self.ended, key=key, default=None)

    def outcomes(self, sampled: Sequence[str]) -> list[Outcome]:
        """What the sampler learns from, on these axes: each config, its merit carried to the whole length."""
        goal = self.goal
        curves: dict[int, dict[int, float]] = {}
        for trial in self.book.trials:
            if trial.seed == self.seed and (found := self.measured(trial)) is not None:
                curves.setdefault(trial.number, {})[trial.rung] = goal.gain_of(found)
        told = []
        for entry in self.book.entries:
            values = {key: entry.values[key] for key in sampled}
            if entry.number not in curves:  # it failed
                told.append(Outcome(values, (-math.inf,) * (1 + (goal.spread > 1)), (1.0,)))
                continue
            gain = at_full_length(curves[entry.number], list(curves.values()), len(self.budgets) - 1)
            found = self.mean_of(entry)
            full = Measured(goal.gain(gain), found.bytes, found.latency_ms)
            if goal.spread > 1:
                over = max(0.0, full.bytes / goal.largest_of_interest - 1)
                told.append(Outcome(values, (gain, -math.log(full.bytes)), (over,)))
            else:
                told.append(Outcome(values, (goal.merit(full),), tuple(goal.violations(full))))
        return told
