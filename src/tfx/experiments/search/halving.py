"""Successive halving: many short trainings, and longer ones for the best. Plans only.

Trials are processes, whole runs with schedules over their own budget; so a longer training of a config starts over,
and ours keeps the books instead of a pruner's that stops a training on its way (Jamieson 2016, arXiv 1502.07943;
Li 2018, arXiv 1603.06560).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

from tfx.config.schema import Budget

Config = TypeVar("Config")


def lengths(whole: Budget, rungs: int, keep: int) -> list[Budget]:
    """The budgets of the rungs, ascending: the last is ``whole``, each before it ``keep`` times as short."""
    found = []
    for rung in range(rungs):
        share = float(keep) ** (rung - rungs + 1)
        amount: Any = whole.amount * share
        found.append(Budget(**{whole.unit: amount if whole.unit == "seconds" else max(1, round(amount))}))
    return found


def costs(candidates: int, rungs: int, keep: int) -> float:
    """What a round costs, in whole trainings."""
    total, left = 0.0, candidates
    for rung in range(rungs):
        total += left * float(keep) ** (rung - rungs + 1)
        left = promoted(left, keep)
    return total


def promoted(count: int, keep: int) -> int:
    """How many of so many configs go on: one in ``keep``, and at least one."""
    return max(1, count // keep)


def best_of(candidates: Sequence[Config], count: int, key: Callable[[Config], tuple[float, ...]]) -> list[Config]:
    """The best by ``key``, the largest first; of equals those that came first."""
    return sorted(candidates, key=key, reverse=True)[:count]


def at_full_length(reached: Mapping[int, float], curves: Sequence[Mapping[int, float]], last: int) -> float:
    """What a config would have at the last rung, from its merits by rung and those of all configs (``curves``).

    The merit at its longest training, and the median gain from there on, rung by rung, of configs that went on. Those
    were the better ones, so this flatters the rest; it keeps their order.
    """
    rung = max(reached)
    merit = reached[rung]
    while rung < last:
        gains = [curve[rung + 1] - curve[rung] for curve in curves if rung in curve and rung + 1 in curve]
        merit += median(gains) if gains else 0.0
        rung += 1
    return merit
