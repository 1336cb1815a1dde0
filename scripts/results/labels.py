"""Tables of classification."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from results.files import Arm, arm, printed, ratio, rows_of, seed, size, table
from tfx.report.runs_file import KeptRun
from tfx.report.statistics import seed_interval

# Questions of TREC that validate and test.
SIZES = {"valid": 528, "test": 500}


@table("trec")
def trec() -> str:
    """Each arm over its seeds; `scripts/bench_classify.py` and `tfx train` printed the rows."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in printed("trec")["rows"]:
        arms.setdefault(row["what"], []).append(row)
    rows = []
    for what, runs in arms.items():
        smaller = [run["ratio"] for run in runs if "ratio" in run]
        shares = [{split: run[split] for split in SIZES} for run in runs]
        rows.append([what, runs[0].get("parameters"), *_judged(shares), size(fmean(smaller)) if smaller else None])
    return rows_of(["", "parameters", *_JUDGED, "times smaller"], rows)


@table("trec-students")
def trec_students() -> str:
    """Small models from kept runs, with their differences over seeds from the arm that each is held against."""
    rows = []
    for what, name, other in (
        ("`tfx train dataset=trec dataset.path=path/to/trec`", "scratch", None),
        ("the same with BPE dropout", "bpe-dropout", "scratch"),
        ("the same, taught by the fine-tuned MiniLM", "taught", "scratch"),
        ("that one at 2.2 bits a weight", "compressed", "taught"),
    ):
        runs = arm(f"trec/{name}")
        row = [what, *_judged([_shares(run) for run in runs])]
        row.append(None if other is None else _against(runs, arm(f"trec/{other}")))
        rows.append([*row, None if other != "taught" else ratio(runs)])
    return rows_of(["", *_JUDGED, "difference of both (95 %)", "times smaller"], rows)


_JUDGED = ["seeds", "valid", "test", "both"]


def _shares(run: KeptRun) -> dict[str, float]:
    return {split: run.summary[split]["accuracy"] for split in SIZES}


def _both(shares: dict[str, float]) -> float:
    """The share of right answers among all questions."""
    return sum(SIZES[split] * share for split, share in shares.items()) / sum(SIZES.values())


def _judged(runs: Sequence[dict[str, float]]) -> list[Any]:
    of_splits = ([run[split] for run in runs] for split in SIZES)
    return [len(runs), *(_percent(shares) for shares in (*of_splits, [_both(run) for run in runs]))]


def _against(runs: Arm, others: Arm) -> str:
    """The mean difference over the seeds that both have, with Student's interval."""
    known = {seed(run): _both(_shares(run)) for run in others}
    differences = [100 * (_both(_shares(run)) - known[seed(run)]) for run in runs if seed(run) in known]
    interval = seed_interval(differences)
    shown = f" ({interval[0]:+.1f} to {interval[1]:+.1f})" if interval else ""
    return f"{fmean(differences):+.1f}{shown}"


def _percent(shares: list[float]) -> str:
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):.1f}{spread}"
