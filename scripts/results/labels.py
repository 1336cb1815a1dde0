"""Tables of classification."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from results.files import Arm, arm, benchmark, printed, ratio, rows_of, seed, size, table
from tfx.report.runs_file import KeptRun
from tfx.report.statistics import seed_interval

# Questions of TREC that validate and test.
SIZES = {"valid": 528, "test": 500}


@table("trec")
def trec() -> str:
    """Each arm over its seeds; `scripts/bench_classify.py` and `tfx train` printed the rows."""
    rows = []
    for what, runs in _printed("trec").items():
        smaller = [run["ratio"] for run in runs if "ratio" in run]
        rows.append([what, runs[0].get("parameters"), *_judged(runs), size(fmean(smaller)) if smaller else None])
    return rows_of(["", "parameters", *_JUDGED, "times smaller"], rows)


@table("trec-tried")
def trec_tried() -> str:
    """What was tried from scratch."""
    rows = [[what, *_judged(runs)] for what, runs in _printed("trec-tried").items()]
    return rows_of(["setting", *_JUDGED], rows)


@table("trec-students")
def trec_students() -> str:
    """Small models from kept runs, with their differences over seeds from the arm that each is held against."""
    rows = []
    for what, name, other in (
        ("`tfx train dataset=trec dataset.path=path/to/trec`", "scratch", None),
        ("the same with `model.convolution=3 +technique=bpe_dropout`", "convolved", "scratch"),
        ("the second with R-Drop: `experiment=few_texts`", "few-texts", "convolved"),
        ("the first, taught by the fine-tuned MiniLM", "taught", "scratch"),
        ("that one at 2.2 bits a weight", "compressed", "taught"),
        ("with `model.convolution=3`, taught by the MiniLM", "taught-convolved", "taught"),
        ("that one at 2.2 bits a weight", "compressed-convolved", "taught-convolved"),
        ("the teacher: MiniLM, fine-tuned by tfx", "tuned", None),
        ("the same with early exits", "early-exit", None),
        ("MiniLM on another machine; the first taught those with a convolution", "tuned-convolved", None),
        ("those, 30 % pruned by SparseGPT, 4 bits by GPTQ, without training", "one-shot", "tuned-convolved"),
    ):
        runs = arm(f"trec/{name}")
        row = [what, *_judged([_shares(run) for run in runs])]
        row.append(None if other is None else _against(runs, arm(f"trec/{other}")))
        rows.append([*row, ratio(runs) if name.startswith(("compressed", "one-shot")) else None])
    return rows_of(["", *_JUDGED, "difference of both (95 %)", "times smaller"], rows)


@table("trec-words")
def trec_words() -> str:
    columns = (("", "arm", ""), ("valid", "valid", ".1f"), ("test", "test", ".1f"), ("both", "both", ".1f"))
    differences = (("minus the first (95 %)", "words", ""), ("minus the second (95 %)", "spaced", ""))
    return benchmark("trec-words", (*columns, *differences))


@table("trec-folds")
def trec_folds() -> str:
    """Accuracy on training questions that were held out, of kept runs and of what is printed beside them."""
    rows = []
    for row in printed("trec-folds")["rows"]:
        found = row
        if "kept" in row:
            shares = [_shares(run) for run in arm(f"trec-folds/{row['kept']}")]
            found = {"runs": len(shares)}
            found |= {name: 100 * fmean(one[split] for one in shares) for name, split in _OF_FOLDS.items()}
        rows.append(
            [row["arm"], found["runs"], *(f"{found[name]:.1f}" for name in _OF_FOLDS), row["words"], row["spaced"]]
        )
    differences = ["minus the first (95 %)", "minus the second (95 %)"]
    return rows_of(["", "runs", *_OF_FOLDS, *differences], rows)


# Each run's test data are a part of the training questions.
_OF_FOLDS = {"valid": "valid", "folds": "test"}


# What `scripts/bench_labels.py` measures of files in turn.
_TIMED = (
    ("accuracy on test", "accuracy", ".1f"),
    ("texts/s (median)", "texts_per_second", ",.0f"),
    ("ratio", "ratio", ".2f"),
    ("lowest", "lowest", ".2f"),
    ("highest", "highest", ".2f"),
)


@table("early-exit")
def early_exit() -> str:
    columns = (("texts in a batch", "batch", ",d"), ("model", "file", ""), ("layers a text", "depth", ".2f"), *_TIMED)
    return benchmark("early-exit", columns)


@table("labels-int8")
def labels_int8() -> str:
    return benchmark("labels-int8", (("texts in a batch", "batch", ""), ("file", "file", ""), *_TIMED))


@table("trec-ablation")
def trec_ablation() -> str:
    """Every subset of three techniques, and a narrower dense model of the smallest files' bytes."""
    rows = []
    baseline = arm("trec-ablation/baseline")
    for what, name in (
        ("no technique", "baseline"),
        ("distill", "distill"),
        ("distill, quantize", "distill+quantize"),
        ("distill, prune", "distill+prune"),
        ("distill, prune, quantize", "distill+prune+quantize"),
        ("quantize (4 bits)", "quantize"),
        ("prune (50 %, without embeddings)", "prune"),
        ("prune, quantize", "prune+quantize"),
        ("a narrower dense model, width 72, 8 bits per channel", "dense_int8"),
        ("the teacher", "teacher"),
    ):
        runs = arm(f"trec-ablation/{name}")
        against = None if name in ("baseline", "teacher") else _against(runs, baseline)
        bytes_ = round(fmean(run.summary["bytes"]["weights"] + run.summary["bytes"]["header"] for run in runs))
        rows.append([what, *_judged([_shares(run) for run in runs])[1:], against, f"{bytes_:,}"])
    return rows_of(["arm", *_JUDGED[1:], "difference of both (95 %)", "bytes"], rows)


@table("trec-contributions")
def trec_contributions() -> str:
    columns = (
        ("technique", "what"),
        ("alone", "alone"),
        ("given the others", "given"),
        ("average over all orders", "average"),
    )
    return benchmark("trec-contributions", [(title, key, "") for title, key in columns])


_JUDGED = ["seeds", "valid", "test", "both"]


def _printed(name: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a printed file, a run each, by what they are of."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in printed(name)["rows"]:
        arms.setdefault(row["what"], []).append(row)
    return arms


def _shares(run: KeptRun) -> dict[str, float]:
    return {split: run.summary[split]["accuracy"] for split in SIZES}


def _both(shares: dict[str, Any]) -> float:
    """The share of right answers among all questions."""
    return sum(count * shares[split] for split, count in SIZES.items()) / sum(SIZES.values())


def _judged(runs: Sequence[dict[str, Any]]) -> list[Any]:
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
