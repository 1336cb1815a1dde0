"""What a search found, and what its winner is worth beside models of the same bytes."""

from statistics import fmean

from results.files import Arm, against, arm, benchmark, by_seed, kept_runs, mean, printed, rows_of, seed, signed, table
from tfx.report.statistics import seed_interval

_ARMS = (
    ("the winner", "winner"),
    ("the shape of `seq2seq_tiny`, trained alike", "shape"),
    ("a narrow dense model (width 40) in 8 bits, without the teacher", "dense"),
)


@table("search-trials")
def search_trials() -> str:
    (teacher,) = arm("search/teacher-6m/seed1")
    rows = [["the teacher", "6 M", f"{teacher.summary['valid']['bleu']:.2f} (all 1,014)", _bytes([teacher]), None]]
    for row in printed("search")["rows"]:
        (run,) = arm(row["run"])
        values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row["values"].items())
        tokens = f"{row['tokens'] / 1e6:g} M"
        rows.append([values, tokens, f"{mean([run], 'valid'):.2f}", _bytes([run]), f"{row['predicted_bytes']:,}"])
    return rows_of(["config", "tokens", "valid BLEU (400 sentences)", "bytes", "predicted"], rows)


@table("search-final")
def search_final() -> str:
    rows = []
    known = {name.rsplit("/seed", 1)[0] for name in kept_runs()}
    for what, tokens, name in (
        ("the teacher", "12.8 M", "teacher-12.8m"),
        *((what, length.replace("m", " M"), f"{name}-{length}") for length in ("1.5m", "8m") for what, name in _ARMS),
    ):
        if f"search/{name}" not in known:
            continue
        runs = arm(f"search/{name}")
        flops = fmean(run.summary["train"]["flops"] for run in runs) / 1e12
        rows.append([what, tokens, _bytes(runs), f"{flops:.1f}", by_seed(runs, "valid"), by_seed(runs, "test")])
    return rows_of(["model", "tokens", "bytes", "TFLOPs of training", "valid BLEU by seed", "test BLEU by seed"], rows)


@table("search-front")
def search_front() -> str:
    rows = []
    for row in printed("search-front")["rows"]:
        (run,) = arm(f"search-front/config{row['config']}/seed1")
        found = [f"{mean([run], 'valid'):.2f}", None if row["test"] is None else f"{row['test']:.2f}"]
        rows.append([f"{row['limit']:,}", _bytes([run]), f"{row['predicted']:,}", *found])
    (dense,), (narrow,) = arm("search-front/dense/seed1"), arm("search-front/narrow-20/seed1")
    for what, run in (("the dense model", dense), ("narrow dense, 8 bits, width 20", narrow)):
        rows.append([what, _bytes([run]), None, *(f"{mean([run], split):.2f}" for split in ("valid", "test"))])
    return rows_of(["limit", "bytes", "predicted", "valid BLEU (500 sentences; dense: all)", "test BLEU"], rows)


@table("search-predictions")
def search_predictions() -> str:
    columns = (
        ("predicted before training", "what", ""),
        ("within", "limit", ""),
        ("configs", "inside", ""),
        ("mean error, %", "mean", ".2f"),
        ("median, %", "median", "+.2f"),
        ("largest, %", "largest", "+.2f"),
    )
    return benchmark("search-predictions", columns)


@table("search-demo")
def search_demo() -> str:
    columns = (
        ("model", "model", ""),
        ("seconds of training", "seconds", "d"),
        ("exact match on test by seed", "test", ""),
    )
    return benchmark("search-demo", (*columns, ("bytes", "bytes", ",d")))


@table("search-adapted")
def search_adapted() -> str:
    rows = []
    for row in printed("search-adapted")["rows"]:
        values = ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in row["values"].items())
        rows.append([values, f"{row['limit']:,}", f"{row['bytes']:,}", f"{row['bleu']:.2f}"])
    return rows_of(["config", "limit", "bytes", "valid BLEU (500 sentences)"], rows)


@table("search-adapted-final")
def search_adapted_final() -> str:
    rows = []
    hand = arm("search-adapted/hand")
    for what, tokens, name in (
        ("the dense model that both start from", "6 M", "dense"),
        ("the teacher", "12.8 M", "teacher"),
        ("`experiment=small`, the best recipe found by hand", "6 + 2 M", "hand"),
        ("the winner of the search", "6 + 2 M", "winner"),
        ("narrow dense, 8 bits, width 40", "8 M", "narrow-40"),
        ("narrow dense, 8 bits, width 64", "8 M", "narrow-64"),
    ):
        runs = arm(f"search-adapted/{name}")
        cells = [_bytes(runs), by_seed(runs, "valid"), by_seed(runs, "test")]
        gains = [_paired(runs, hand, split) for split in ("valid", "test")] if name == "winner" else [None, None]
        rows.append([what, tokens, *cells, *gains])
    header = ["model", "tokens", "bytes", "valid BLEU by seed", "test BLEU by seed"]
    return rows_of([*header, "difference, valid (95 %)", "difference, test (95 %)"], rows)


def _paired(runs: Arm, others: Arm, split: str) -> str:
    """The mean difference of runs with the same seeds, and its interval."""
    pairs = {seed(run): run.summary[split]["bleu"] for run in others}
    found = seed_interval([run.summary[split]["bleu"] - pairs[seed(run)] for run in runs])
    assert found is not None
    return f"{against(runs, others, split)} ({signed(found[0])} to {signed(found[1])})"


def _bytes(runs: Arm) -> str:
    return f"{round(fmean(run.summary['bytes']['file'] for run in runs)):,}"
