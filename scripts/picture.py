"""Draws the stages of one run as an SVG: the bytes of each stage, and its quality on validation data.

python scripts/picture.py RUN/summary.json docs/guide/demo.svg
"""

import json
import sys
from html import escape
from pathlib import Path

NAMES = {"reference": "teacher", "trained": "before compression", "prune": "pruned", "quantize": "quantized"}
WIDTH, ROW, LEFT, BAR = 760, 34, 170, 330


def picture(summary: dict) -> str:
    """The SVG. The file is the last stage, read back from disk: its row is the one of the stage before."""
    metric = summary["primary_metric"]
    stages = [stage for stage in summary["stages"] if stage["name"] != "file"]
    most = max(stage["bytes"] for stage in stages)
    height = ROW * (len(stages) + 1) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="14" role="img" aria-label="bytes and {escape(metric)} of each stage">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" fill="#555555">size of the file</text>',
        f'<text x="{WIDTH - 12}" y="22" fill="#555555" text-anchor="end">{escape(metric)}, valid</text>',
    ]
    for place, stage in enumerate(stages, start=1):
        middle = ROW * place + 22
        length = max(2, round(BAR * stage["bytes"] / most))
        name = escape(NAMES.get(stage["name"], stage["name"]))
        size = f"{stage['bytes'] / 1e3:,.0f} kB"
        lines += [
            f'<text x="{LEFT - 12}" y="{middle}" text-anchor="end" fill="#222222">{name}</text>',
            f'<rect x="{LEFT}" y="{middle - 15}" width="{length}" height="20" fill="#3b6ea8"/>',
            f'<text x="{LEFT + length + 8}" y="{middle}" fill="#222222">{size}</text>',
            f'<text x="{WIDTH - 12}" y="{middle}" text-anchor="end" fill="#222222">{stage["valid"][metric]:.3f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(picture(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")
