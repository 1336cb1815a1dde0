"""What each technique adds: alone, given all the others, and on average over the stacks in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np

from tfx.record.metric_vocabulary import higher_is_better
from tfx.report.arms import Arm, Sentences, difference_between
from tfx.report.statistics import Difference, compare, holm

_Design = Mapping[frozenset[str], Arm]


@dataclass
class Contribution:
    """What one technique adds to the primary metric; None where no arms show it. ``p_holm`` is by the same names.

    ``alone``: with it minus the baseline. ``given_others``: all techniques minus all but it. ``average``: its Shapley
    value (1953), the mean over all orders in which the techniques could be added; only where every subset was run.
    """

    technique: str
    alone: Difference | None
    given_others: Difference | None
    average: Difference | None
    p_holm: dict[str, float]


KINDS = ("alone", "given_others", "average")


def contributions(arms: Sequence[Arm], baseline: Arm, sentences: Sentences) -> list[Contribution]:
    """One row a technique; none where the arms are no ablation of two techniques or more.

    The arms of an ablation are the baseline, an arm with the most techniques, and those with some of these in the very
    same settings; all else is equal but the budget, which may differ where FLOPs are matched.
    """
    design = _design(arms, baseline)
    if design is None:
        return []
    whole = max(design, key=len)
    rows = []
    for name in sorted(whole):
        single, others = frozenset((name,)), whole - {name}
        alone = difference_between(design[single], baseline, sentences) if single in design else None
        given = difference_between(design[whole], design[others], sentences) if others in design else None
        rows.append(Contribution(name, alone, given, _shapley(design, name, sentences), {}))
    tested = [(row, kind, found) for row in rows for kind in KINDS if (found := getattr(row, kind)) is not None]
    for (row, kind, _), p in zip(tested, holm([found.p for _, _, found in tested]), strict=True):
        row.p_holm[kind] = p
    return rows if tested else []


def _design(arms: Sequence[Arm], baseline: Arm) -> _Design | None:
    """Arms by their techniques; None where there is no stack of two or more to take apart."""
    if baseline.runs[0].techniques:
        return None
    alike = [arm for arm in arms if _apart(arm, "") == _apart(baseline, "")]
    most = max(len(arm.runs[0].techniques) for arm in alike)
    whole = [arm for arm in alike if len(arm.runs[0].techniques) == most]
    if most < 2 or len(whole) > 1:  # of two whole stacks none is the one that was meant
        return None
    names = whole[0].runs[0].techniques
    design: dict[frozenset[str], Arm] = {}
    for arm in alike:
        own = arm.runs[0].techniques
        if set(own) <= set(names) and all(_apart(arm, name) == _apart(whole[0], name) for name in own):
            design[frozenset(own)] = arm
    return design


def _apart(arm: Arm, technique: str) -> dict[str, Any]:
    """The settings of one technique; with no name, all but those of techniques and the budget."""
    config = arm.runs[0].identity
    if technique:
        return {name: value for name, value in config.items() if name.startswith(f"technique.{technique}.")}
    return {name: value for name, value in config.items() if not name.startswith(("technique", "trainer.budget."))}


def _shapley(design: _Design, name: str, sentences: Sentences) -> Difference | None:
    """The weighted mean of what it adds to each subset of the others; None where an arm or a seed of one is missing.

    Taken seed by seed and sentence sample by sentence sample, so that the seeds are what varies.
    """
    others = sorted(max(design, key=len) - {name})
    weights: dict[frozenset[str], float] = {}
    for size in range(len(others) + 1):
        share = factorial(size) * factorial(len(others) - size) / factorial(len(others) + 1)
        for subset in map(frozenset, combinations(others, size)):
            weights[subset | {name}], weights[subset] = share, -share
    if any(subset not in design for subset in weights):
        return None
    arms = [(weight, design[subset]) for subset, weight in weights.items()]
    seeds = {tuple(run.seed for run in arm.runs) for _, arm in arms}
    if len(seeds) > 1:
        return None
    value_S = np.sum([weight * np.asarray(arm.scores) for weight, arm in arms], axis=0)
    sampled = [(weight, sentences.resampled(arm)) for weight, arm in arms]
    known = [weight * table_SR for weight, table_SR in sampled if table_SR is not None]
    value_SR = np.sum(known, axis=0) if len(known) == len(sampled) else None
    return compare(
        value_S.tolist(),
        [0.0] * len(value_S),
        value_SR,
        None if value_SR is None else np.zeros_like(value_SR),
        higher_is_better=higher_is_better(arms[0][1].metric),
    )


def contribution_facts(row: Contribution) -> dict[str, Any]:
    """A row as plain values."""
    facts: dict[str, Any] = {"technique": row.technique}
    for kind in KINDS:
        found = getattr(row, kind)
        facts[kind] = None
        if found is not None:
            facts[kind] = {"value": found.value, "low": found.low, "high": found.high, "p_holm": row.p_holm[kind]}
    return facts
