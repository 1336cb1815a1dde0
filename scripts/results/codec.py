"""Bytes at equal loss against `nncodec`, from the points that scripts/bench_codec.py printed."""

import math
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from results.files import NONE, printed, rows_of, table

LOSSES = (0.05, 0.10, 0.20)
METHODS = {
    "nncodec": "`nncodec` 2.1.3 (ISO/IEC 15938-17), dependent quantization",
    "blocks": "`method=gptq`, embeddings and output rounded to nearest (earlier version)",
    "gptq": "`method=gptq`",
    "trellis": "`method=trellis`",
}
Point = dict[str, Any]


def bytes_at(points: list[Point], loss: float) -> float | None:
    """Log-linear between the two files around this loss; None: outside."""
    ordered = sorted(points, key=lambda point: -point["bytes"])
    for fine, coarse in pairwise(ordered):
        if fine["loss"] <= loss <= coarse["loss"]:
            share = (loss - fine["loss"]) / max(coarse["loss"] - fine["loss"], 1e-9)
            return math.exp((1 - share) * math.log(fine["bytes"]) + share * math.log(coarse["bytes"]))
    return None


def points_of(run: str, method: str) -> list[Point]:
    return [row for row in printed("codec")["rows"] if (row["run"], row["method"]) == (run, method)]


def cell(runs: list[str], method: str, loss: float) -> str:
    """The mean over the runs in kB, with its standard deviation, and how much that is below `nncodec`."""
    values, saved = [], []
    for run in runs:
        value, other = (bytes_at(points_of(run, name), loss) for name in (method, "nncodec"))
        if value is None:
            return NONE
        values.append(value / 1000)
        if other is not None:
            saved.append(1 - value / 1000 / (other / 1000))
    spread = f" ± {stdev(values):.0f}" if len(values) > 1 else ""
    below = f" (-{fmean(saved):.0%})" if method != "nncodec" and len(saved) == len(runs) else ""
    return f"{fmean(values):.0f}{spread}{below}"


def of(prefix: str) -> str:
    runs = sorted({row["run"] for row in printed("codec")["rows"] if row["run"].startswith(prefix)})
    known = {row["method"] for row in printed("codec")["rows"] if row["run"] in runs}
    rows = [
        [label, len(runs), *(cell(runs, method, loss) for loss in LOSSES)]
        for method, label in METHODS.items()
        if method in known
    ]
    return rows_of(["kB of weights and header", "models", *(f"at +{loss:.2f} nats" for loss in LOSSES)], rows)


@table("codec-multi30k")
def codec_multi30k() -> str:
    return of("dense")


@table("codec-lm")
def codec_lm() -> str:
    return of("lm")
