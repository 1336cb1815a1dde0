"""Plots as inline SVG: drawn by matplotlib, coloured by the page's CSS variables, so that they follow light and dark.

Each has a title and a description for screen readers. Series differ by marker and dash as well as by colour.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

# If it can write no cache, it warns at import and makes a temporary one; the user need do nothing.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

from matplotlib import rc_context  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402

from tfx.terminal.console import number  # noqa: E402

# Colours that stand for CSS variables: nothing else in a figure may have them.
_INK, _MUTED, _GRID, _PAPER = "#010a01", "#010a02", "#010a03", "#010a04"
_SERIES = [f"#010b{i:02x}" for i in range(8)]
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--line", _PAPER: "--paper"} | {
    color: f"--series-{i}" for i, color in enumerate(_SERIES)
}
_MARKERS = "osD^vPX*"
_DASHES: list[Any] = [
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (5, 2, 1, 2)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1)),
    "-",
    (0, (2, 2)),
]
_WIDE = 10.5  # inches, of a plot that stands alone on the page
MOST_SERIES = len(_SERIES)
_MAX_MARKS = 8  # on a curve: they tell it from others, and its line has every value
MOST_NAMED = 6  # more names than that would overlap in a front: then numbers stand for them
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tfx",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Plot:
    """An SVG, and the table of what it shows: column names and rows of text."""

    svg: str
    title: str
    columns: list[str]
    rows: list[list[str]]


def rounded(value: float | None) -> str:
    """A number as the page shows it: to four significant digits, also a whole one; a dash for None."""
    return "–" if value is None else number(float(value))


def _render(figure: Figure, title: str, description: str) -> str:
    """The figure as an inline SVG whose ids are its own and whose colours are variables."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The page's own fonts show what the one that is measured with lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Measured here: "tight" would draw the whole figure once more to do so.
        edges = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer()).padded(0.1)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches=edges)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = _compact(_with_tips(re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)))
    key = f"p{zlib.crc32((svg + title).encode()):x}"
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{key}-", svg)
    svg = re.sub(r"#010[ab]0[0-9a-f]", lambda found: f"var({_VARIABLES[found[0]]})", svg)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width = float(size[1]) if size else 500.0
    head = (
        f'<svg role="img" aria-labelledby="{key}-t {key}-d" viewBox="{size[0][9:-1] if size else ""}" '
        f'style="max-width:{width * 4 / 3:.0f}px;font-family:system-ui,sans-serif" xmlns="http://www.w3.org/2000/svg" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{key}-t">{escape(title)}</title>'
        f'<desc id="{key}-d">{escape(description)}</desc>'
    )
    return head + svg[svg.index(">") + 1 :]


def _compact(svg: str) -> str:
    """The same picture in half the text: tenths of a point, short names and no unused ones, no empty groups."""
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    short = {name: str(place) for place, name in enumerate(dict.fromkeys(used))}
    svg = re.sub(r'((?:href="#|url\(#))([^")]+)', lambda found: found[1] + short[found[2]], svg)
    svg = re.sub(r' id="([^"]*)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)  # said once for all
    svg = re.sub(r' (?:d|x|y|width|height|transform|viewBox)="[^"]*"', _shortened, svg)
    svg = re.sub(r'(?<=style=")[^"]*', lambda found: re.sub(r"([:;]) ", r"\1", found[0]), svg)
    svg = re.sub(r">\s+<", "><", svg)
    parts, kept = [], []
    for part in re.split(r"(<g><title>|<g[^>]*>|</g>)", svg):
        if part.startswith("<g"):
            kept.append(part != "<g>")
        if part != "<g>" and (part != "</g>" or kept.pop()):
            parts.append(part)
    return "".join(parts)


def _shortened(attribute: re.Match[str]) -> str:
    text = re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), attribute[0])
    return re.sub(r"\s*([MLCQz\"])\s*", r"\1", text) if text.startswith(" d=") else text


_TIP = "tip-"


def _tip(text: str) -> str:
    """The id of a part of a figure that is to show this text under the pointer."""
    return _TIP + text.encode("utf-8", "surrogateescape").hex()


def _with_tips(svg: str) -> str:
    """Puts the texts of `_tip` where browsers look for what to show: a title inside the part."""

    def title(found: re.Match[str]) -> str:
        text = bytes.fromhex(found[1]).decode("utf-8", "surrogateescape")
        return f"<g><title>{escape(text)}</title>"

    return re.sub(rf'<g id="{_TIP}([0-9a-f]+)">', title, svg)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def differences(
    rows: Sequence[tuple[str, float, float, float]],
    unit: str,
    margin: float | None,
    other: str,
    *,
    higher_is_better: bool,
) -> Plot:
    """Differences to ``other`` with their intervals: label, difference, low, high; without one, all three are equal."""
    with rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 0.9 + 0.32 * len(rows))
        for place, (label, value, low, high) in enumerate(rows):
            certain = low < high and (low > 0 or high < 0)
            axes.plot([low, high], [place, place], color=_SERIES[0], linewidth=2.2, solid_capstyle="round")
            face = _SERIES[0] if certain else _PAPER
            axes.plot(
                [value],
                [place],
                "o",
                color=_SERIES[0],
                markerfacecolor=face,
                markersize=6.5,
                markeredgewidth=1.6,
                gid=_tip(f"{label}: {value:+.4g}" + (f" ({low:+.4g} to {high:+.4g})" if low < high else "")),
            )
        axes.axvline(0.0, color=_INK, linewidth=1)
        if margin is not None:
            edge = -margin if higher_is_better else margin
            axes.axvline(edge, color=_INK, linewidth=1, linestyle=_DASHES[1])
            axes.annotate(
                "margin", (edge, -0.5), xytext=(-3, 0), textcoords="offset points", fontsize=8, ha="right", va="top"
            )
        axes.set_yticks(range(len(rows)), [_cut(row[0], 44) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"difference to {other}, {unit} ({'more' if higher_is_better else 'less'} is better)")
        title = f"Differences to {other}"
        text = f"{len(rows)} configs with 95 % intervals; a filled mark where the interval leaves out zero."
        svg = _render(figure, title, text)
    columns = ["config", f"difference, {unit}", "95 % from", "to"]
    told = [
        [label, f"{value:+.4g}", *((f"{low:+.4g}", f"{high:+.4g}") if low < high else ("–", "–"))]
        for label, value, low, high in rows
    ]
    return Plot(svg, title, columns, told)


@dataclass(frozen=True)
class Point:
    """One arm in a plane of cost and quality; ``low`` and ``high`` bound the quality where seeds allow.

    ``number`` is what the page calls it. What trained for less than the others is neither on the front nor known to be
    off it.
    """

    number: int
    label: str
    cost: float
    quality: float
    low: float | None
    high: float | None
    on_front: bool
    is_baseline: bool
    trained_less: bool = False

    @property
    def standing(self) -> str:
        """What is known of it, in words."""
        if self.trained_less:
            return "trained for less"
        return "on the front" if self.on_front else "another is better"


def front(points: Sequence[Point], cost_label: str, quality_label: str, title: str) -> Plot:
    """Quality against one cost: the front as a line, dominated arms grey and hollow, what trained for less as crosses.

    Many go by their numbers.
    """
    higher = "less is better" not in quality_label
    with rc_context(_STYLE):
        figure, axes = _figure(5.4, 3.7)
        best = sorted((point for point in points if point.on_front), key=lambda point: point.cost)
        axes.step([p.cost for p in best], [p.quality for p in best], where="post", color=_SERIES[0], linewidth=1.4)
        named = len(points) <= MOST_NAMED and len({_cut(point.label, 28) for point in points}) == len(points)
        for point in points:
            color = _SERIES[0] if point.on_front else _MUTED
            if point.low is not None and point.high is not None:
                axes.plot([point.cost] * 2, [point.low, point.high], color=color, linewidth=1.1)
            axes.plot(
                [point.cost],
                [point.quality],
                "D" if point.is_baseline else "x" if point.trained_less else "o",
                color=color,
                markerfacecolor=color if point.on_front else _PAPER,
                markersize=7,
                gid=_tip(f"{point.label}: {rounded(point.quality)} at {rounded(point.cost)} ({cost_label})"),
            )
            if point.on_front or point.is_baseline or len(points) <= 24:
                axes.annotate(
                    _cut(point.label, 28) if named else str(point.number),
                    (point.cost, point.quality),
                    xytext=(6, 5 if higher else -11),
                    textcoords="offset points",
                    fontsize=8.5,
                    color=_INK if point.on_front else _MUTED,
                )
        costs = [point.cost for point in points]
        if 20 * min(costs) < max(costs) < 1e5 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        # Matplotlib's own labels are markup on a logarithmic axis, and differences to a far number on a flat one.
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
        axes.margins(0.09, 0.12)
        axes.set_xlabel(f"{cost_label} (less is better)")
        axes.set_ylabel(quality_label)
        names = ", ".join(p.label for p in best)
        text = f"On the Pareto front, filled: {names}. Grey hollow marks: another is better at no higher cost."
        if any(point.trained_less for point in points):
            text += " Grey crosses: trained for less."
            _legend(axes, points)
        svg = _render(figure, title, text)
    rows = [[str(p.number), p.label, rounded(p.cost), rounded(p.quality), p.standing] for p in points]
    return Plot(svg, title, ["", "config", cost_label, quality_label, "front"], rows)


def _legend(axes: Axes, points: Sequence[Point]) -> None:
    """Above the plot, where it covers nothing: the mark of each standing that there is."""
    marks = {"on the front": ("o", _SERIES[0], _SERIES[0]), "another is better": ("o", _MUTED, _PAPER)}
    marks["trained for less"] = ("x", _MUTED, _PAPER)
    found = {point.standing for point in points}
    lines = [
        Line2D([], [], linestyle="", marker=marker, color=color, markerfacecolor=face, markersize=7, label=standing)
        for standing, (marker, color, face) in marks.items()
        if standing in found
    ]
    axes.legend(
        handles=lines,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(lines),
        fontsize=8,
        labelcolor=_INK,
        handletextpad=0.1,
        columnspacing=1.2,
    )


def curves(series: Sequence[tuple[str, dict[str, list[tuple[float, float]]]]], metric: str) -> Plot:
    """Validation over training: for each arm its label and, by the name of a run, its line of (tokens, value)."""
    with rc_context(_STYLE):
        figure, axes = _figure(_WIDE, 3.9)
        for index, (label, runs) in enumerate(series[:MOST_SERIES]):
            for place, (name, run) in enumerate(runs.items()):
                axes.plot(
                    [tokens / 1e6 for tokens, _ in run],
                    [value for _, value in run],
                    color=_SERIES[index],
                    linestyle=_DASHES[index],
                    marker=_MARKERS[index],
                    markersize=4,
                    markevery=max(1, len(run) // _MAX_MARKS),
                    linewidth=1.3,
                    alpha=1.0,
                    label=_cut(label, 60) if place == 0 else None,
                    gid=_tip(f"{label}: {name}"),
                )
        if len(series) > 1:
            axes.legend(fontsize=8, labelcolor=_INK)
        axes.set_xlabel("training tokens, millions")
        axes.set_ylabel(f"validation {metric}" + (", nats" if metric == "loss" else ""))
        title = "Learning curves"
        svg = _render(
            figure, title, f"Validation {metric} over training tokens, one line a run, {len(series)} configs."
        )
    rows = [
        [label, name, *map(number, (run[0][1], min(value for _, value in run), run[-1][1], run[-1][0]))]
        for label, runs in series
        for name, run in runs.items()
    ]
    return Plot(svg, title, ["config", "run", "first", "lowest", "last", "tokens"], rows)


def stages(label: str, rows: Sequence[dict[str, Any]], metric: str) -> Plot:
    """What each stage of a stack cost and saved: bytes as bars that fall, validation metric as a line of marks."""
    names = [row["name"] for row in rows]
    sizes = [row.get("bytes") for row in rows]
    values = [row["valid"].get(metric) for row in rows]
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDE, 3.4))
        left, right = figure.subplots(1, 2)
        for axes, numbers, what in (
            (left, [None if size is None else size / 1e6 for size in sizes], "file without tokenizer, MB"),
            (right, values, f"validation {metric}"),
        ):
            before = None
            for place, value in enumerate(numbers):
                if value is None:
                    continue
                # A stage's bar spans from what was there before to what it left, the first from zero in the left plot.
                bottom = before if before is not None else (0.0 if axes is left else value)
                axes.bar(
                    place, value - bottom, bottom=bottom, width=0.62, color=_SERIES[0], alpha=0.35, edgecolor=_SERIES[0]
                )
                axes.plot([place - 0.31, place + 0.31], [value, value], color=_SERIES[0], linewidth=2.4)
                change = "" if before is None or before == value else f"\n{value - before:+.3g}"
                style = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
                axes.annotate(f"{value:.4g}{change}", (place, value), xytext=(0, 4), **style)
                before = value
            axes.set_xticks(range(len(names)), [_cut(name, 14) for name in names], rotation=25, ha="right")
            axes.set_ylabel(what)
            axes.use_sticky_edges = False
            axes.margins(0.06, 0.28)
            axes.grid(visible=False, axis="x")
        left.set_ylim(bottom=0)
        figure.subplots_adjust(wspace=0.3)
        title = f"Stages of {label}"
        svg = _render(
            figure,
            title,
            "; ".join(
                f"{n}: {rounded(s)} bytes, {metric} {rounded(v)}" for n, s, v in zip(names, sizes, values, strict=True)
            ),
        )
    return Plot(svg, title, *stage_table(rows, metric))


def stage_table(rows: Sequence[dict[str, Any]], metric: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of what each stage left behind."""
    columns = ["stage", "bytes", f"validation {metric}", "nonzero parameters", "seconds"]
    counts = ("nonzero_parameters", "seconds")
    return columns, [
        [
            row["name"],
            *map(number, (row.get("bytes"), row["valid"].get(metric), *(row.get(key) for key in counts))),
        ]
        for row in rows
    ]


def heat_map(label: str, tensors: Sequence[dict[str, Any]], key: str, unit: str) -> Plot:
    """A number of each matrix, by block (rows) and part (columns), written in its cell as well as coloured."""
    grid: dict[tuple[str, str], float] = {}
    for tensor in tensors:
        if len(tensor["shape"]) < 2:
            continue
        block, part = _block(tensor["name"])
        grid[block, part] = tensor[key]
    blocks = sorted({block for block, _ in grid}, key=_order)
    parts = list(dict.fromkeys(part for _, part in grid))
    table_BP = np.full((len(blocks), len(parts)), np.nan)
    for (block, part), value in grid.items():
        table_BP[blocks.index(block), parts.index(part)] = value
    with rc_context(_STYLE):
        figure, axes = _figure(1.6 + 0.62 * len(parts), 1.3 + 0.33 * len(blocks))
        for row, column in zip(*np.nonzero(~np.isnan(table_BP)), strict=True):
            value = float(table_BP[row, column])
            # One scale for all maps: bits count by their logarithm, from 1 to the 32 of a plain weight.
            share = value if key == "sparsity" else math.log2(max(value, 1.0)) / 5.0
            axes.add_patch(_cell(column, row, min(1.0, max(0.0, share))))
            text = f"{value:.0%}" if key == "sparsity" else f"{value:.1f}"
            axes.annotate(text, (column, row), ha="center", va="center", fontsize=8, color=_INK)
        axes.set_xlim(-0.5, len(parts) - 0.5)
        axes.set_ylim(len(blocks) - 0.5, -0.5)
        axes.set_xticks(range(len(parts)), parts, rotation=35, ha="right")
        axes.set_yticks(range(len(blocks)), blocks)
        axes.grid(visible=False)
        title = f"{unit} by layer, {label}"
        svg = _render(figure, title, f"{unit} of each matrix; every cell has its number.")
    rows = [
        [
            t["name"],
            " x ".join(map(str, t["shape"])),
            t["codec"],
            f"{t['bits_per_weight']:.2f}",
            f"{t['sparsity']:.1%}",
            rounded(t["bytes"]),
        ]
        for t in tensors
    ]
    return Plot(svg, title, ["tensor", "shape", "codec", "bits/weight", "sparsity", "bytes"], rows)


def attention(source: Sequence[str], target: Sequence[str], weights_TS: np.ndarray, title: str) -> Plot:
    """One attention layer, heads averaged: queries as rows, keys as columns, the weight as the cell's strength."""
    with rc_context(_STYLE):
        figure, axes = _figure(1.4 + 0.26 * len(source), 1.1 + 0.24 * len(target))
        for row, column in zip(*np.nonzero(weights_TS >= 0.02), strict=True):
            axes.add_patch(_cell(column, row, float(weights_TS[row, column])))
        axes.set_xlim(-0.5, len(source) - 0.5)
        axes.set_ylim(len(target) - 0.5, -0.5)
        axes.set_xticks(range(len(source)), source, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(target)), target, fontsize=8)
        axes.set_xlabel("attended to")
        axes.set_ylabel("attends")
        axes.grid(visible=False)
        svg = _render(figure, title, "Attention weights, heads averaged; stronger cells have more weight.")
    strongest = weights_TS.argmax(1)
    rows = [[target[t], source[s], f"{weights_TS[t, s]:.2f}"] for t, s in enumerate(strongest)]
    return Plot(svg, title, ["token", "attends most to", "weight"], rows)


def _cell(column: int, row: int, share: float) -> Any:
    return Rectangle(
        (column - 0.48, row - 0.48), 0.96, 0.96, facecolor=_SERIES[0], alpha=0.06 + 0.69 * share, linewidth=0
    )


def _block(name: str) -> tuple[str, str]:
    """``encoder.blocks.0.attention.q.weight`` is part ``attention.q`` of ``encoder 0``."""
    found = re.match(r"(\w+)\.blocks\.(\d+)\.(.+?)(\.weight)?$", name)
    if found:
        return f"{found[1]} {found[2]}", found[3]
    return "outside blocks", name.removesuffix(".weight")


def _order(block: str) -> tuple[int, int]:
    """Files keep tensors by name; a reader follows the model from its inputs to its outputs."""
    side, _, index = block.rpartition(" ")
    return (1 if side == "encoder" else 2, int(index)) if index.isdecimal() else (0, 0)


def _tick(value: float) -> str:
    """Six significant digits, thousands apart."""
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e9 else f"{value:.6g}".replace("-", "\N{MINUS SIGN}")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
