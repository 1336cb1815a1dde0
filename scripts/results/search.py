"""What a search found, and what its winner is worth beside models of the same bytes."""

from statistics import fmean

from results.files import Arm, arm, by_seed, kept_runs, mean, printed, rows_of, table

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


def _bytes(runs: Arm) -> str:
    return f"{round(fmean(run.summary['bytes']['file'] for run in runs)):,}"
