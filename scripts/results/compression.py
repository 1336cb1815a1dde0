"""Compression in one shot and with training, and the demo."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from results.files import (
    BASE,
    TRIALS,
    against,
    arm,
    benchmark,
    by_seed,
    lost,
    mean,
    megatokens,
    printed,
    ratio,
    rows_of,
    signed,
    size,
    table,
)


def one_shot(start: str, settings: Sequence[tuple[str, str]]) -> str:
    rows = []
    for what, name in settings:
        runs = arm(f"one-shot/{start}-{name}")
        rows.append([what, len(runs), ratio(runs), lost(runs, "valid"), lost(runs, "test")])
    first = arm(f"one-shot/{start}-8bit-channel")
    dense = [
        ", ".join(f"{run.summary['reference'][split]['bleu']:.2f}" for run in first) for split in ("valid", "test")
    ]
    rows.insert(0, ["dense (BLEU by seed)", len(first), "1.00", *dense])
    return rows_of(["in one shot", "seeds", "times smaller", "valid, difference", "test, difference"], rows)


BITS8 = ("`bits=8 granularity=channel`", "8bit-channel")
BITS4 = ("4 bits in groups of 64 (the default)", "4bit")


@table("one-shot-decay")
def one_shot_decay() -> str:
    return one_shot(
        "6m-decay0.3",
        (
            BITS8,
            BITS4,
            ("the same with `method=gptq calibration=64`", "4bit-gptq"),
            ("`rate=3.85 bits=6`", "rate3.85"),
            ("the same with GPTQ", "rate3.85-gptq"),
            ("`rate=3 bits=6`", "rate3"),
            ("the same, scales from the root mean square (earlier version)", "rate3-rms-scales"),
            ("`rate=2 bits=5`", "rate2"),
            ("the same, scales from the root mean square (earlier version)", "rate2-rms-scales"),
            ("`rate=2 bits=5` with GPTQ", "rate2-gptq"),
        ),
    )


@table("one-shot-6m")
def one_shot_6m() -> str:
    return one_shot(
        "6m",
        (
            BITS8,
            BITS4,
            ("the same with `method=gptq calibration=64`", "4bit-gptq"),
            ("`rate=3 bits=5`, scales from the root mean square", "rate3"),
            ("`rate=2`, scales from the root mean square", "rate2"),
            ("the same with `method=gptq calibration=64`", "rate2-gptq"),
            ("`[prune,quantize]`, 65 % with embeddings and 3 bits in groups of 128", "prune65-3bit-group128"),
        ),
    )


@table("one-shot-1200s")
def one_shot_1200s() -> str:
    return one_shot(
        "1200s",
        (
            BITS8,
            BITS4,
            ("the same with `method=gptq`", "4bit-gptq"),
            ("the same with `method=codebook`", "4bit-codebook"),
            ("`bits=3 group=32`", "3bit-group32"),
            ("`+technique=prune technique.prune.embeddings=true` (50 %, fp16)", "prune50"),
            ("the same with 8 bits per channel", "prune50-8bit-channel"),
        ),
    )


def trained_on(
    study: str, arms: Sequence[tuple[str, Sequence[str]]], others: Sequence[str] = ("dense",)
) -> list[list[Any]]:
    """Rows of arms that were trained further: ratio, BLEU by seed, difference to each dense arm over shared seeds."""
    rows = []
    for what, names in arms:
        runs = arm(*(f"{study}/{name}" for name in names))
        row = [what, ratio(runs), by_seed(runs, "valid"), by_seed(runs, "test")]
        for other in others:
            dense = arm(*(f"{study}/{name}" for name in other.split()))
            row += [None if runs == dense else f"{against(runs, dense, 'valid')}, {against(runs, dense, 'test')}"]
        found = [
            x
            for x in printed("intervals")["rows"]
            if (x["table"], x["arm"]) in ((study, f"{study}/{n}") for n in names)
        ]
        rows.append([*row, f"{found[0]['low']:+.2f} to {found[0]['high']:+.2f}" if found else None])
    return rows


@table("small-files")
def small_files() -> str:
    arms = (
        ("dense, trained further", ["dense"]),
        ("the same with 8 bits per channel, in one shot", ["dense-8bit-channel"]),
        ("4 bits in groups of 64", ["4bit"]),
        ("half of all weights pruned, fp16 (seeds 1 and 2; 1 without decay)", ["prune50-no-decay", "prune50"]),
        ("rate 1.9", ["rate1.9"]),
        ("rate 1.7", ["rate1.7"]),
        ("rate 1.5", ["rate1.5"]),
    )
    header = [
        "arm",
        "times smaller",
        "valid BLEU by seed",
        "test BLEU by seed",
        "difference, valid and test",
        "95 % interval, test",
    ]
    return rows_of(header, trained_on("small-files", arms))


@table("small-files-16")
def small_files_16() -> str:
    rows = []
    for what, name in (
        ("dense, trained further", "dense"),
        ("rounded to nearest, no teacher, 16 times", "untaught"),
        ("rounded to nearest, no teacher, 20 times", "untaught-20"),
        ("rounded to nearest, with the teacher, 16 times", "taught"),
        ("rounded to nearest, with the teacher, 20 times", "taught-20"),
        ("with the teacher on a grid of the error of a trellis, a trellis at the end, 16 times", "trellis"),
        ("the same at 20 times", "trellis-20"),
    ):
        runs = arm(f"small-files-16/{name}")
        cells = [ratio(runs), by_seed(runs, "valid", "loss", 3), by_seed(runs, "valid"), by_seed(runs, "test")]
        dense = arm("small-files-16/dense")
        rows.append(
            [
                what,
                *cells,
                None if runs == dense else f"{against(runs, dense, 'valid')}, {against(runs, dense, 'test')}",
            ]
        )
    header = ["arm", "times smaller", "valid loss by seed", "valid BLEU by seed", "test BLEU by seed"]
    return rows_of([*header, "difference, valid and test"], rows)


@table("small-files-tatoeba")
def small_files_tatoeba() -> str:
    rows = []
    for what, name in (
        ("the dense model that both start from", "start"),
        ("dense, trained further", "dense"),
        ("rounded to nearest, 16 times", "untaught"),
    ):
        runs = arm(f"small-files-tatoeba/{name}")
        losses = [f"{mean(runs, split, 'loss'):.3f}" for split in ("valid", "test")]
        rows.append([what, megatokens(runs[0]), ratio(runs), *losses, by_seed(runs, "valid"), by_seed(runs, "test")])
    header = ["arm", "tokens", "times smaller", "valid loss", "test loss", "valid BLEU (1,000 sentences)", "test BLEU"]
    return rows_of(header, rows)


def equal_bytes(arms: Sequence[tuple[str, str, str, str]]) -> str:
    """Narrow models beside compressed ones of the same size: width, settings, its arm, the compressed arm."""
    dense = arm(BASE)[0].summary["bytes"]["dense_fp32"]
    rows = []
    for width, what, name, other in arms:
        runs, compressed = arm(name), arm(f"{other}/seed1")
        held = fmean(run.summary["bytes"]["weights"] + run.summary["bytes"]["header"] for run in runs)
        beside = [f"{mean(compressed, split):.2f}" for split in ("valid", "test")]
        label = f"{other.rsplit('/', 1)[1]} ({ratio(compressed)})"
        rows.append([width, what, size(dense / held), by_seed(runs, "valid"), by_seed(runs, "test"), label, *beside])
    header = ["width (8 bits)", "settings", "times smaller than width 128", "valid BLEU", "test BLEU"]
    return rows_of([*header, "compressed, seed 1", "valid", "test"], rows)


@table("equal-bytes")
def equal_bytes_with_decay() -> str:
    own = "decay 0.3, dropout 0.05"
    return equal_bytes(
        (
            ("80", own, "small-files/narrow80-8bit", "small-files/4bit"),
            ("48", own, "small-files/narrow48-8bit", "small-files/rate1.9"),
            ("48", f"{own}, with the same teacher", "small-files/narrow48-8bit-distill", "small-files/rate1.9"),
            ("40", own, "small-files/narrow40-8bit", "small-files/rate1.7"),
            ("40", own, "small-files/narrow40-8bit", "small-files/rate1.5"),
        )
    )


@table("lengths")
def lengths() -> str:
    columns = (("run", "run", ""), ("split", "split", ""))
    return benchmark(
        "lengths",
        [
            *columns,
            ("length relative to the references", "length_ratio", ".3f"),
            ("brevity penalty", "brevity_penalty", ".3f"),
        ],
    )


@table("scales")
def scales() -> str:
    rows = []
    for tokens, rate, what, name in (
        ("1.2 M", "1.9", "the root mean square", f"{TRIALS}/decay-rate1.9-1.2m-rms-scales"),
        ("1.2 M", "1.9", "the gradients of the last 50 steps", f"{TRIALS}/decay-rate1.9-1.2m-last-50-steps"),
        ("1.2 M", "1.9", "the gradients of all steps so far (what tfx does)", f"{TRIALS}/decay-rate1.9-1.2m-all-steps"),
        ("2 M", "1.9", "the root mean square", f"{TRIALS}/decay-rate1.9-2m-rms-scales-longer-outputs"),
        ("2 M", "1.9", "the gradients of all steps so far", f"{TRIALS}/decay-rate1.9-2m-bits6"),
        ("2 M", "1.9", "the root mean square, shorter outputs", f"{TRIALS}/decay-rate1.9-2m-rms-scales"),
        ("2 M", "1.9", "the gradients of all steps so far", "small-files/rate1.9"),
        ("2 M", "1.5", "the root mean square, shorter outputs", f"{TRIALS}/decay-rate1.5-2m-rms-scales"),
        ("2 M", "1.5", "the gradients of all steps so far", "small-files/rate1.5/seed1"),
    ):
        runs = arm(name)
        bits = runs[0].config["technique"]["quantize"]["bits"]
        cells = [f"{mean(runs, 'valid', 'loss'):.3f}", f"{mean(runs, 'valid'):.2f}", f"{mean(runs, 'test'):.2f}"]
        rows.append([tokens, rate, bits, what, len(runs), *cells])
    return rows_of(["tokens", "rate", "`bits`", "scales from", "seeds", "valid loss", "valid BLEU", "test BLEU"], rows)


def trials(arms: Sequence[tuple[str, str]]) -> str:
    rows = []
    for what, name in arms:
        runs = arm(f"{TRIALS}/{name}")
        cells = [f"{mean(runs, 'valid', 'loss'):.3f}", f"{mean(runs, 'valid'):.2f}", f"{mean(runs, 'test'):.2f}"]
        rows.append([what, *cells])
    return rows_of(["settings", "valid loss", "valid BLEU", "test BLEU"], rows)


@table("recipe")
def recipe() -> str:
    return trials(
        (
            ("`optimizer.lr=0.001 optimizer.matrix_lr=0.005`, dropout 0.15, `schedule=wsd`", "rate1.9-lr1"),
            ("twice the learning rates", "rate1.9-lr2"),
            ("four times the learning rates", "rate1.9-lr4"),
            ("twice the learning rates, `model.dropout=0.05`", "rate1.9-lr2-dropout0.05"),
            ("twice the learning rates, distilled on logits", "rate1.9-lr2-distill"),
            ("`model.dropout=0.05`", "rate1.9-lr1-dropout0.05"),
            ("`model.dropout=0 schedule=linear`", "rate1.9-lr1-linear-dropout0"),
            ("distilled on logits (alpha 0.8) from a teacher with valid BLEU 34.72", "rate1.9-distill"),
            ("the same, `schedule=linear`", "rate1.9-distill-linear"),
            ("the same, `model.dropout=0.05`", "rate1.9-distill-linear-dropout0.05"),
            ("the same without dropout, with 32 cached logits per position", "rate1.9-distill-linear-dropout0-cached"),
            ("dropout 0.05, cached, from a better teacher (valid BLEU 37.08)", "rate1.9-better-teacher"),
            ("the same, `optimizer.weight_decay=0.3`", "rate1.9-better-teacher-decay0.3"),
            ("the same, `optimizer.weight_decay=1`", "rate1.9-better-teacher-decay1"),
            ("dense, its own dropout and schedule", "dense-dropout0.15"),
            ("dense, `schedule=linear`", "dense-linear"),
            ("dense, `schedule=linear model.dropout=0.05`", "dense-linear-dropout0.05"),
            ("the same, `optimizer.weight_decay=0.3`", "dense-linear-dropout0.05-decay0.3"),
            ("the same, `optimizer.weight_decay=1`", "dense-linear-dropout0.05-decay1"),
        )
    )


@table("small-files-without-decay")
def small_files_without_decay() -> str:
    taught = ["dense-distill", "dense-distill-no-decay"]
    arms = (
        ("dense, trained further", ["dense"]),
        ("the same with the teacher (seeds 2 and 3 without decay)", taught),
        ("4 bits in groups of 64", ["4bit"]),
        ("half of all weights pruned, fp16 (seed 1)", ["prune50"]),
        ("rate 1.9", ["rate1.9"]),
        ("rate 1.5", ["rate1.5"]),
        ("rate 1.2 (seed 1)", ["rate1.2"]),
    )
    rows = trained_on("small-files-without-decay", arms, ("dense", " ".join(taught)))
    header = ["arm", "times smaller", "valid BLEU by seed", "test BLEU by seed"]
    return rows_of(
        [
            *header,
            "difference to dense, valid and test",
            "to dense with the teacher",
            "to dense on test, 95 % interval",
        ],
        rows,
    )


@table("beam")
def beam() -> str:
    scored = {row["run"]: row for row in printed("beam")["rows"]}
    names = ("dense", "4bit", "rate1.9", "rate1.5")
    means = {
        name: [
            fmean(
                row[split]["bleu"]
                for run, row in scored.items()
                if run.startswith(f"small-files-without-decay/{name}/")
            )
            for split in ("valid", "test")
        ]
        for name in names
    }
    rows = []
    for name in names:
        gains = [signed(value - dense) for value, dense in zip(means[name], means["dense"], strict=True)]
        rows.append([name, *(f"{value:.2f}" for value in means[name]), None if name == "dense" else ", ".join(gains)])
    return rows_of(["arm (beam of 5, three seeds)", "valid BLEU", "test BLEU", "difference, valid and test"], rows)


@table("longer")
def longer() -> str:
    rows = []
    for what, name in (("dense", "dense-4m"), ("rate 1.9", "rate1.9-4m"), ("rate 1.5", "rate1.5-4m")):
        runs = arm(f"small-files-without-decay/{name}")
        rows.append([what, ratio(runs), by_seed(runs, "valid"), by_seed(runs, "test")])
    return rows_of(["4 M tokens, seed 1", "times smaller", "valid BLEU", "test BLEU"], rows)


@table("equal-bytes-without-decay")
def equal_bytes_without_decay() -> str:
    study, plain = "small-files-without-decay", "decay 0, dropout 0.15"
    return equal_bytes(
        (
            ("80", plain, f"{study}/narrow80-8bit-no-decay", f"{study}/4bit"),
            ("56", plain, f"{study}/narrow56-8bit-no-decay", f"{study}/rate1.9"),
            ("48", plain, f"{study}/narrow48-8bit-no-decay", f"{study}/rate1.9"),
            ("48", "decay 0.3, dropout 0.05", "small-files/narrow48-8bit/seed1", f"{study}/rate1.9"),
        )
    )


@table("scores")
def scores_and_ranks() -> str:
    rows = []
    for what, name in (
        ("dense, 1.5 M tokens", "dense"),
        ("dense, 0.3 M tokens further", "dense-further"),
        ("half of the blocks' weights zero, `score=magnitude`, in one shot", "magnitude-0.5"),
        ("`score=wanda`", "wanda-0.5"),
        ("`score=sparsegpt`", "sparsegpt-0.5"),
        ("70 %, `score=magnitude`, in one shot", "magnitude-0.7"),
        ("`score=wanda`", "wanda-0.7"),
        ("`score=sparsegpt`", "sparsegpt-0.7"),
        ("70 %, `score=magnitude`, 0.3 M tokens further", "magnitude-trained-0.7"),
        ("`+technique=factorize`, half of each matrix's parameters, 0.3 M tokens further", "factorize"),
    ):
        runs = arm(f"scores/{name}")
        losses = by_seed(runs, "valid", "loss", 3)
        rows.append([what, ratio(runs), losses, by_seed(runs, "valid"), by_seed(runs, "test")])
    return rows_of(["arm", "times smaller", "valid loss", "valid BLEU", "test BLEU"], rows)


@table("demo")
def demo() -> str:
    timed = {row.get("run_kept", row["run"]): row for row in printed("demo")["rows"]}

    def minutes(row: dict[str, Any]) -> str | None:
        seconds = row.get("seconds")
        return f"{seconds // 60} min {seconds % 60} s" if seconds else None

    rows: list[list[Any]] = []
    for what, name in (
        ("current demo: 810 and 530 steps", "normalize/demo-steps/seed1"),
        ("the same before attention was joined", "normalize/demo-steps-before-joined-attention/seed1"),
        ("that, one thread, on a busy machine", "normalize/demo-steps-before-joined-attention-one-thread/seed1"),
        ("budgets in seconds, decay 0", "normalize/demo/seed1"),
        ("budgets in seconds, decay 0.3", "normalize/demo-decay0.3/seed1"),
    ):
        (run,) = arm(name)
        held, teacher, latency = run.summary["bytes"], run.summary["reference"], run.summary["inference"]
        cells = [f"{(held['weights'] + held['header']) / 1e3:.1f} kB", f"{held['ratio']:.2f}"]
        cells += [
            f"{run.summary[split]['exact_match']:.3f} ({teacher[split]['exact_match']:.3f})"
            for split in ("valid", "test")
        ]
        speeds = [f"{latency[part]['latency_ms']['p50']:.1f}" for part in ("file", "plain_fp32")]
        rows.append([what, minutes(timed.get(name, {})), *cells, *speeds])
    for row in printed("demo")["rows"]:
        if "run_kept" not in row:
            rows.append(
                [
                    f"{row['run']} (run not kept)",
                    minutes(row),
                    None,
                    None,
                    None,
                    f"{row['test']:.3f} ({row['teacher_test']:.3f})",
                    None,
                    None,
                ]
            )
    header = ["run", "time", "weights and header", "times smaller", "exact match, valid (teacher)", "test (teacher)"]
    return rows_of([*header, "ms per sentence", "ms in plain fp32"], rows)
