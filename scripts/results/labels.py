"""Tables of classification."""

from statistics import fmean, stdev
from typing import Any

from results.files import printed, rows_of, size, table


@table("trec")
def trec() -> str:
    """Each arm over its seeds; `scripts/bench_classify.py` and `tfx train` printed the rows."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in printed("trec")["rows"]:
        arms.setdefault(row["what"], []).append(row)
    rows = []
    for what, runs in arms.items():
        pooled = [(528 * run["valid"] + 500 * run["test"]) / 1028 for run in runs]
        shown = [_percent([run[split] for run in runs]) for split in ("valid", "test")]
        smaller = [run["ratio"] for run in runs if "ratio" in run]
        rows.append(
            [
                what,
                runs[0].get("parameters"),
                len(runs),
                *shown,
                _percent(pooled),
                size(fmean(smaller)) if smaller else None,
            ]
        )
    return rows_of(["", "parameters", "seeds", "valid", "test", "both", "times smaller"], rows)


def _percent(shares: list[float]) -> str:
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):.1f}{spread}"
