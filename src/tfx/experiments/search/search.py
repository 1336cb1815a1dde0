"""The search itself: rounds of configs that halve, then more seeds for the leaders; every trial is a run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, median_low, stdev
from typing import Any

from tfx.config.command_line import searchpath
from tfx.config.schema import Budget
from tfx.config.search import SearchConfig
from tfx.errors import UserError
from tfx.experiments.jobs import ENDED_BADLY, Job
from tfx.experiments.pool import run_jobs
from tfx.experiments.request import Request
from tfx.experiments.search.axes import Axis
from tfx.experiments.search.book import Book, Entry, Trial
from tfx.experiments.search.findings import Findings
from tfx.experiments.search.fitting import Fitter
from tfx.experiments.search.front import ranks
from tfx.experiments.search.goal import Goal, Measured
from tfx.experiments.search.halving import best_of, course, evenly, lengths
from tfx.experiments.search.outcome import outcome_of
from tfx.experiments.search.sampler import propose, require_optuna
from tfx.experiments.search.size import Observation
from tfx.experiments.search.space import BUDGET_KEYS, SIZE, key_of, make_space

# The part of a budget that goes to more seeds of the leaders.
_FOR_SEEDS = 0.2
# A whole training where none is named: this part of the time that all processes have.
_PART_OF_TIME = 1 / 20
NOTHING_FITS = "no config was found that keeps the limits: allow more, or widen an axis"
# How many of the leaders get more seeds.
_LEADERS = 3


class Search:
    """One search in its folder."""

    def __init__(self, request: Request, settings: SearchConfig, named: dict[str, Axis]) -> None:
        """``named`` are the axes that the command line names. Raises `UserError` for goals that contradict."""
        require_optuna()
        self.request, self.settings, self.folder = request, settings, request.folder
        config = request.config
        self.goal = Goal.of(settings, config)
        self.machine = request.machine
        self.seconds, self.most_trials = budget_limits(settings)
        typed = [word for word in request.typed if key_of(word) not in ("seed", *BUDGET_KEYS)]
        space = make_space(typed, named, config, self.goal)
        self.space = replace(space, place=tuple(searchpath(request.flags)))
        self.fitter = Fitter(self.space, self.goal, config, self.machine.threads)
        self.jobs: list[Job] = []
        self.book = self._open()
        # With more time than before, a search that goes on trains as long as it did.
        whole = Budget(**self.book.whole) if self.book.whole else self._whole_budget()
        self.book.whole = {whole.unit: whole.amount if whole.unit == "seconds" else int(whole.amount)}
        self.budgets = lengths(whole, settings.rungs, settings.keep)
        self.found = Findings(self.goal, self.book, self.folder, self.budgets, self.space, config.seed)
        # Whether the last round found no other config to begin with.
        self.is_exhausted = False
        self._began = time.monotonic()
        self._before = self.book.seconds

    def _whole_budget(self) -> Budget:
        """The length of a whole training: what the user names, else a part of the time."""
        named = any(key_of(word) in BUDGET_KEYS for word in self.request.typed)
        if named or self.seconds is None:
            whole = self.request.config.trainer.budget
            if not whole.amount:
                raise UserError(f"a search compares trainings, and trainer.budget.{whole.unit}=0 trains nothing")
            return whole
        return Budget(seconds=max(1.0, self.seconds * self.machine.jobs * _PART_OF_TIME))

    def _open(self) -> Book:
        """The book of this search: a new one, or the one in the folder. Raises `UserError` if that is another's."""
        words = sorted(word for word in self.request.typed if key_of(word) not in ("dry_run", "hydra.sweep.dir"))
        book = Book(words, {key: axis.describe() for key, axis in self.space.axes.items()})
        book.words += [f"{key}={value}" for key, value in sorted(_identity(self.settings).items())]
        if not self.path.is_file():
            return book
        found = Book.read(self.path)
        if (found.words, found.axes) != (book.words, book.axes):
            raise UserError(
                f"{self.folder} holds another search ({' '.join(found.words)}): repeat its command, or name another "
                "hydra.sweep.dir"
            )
        return found

    @property
    def path(self) -> Path:
        """The file that says what was found."""
        return self.folder / "search.json"

    # --- the course of a search -------------------------------------------------------------------------

    @property
    def left(self) -> int:
        """How many trainings of ``budget.trials`` there were no use for."""
        return 0 if self.most_trials is None else max(0, self.most_trials - len(self.book.trials))

    def run(self) -> None:
        """Runs the trials that are left. Raises `UserError` where the limits are out of reach."""
        self.fitter.check()
        number = 0
        while True:
            while self._has_begun(number) or self._begin_round(number):
                self._run_round(number)
                number += 1
            self._add_seeds()
            # What these seeds have left goes to other configs, and then to the seeds of those.
            if self.is_exhausted or not self._begin_round(number, rest=True):
                return

    def _has_begun(self, number: int) -> bool:
        return number < self.book.rounds

    def _begin_round(self, number: int, *, rest: bool = False) -> bool:
        """Asks for the configs of a new round; False where the budget has no room for one, or no config is left."""
        count = self.affordable(rest=rest)
        if not count:
            return False
        self._learn()
        axes = self.fitter.sampled_axes()
        told = self.found.outcomes(list(axes))
        config = self.request.config
        # What the user would have trained without a search is in it.
        own = self.fitter.own(config) if number == 0 else None
        turns = SIZE if SIZE in axes else None
        proposed = propose(axes, told, count, config.seed, number, self.fitter.accept, own, turns)
        if not proposed:
            if number == 0:
                raise self.fitter.refusal or UserError(NOTHING_FITS)
            self.is_exhausted = True
            return False
        for values in proposed:
            place = len(self.book.entries)
            prediction = self.fitter.predict(values)
            self.book.entries.append(Entry(place, values, self.space.words(values, whole=True), number, prediction))
        self.keep()
        return True

    def affordable(self, begun: int = 0, *, rest: bool = False) -> int:
        """How many configs a round can begin with, for it to end within its part of the budget.

        So many of them have ``begun``, and their first trainings are paid for. With ``rest`` it is a part of what
        the budget has left, and one config alone may take all of that.
        """
        part = 1.0 if self.settings.seeds == 1 else 1 - _FOR_SEEDS
        trials, spent = len(self.book.trials), self._spent()
        trials_before, spent_before = (trials, spent) if rest else (0, 0.0)
        for count in range(self.settings.candidates, 0, -1):
            runs, seconds = 0, 0.0
            for rung, left in course(count, self.settings.rungs, self.settings.keep):
                runs += left
                to_train = left if rung else max(0, left - begun)
                seconds += math.ceil(to_train / self.machine.jobs) * self._expected(rung)
            if self.most_trials is not None:
                free = self.most_trials - trials_before
                if trials + runs > trials_before + max(math.floor(part * free), min(free, self.settings.rungs)):
                    continue
            if self.seconds is not None:
                free_seconds = (self.seconds - spent_before) * (1.0 if rest and count == 1 else part)
                if spent + seconds > spent_before + free_seconds:
                    continue
            return count
        # The first trial of all is always tried, or there would be no model.
        return int(not self.book.trials)

    def _run_round(self, number: int) -> None:
        alive = self.book.of_round(number)
        seed = self.request.config.seed
        if self._is_untimed:
            alive = self._first_of(alive)
        steps = course(len(alive), self.settings.rungs, self.settings.keep)
        for (rung, _), after in zip(steps, [*steps[1:], (0, 1)], strict=True):
            self._train([Trial(entry.number, rung, seed) for entry in alive])
            self.keep()
            ended = [entry for entry in alive if self.found.first(entry, rung) is not None]
            failed = [job for job in self.jobs if job.state in ENDED_BADLY]
            if failed and not any(self.found.results()):
                raise UserError(f"no trial has a result: {failed[-1].reason} (see {failed[-1].log})")
            alive = self._promote(ended, rung, after[1])

    @property
    def _is_untimed(self) -> bool:
        """Whether time is what runs out, and nobody knows how long a trial takes, with all that is not training."""
        return self.seconds is not None and not self.book.clock

    def _first_of(self, entries: Sequence[Entry]) -> list[Entry]:
        """As many of the very first configs as the time is enough for, told by those that can train at once."""
        count = min(self.machine.jobs, len(entries))
        rung = course(len(entries), self.settings.rungs, self.settings.keep)[0][0]
        self._train([Trial(entry.number, rung, self.request.config.seed) for entry in entries[:count]])
        left = entries[: max(count, self.affordable(count))]
        del self.book.entries[len(left) :]
        self.keep()
        return list(left)

    def _promote(self, entries: Sequence[Entry], rung: int, count: int) -> list[Entry]:
        def at(entry: Entry) -> Measured:
            found = self.found.first(entry, rung)
            assert found is not None
            return found

        best = best_of(entries, count, lambda entry: self.goal.key(at(entry)))
        if self.goal.spread == 1 or count == 1 or not best:
            return best
        # The front is what is sought: beside the best, its members go on, from the smallest file to the largest.
        points = [(self.goal.gain_of(at(entry)), -at(entry).bytes) for entry in entries]
        front = [entry for entry, rank in zip(entries, ranks(points), strict=True) if rank == 0 and entry != best[0]]
        front.sort(key=lambda entry: at(entry).bytes)
        chosen = [best[0], *(front[place] for place in evenly(min(count - 1, len(front)), len(front)))]
        return [*chosen, *(entry for entry in best if entry not in chosen)][:count]

    def _add_seeds(self) -> None:
        """One more seed at a time for the leaders at full length, while seeds could change who leads.

        Who leads is judged by the seeds before, so that a search that was stopped here asks for the same again.
        """
        first, last = self.request.config.seed, self.settings.rungs - 1
        for extra in range(1, self.settings.seeds):
            close = self._close(*self._leaders(first + extra))
            if len(close) < 2:
                return
            self._train([Trial(entry.number, last, first + extra) for entry in close])
            self.keep()

    def _leaders(self, below: int) -> tuple[list[Entry], list[list[float]]]:
        """The best at full length by seeds ``below`` this one, the first of all first, and the merits of each."""
        known = {entry.number: [found for _, found in self.found.at_full(entry, below)] for entry in self.book.entries}
        ended = [entry for entry in self.book.entries if known[entry.number]]
        means = {entry.number: Measured.mean(known[entry.number]) for entry in ended}
        if any(self.goal.is_met(found) for found in means.values()):  # no other one can win
            ended = [entry for entry in ended if self.goal.is_met(means[entry.number])]
        leaders = best_of(ended, _LEADERS, lambda entry: self.goal.key(means[entry.number]))
        return leaders, [[self.goal.merit(found) for found in known[entry.number]] for entry in leaders]

    @staticmethod
    def _close(leaders: Sequence[Entry], merits: Sequence[Sequence[float]]) -> list[Entry]:
        """Those of the leaders whose merit the first one's may be above by chance: within two standard errors."""
        spreads = [stdev(values) for values in merits if len(values) > 1]
        if not spreads:
            return list(leaders)
        near = []
        for entry, values in zip(leaders, merits, strict=True):
            error = math.sqrt(mean(s * s for s in spreads) * (1 / len(values) + 1 / len(merits[0])))
            if mean(merits[0]) - mean(values) <= 2 * error:
                near.append(entry)
        return near

    # --- trials -----------------------------------------------------------------------------------------

    def _train(self, trials: Sequence[Trial]) -> None:
        """Trains those of the trials that have no result, as far as the budget goes."""
        wanted = [trial for trial in trials if trial in self.book.trials]
        begun = 0
        for trial in trials:
            if trial not in self.book.trials and self._may_begin(trial.rung, begun):
                self.book.trials.append(trial)
                wanted.append(trial)
                begun += 1
        self.keep()
        jobs = [self._job(trial) for trial in wanted if self.found.summary(trial) is None]
        if not jobs:
            return
        self.jobs += jobs
        start = time.monotonic()
        rung = trials[0].rung
        run_jobs(jobs, self.folder, self.request.launcher, self.machine)
        each = (time.monotonic() - start) / math.ceil(len(jobs) / self.machine.jobs)
        self.book.clock.setdefault(str(rung), []).append(each)
        if self.request.launcher.on_failure == "stop" and any(job.state in ENDED_BADLY for job in jobs):
            raise UserError("a trial failed, and hydra.launcher.on_failure=stop: repeat the command to go on")

    def _may_begin(self, rung: int, begun: int) -> bool:
        """Whether the budget has room for one more trial beside those that have just ``begun``.

        The first one of all always may. The first whole one may if its training alone has room: without it there is no
        model, and what other trials took on top of theirs is uncertain.
        """
        if not self.book.trials:
            return True
        if self.most_trials is not None:
            return len(self.book.trials) < self.most_trials
        assert self.seconds is not None
        is_first_whole = rung == self.settings.rungs - 1 and str(rung) not in self.book.clock and not begun
        turns = math.ceil((begun + 1) / self.machine.jobs)
        each = self._training(rung) if is_first_whole else self._expected(rung)
        return self._spent() + turns * each <= self.seconds

    def _job(self, trial: Trial) -> Job:
        entry = self.book.entries[trial.number]
        budget = self.budgets[trial.rung]
        is_whole = trial.rung == len(self.budgets) - 1
        own = entry.words if is_whole else self.space.words(entry.values)
        words = [*own, f"trainer.budget.{budget.unit}={budget.amount:.10g}", f"seed={trial.seed}"]
        place = self.book.trials.index(trial)
        name = f"config {trial.number}, {budget}, seed {trial.seed}"
        return Job(place, words, trial.folder(self.folder), self.request.flags, name)

    def _expected(self, rung: int) -> float:
        """Seconds of one trial: as those before it took, else its training's, and what others took on top of theirs.

        The first trials find nothing in the caches, so that of few the shorter ones count.
        """
        clock = {int(key): median_low(known) for key, known in self.book.clock.items()}
        if rung in clock:
            return clock[rung]
        on_top = [max(0.0, took - self._training(known)) for known, took in clock.items()]
        return self._training(rung) + min(on_top, default=0.0)

    def _training(self, rung: int) -> float:
        """Seconds of a training alone, by the results whose length is nearest; 0 if there are none."""
        length = self.budgets[rung]
        if length.unit == "seconds":
            return length.amount
        took: dict[int, list[float]] = {}
        for trial, result in self.found.results():
            took.setdefault(trial.rung, []).append(result.train.seconds)
        if not took:
            return 0.0
        nearest = min(took, key=lambda known: abs(known - rung))
        return median(took[nearest]) * length.amount / self.budgets[nearest].amount

    def _spent(self) -> float:
        return self._before + time.monotonic() - self._began

    def keep(self) -> None:
        """Writes the book, with the outcome so far."""
        self.book.seconds = self._spent()
        self.book.outcome = outcome_of(self.found)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.book.write(self.path)

    # --- predictions --------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Corrects predictions of bytes and latency from the trials so far."""
        sizes, latencies = [], []
        for trial, result in self.found.results():
            predicted = self.book.entries[trial.number].predicted
            # The rate of a file that has a size of its own is not what was predicted from.
            if self.space.max_bytes is None:
                sizes.append(Observation(predicted.stack, predicted.untrained_weights, result.bytes.weights))
            is_whole = trial.rung == len(self.budgets) - 1
            if is_whole and predicted.untrained_latency_ms is not None:
                truth = result.inference["file"].latency_ms["p50"]
                latencies.append(Observation(predicted.stack, predicted.untrained_latency_ms, truth))
        self.fitter.learn(sizes, latencies)


def budget_limits(settings: SearchConfig) -> tuple[float | None, int | None]:
    """The seconds, or the trials, that a search may take. Raises `UserError` unless exactly one is named."""
    budget = settings.budget
    named = [name for name in ("seconds", "hours", "trials") if getattr(budget, name) is not None]
    if len(named) != 1:
        found = f"{' and '.join(f'budget.{name}' for name in named)} are named" if named else "none is named"
        raise UserError(
            f"a search has one budget, and {found}: name one of budget.seconds=…, budget.hours=…, budget.trials=…"
        )
    if budget.hours is not None:
        return 3600 * budget.hours, None
    return budget.seconds, budget.trials


def _identity(settings: SearchConfig) -> dict[str, Any]:
    """The settings that tell one search from another: a longer budget, or a final training, makes it no other one."""
    goal = ("max_bytes", "max_latency_ms", "min_quality", "objective", "spread", "candidates", "rungs", "keep")
    return {name: getattr(settings, name) for name in goal if getattr(settings, name) is not None}
