"""What a search has found so far: the best, the front, what axes were worth, and how far predictions were off."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from statistics import NormalDist, mean, stdev
from typing import Any

from tfx.experiments.search.book import Entry, spent
from tfx.experiments.search.findings import Findings
from tfx.experiments.search.front import coordinates, non_dominated, worth_of_axes
from tfx.experiments.search.goal import Measured

# Latencies that differ by less are one: so far they differ from one measurement to the next.
_LATENCY_STEP = 0.1


def front_of(found: Findings) -> list[Entry]:
    """The configs that no other one beats in quality, bytes and latency at once, by size.

    Of those with the longest training alone: a shorter one says nothing of what a config can do.
    """
    longest = max((found.longest(entry)[0] for entry in found.ended), default=-1)
    ended, points = [entry for entry in found.ended if found.longest(entry)[0] == longest], []
    for entry in ended:
        mean_ = found.mean_of(entry)
        steps = round(math.log(max(mean_.latency_ms, 1e-9)) / math.log1p(_LATENCY_STEP))
        points.append(coordinates(Measured(mean_.quality, mean_.bytes, steps), found.goal.gain(mean_.quality)))
    kept = [ended[place] for place in non_dominated(points)]
    return sorted(kept, key=lambda entry: found.mean_of(entry).bytes)


def run_of(found: Findings, entry: Entry) -> str:
    """The run directory that stands for a config: of its longest trainings the best by the goal."""
    trials = found.longest(entry)[1]
    measured = {trial: one for trial in trials if (one := found.measured(trial)) is not None}
    return str(max(measured, key=lambda trial: found.goal.key(measured[trial])).folder(found.folder))


def command_of(found: Findings, entry: Entry) -> list[str]:
    """The words of `tfx train` that train a config at full length, with its test split."""
    whole = found.budgets[-1]
    return [*found.space.outside(entry.words), f"trainer.budget.{whole.unit}={whole.amount:.10g}"]


def outcome_of(found: Findings) -> dict[str, Any]:
    """The content of `search.json` for readers."""
    best = found.best()
    results = [result for _, result in found.results()]
    kept = found.book.outcome
    return {
        "goal": found.goal.describe(),
        "metric": found.goal.metric,
        "best": None if best is None else run_of(found, best),
        "best_is_met": best is not None and found.goal.is_met(found.mean_of(best)),
        "command": None if best is None else shlex.join(["tfx", "train", *command_of(found, best)]),
        "front": [_row(found, entry) for entry in front_of(found)],
        "looked_at": len(found.book.entries),
        "trials": len(found.book.trials),
        "ended": len(results),
        "seconds": found.book.seconds,
        **spent(results),
        "tried": [_row(found, entry) for entry in found.ended],
        "selection": selection(found),
        "worth": [asdict(worth) for worth in worths(found)],
        "size": size_errors(found),
        **{key: kept[key] for key in ("test", "final") if key in kept},
    }


def _row(found: Findings, entry: Entry) -> dict[str, Any]:
    """One config for readers: seeds, and the mean of what was measured at its longest training."""
    rung, trials = found.longest(entry)
    measured = found.mean_of(entry)
    return {
        "config": entry.number,
        "run": run_of(found, entry),
        "values": found.space.effective(entry.values),
        "part_of_budget": found.budgets[rung].amount / found.budgets[-1].amount,
        "seeds": len(trials),
        "quality": measured.quality,
        "bytes": round(measured.bytes),
        "latency_ms": measured.latency_ms,
        "predicted_bytes": entry.predicted.bytes,
        "predicted_latency_ms": entry.predicted.latency_ms,
        "meets": found.goal.is_met(measured),
    }


def worths(found: Findings) -> list[Any]:
    """What each axis is worth, from the shortest trainings, which all configs had."""
    seed = found.seed
    first = [trial for trial in found.book.trials if (trial.rung, trial.seed) == (0, seed)]
    known = [(trial, one) for trial in first if (one := found.measured(trial)) is not None]
    values = [found.book.entries[trial.number].values for trial, _ in known]
    axes = {key: axis for key, axis in found.space.axes.items() if all(key in one for one in values)}
    return worth_of_axes(axes, values, [found.goal.gain(one.quality) for _, one in known])


def size_errors(found: Findings) -> dict[str, Any]:
    """How far predicted bytes were off, of the whole file, over all trainings."""
    errors = []
    for trial, result in found.results():
        errors.append(found.book.entries[trial.number].predicted.bytes / result.bytes.file - 1)
    if not errors:
        return {}
    return {
        "trials": len(errors),
        "mean_absolute_error": mean(map(abs, errors)),
        "largest_error": max(errors, key=abs),
        "within_3_percent": mean(abs(error) <= 0.03 for error in errors),
    }


def selection(found: Findings) -> dict[str, Any]:
    """How many configs the winner was chosen from, and what choosing alone does to its validation figure.

    Of configs that are equally good, the best of n by one noisy figure each stands at the expected largest of n normal
    draws above the mean (Blom 1958): ``optimism`` is that many standard deviations between seeds, if those are known.
    """
    whole = [seeds for entry in found.book.entries if (seeds := found.at_full(entry))]
    spreads = [stdev([one.quality for _, one in seeds]) for seeds in whole if len(seeds) > 1]
    facts: dict[str, Any] = {"at_full_length": len(whole)}
    if spreads:
        deviation = math.sqrt(mean(value * value for value in spreads))
        facts |= {"seed_deviation": deviation, "optimism": deviation * expected_largest(len(whole))}
    return facts


def expected_largest(count: int) -> float:
    """The expected largest of ``count`` standard normal draws (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0


def given_up(front: Sequence[dict[str, Any]], place: int, metric: str) -> str:
    """What the next smaller config of the front saves, and what it costs."""
    if place == 0:
        return ""
    here, next_ = front[place], front[place - 1]
    saved = 1 - next_["bytes"] / here["bytes"]
    bytes_ = f"{saved:.0%} fewer bytes" if saved >= 0.005 else "as many bytes"
    return f"{bytes_}, {next_['quality'] - here['quality']:+.3g} {metric}"
