"""`tfx report PATH…`: compares the runs below the paths, on the terminal and as one HTML page."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.errors import UserError
from tfx.record.directory import RunDirectory
from tfx.record.files import check_replaced
from tfx.terminal.arguments import Arguments

if TYPE_CHECKING:
    from tfx.report.comparison import Comparison

# What every page of tfx's says of itself.
_MARK = b'<meta name="generator" content="tfx">'
_WIDE, _NAME = 160, 24  # characters: a terminal with room for whole names, and what there is for them in others


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or the same facts as JSON or CSV, and writes the page."""
    parser = Arguments("report", "Compares the runs below the paths, from their files alone.")
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="run directories, sweeps, folders of them, or *.runs.jsonl"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="path of the page; default: report.html in the first path, or comparison.html beside a "
        "page that is a search's, or one run's of several",
    )
    parser.add_argument("--baseline", metavar="CONFIG|RUN", help="row that the others are compared with")
    parser.add_argument(
        "--margin", type=float, metavar="X", help="test which rows lose less than X of the primary metric"
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs that match, by any setting, name, tags, seed, …; also !=, <, >, <=, >=; repeatable",
    )
    parser.add_argument(
        "--group-by", action="append", default=[], metavar="KEY", help="one table per value of a key; repeatable"
    )
    parser.add_argument("--details", action="store_true", help="name the configs that each warning concerns")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="JSON on stdout; writes a page only with --html")
    shown.add_argument("--csv", action="store_true", help="CSV, one line per config; writes a page only with --html")
    options = parser.read(arguments)
    from tfx.report.comparison import compare_runs

    if options.margin is not None and not 0 < options.margin < float("inf"):
        raise UserError(f"--margin {options.margin} must be above 0, in the unit of the primary metric")

    html = options.html
    if html is not None:
        check_replaced(html, "--html", _MARK, "page of tfx's")
    if html is None and not (options.json or options.csv):
        html = _page(options.paths)
        check_replaced(html, "the page", _MARK, "page of tfx's (--html names it)")
    comparison = compare_runs(
        options.paths,
        baseline=options.baseline,
        margin=options.margin,
        where=options.where,
        group_by=options.group_by,
    )
    if html is not None:
        from tfx.report.page import write_page

        write_page(comparison, html)
    if options.json:
        print(json.dumps(comparison.facts(), indent=2, allow_nan=False, ensure_ascii=False))
    elif options.csv:
        _write_csv(comparison)
    else:
        print_comparison(comparison, details=options.details)
        print(f"page: {html}")
    return 0


def _page(paths: Sequence[Path]) -> Path:
    """Where the page goes: never over one that says something else, of a search or of one run among others."""
    first = paths[0].parent if paths[0].is_file() else paths[0]
    run = RunDirectory(first)
    has_other = (first / "search.json").is_file() or (len(paths) > 1 and run.config.is_file())
    return first / "comparison.html" if has_other else run.report


def print_comparison(comparison: Comparison, *, details: bool = False) -> None:
    """The tables on stdout; warnings and what was left out on stderr."""
    from tfx.report.page import (
        CONTRIBUTION_COLUMNS,
        TEXT_COLUMNS,
        baseline_line,
        contribution_rows,
        table_columns,
        table_rows,
    )
    from tfx.terminal.console import plain_console
    from tfx.terminal.tables import Column, Sheet

    console, notes = plain_console(), plain_console(stderr=True)
    for family in comparison.families:
        columns = table_columns(family)
        # What is needed least goes first where the terminal is narrow; the page has all.
        spare = {"difference": 0, "95 %": 0, "runs": 1, "times smaller": 2, "verdict": 3, "p not worse": 4}
        spare |= {"file": 5, "training": 6, "latency": 7, "p (Holm)": 8, "settings": 9}
        spare |= {name: 10 + place for place, name in enumerate(family.further_metrics)}
        shown = [name for name in columns if name in spare or name == family.metric]
        numbers = (Column(name, number=name not in TEXT_COLUMNS, spare=spare.get(name, 0)) for name in shown)
        names = [arm.label if console.width >= _WIDE else _folded(arm.label) for arm in family.arms]
        is_folded = all(len(line) <= _NAME for name in names for line in name.split("\n"))
        table = Sheet(Column("config", wrap=not is_folded), *numbers, title=f"{family.title}, {family.split} split")
        for name, arm, row in zip(names, family.arms, table_rows(family), strict=True):
            cells = dict(zip(columns, row, strict=True))
            style = "bold" if arm is family.baseline else None
            table.add_row(name, *(cells[name] for name in shown), style=style)
        console.print(table)
        if family.others:
            console.print(baseline_line(family))
        if family.usual:
            console.print(f"Defaults unless a row says otherwise: {family.usual}")
        if family.contributions:
            adds = Sheet(
                *(Column(name, spare=index) for index, name in enumerate(CONTRIBUTION_COLUMNS)),
                title=f"what each technique adds to {family.metric}",
            )
            for texts in contribution_rows(family):
                adds.add_row(*texts)
            console.print(adds)
    for warning in comparison.warnings:
        notes.print(f"read with care: {warning}")
    for line in comparison.details if details else ():
        notes.print(f"  {line}")
    for item in comparison.left_out:
        notes.print(f"left out: {item.path}: {item.reason}")


def _folded(name: str) -> str:
    """The name in lines of at most `_NAME` characters: where it has no spaces, they end at its hyphens and signs."""
    lines = [""]
    for part in re.findall(r"[^-+ ]*[-+ ]?", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > _NAME:
            lines.append("")
        lines[-1] += part
    lines = [line.rstrip(" ") for line in lines]
    return "\n".join(lines)


def _write_csv(comparison: Comparison) -> None:
    skipped = ("on_front", "metrics", "warnings", "paths", "seeds", "tags", "repetitions")
    writer = None
    for family in comparison.facts()["families"]:
        for arm in family["arms"]:
            row = {"section": " ".join(family["section"])}
            row |= {key: family[key] for key in ("dataset", "metric", "baseline")}
            row |= {key: value for key, value in arm.items() if key not in skipped}
            row["seeds"] = " ".join(map(str, arm["seeds"]))
            row["tags"] = " ".join(arm["tags"])
            if writer is None:
                writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
