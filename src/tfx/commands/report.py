"""`tfx report PATH…`: compares the runs below the paths, on the terminal and as one HTML page."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.errors import UserError
from tfx.run.directory import RunDirectory
from tfx.run.files import write_text

if TYPE_CHECKING:
    from tfx.report.comparison import Comparison


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or the same facts as JSON or CSV, and writes the page."""
    parser = argparse.ArgumentParser(
        prog="tfx report", description="Compares the runs below the paths, from their files alone."
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="run directories, sweeps, folders of them, or *.runs.jsonl"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page; default: report.html in the first path")
    parser.add_argument("--baseline", metavar="CONFIG|RUN", help="what differences are taken against")
    parser.add_argument("--margin", type=float, metavar="X", help="test who loses less than X of the primary metric")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="as JSON on stdout; a page only where --html names it")
    shown.add_argument("--csv", action="store_true", help="one line a config; a page only where --html names it")
    options = parser.parse_args(arguments)
    if options.margin is not None and not 0 < options.margin < float("inf"):
        raise UserError(f"--margin {options.margin} must be above 0, in the unit of the primary metric")

    html = options.html
    if html is None and not (options.json or options.csv):
        first = options.paths[0]
        html = RunDirectory(first.parent if first.is_file() else first).report
    comparison = report(options.paths, html, baseline=options.baseline, margin=options.margin)
    if options.json:
        print(json.dumps(comparison.facts(), indent=2, allow_nan=False, ensure_ascii=False))
    elif options.csv:
        _write_csv(comparison)
    else:
        print_comparison(comparison)
        print(f"page: {html}")
    return 0


def report(
    paths: Sequence[Path], html: Path | None, *, baseline: str | None = None, margin: float | None = None
) -> Comparison:
    """Compares the runs below the paths and writes the page to ``html``, None: nowhere.

    Raises `UserError` where no completed run is found, the baseline is unknown or the page cannot be written.
    """
    from tfx.report.comparison import compare_runs

    comparison = compare_runs(paths, baseline=baseline, margin=margin)
    if html is not None:
        from tfx.report.page import render

        text = render(comparison)
        try:
            write_text(html, text)
        except OSError as error:
            raise UserError(f"the page {html} cannot be written: {error.strerror}; name another with --html") from error
    return comparison


def print_comparison(comparison: Comparison) -> None:
    """The table on stdout; warnings and what was left out on stderr."""
    from rich.table import Table

    from tfx.report.page import CONTRIBUTION_COLUMNS, contribution_rows, table_columns, table_rows
    from tfx.run.console import plain_console

    console, notes = plain_console(), plain_console(stderr=True)
    if not console.is_terminal:
        console = plain_console(width=160)
    # A narrow terminal has no room for costs; the page has them all.
    costs = ["p (Holm)", "file", "latency", "training"] if console.width >= 120 else ["p (Holm)", "file"]
    for family in comparison.families:
        table = Table(title=f"{family.dataset}: {family.metric}", title_justify="left", title_style="bold")
        table.add_column("config", overflow="fold", min_width=12)
        for column in ("runs", family.metric, "difference", *costs):
            table.add_column(column, justify="right", overflow="fold")
        table.add_column("verdict", overflow="fold", min_width=10)
        for arm, row in zip(family.arms, table_rows(family), strict=True):
            cells = dict(zip(table_columns(family), row, strict=True))
            difference = cells["difference"] + (f" ({cells['95 %']})" if arm.difference else "")
            shown = [cells["config"], cells["runs"], cells[family.metric], difference]
            shown += [cells[name] for name in (*costs, "verdict")]
            table.add_row(*shown, style="bold" if arm is family.baseline else None)
        console.print(table)
        if family.contributions:
            adds = Table(title=f"what each technique adds to {family.metric}", title_justify="left")
            for name in CONTRIBUTION_COLUMNS:
                adds.add_column(name, overflow="fold")
            for texts in contribution_rows(family):
                adds.add_row(*texts)
            console.print(adds)
        for warning in family.warnings:
            notes.print(f"warning: {warning}", soft_wrap=True)
    for item in comparison.left_out:
        notes.print(f"left out: {item.path}: {item.reason}", soft_wrap=True)


def _write_csv(comparison: Comparison) -> None:
    skipped = ("on_front", "metrics", "warnings", "paths", "seeds")
    writer = None
    for family in comparison.facts()["families"]:
        for arm in family["arms"]:
            row = {key: family[key] for key in ("dataset", "metric", "baseline")}
            row |= {key: value for key, value in arm.items() if key not in skipped}
            row["seeds"] = " ".join(map(str, arm["seeds"]))
            if writer is None:
                writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
