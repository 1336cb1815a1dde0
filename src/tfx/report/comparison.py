"""Runs grouped into arms, arms compared with their baseline, and what makes a comparison unfair."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfx.config.task_facts import TASKS
from tfx.errors import unknown
from tfx.record.metric_vocabulary import LOSS_METRICS, higher_is_better
from tfx.report.ancestry import count_ancestors
from tfx.report.arms import Arm, Caution, Sentences, difference_between, group
from tfx.report.contributions import Contribution, contribution_facts, contributions
from tfx.report.labels import folder_name, unnamed_differences
from tfx.report.run_filter import matching, sections
from tfx.report.runs import LeftOut, Run, find_runs
from tfx.report.statistics import holm, pareto_front, seed_interval

_SAME_BUDGET = 0.02  # batches end where they end: budgets within 2 % count as the same


COSTS: dict[str, tuple[str, Callable[[Run], float | None]]] = {
    "bytes": ("file, MB", lambda run: run.bytes["file"]),
    "latency": ("latency, median, ms", lambda run: run.latency_ms),
    "seconds": ("training, s", lambda run: run.seconds or None),
    "flops": ("training, TFLOPs", lambda run: run.flops or None),
}

SCALES = {"bytes": 1e-6, "flops": 1e-12}
"""From the unit of the facts to the unit of `COSTS`' labels, which plots have."""


@dataclass(frozen=True)
class Warned:
    """What a reader of a table is to know: its kind, what that makes of the comparison, and a line for each arm."""

    kind: str
    consequence: str
    about: list[str]


@dataclass
class Family:
    """Arms that answer the same question: one data set, task and primary metric; the baseline, then the best first.

    ``words`` say what else its runs have in common that those of other families have not; ``usual`` are the settings
    of an arm whose label says nothing else. ``baseline`` is what the arms are compared with, None where each is
    compared with the model that it started from; ``chosen`` says why.
    """

    words: tuple[str, ...]
    dataset: str
    task: str
    metric: str
    arms: list[Arm]
    baseline: Arm | None
    chosen: str
    margin: float | None
    usual: str
    warned: list[Warned] = field(default_factory=list)
    contributions: list[Contribution] = field(default_factory=list)

    @property
    def further_metrics(self) -> list[str]:
        """What else its answers were scored by, in every run: the other metrics that the data set names, and depths."""
        runs = [run for arm in self.arms for run in arm.runs]
        names = [name for name in runs[0].test if name not in (self.metric, *LOSS_METRICS)]
        return [name for name in names if all(name in run.test for run in runs)]

    @property
    def title(self) -> str:
        """What its table is about."""
        return f"{', '.join(dict.fromkeys([*self.words, self.dataset]))}: {self.metric}"

    @property
    def split(self) -> str:
        """The split that its answers are of; a warning says where runs have another."""
        return self.arms[0].runs[0].test_split

    @property
    def warnings(self) -> list[str]:
        """What makes it unfair, a line a kind, with how many of the arms it is about."""
        lines = []
        for warned in self.warned:
            count = f" ({len(warned.about)} of {len(self.arms)} configs)" if len(self.arms) > 1 else ""
            lines.append(f"{warned.kind}{count}: {warned.consequence}.")
        return lines

    @property
    def details(self) -> list[str]:
        """Which arms the warnings are about."""
        return [f"{warned.kind}: {line}" for warned in self.warned for line in warned.about]

    @property
    def others(self) -> list[Arm]:
        """All arms but the baseline."""
        return [arm for arm in self.arms if arm is not self.baseline]


@dataclass
class Comparison:
    """All that a report says, before it is shown."""

    families: list[Family]
    left_out: list[LeftOut]

    @property
    def warnings(self) -> list[str]:
        """Those of all families, a line a kind."""
        if len(self.families) == 1:
            return self.families[0].warnings
        arms = sum(len(family.arms) for family in self.families)
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for warned in (warned for family in self.families for warned in family.warned):
            found[warned.kind, warned.consequence].append(len(warned.about))
        return [
            f"{kind} ({sum(counts)} of {arms} configs, {len(counts)} of {len(self.families)} tables): {consequence}."
            for (kind, consequence), counts in found.items()
        ]

    @property
    def details(self) -> list[str]:
        """Which arms the warnings are about."""
        if len(self.families) == 1:
            return self.families[0].details
        lines = [(line, family.title) for family in self.families for line in family.details]
        return [f"{title}: {line}" for line, title in lines]

    def facts(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "families": [
                {
                    "section": list(family.words),
                    "dataset": family.dataset,
                    "task": family.task,
                    "metric": family.metric,
                    "higher_is_better": higher_is_better(family.metric),
                    "baseline": family.baseline.label if family.baseline else None,
                    "baseline_chosen": family.chosen,
                    "margin": family.margin,
                    "usual": family.usual,
                    "warnings": family.warnings,
                    "details": family.details,
                    "arms": [arm_facts(arm, family) for arm in family.arms],
                    "contributions": [contribution_facts(row) for row in family.contributions],
                }
                for family in self.families
            ],
            "left_out": [{"path": str(item.path), "reason": item.reason} for item in self.left_out],
        }


def difference_shown(arm: Arm, family: Family) -> tuple[float, float | None, float | None] | None:
    """What the table says of an arm's difference: value and 95 % interval; without a baseline, to where it started.

    That one is taken run by run, each against the model that it started from, on the same test.
    """
    if family.baseline is None:
        lost = [run.test[family.metric] - run.reference.test[family.metric] for run in arm.runs if run.reference]
        low, high = seed_interval(lost) or (None, None)
        return float(np.mean(lost)), low, high
    difference = arm.difference
    return None if difference is None else (difference.value, difference.low, difference.high)


def arm_facts(arm: Arm, family: Family) -> dict[str, Any]:
    """One row of the table as plain values."""
    interval, difference = arm.interval, arm.difference
    value, low, high = difference_shown(arm, family) or (None, None, None)
    return {
        "arm": arm.label,
        "settings": arm.settings,
        "name": arm.runs[0].name,
        "tags": sorted({tag for run in arm.runs for tag in run.tags}),
        "runs": len(arm.runs),
        "seeds": [run.seed for run in arm.runs],
        "mean": float(np.mean(arm.scores)),
        "spread": float(np.std(arm.scores, ddof=1)) if len(arm.runs) > 1 else None,
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
        "difference": value,
        "difference_low": low,
        "difference_high": high,
        "p": difference.p if difference else None,
        "p_holm": arm.p_holm,
        "p_worse": difference.p_worse if difference else None,
        "p_worse_holm": arm.p_worse_holm,
        "seeds_resampled": difference.seeds_resampled if difference else None,
        **{name: arm.mean(read) for name, (_, read) in COSTS.items()},
        "times_smaller": arm.mean(lambda run: run.bytes.get("ratio")),
        "on_front": arm.fronts,
        "metrics": {
            name: arm.mean(lambda run, name=name: run.test.get(name))  # type: ignore[misc]
            for name in arm.runs[0].test
        },
        "repetitions": [str(run.path) for run in arm.repetitions],
        "warnings": [warning.kind for warning in arm.warnings],
        "paths": [str(run.path) for run in arm.runs],
    }


def compare_runs(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    margin: float | None = None,
    where: Sequence[str] = (),
    group_by: Sequence[str] = (),
) -> Comparison:
    """Finds, groups and compares the runs below the paths: those that meet ``where``, in sections by ``group_by``.

    ``baseline`` names an arm by its label, its settings or one of its runs; None: as `_default_baseline` finds it.
    ``margin`` is what an arm may lose and still count as not worse, in the metric's own unit. Raises `UserError` where
    there is nothing to compare or the baseline is unknown.
    """
    runs, left_out = find_runs(paths)
    count_ancestors(runs)
    families = []
    for words, members in sections(matching(runs, where), paths, group_by):
        arms, usual = group(members)
        one = members[0]
        base, chosen = _choose_baseline(arms, baseline), "as asked for"
        if base is None:
            base, chosen = _default_baseline(arms)
        sign = -1.0 if higher_is_better(one.metric) else 1.0
        arms.sort(key=lambda arm: (arm is not base, sign * float(np.mean(arm.scores))))
        families.append(Family(words, one.dataset, one.task, one.metric, arms, base, chosen, margin, usual))
    if baseline is not None and not any(_choose_baseline(family.arms, baseline) for family in families):
        raise unknown("baseline", baseline, [arm.label for family in families for arm in family.arms])
    for family in families:
        _test_differences(family)
        _mark_fronts(family)
        _warn(family)
    return Comparison(families, left_out)


def _default_baseline(arms: Sequence[Arm]) -> tuple[Arm | None, str]:
    """What arms are compared with where nothing is asked for, and why: of those without techniques, or with the fewest,
    one that its user calls baseline, else that with the most runs, else the one nearest to all others in its settings.

    Where all have techniques, it is the one that all others start from. None where there is no such one, and each
    started from a model on which the same test was taken.
    """
    fewest = min(len(arm.runs[0].techniques) for arm in arms)
    for arm in arms if fewest and len(arms) > 1 else ():
        if all(_starts_from(other, arm) for other in arms if other is not arm):
            return arm, "chosen because all others start from it"
    if fewest and all(_has_start(run) for arm in arms for run in arm.runs):
        return None, "every config has techniques, so that each is compared with the model that it started from"
    left = [arm for arm in arms if len(arm.runs[0].techniques) == fewest]
    words = ["has no technique" if not fewest else "has the fewest techniques"]
    named = [arm for arm in left if "baseline" in (arm.label, arm.runs[0].name)]
    if named and len(named) < len(left):
        left = named
        words.append("is named 'baseline'")
    most = max(len(arm.runs) for arm in left)
    if any(len(arm.runs) < most for arm in left):
        left = [arm for arm in left if len(arm.runs) == most]
        words.append(f"has the most runs ({most})")
    if len(left) > 1:
        words.append("has the settings nearest to those of all others")
    nearest = min(left, key=lambda arm: sum(_settings_apart(arm, other) for other in arms))
    return nearest, f"chosen because it {' and '.join(words)}"


def _has_start(run: Run) -> bool:
    """Whether its summary has the test of the model that it started from."""
    return run.reference is not None and run.reference.name == "init_from" and run.metric in run.reference.test


def _settings_apart(arm: Arm, other: Arm) -> int:
    one, two = arm.runs[0].identity, other.runs[0].identity
    return sum(one.get(key) != two.get(key) for key in {*one, *two})


def _choose_baseline(arms: Sequence[Arm], name: str | None) -> Arm | None:
    if name is None:
        return None
    for arm in arms:
        if name in (arm.label, arm.settings) or Path(name).resolve() in [run.path.resolve() for run in arm.runs]:
            return arm
    return None


def _test_differences(family: Family) -> None:
    """Every arm against the baseline over common bootstrap samples, corrected together (Holm 1979)."""
    if not family.others or family.baseline is None:
        return
    sentences = Sentences(family.baseline)
    for arm in family.others:
        arm.difference = difference_between(arm, family.baseline, sentences, family.margin)
        if any(run.statistics_NK is None for run in (*arm.runs, *family.baseline.runs)):
            # As of kept runs, which hold no predictions.
            arm.warnings.append(Caution("no test sentences beside the run or the baseline", "only seeds are resampled"))
        elif not sentences.shared_by(arm):
            arm.warnings.append(Caution("no sentences in common with the baseline", "only seeds are resampled"))
    tested = [(arm, arm.difference) for arm in family.others if arm.difference is not None]
    for (arm, _), p in zip(tested, holm([difference.p for _, difference in tested]), strict=True):
        arm.p_holm = p
    if family.margin is not None:
        worse = [difference.p_worse for _, difference in tested if difference.p_worse is not None]
        for (arm, _), p in zip(tested, holm(worse), strict=True):
            arm.p_worse_holm = p
    family.contributions = contributions(family.arms, family.baseline, sentences)


def _mark_fronts(family: Family) -> None:
    sign = 1.0 if higher_is_better(family.metric) else -1.0
    for name, (_, read) in COSTS.items():
        placed = [(arm, cost) for arm in family.arms if (cost := arm.mean(read)) is not None]
        gains = [sign * float(np.mean(arm.scores)) for arm, _ in placed]
        for (arm, _), on_front in zip(placed, pareto_front([cost for _, cost in placed], gains), strict=True):
            arm.fronts[name] = on_front


# --- fairness ---------------------------------------------------------------------------------------


def _alike(budget: float, other: float) -> bool:
    return abs(budget - other) <= _SAME_BUDGET * max(budget, other)


def _machine(run: Run) -> str:
    hardware = run.environment.get("hardware") or {}
    parts = [hardware.get(key) for key in ("processor", "gpu", "device", "cores")]
    return ", ".join([*(str(part) for part in parts if part is not None), f"{run.environment.get('threads')} threads"])


def _unknown_teacher(run: Run) -> bool:
    """Whether a teacher was given as a model file, of which nobody knows what its training cost.

    Seconds do not tell: they count the teacher's work for this run, too.
    """
    taught = any(str(name).startswith("teacher of ") for name in run.environment.get("fingerprints") or {})
    return taught and not run.train.get("teacher_tokens") and not run.uncounted.get("seconds")


def _same_test(arms: Iterable[Arm]) -> bool:
    """Whether all were tested on the very same sentences: data that a technique rewrote differ in training alone."""
    digests = {
        run.sentences if run.task in TASKS and not TASKS[run.task].is_stream else "" for arm in arms for run in arm.runs
    }
    return len(digests) == 1 and "" not in digests


_DECODED_OTHERWISE = "different decoding"
_DECODING = {"beam": ("beam", "length_penalty"), "sample": ("temperature", "top_k", "top_p")}
# What all methods follow, with the values that do nothing.
_RULES = {"min_length": 0, "no_repeat_ngram": 0, "repetition_penalty": 1}


def _decoding(run: Run) -> str:
    """How the tested texts were decoded, with the settings that matter to it; nothing where the metric is of none."""
    if run.metric in LOSS_METRICS or run.task not in TASKS or not TASKS[run.task].decodes:
        return ""
    setting = {name: run.config.get(f"evaluation.{name}") for names in _DECODING.values() for name in names}
    method = str(run.config.get("evaluation.method", "not recorded"))
    if method in ("auto", "beam"):
        method = "greedy" if setting["beam"] == 1 else "beam"
    values = ((name, setting[name]) for name in _DECODING.get(method, ()))
    told = [f"{name}={value:g}" for name, value in values if value is not None]
    told = told if method == "beam" and told else [method, *told]
    rules = ((name, run.config.get(f"evaluation.{name}"), off) for name, off in _RULES.items())
    return " ".join([*told, *(f"{name}={value:g}" for name, value, off in rules if value not in (None, off))])


def _same_start(arm: Arm, base: Arm) -> bool:
    """Whether both start from models of one config, or the arm from the baseline: then their difference is its own."""
    own, other = ({run.others.get("init_from") for run in each.runs} for each in (arm, base))
    return own == other or _starts_from(arm, base)


def _starts_from(arm: Arm, base: Arm) -> bool:
    """Whether each run of the arm starts from one of the baseline's."""
    models = {os.path.realpath(run.path) for run in base.runs}
    starts = [run.config.get("init_from") for run in arm.runs]
    return all(start is not None and os.path.realpath(str(start)) in models for start in starts)


def _start(arm: Arm) -> str:
    """Which models its runs start from, without their seeds."""
    paths = (run.config.get("init_from") for run in arm.runs)
    names = {"scratch" if path is None else folder_name(Path(str(path))) for path in paths}
    return f"from {' or '.join(sorted(names))}"


def _idle_differences(arm: Arm) -> list[str]:
    """Settings that had no effect on its runs and that not all of them have alike."""
    found = [run.idle() for run in (*arm.runs, *arm.repetitions)]
    names = {name for idle in found for name in idle}
    return sorted(name for name in names if len({repr(idle.get(name, "absent")) for idle in found}) > 1)


def _part(part: str, name: str) -> Callable[[Run], str]:
    return lambda run: str((run.environment.get(part) or {}).get(name, "not recorded"))


def _texts_of(family: Family) -> Callable[[Run], str]:
    """What reads the fingerprint of a run's texts; of older runs that of their tokens, which is another one with
    another tokenizer.
    """
    runs = [run for arm in family.arms for run in arm.runs]
    is_recorded = all((run.environment.get("fingerprints") or {}).get("corpus") for run in runs)
    return _part("fingerprints", "corpus" if is_recorded else "data")


def _warn(family: Family) -> None:
    """Fills the warnings: each says what differs from the baseline, and what that makes of the comparison."""
    checks: list[tuple[str, Callable[[Run], str], str]] = [
        ("other data", _texts_of(family), "the quality is not comparable"),
        ("different tokenizer", _part("fingerprints", "tokenizer"), "losses a token are not comparable"),
        ("different test split", lambda run: run.test_split, "the quality is not comparable"),
        (
            "different metric signature",
            lambda run: run.signatures.get(family.metric, ""),
            "the scores are not comparable",
        ),
        (_DECODED_OTHERWISE, _decoding, "part of the difference comes from decoding"),
        ("different machine", _machine, "latencies and seconds are not comparable"),
        ("different torch", _part("packages", "torch"), "speed and last digits may differ for that reason"),
    ]
    base = family.baseline
    usual = "baseline" if base else "most"
    for what, read, consequence in checks:
        runs = base.runs if base else [run for arm in family.arms for run in arm.runs]
        expected = Counter(map(read, runs)).most_common(1)[0][0]
        for arm in family.arms:
            found = sorted({read(run) for run in arm.runs} - {expected})
            if found:
                details = f"{', '.join(_short(value) for value in found[:2])}; {usual}: {_short(expected)}"
                if what == "other data" and _same_test((arm, base) if base else family.arms):
                    arm.warnings.append(Caution("other training data", "part of the difference may be theirs"))
                else:
                    arm.warnings.append(Caution(what, consequence, details))
    if base is not None:
        _warn_of_unlike_training(family.others, base)
        for arm in family.others:
            names = f"{arm.label} {base.label} {family.usual}"
            if not arm.runs[0].name and (more := unnamed_differences(arm.runs[0], base.runs[0], names)):
                consequence = "the difference is that of all these settings"
                arm.warnings.append(Caution("differs in more than its name says", consequence, ", ".join(more)))
    for arm in family.arms:
        if any(_unknown_teacher(run) for run in arm.runs):
            arm.warnings.append(Caution("a teacher of unknown cost", "it is not in the cost of training"))
        idle = _idle_differences(arm)
        if idle:
            arm.warnings.append(
                Caution("settings without effect", "runs that differ in nothing else are one row", ", ".join(idle))
            )
        if arm.repetitions:
            scores = {run.sample: run.test[family.metric] for run in arm.runs}
            agree = all(run.test[family.metric] == scores[run.sample] for run in arm.repetitions)
            arm.warnings.append(
                Caution(
                    "repeated runs of one config and seed",
                    "they are no further samples, and not counted",
                    f"{len(arm.repetitions)}, with {'the same' if agree else 'a different'} {family.metric}",
                )
            )
    single = [arm.label for arm in family.arms if len(arm.runs) == 1]
    if len(family.arms) > 1 and len(single) == len(family.arms):
        consequence = (
            "intervals cover sentences only: three seeds or more cover the noise of training too"
            if any(arm.difference for arm in family.arms)
            else "nothing is known of the noise of training, and no difference has an interval: "
            "take three seeds or more"
        )
        family.warned.append(Warned("one run only", consequence, single))
    by_kind: dict[tuple[str, str], list[str]] = defaultdict(list)
    for arm in family.arms:
        for caution in arm.warnings:
            details = f" ({caution.details})" if caution.details else ""
            by_kind[caution.kind, caution.consequence].append(f"{arm.label}{details}")
    family.warned += [Warned(kind, consequence, about) for (kind, consequence), about in by_kind.items()]


def _warn_of_unlike_training(arms: Sequence[Arm], base: Arm) -> None:
    expected_tokens = base.mean(lambda run: run.train.get("tokens")) or 0.0
    expected_flops = base.mean(lambda run: run.flops) or 0.0
    for arm in arms:
        if not _same_start(arm, base):
            consequence = "part of the difference is that of the models that they start from"
            arm.warnings.append(Caution("different start", consequence, f"{_start(arm)}; baseline: {_start(base)}"))
        tokens = arm.mean(lambda run: run.train.get("tokens")) or 0.0
        if not _alike(tokens, expected_tokens) and not _alike(arm.mean(lambda run: run.flops) or 0.0, expected_flops):
            details = f"{tokens:,.0f} training tokens; baseline: {expected_tokens:,.0f}"
            consequence = "the difference is not due to the techniques alone"
            arm.warnings.append(Caution("different budget", consequence, details))


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:12]}…"


def verdict(arm: Arm, family: Family) -> str:
    """The difference in a word, at 5 % after Holm's correction."""
    if arm is family.baseline:
        return "baseline"
    if family.baseline is None:
        return "not tested"
    difference = arm.difference
    if difference is None or arm.p_holm is None:
        return "not testable: nothing varies"
    better = (difference.value > 0) == higher_is_better(family.metric)
    words = "better" if better else "worse"
    if arm.p_holm >= 0.05:
        words = "no difference shown"
        if difference.p < 0.05:  # its interval is for one comparison, and leaves out zero
            tested = sum(other.difference is not None for other in family.others)
            words = f"interval excludes 0, but not after Holm over {tested} rows"
    if words != "better" and arm.p_worse_holm is not None and arm.p_worse_holm < 0.05:
        words += ", not worse than the margin"
    if any(caution.kind == _DECODED_OTHERWISE for caution in arm.warnings):
        words += ", decoded otherwise"
    return words if difference.seeds_resampled else f"{words} (sentences only)"
