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


def course(candidates: int, rungs: int, keep: int) -> list[tuple[int, int]]:
    """The rungs of a round, each with how many configs train: one in ``keep`` goes on, and at least one.

    One that is alone has nothing to be chosen from: it goes to the last rung at once.
    """
    found, left = [], candidates
    for rung in range(rungs):
        if left > 1 or rung == rungs - 1:
            found.append((rung, left))
            left = max(1, left // keep)
    return found


def costs(candidates: int, rungs: int, keep: int) -> float:
    """What a round costs, in whole trainings."""
    return sum(count * float(keep) ** (rung - rungs + 1) for rung, count in course(candidates, rungs, keep))


def best_of(candidates: Sequence[Config], count: int, key: Callable[[Config], tuple[float, ...]]) -> list[Config]:
    """The best by ``key``, the largest first; of equals those that came first."""
    return sorted(candidates, key=key, reverse=True)[:count]


def evenly(count: int, length: int) -> list[int]:
    """``count`` of ``length`` places, evenly spaced from the first to the last; one alone is the first."""
    return [round(step * (length - 1) / max(1, count - 1)) for step in range(count)]


def at_full_length(reached: Mapping[int, float], curves: Sequence[Mapping[int, float]], last: int) -> float:
    """What a config would have at the last rung, from its merits by rung and those of all configs (``curves``).

    The merit at its longest training, and the median gain from there on, rung by rung, of configs that went on. Those
    were the better ones, so this flatters the rest; it keeps their order.
    """
    rung = max(reached)
    merit = reached[rung]
    while rung < last:
        # To the next rung that any went on to; some rounds leave rungs out.
        for longer in range(rung + 1, last + 1):
            if gains := [curve[longer] - curve[rung] for curve in curves if rung in curve and longer in curve]:
                merit += median(gains)
                break
        rung = longer
    return merit
