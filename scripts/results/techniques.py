"""Shuffle, mixup and distill, and what every technique adds in an ablation."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from results.files import (
    BASE,
    FOLDER,
    NONE,
    Arm,
    against,
    arm,
    by_seed,
    interval,
    mean,
    megatokens,
    rows_of,
    signed,
    size,
    spread,
    table,
)
from tfx.report.comparison import compare_runs
from tfx.report.runs_file import KeptRun


def technique_rows(of: str, arms: Sequence[tuple[str, str]], costs: Callable[[Arm], list[str]]) -> list[list[Any]]:
    baseline = arm("techniques/baseline")
    rows = []
    for what, name in arms:
        runs = arm(name)
        row = [what, *costs(runs), len(runs), f"{mean(runs, 'valid'):.2f}", spread(runs, "test")]
        if runs == baseline:
            rows.append([*row, None, None])
            continue
        found = interval(of, name)
        difference = f"{against(runs, baseline, 'test')} ({found['low']:+.2f} to {found['high']:+.2f})"
        rows.append([*row, difference, found["p"]])
    return rows


JUDGED = ["seeds", "valid BLEU", "test BLEU, mean ± spread", "difference (95 %)", "p (Holm)"]


@table("techniques-equal-tokens")
def techniques_equal_tokens() -> str:
    arms = (
        ("baseline", "techniques/baseline"),
        ("distill, sequence-level", "techniques/distill-sequence"),
        ("distill, logits", "techniques/distill-logits"),
        ("shuffle, mixup and distill (logits)", "techniques/shuffle-mixup-distill-logits"),
        ("mixup (a quarter of the examples, the default)", "techniques/mixup-share0.25"),
        ("shuffle (a tenth of the sequences, annealed to none at the end)", "techniques/shuffle-share0.1-annealed"),
        ("shuffle, defaults (5 %, annealed to none by half of the budget)", "techniques/shuffle-default"),
    )
    return rows_of(["arm", *JUDGED], technique_rows("techniques-equal-tokens", arms, lambda runs: []))


def teraflops(run: KeptRun) -> tuple[float, float]:
    """TFLOPs of a run with its teacher's decoding, and the same with the teacher's whole training."""
    train, reference = run.summary["train"], run.summary["reference"]
    if not reference:
        return train["flops"] / 1e12, train["flops"] / 1e12
    decoding = max(0.0, train["teacher_flops"] - reference["train"]["flops"])
    own = train["flops"] + decoding
    before = sum(
        teacher.summary["train"]["flops"]
        for name in ("6m/seed1", "6m-then-3m/seed1")
        for teacher in arm(f"multi30k-dense/{name}")
    )
    return own / 1e12, (own + before) / 1e12


@table("techniques-equal-flops")
def techniques_equal_flops() -> str:
    arms = (
        ("baseline", "techniques/baseline"),
        ("distill, logits", "techniques/distill-logits-equal-flops"),
        ("distill, sequence-level, decoding included", "techniques/distill-sequence-equal-flops"),
    )

    def costs(runs: Arm) -> list[str]:
        own, total = (fmean(values) for values in zip(*map(teraflops, runs), strict=True))
        return [megatokens(runs[0]), f"{own:.1f}", f"{total:.1f}"]

    rows = technique_rows("techniques-equal-flops", arms, costs)
    (longer,) = arm("multi30k-dense/1200s")
    greedy = arm("one-shot/1200s-8bit-channel")[0].summary["reference"]
    flops = f"{teraflops(longer)[0]:.1f}"
    scored = [f"{greedy[split]['bleu']:.2f}" for split in ("valid", "test")]
    rows.append(
        [
            "baseline with more FLOPs than teacher and student together",
            megatokens(longer),
            flops,
            flops,
            1,
            *scored,
            None,
            None,
        ]
    )
    header = ["arm", "student tokens", "TFLOPs", "with the teacher's training", *JUDGED]
    return rows_of(header, rows)


@table("techniques-trials")
def techniques_trials() -> str:
    rows = []
    for what, name, first, second in (
        (
            "baseline",
            "baseline",
            ("lr0.002", "defaults"),
            ("lr0.003", "`optimizer.lr=0.003 optimizer.matrix_lr=0.015`"),
        ),
        (
            "shuffle (window 3, a tenth of the sequences)",
            "shuffle",
            ("plain", "no annealing"),
            ("annealed", "`technique.shuffle.anneal=linear`"),
        ),
        ("mixup", "mixup", ("share0.5", "half of the examples"), ("share0.25", "`technique.mixup.share=0.25`")),
        ("distill, logits", "distill-logits", ("alpha0.5", "alpha 0.5"), ("alpha0.8", "`technique.distill.alpha=0.8`")),
        (
            "distill, sequence-level",
            "distill-sequence",
            ("smoothing-default", "default label smoothing"),
            ("smoothing0", "`trainer.label_smoothing=0`"),
        ),
        (
            "shuffle, mixup and distill",
            "shuffle-mixup-distill-logits",
            ("plain", "each with its trial 1 settings"),
            ("tuned", "each with its trial 2 settings"),
        ),
    ):
        values = [mean(arm(f"techniques/trial-{name}-{setting}"), "valid") for setting, _ in (first, second)]
        cells = [
            f"{'**' if value == max(values) else ''}{value:.2f}{'**' if value == max(values) else ''}, {setting}"
            for value, (_, setting) in zip(values, (first, second), strict=True)
        ]
        rows.append([what, *cells])
    return rows_of(["arm", "trial 1, valid BLEU", "trial 2, valid BLEU"], rows)


@table("techniques-untuned")
def techniques_untuned() -> str:
    arms = (
        ("baseline", "techniques/baseline"),
        ("distill, sequence-level", "techniques/untuned-distill-sequence"),
        ("distill, logits (alpha 0.5)", "techniques/untuned-distill-logits"),
        ("shuffle, mixup and distill", "techniques/untuned-shuffle-mixup-distill-logits"),
        ("mixup (half of the examples)", "techniques/untuned-mixup"),
        ("shuffle (a tenth of the sequences)", "techniques/untuned-shuffle"),
    )
    rows = [[what, len(arm(name)), f"{mean(arm(name), 'valid'):.2f}", spread(arm(name), "test")] for what, name in arms]
    return rows_of(["arm, before any tuning", "seeds", "valid BLEU", "test BLEU"], rows)


@table("techniques-decay")
def techniques_decay() -> str:
    rows = []
    for what, plain, taught, alone in (
        ("0", "baseline/seed1", "distill-logits/seed1", "multi30k-dense/6m-then-3m"),
        ("0.3", "baseline-decay0.3", "distill-logits-decay0.3", f"{BASE}/seed1"),
    ):
        baseline, student = arm(f"techniques/{plain}"), arm(f"techniques/{taught}")
        for split in ("valid", "test"):
            cells = [f"{mean(runs, split):.2f}" for runs in (arm(alone), baseline, student)]
            rows.append([what, split, *cells, against(student, baseline, split)])
    return rows_of(["weight decay", "split", "teacher", "baseline", "distill, logits", "difference"], rows)


@table("techniques-normalize")
def techniques_normalize() -> str:
    rows = []
    for what, name in (
        ("baseline", "baseline"),
        ("distill, defaults (alpha 0.8)", "distill-alpha0.8"),
        ("distill, alpha 0.5, the same teacher", "distill-alpha0.5"),
        ("distill, alpha 0.5, a teacher trained by the run", "distill-alpha0.5-trains-teacher"),
    ):
        runs = arm(f"normalize/{name}")
        match = [by_seed(runs, split, "exact_match", 3) for split in ("valid", "test")]
        rows.append([what, *match, by_seed(runs, "test", "loss", 3)])
    teacher = arm("normalize/distill-alpha0.8")[0].summary["reference"]
    scored = [f"{teacher[split]['exact_match']:.3f}" for split in ("valid", "test")]
    rows.append(["the teacher (400 s)", *scored, f"{teacher['test']['loss']:.3f}"])
    return rows_of(["arm", "exact match by seed, valid", "test", "loss on test"], rows)


@table("ablation")
def ablation() -> str:
    baseline = arm("ablation/baseline")
    dense = baseline[0].summary["bytes"]["dense_fp32"]
    rows: list[list[Any]] = []
    for what, name in (
        ("no technique", "baseline"),
        ("distill (logits)", "distill"),
        ("distill, quantize", "distill+quantize"),
        ("distill, prune", "distill+prune"),
        ("distill, prune, quantize", "distill+prune+quantize"),
        ("quantize (4 bits)", "quantize"),
        ("prune (50 %, without embeddings)", "prune"),
        ("prune, quantize", "prune+quantize"),
        ("a narrower dense model, width 72, 8 bits per channel", "narrow72-8bit"),
    ):
        runs = arm(f"ablation/{name}")
        held = fmean(run.summary["bytes"]["weights"] + run.summary["bytes"]["header"] for run in runs)
        difference = None
        if runs != baseline:
            found = interval("ablation", f"ablation/{name}")
            difference = f"{against(runs, baseline, 'test')} ({found['low']:+.2f} to {found['high']:+.2f})"
        rows.append([what, spread(runs, "test"), difference, size(dense / held)])
    return rows_of(["arm", "test BLEU, mean ± spread", "difference (95 %)", "times smaller"], rows)


@table("contributions")
def contributions() -> str:
    (family,) = compare_runs([FOLDER / "ablation.runs.jsonl"]).families
    rows = []
    for row in family.contributions:
        gains = [NONE if gain is None else signed(gain.value) for gain in (row.alone, row.given_others, row.average)]
        found = interval("contributions", row.technique)
        gains[2] += f" ({found['low']:+.2f} to {found['high']:+.2f}), p {found['p']}"
        rows.append([row.technique, *gains])
    return rows_of(["technique", "alone", "given the others", "average over all orders"], rows)
