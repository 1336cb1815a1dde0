"""What a search found, and what its winner is worth beside models of the same bytes."""

from statistics import fmean

from results.files import Arm, arm, by_seed, kept_runs, printed, rows_of, table

_ARMS = (
    ("the winner", "winner"),
    ("the same bytes in the shape of `seq2seq_tiny`, trained alike", "shape"),
    ("a narrow dense model (width 40) with 8 bits, no teacher", "dense"),
)


@table("search-trials")
def search_trials() -> str:
    rows = []
    for row in printed("search")["rows"]:
        values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row["values"].items())
        rows.append(
            [
                values,
                f"{row['tokens'] / 1e6:g} M",
                f"{row['bleu']:.2f}",
                f"{row['bytes']:,}",
                f"{row['predicted_bytes']:,}",
            ]
        )
    return rows_of(["config", "tokens", "valid BLEU (400 sentences)", "bytes", "predicted"], rows)


@table("search-final")
def search_final() -> str:
    rows = []
    for tokens in ("1.5m", "8m"):
        for what, name in _ARMS:
            names = {kept.rsplit("/seed", 1)[0] for kept in kept_runs()}
            if (study := f"search/{name}-{tokens}") not in names:
                continue
            runs = arm(study)
            bytes_ = round(fmean(run.summary["bytes"]["file"] for run in runs))
            cost = f"{_flops(runs) / 1e12:.0f}"
            row = [what, tokens.replace("m", " M"), f"{bytes_:,}", cost, by_seed(runs, "valid"), by_seed(runs, "test")]
            rows.append(row)
    return rows_of(["arm", "tokens", "bytes", "TFLOPs", "valid BLEU by seed", "test BLEU by seed"], rows)


def _flops(runs: Arm) -> float:
    """Of training alone: all arms with a teacher have the same one, whose outputs are kept."""
    return fmean(run.summary["train"]["flops"] for run in runs)
