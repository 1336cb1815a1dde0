"""What the training of a run's ancestors cost: of the model that it started from, of its teachers, and of theirs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from tfx.report.runs import Run, find_run, named_runs

_Cost = Mapping[str, float]  # tokens, seconds and flops
_Line = list[tuple[str, _Cost]]  # with the place of the run that had this cost
_TEACHER = "technique.distill.teacher"


def count_ancestors(runs: Sequence[Run]) -> None:
    """Completes what the summaries say of the cost of ancestors, from the ancestors' own files.

    A summary may count the model that it names and leave out what that one had started from: a run that only scores a
    model again would then hand on a cost of nothing. Where an ancestor's files are gone, its summary's word stands.
    What a run both started from and learned from counts once.
    """
    _Ancestry(runs).count(runs)


class _Ancestry:
    """The runs that others name, by where they lie; each is read once."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs: dict[str, Run | None] = {os.path.realpath(run.path): run for run in runs}
        self._lines: dict[str, _Line] = {}

    def count(self, runs: Sequence[Run]) -> None:
        # Nothing is changed before all is read: a run may be an ancestor of another.
        found = [(run, self._before(run), self._uncounted(run), self._shared(run)) for run in runs]
        for run, before, uncounted, shared in found:
            if before:
                run.origin = _sum(before)
            run.uncounted, run.shared = uncounted, shared

    def _named(self, run: Run, setting: str) -> list[Run]:
        """The runs that a setting names, without those that are gone."""
        found = []
        for path in named_runs(run.config, setting):
            place = os.path.realpath(path)
            if place not in self._runs:
                self._runs[place] = find_run(Path(path))
            if (named := self._runs[place]) is not None:
                found.append(named)
        return found

    def _line(self, run: Run) -> _Line:
        """What each model in the line of a run's weights cost, its teachers included, the run's own first."""
        place = os.path.realpath(run.path)
        if place not in self._lines:
            self._lines[place] = []  # what a run that is its own ancestor gets of itself
            own = {key: run.train.get(key, 0.0) for key in ("tokens", "seconds", "flops")}
            more = self._uncounted(run)
            for key in ("seconds", "flops"):
                own[key] += run.train.get(f"teacher_{key}", 0.0) + more.get(key, 0.0)
            self._lines[place] = [(place, own), *(self._before(run) or ([("", run.origin)] if run.origin else []))]
        return self._lines[place]

    def _before(self, run: Run) -> _Line:
        """The line of the model that a run started from; empty where that is not known any more."""
        return [entry for origin in self._named(run, "init_from") for entry in self._line(origin)]

    def _shared(self, run: Run) -> _Cost:
        """What models cost that are in the line of the run's weights, and in that of a teacher."""
        taught = {place for teacher in self._named(run, _TEACHER) for place, _ in self._line(teacher)}
        return _sum([(place, cost) for place, cost in self._before(run) if place and place in taught])

    def _uncounted(self, run: Run) -> _Cost:
        """What the lines of a run's teachers cost beyond what its summary counts, which its tokens tell.

        Of each teacher's line it counts a beginning.
        """
        lines = [self._line(teacher) for teacher in self._named(run, _TEACHER)]
        counted = run.train.get("teacher_tokens", 0.0)
        for places in product(*(range(len(line) + 1) for line in lines)):
            beginnings = [entry for line, place in zip(lines, places, strict=True) for entry in line[:place]]
            if _sum(beginnings)["tokens"] == counted:
                return _sum([entry for line, place in zip(lines, places, strict=True) for entry in line[place:]])
        return {}


def _sum(line: _Line) -> dict[str, float]:
    return {key: sum(cost.get(key, 0.0) for _, cost in line) for key in ("tokens", "seconds", "flops")}
