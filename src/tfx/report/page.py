"""One self-contained HTML page: no request, one small script that sorts tables; a run's texts are escaped.

The page allows that very script alone, by its digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfx.config.task_facts import TASKS
from tfx.record.metric_vocabulary import higher_is_better
from tfx.record.summary import WHOLE_TRAINING
from tfx.report import plots
from tfx.report.arms import Arm
from tfx.report.comparison import COSTS, SCALES, Comparison, Family, difference_shown, verdict
from tfx.report.confusion import confusion
from tfx.report.contributions import KINDS
from tfx.report.labels import differing_keys
from tfx.report.plots import Plot, Point, rounded
from tfx.report.runs import Run, read_attention, read_predictions, read_tensors
from tfx.report.sections import render_template, write_html
from tfx.report.statistics import RESAMPLES
from tfx.terminal.console import clock, size

_MAX_ARMS_IN_DETAIL = 6
_MAX_DIFFERENCES = 100
_FLAT = 0.001  # costs that differ by less than this share say nothing against each other
_MAX_EXAMPLES = 8
_MAX_ATTENTION = 2
_MAX_TEXT = 600


def write_page(comparison: Comparison, file: Path) -> None:
    """Writes the page whole or not at all; raises `UserError` where it cannot be written."""
    write_html(render(comparison), file)


def render(comparison: Comparison) -> str:
    """The page as text."""
    families = comparison.families
    runs = sum(len(arm.runs) for family in families for arm in family.arms)
    names = ", ".join(dict.fromkeys(family.dataset for family in families))
    first = families[0].arms[0].runs[0]
    title = f"{first.model} on {names}" if runs == 1 else f"{runs} runs on {names}"
    configs = sum(len(family.arms) for family in families)
    subtitle = str(first.path) if runs == 1 else f"{configs} configs; {len(comparison.left_out)} folders left out"
    return render_template(
        "page.html",
        title=title,
        subtitle=subtitle,
        families=[_family(family) for family in families],
        warnings=comparison.warnings,
        details=comparison.details,
        left_out=[[str(item.path), item.reason] for item in comparison.left_out],
        resamples=f"{RESAMPLES:,}",
    )


TEXT_COLUMNS = ("config", "settings", "verdict")


def table_columns(family: Family) -> list[str]:
    """Headings of the table of arms."""
    return [
        "",
        "config",
        *(["settings"] if any(arm.settings for arm in family.arms) else []),
        "verdict",
        "runs",
        family.metric,
        "95 % of the mean",
        "difference",
        "95 %",
        "p (Holm)",
        *(["p not worse"] if family.margin is not None else []),
        "file",
        "times smaller",
        "latency",
        "training",
        *family.further_metrics,
    ]


def table_rows(family: Family) -> list[list[str]]:
    """The table of arms as text."""
    rows = []
    has_settings = any(arm.settings for arm in family.arms)
    for place, arm in enumerate(family.arms, 1):
        interval, difference = arm.interval, difference_shown(arm, family)
        latency, file, seconds = (arm.mean(COSTS[name][1]) for name in ("latency", "bytes", "seconds"))
        rows.append(
            [
                str(place),
                arm.label,
                *([arm.settings] if has_settings else []),
                verdict(arm, family),
                str(len(arm.runs)),
                rounded(float(np.mean(arm.scores)))
                + (f" ± {float(np.std(arm.scores, ddof=1)):.2g}" if len(arm.runs) > 1 else ""),
                f"{rounded(interval[0])} to {rounded(interval[1])}" if interval else "–",
                f"{difference[0]:+.3g}" if difference else "–",
                f"{difference[1]:+.3g} to {difference[2]:+.3g}" if difference and difference[1] is not None else "–",
                _p(arm.p_holm),
                *([_p(arm.p_worse_holm)] if family.margin is not None else []),
                size(file) if file is not None else "–",
                _times(arm.mean(lambda run: run.bytes.get("ratio"))),
                f"{latency:.1f} ms" if latency is not None else "–",
                clock(seconds) if seconds is not None else "–",
                *(_mean_of(arm, name) for name in family.further_metrics),
            ]
        )
    return rows


def _mean_of(arm: Arm, metric: str) -> str:
    return rounded(float(np.mean([run.test[metric] for run in arm.runs])))


CONTRIBUTION_COLUMNS = ["technique", "alone", "given the others", "on average"]


def contribution_rows(family: Family) -> list[list[str]]:
    """What each technique adds as text: value, 95 % interval, p; without the average where no arm shows one."""
    rows = []
    for row in family.contributions:
        cells = [row.technique]
        for kind in KINDS:
            found = getattr(row, kind)
            p = _p(row.p_holm[kind]) if found else ""
            p = p if p.startswith("<") else f"= {p}"
            cells.append(
                f"{found.value:+.3g} ({found.low:+.3g} to {found.high:+.3g}, p {p})" if found is not None else "–"
            )
        rows.append(cells)
    return rows


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _family(family: Family) -> dict[str, Any]:
    metric, arms = family.metric, family.arms
    columns, rows = table_columns(family), table_rows(family)
    better = "more" if higher_is_better(metric) else "less"
    dominated = {arm.label for arm in arms if arm.fronts and not any(arm.fronts.values())}
    kinds = ["base" if arm is family.baseline else "dominated" if arm.label in dominated else "" for arm in arms]
    detailed = family.arms[:_MAX_ARMS_IN_DETAIL]
    first = detailed[0].runs[0]
    signature, split = first.signatures.get(metric), first.test_split
    heat_maps = []
    for arm in detailed:
        tensors = read_tensors(arm.runs[0].path)
        # Of a plain model there is nothing to see: every weight has the same bits.
        if len({(round(tensor["bits_per_weight"], 2), tensor["sparsity"] > 0) for tensor in tensors}) > 1:
            heat_maps.append(plots.heat_map(arm.label, tensors, "bits_per_weight", "Bits a weight"))
            if any(tensor["sparsity"] > 0 for tensor in tensors):
                heat_maps.append(plots.heat_map(arm.label, tensors, "sparsity", "Sparsity"))
    return {
        "title": family.title,
        "usual": family.usual,
        "conclusions": _conclusions(family),
        "caption": f"{metric} on the {split} split, {better} is better"
        + (f"; signature {signature}" if signature else "")
        + ("" if family.baseline else "; differences are to the model that each run started from"),
        "columns": [name for name in columns if name != "settings"],
        "texts": TEXT_COLUMNS,
        "rows": [
            {"kind": kind, "settings": arm.settings, "cells": dict(zip(columns, cells, strict=True))}
            for arm, kind, cells in zip(arms, kinds, rows, strict=True)
        ],
        "contribution_columns": CONTRIBUTION_COLUMNS,
        "contributions": contribution_rows(family),
        "differences": _differences(family),
        "fronts": _fronts(family) if len(arms) > 1 else None,
        "curves": _curves(family),
        "stages": _stages(detailed),
        "heat_maps": heat_maps,
        "labels": [(arm.label, found) for arm in detailed if (found := confusion(read_predictions(arm.runs[0].path)))],
        "examples": [example for arm in detailed if (example := _examples(arm, family)) is not None],
        "attention": _attention(detailed[0].runs[0] if len(arms) == 1 else detailed[-1].runs[0]),
        "settings": _settings(arms),
        "run_columns": ["config", "folder", "seed", *arms[0].runs[0].test, "steps", "tokens", "seconds"],
        "run_rows": [
            [
                arm.label,
                str(run.path),
                str(run.seed),
                *(rounded(run.test.get(name)) for name in arms[0].runs[0].test),
                *(rounded(run.train.get(name)) for name in ("steps", "tokens", "seconds")),
            ]
            for arm in arms
            for run in arm.runs
        ],
    }


def _settings(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Every setting in which the configs differ, a row each; None where there is one config."""
    keys = differing_keys([arm.runs[0] for arm in arms])
    if len(arms) < 2 or not keys:
        return None
    rows = [[arm.label, *(_value(arm.runs[0].config.get(key)) for key in keys)] for arm in arms]
    return {"columns": ["config", *keys], "rows": rows}


def _value(value: Any) -> str:
    return "–" if value is None else str(value)[:80]


def _conclusions(family: Family) -> list[str]:
    """What the table shows, in sentences; nothing where there is one arm."""
    if not family.others:
        return []
    words: dict[str, list[str]] = {}
    for arm in family.others if family.baseline else ():
        words.setdefault(verdict(arm, family), []).append(arm.label)
    lines = [baseline_line(family)]
    for what, labels in words.items():
        shown = ", ".join(labels[:5]) + (f" and {len(labels) - 5} more" if len(labels) > 5 else "")
        lines.append(f"{what[0].upper()}{what[1:]}: {shown}.")
    widths = [d.high - d.low for arm in family.others if (d := arm.difference) is not None and d.seeds_resampled]
    if widths:
        half = float(np.median(widths)) / 2
        lines.append(
            f"With this few runs, differences below about {half:.2g} {family.metric} cannot be detected, "
            "even in a single comparison."
        )
    return lines


def baseline_line(family: Family) -> str:
    """What the differences of a table are to, and why."""
    if family.baseline is None:
        return f"No baseline: {family.chosen}. --baseline names one."
    return f"Baseline: {family.baseline.label}, {family.chosen}. --baseline names another."


def _plot_names(family: Family) -> dict[str, str]:
    """What plots, which cut names, call an arm, by its label: where there are many, with its number in the table."""
    if len(family.arms) <= plots.MOST_NAMED:
        return {arm.label: arm.label for arm in family.arms}
    return {arm.label: f"{place}: {arm.label}" for place, arm in enumerate(family.arms, 1)}


def _differences(family: Family) -> tuple[Plot, str] | None:
    """The plot, the best first, and a note on rows that it leaves out; None without any difference."""
    names = _plot_names(family)
    found = [(names[arm.label], difference_shown(arm, family)) for arm in family.others]
    rows = [(name, d[0], d[0] if d[1] is None else d[1], d[0] if d[2] is None else d[2]) for name, d in found if d]
    if not rows:
        return None
    sign = -1 if higher_is_better(family.metric) else 1
    rows.sort(key=lambda row: sign * row[1])
    plot = plots.differences(
        rows[:_MAX_DIFFERENCES],
        family.metric,
        family.margin,
        "the baseline" if family.baseline else "where each started",
        higher_is_better=higher_is_better(family.metric),
    )
    most = len(rows) - _MAX_DIFFERENCES
    return plot, f"The best {_MAX_DIFFERENCES}; {most} more are in the table above." if most > 0 else ""


def _fronts(family: Family) -> tuple[list[Plot], str]:
    """A plot for each cost, and a note on those that are alike in all arms, which have none."""
    result, flat = [], []
    better = "more" if higher_is_better(family.metric) else "less"
    for name, (label, read) in COSTS.items():
        scale = SCALES.get(name, 1.0)
        points = []
        for number, arm in enumerate(family.arms, 1):
            cost = arm.mean(read)
            if cost is not None:
                low, high = arm.interval or (None, None)
                quality, is_baseline = float(np.mean(arm.scores)), arm is family.baseline
                points.append(Point(number, arm.label, cost * scale, quality, low, high, arm.fronts[name], is_baseline))
        costs = [point.cost for point in points]
        if len(points) > 1 and max(costs) - min(costs) <= _FLAT * max(costs):
            flat.append(label)
        elif len(points) > 1:
            axis = f"{family.metric} ({better} is better)"
            result.append(plots.front(points, label, axis, f"{family.metric} against {label}"))
    return result, f"No plot against what is the same for all: {'; '.join(flat)}." if flat else ""


def _curves(family: Family) -> tuple[Plot, str] | None:
    """The plot of the first arms that have curves, and a note where there are more; None without any curve."""
    have = [arm for arm in family.arms if any(run.curve for run in arm.runs)]
    shown = have[: plots.MOST_SERIES]
    rows = [row for arm in shown for run in arm.runs for row in run.curve]
    metric = family.metric if all(family.metric in row for row in rows) else "loss"
    series = []
    names = _plot_names(family)
    for arm in shown:
        lines = {
            f"{run.path}, seed {run.seed}": [
                (row["tokens"], row[metric]) for row in run.curve if {"tokens", metric} <= row.keys()
            ]
            for run in arm.runs
        }
        if any(lines.values()):
            series.append((names[arm.label], {name: line for name, line in lines.items() if line}))
    if not series:
        return None
    note = f"{len(series)} of {len(family.arms)} configs, in the order of the table." if len(have) > len(series) else ""
    return plots.curves(series, metric), note


def _stages(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """The stages of each arm that has any in a table, those of the arm with the most as a plot; None: no arm has."""
    staged = [(arm, arm.runs[0].stages) for arm in arms if len(arm.runs[0].stages) > 2]
    if not staged:
        return None
    every = [row for _, rows in staged for row in rows]
    metric = staged[0][0].metric
    metric = metric if all(metric in row["valid"] for row in every) else "loss"
    most, rows = max(staged, key=lambda item: len(item[1]))
    table = [[arm.label, *line] for arm, found in staged for line in plots.stage_table(found, metric)[1]]
    trained_on = [arm.label for arm, _ in staged if _acts_in_training(arm.runs[0])]
    return {
        "trained_on": trained_on,
        "plot": plots.stages(most.label, rows, metric),
        "columns": ["config", *plots.stage_table((), metric)[0]],
        "rows": table if len(staged) > 1 else [],
    }


def _acts_in_training(run: Run) -> bool:
    """Whether a technique began to act before training ended: then what stands as trained is not all of it."""
    before = next((row.get("seconds", 0.0) for row in run.stages if row["name"] == "trained"), 0.0)
    return len(run.techniques) > 0 and before < WHOLE_TRAINING * run.train.get("seconds", 0.0)


def _examples(arm: Arm, family: Family) -> dict[str, Any] | None:
    """Sentences whose loss changed most from the dense reference, else from the baseline's run of that seed."""
    run = arm.runs[0]
    place = None if run.reference is None else run.reference.path
    if place and Path(place).is_dir():
        dense, name = Path(place), run.reference.name if run.reference else ""
    elif family.baseline is not None and arm is not family.baseline:
        dense, name = _same_seed(family.baseline.runs, run.seed).path, family.baseline.label
    else:
        return None
    before = {row.get("source"): row for row in read_predictions(dense) if isinstance(row.get("source"), str)}
    changes = []
    for row in read_predictions(run.path):
        other = before.get(row.get("source"))
        try:
            if other is not None and other.get("hypothesis") != row["hypothesis"]:
                change = row["nll"] / row["targets"] - other["nll"] / other["targets"]
                changes.append((abs(change), change, row, other))
        except (KeyError, TypeError, ZeroDivisionError):
            continue
    if not changes:
        return None
    changes.sort(key=lambda item: -item[0])
    rows = [
        {
            "source": str(row["source"])[:_MAX_TEXT],
            "reference": _references(row.get("reference"))[:_MAX_TEXT],
            "dense": str(other.get("hypothesis"))[:_MAX_TEXT],
            "hypothesis": str(row["hypothesis"])[:_MAX_TEXT],
            "change": f"{change:+.2f} nats {TASKS[run.task].target}",
        }
        for _, change, row, other in changes[:_MAX_EXAMPLES]
    ]
    return {"label": arm.label, "reference": name, "rows": rows}


def _references(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


def _same_seed(runs: Sequence[Run], seed: int) -> Run:
    return next((run for run in runs if run.seed == seed), runs[0])


def _attention(run: Run) -> list[Plot]:
    result = []
    for row in read_attention(run.path)[:_MAX_ATTENTION]:
        for layer in row["layers"]:
            weights_HTS = layer["weights_HTS"]
            sides = {"encoder": (row["tokens_source"],) * 2, "cross": (row["tokens_target"], row["tokens_source"])}
            words = layer["name"].split()
            queries, keys = sides.get(words[0]) or sides.get(words[-1]) or (row["tokens_target"],) * 2
            if weights_HTS.ndim == 3 and weights_HTS.size and weights_HTS.shape[1:] == (len(queries), len(keys)):
                result.append(plots.attention(keys, queries, weights_HTS.mean(0), f"{layer['name']}, heads averaged"))
    return result
