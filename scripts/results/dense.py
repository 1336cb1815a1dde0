"""Dense models: quality, weight decay, and how fast they train, save and decode."""

from collections.abc import Sequence
from typing import Any

from results.files import (
    BASE,
    TABLES,
    TRIALS,
    arm,
    benchmark,
    by_seed,
    kept_runs,
    mean,
    megatokens,
    printed,
    rows_of,
    table,
)


@table("repeats")
def repeats() -> str:
    rows = [
        [what, by_seed(runs, "valid"), by_seed(runs, "test")]
        for what, runs in (
            ("first version", arm("small-files-trials/decay-rate1.9-2m-bits5-repeat")),
            ("second version", arm("small-files/rate1.9/seed2")),
        )
    ]
    return rows_of(["same config and seed, two versions of the code", "valid BLEU", "test BLEU"], rows)


@table("multi30k")
def multi30k() -> str:
    rows: list[list[Any]] = []
    for what, name in (
        ("1,200 s, no weight decay, dropout 0.15", "multi30k-dense/1200s"),
        ("12.8 M tokens, weight decay 0.3, dropout 0.1", "multi30k-dense/12.8m-decay0.3-dropout0.1"),
    ):
        runs = arm(name)
        cells = [
            f"{mean(runs, split, metric):.2f}"
            for split in ("valid", "test")
            for metric in ("bleu", "chrf", "perplexity")
        ]
        rows.append([what, megatokens(runs[0]), *cells])
    rows += [
        [row["what"], None, None, None, None, row["test_bleu"], None, None]
        for row in printed("peers")["rows"]
        if row["study"] == "multi30k"
    ]
    splits = [f"{split} {metric}" for split in ("valid", "test") for metric in ("BLEU", "chrF", "perplexity")]
    return rows_of(["settings", "tokens", *splits], rows)


@table("starts")
def starts() -> str:
    names = sorted({name.rsplit("/", 1)[0] for name in kept_runs() if name.startswith("multi30k-dense/")})
    rows = []
    for name in [*names, f"{TRIALS}/from-5m-dense-2.5m"]:
        runs = arm(name)
        rows.append([f"`{name}`", megatokens(runs[0]), by_seed(runs, "valid"), by_seed(runs, "test")])
    return rows_of(["model", "tokens of the last training", "valid BLEU by seed", "test BLEU by seed"], rows)


def _by_setting(title: str, arms: Sequence[tuple[str, str]]) -> str:
    """Tokens, and losses and BLEU on both splits, by seed, of arms with a setting each."""
    rows = []
    for what, name in arms:
        runs = arm(name)
        cells = [by_seed(runs, split, *metric) for metric in (("loss", 3), ()) for split in ("valid", "test")]
        rows.append([what, megatokens(runs[0]), *cells])
    return rows_of([title, "tokens", "valid loss by seed", "test loss", "valid BLEU", "test BLEU"], rows)


@table("weight-decay")
def weight_decay() -> str:
    return _by_setting(
        "settings",
        [
            ("`optimizer.weight_decay=0`, dropout 0.15", "multi30k-dense/6m"),
            ("0.3 (the default)", "multi30k-dense/6m-decay0.3"),
            ("0.3 and `model.dropout=0.05`", BASE),
        ],
    )


@table("matrix-rate")
def matrix_rate() -> str:
    return _by_setting(
        "`model.width`, `optimizer.matrix_lr`",
        [
            ("128, 0.01 (the default)", "multi30k-dense/width128-0.8m-rate0.01"),
            ("128, 0.005", "multi30k-dense/width128-0.8m-rate0.005"),
            ("256, 0.01", "multi30k-dense/wide-0.8m"),
            ("256, 0.00707 (the default)", "multi30k-dense/wide-0.8m-rate0.0071"),
            ("256, 0.005", "multi30k-dense/wide-0.8m-rate0.005"),
            ("256, 0.0035", "multi30k-dense/wide-0.8m-rate0.0035"),
            ("512, 0.01", "multi30k-dense/width512-0.4m-rate0.01"),
            ("512, 0.005 (the default)", "multi30k-dense/width512-0.4m-rate0.005"),
            ("512, 0.0025", "multi30k-dense/width512-0.4m-rate0.0025"),
        ],
    )


@table("muon-blocks")
def muon_blocks() -> str:
    return _by_setting(
        "settings",
        [
            ("width 512, whole matrices", "multi30k-dense/width512-0.4m-rate0.005"),
            ("width 512, `optimizer.matrix_block=128`", "multi30k-dense/width512-0.4m-block128"),
            ("`seq2seq_small`, whole matrices", "multi30k-dense/small-0.4m"),
            ("`seq2seq_small`, `optimizer.matrix_block=128`", "multi30k-dense/small-0.4m-block128"),
            ("`seq2seq_small`, 450 s, whole matrices", "multi30k-dense/small-450s"),
            ("`seq2seq_small`, 450 s, `optimizer.matrix_block=128`", "multi30k-dense/small-450s-block128"),
            ("`seq2seq_small`, 450 s, `optimizer=adamw`", "multi30k-dense/small-450s-adamw"),
            ("`seq2seq_small`, `optimizer=adamw optimizer.lr=0.0005`", "multi30k-dense/small-1.06m-adamw-rate0.0005"),
            ("`seq2seq_small`, `optimizer=adamw optimizer.lr=0.0002`", "multi30k-dense/small-1.06m-adamw-rate0.0002"),
            ("`seq2seq_small`, 4,207 s, whole matrices", "multi30k-dense/small-3m"),
            ("`seq2seq_small`, 4,185 s, `optimizer.matrix_block=128`", "multi30k-dense/small-3.75m-block128"),
        ],
    )


@table("attention-products")
def attention_products() -> str:
    return _by_setting(
        "model and products of attention",
        [
            ("`seq2seq_tiny`, fp32", "attention-products/tiny-fp32"),
            ("`seq2seq_tiny`, bfloat16", "attention-products/tiny-bf16"),
            ("`seq2seq_small`, fp32", "attention-products/small-fp32"),
            ("`seq2seq_small`, bfloat16", "attention-products/small-bf16"),
        ],
    )


@table("normalize")
def normalize() -> str:
    rows = [
        [
            row["settings"],
            f"{row['steps']:,}",
            f"{row['tokens']:.1f} M",
            f"{row['valid']:.3f}",
            f"{row['test']:.3f}",
            "no",
        ]
        for row in printed("normalize")["rows"]
    ]
    (run,) = arm("normalize/dense-4.5m-decay0.3")
    rows.append(
        [
            "`trainer.budget.tokens=4500000` (weight decay 0.3, the default)",
            f"{run.summary['train']['steps']:,}",
            f"{run.summary['train']['tokens'] / 1e6:.1f} M",
            *(f"{run.summary[split]['exact_match']:.3f}" for split in ("valid", "test")),
            "yes",
        ]
    )
    return rows_of(["`tfx train …`", "steps", "tokens", "exact match, valid", "test", "run kept"], rows)


@table("tinyshakespeare")
def tinyshakespeare() -> str:
    rows: list[list[Any]] = []
    for what, name in (
        ("no weight decay", "gpt-nano"),
        ("weight decay 0.3 (the default), one thread", "gpt-nano-decay0.3"),
    ):
        (run,) = arm(f"tinyshakespeare/{name}")
        train, valid = run.summary["train"], run.summary["valid"]
        cells = [f"{valid['loss']:.3f}", f"{valid['bits_per_byte']:.3f}", f"{train['seconds']:.0f} s"]
        rows.append([what, *cells, f"{train['tokens_per_second']:,.0f}"])
    rows += [
        [row["what"], row["valid_loss"], None, None, None]
        for row in printed("peers")["rows"]
        if row["study"] == "tinyshakespeare"
    ]
    return rows_of(["settings", "valid loss", "bits per byte", "training time", "tokens/s"], rows)


# Speed.

PAIRED = (
    ("arm", "arm", ""),
    ("tokens/s (median)", "tokens_per_second", ",.0f"),
    ("ratio", "ratio", ".3f"),
    ("lowest", "lowest", ".3f"),
    ("highest", "highest", ".3f"),
)
SPEED = [(title, key, how.replace("3", "2")) for title, key, how in PAIRED]
TABLES["training-speed"] = lambda: benchmark("training-speed", SPEED)
TABLES["decoding-peers"] = lambda: benchmark(
    "decoding-peers",
    [
        ("sentences", "how", ""),
        ("arm", "arm", ""),
        ("at once", "at_once", ""),
        ("ms a sentence", "ms", ".2f"),
        ("sentences/s", "per_second", ".1f"),
        ("tfx is faster by", "ratio", ".2f"),
        ("lowest", "lowest", ".2f"),
        ("highest", "highest", ".2f"),
        ("BLEU", "bleu", ".2f"),
    ],
)
PEERS = [*SPEED, ("share of the matrix rate", "share", ".3f")]
TABLES["training-peers"] = lambda: benchmark("training-peers", PEERS)
TABLES["training-peers-small"] = lambda: benchmark("training-peers-small", PEERS)
TABLES["training-peers-small-cycle"] = lambda: benchmark("training-peers-small-cycle", PEERS)
TABLES["training-peers-avx2"] = lambda: benchmark("training-peers-avx2", PEERS)
TABLES["training-peers-small-avx2"] = lambda: benchmark("training-peers-small-avx2", PEERS)
TABLES["training-shakespeare"] = lambda: benchmark(
    "training-shakespeare",
    [
        ("arm", "arm", ""),
        ("seconds to a loss of 1.88", "seconds", ".1f"),
        ("reached in", "reached", ""),
        ("times as fast", "ratio", ".2f"),
        ("lowest", "lowest", ".2f"),
        ("highest", "highest", ".2f"),
        ("last loss", "last_loss", ".3f"),
    ],
)
TABLES["muon-emulated"] = lambda: benchmark("muon-emulated", [("", "arm", ""), ("tokens/s", "tokens_per_second", "")])
TABLES["training-neighbour"] = lambda: benchmark("training-neighbour", SPEED)
TABLES["spin-count"] = lambda: benchmark(
    "spin-count",
    [
        ("processor", "processor", ""),
        ("`GOMP_SPINCOUNT`", "spins", ""),
        ("rounds", "rounds", "d"),
        ("alone, tokens/s (median)", "quiet", ",d"),
        ("ratio (median)", "ratio", ".2f"),
        ("lowest", "lowest", ".2f"),
        ("highest", "highest", ".2f"),
        ("beside a neighbour, tokens/s", "busy", ",d"),
    ],
)
TABLES["technique-cost"] = lambda: benchmark("technique-cost", PAIRED)
TABLES["precision"] = lambda: benchmark("precision", [("what", "what", ""), ("tokens/s", "tokens_per_second", ",.0f")])
TABLES["precision-parts"] = lambda: benchmark(
    "precision-parts", [("what", "what", ""), ("before", "before", ""), ("after", "after", ""), ("by", "how", "")]
)
TABLES["soft-targets"] = lambda: benchmark("soft-targets", [("loss", "what", ""), ("ms", "milliseconds", ",.0f")])
TABLES["saving"] = lambda: benchmark(
    "saving",
    [
        ("model", "model", ""),
        ("training pauses, s", "stands_still_s", ".3f"),
        ("time until on disk, s", "on_disk_s", ".3f"),
        ("pause in five minutes, %", "share_percent", ".3f"),
        ("pause and writing, %", "share_with_writing_percent", ".3f"),
    ],
)
TABLES["decoding"] = lambda: benchmark(
    "decoding", [("arm", "arm", ""), ("batch 1", "batch_1", ".2f"), ("batch 32", "batch_32", ".2f")]
)
