"""The page of a search: the front, all configs with predicted and true bytes, and what each axis was worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfx.experiments.search.front import non_dominated
from tfx.experiments.search.outcome import given_up
from tfx.experiments.search.search import Search
from tfx.experiments.search.shown import describe_values, notes
from tfx.record.directory import RunDirectory
from tfx.record.metric_vocabulary import higher_is_better
from tfx.report.plots import Plot, Point, front
from tfx.report.sections import Section, write_sections
from tfx.terminal.console import number


def write_search_page(search: Search) -> Path:
    """Writes the page of a search into its folder, and returns its path."""
    found, file = search.book.outcome, RunDirectory(search.folder).report
    sections = [Section("What was found", notes(found), found["command"] or "")]
    if found["tried"]:
        sections += [_front(found), _configs(found)]
    if found["worth"]:
        sections.append(_worth(found))
    write_sections(f"Search: {found['goal']}", str(search.folder), sections, file)
    return file


def _front(found: dict[str, Any]) -> Section:
    metric = found["metric"]
    lines = [
        "Each config by its longest training, on validation data. Filled: of those that trained longest none is better "
        "at that cost; hollow: another of those is better at no higher cost; a cross: trained for less, which says "
        "nothing of what its config can do. A diamond is the winner. In the table: none of those that trained longest "
        "is better in quality, bytes and latency at once."
    ]
    rows = [
        [
            describe_values(row["values"]),
            str(row["config"]),
            number(row["quality"]),
            f"{row['bytes']:,}",
            number(row["latency_ms"]),
            given_up(found["front"], place, metric),
        ]
        for place, row in enumerate(found["front"])
    ]
    columns = ["values", "config", metric, "bytes", "latency, ms", "the next smaller one"]
    plots = [_plot(found, key, cost, scale) for key, cost, scale in _COSTS]
    return Section("The front", lines, plots=plots, columns=columns, rows=rows)


_COSTS = (("bytes", "file, kB", 1e3), ("latency_ms", "latency, ms", 1.0))


def _plot(found: dict[str, Any], key: str, cost: str, scale: float) -> Plot:
    """Quality by one cost."""
    metric, rows = found["metric"], found["tried"]
    sign = 1 if higher_is_better(metric) else -1
    longest = max(row["part_of_budget"] for row in rows)
    whole = [place for place, row in enumerate(rows) if row["part_of_budget"] == longest]
    best = [whole[at] for at in non_dominated([(sign * rows[place]["quality"], -rows[place][key]) for place in whole])]
    points = [
        Point(
            number=row["config"],
            label=f"config {row['config']}" + ("" if place in whole else f" ({row['part_of_budget']:.0%} trained)"),
            cost=row[key] / scale,
            quality=row["quality"],
            low=None,
            high=None,
            on_front=place in best,
            is_baseline=row["run"] == found["best"],
            trained_less=place not in whole,
        )
        for place, row in enumerate(rows)
    ]
    label = metric + ("" if higher_is_better(metric) else " (less is better)")
    return front(points, cost, label, f"{metric} by {cost}")


def _configs(found: dict[str, Any]) -> Section:
    metric = found["metric"]
    lines = ["One in several went on to a longer training each time; the others were left where they stand."]
    columns = ["values", "config", metric, "bytes", "predicted", "latency, ms", "part of the budget", "seeds"]
    return Section("All configs", lines, columns=columns, rows=_rows(found["tried"]))


def _rows(tried: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            describe_values(row["values"]),
            str(row["config"]),
            number(row["quality"]),
            f"{row['bytes']:,}",
            f"{row['predicted_bytes']:,}",
            number(row["latency_ms"]),
            f"{row['part_of_budget']:.0%}",
            str(row["seeds"]),
        ]
        for row in tried
    ]


def _worth(found: dict[str, Any]) -> Section:
    lines = [
        "The share of the variance of quality, after the shortest training, that an axis explains by itself, with "
        "the 90 % interval over configs. A search tries more of what was good: this ranks axes, and no more."
    ]
    rows = [
        [row["key"], row["best"], *(f"{row[name]:.0%}" for name in ("share", "low", "high"))] for row in found["worth"]
    ]
    return Section(
        "What each axis was worth", lines, columns=["axis", "best", "share", "low", "high"], rows=rows, texts=2
    )
