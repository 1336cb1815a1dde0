"""What a search found: the front of quality, bytes and latency, and what each axis was worth. Plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfx.experiments.search.axes import Axis
from tfx.experiments.search.goal import Measured
from tfx.record.seeds import derive_seed

_RESAMPLES = 1000
# How many parts, of equally many configs, a range is cut into.
_PARTS = 3


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is at least as good in everything (more is better) and better in something."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


def non_dominated(points: Sequence[Sequence[float]]) -> list[int]:
    """The places of the points that no other one dominates; of equal points the first alone."""
    kept = []
    for place, point in enumerate(points):
        others = (other for index, other in enumerate(points) if index != place)
        is_again = any(list(point) == list(other) for other in points[:place])
        if not is_again and not any(dominates(other, point) for other in others):
            kept.append(place)
    return kept


def ranks(points: Sequence[Sequence[float]]) -> list[int]:
    """The number of the front that each point lies on: 0 the non-dominated, 1 those without them, and so on."""
    left = list(range(len(points)))
    found = [0] * len(points)
    rank = 0
    while left:
        front = {left[place] for place in non_dominated([points[index] for index in left])}
        # Equals of a point on the front belong to it too.
        front |= {index for index in left if any(list(points[index]) == list(points[one]) for one in front)}
        for index in front:
            found[index] = rank
        left = [index for index in left if index not in front]
        rank += 1
    return found


def coordinates(found: Measured, gain: float) -> tuple[float, float, float]:
    """Quality (``gain``: more is better), bytes and latency with signs, so that more of each is better."""
    return (gain, -found.bytes, -found.latency_ms)


@dataclass(frozen=True)
class Worth:
    """What one axis is worth: the share of the variance of the merit that its parts explain, and its 90 % interval."""

    key: str
    share: float
    low: float
    high: float
    best: str


def worth_of_axes(
    axes: Mapping[str, Axis], values: Sequence[Mapping[str, Any]], merits: Sequence[float]
) -> list[Worth]:
    """What each axis is worth by itself, the most first; empty with fewer than six configs.

    The correlation ratio, with the correction for its bias (epsilon squared, Kelley 1935): choices are parts by
    themselves, ranges are cut at the quantiles of what was tried. The interval resamples configs. What a search tried
    is no sample of the space, for it tries more of what was good: these shares rank axes, and no more.
    """
    if len(merits) < 2 * _PARTS:
        return []
    merit_N = np.asarray(merits, dtype=float)
    found = []
    for key, axis in axes.items():
        part_N, names = _parts(axis, [one.get(key) for one in values])
        if len(names) < 2:
            continue
        random = np.random.default_rng(derive_seed(0, f"worth/{key}"))
        times_RN = random.multinomial(len(merit_N), np.full(len(merit_N), 1 / len(merit_N)), size=_RESAMPLES)
        low, high = np.quantile(_explained(merit_N, part_N, times_RN), (0.05, 0.95))
        share = float(_explained(merit_N, part_N, np.ones((1, len(merit_N))))[0])
        means = [merit_N[part_N == part].mean() for part in range(len(names))]
        found.append(Worth(key, share, float(low), float(high), names[int(np.argmax(means))]))
    return sorted(found, key=lambda worth: -worth.share)


def _parts(axis: Axis, values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """The part of each value, and the names of the parts."""
    if axis.choices or (axis.points or _PARTS + 1) <= _PARTS:
        known = sorted(set(values), key=str)
        return np.array([known.index(value) for value in values]), [str(value) for value in known]
    value_N = np.asarray(values, dtype=float)
    cuts = np.unique(np.quantile(value_N, np.arange(1, _PARTS) / _PARTS))
    part_N = np.searchsorted(cuts, value_N, side="left")
    used = np.unique(part_N)
    ends = [(f"{value_N[part_N == part].min():.4g}", f"{value_N[part_N == part].max():.4g}") for part in used]
    names = [low if low == high else f"{low} to {high}" for low, high in ends]
    return np.searchsorted(used, part_N), names


def _explained(merit_N: np.ndarray, part_N: np.ndarray, times_RN: np.ndarray) -> np.ndarray:
    """Epsilon squared (R,): the share of the variance between parts, corrected for their number; at least 0.

    Each row of ``times_RN`` says how often each merit counts.
    """
    is_in_NP = (part_N[:, None] == np.unique(part_N)[None, :]).astype(float)
    centred_N = merit_N - merit_N.mean()
    count_RP = times_RN @ is_in_NP
    sum_RP = times_RN @ (is_in_NP * centred_N[:, None])
    square_R = times_RN @ centred_N**2
    count_R = count_RP.sum(1)
    within_R = square_R - (sum_RP**2 / np.maximum(count_RP, 1)).sum(1)
    total_R = square_R - sum_RP.sum(1) ** 2 / count_R
    rest_R = count_R - (count_RP > 0).sum(1)
    usable_R = (total_R > 1e-12 * max(1e-300, float(centred_N @ centred_N))) & (rest_R > 0)
    ratio_R = (within_R / np.maximum(rest_R, 1)) / np.where(usable_R, total_R / (count_R - 1), 1.0)
    return np.where(usable_R, np.maximum(0.0, 1 - ratio_R), 0.0)
