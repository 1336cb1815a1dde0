"""Makes every table of docs/RESULTS.md from the files under docs/results.

    python scripts/make_results.py            # writes docs/RESULTS.md again
    python scripts/make_results.py --check    # status 1 where it is not what the files give

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. Kept runs (``*.runs.jsonl``) are named as
`tfx.report.kept` says; what no kept run holds was printed by a script and lies under ``benchmarks/``, with its command,
machine and date.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tfx.report.comparison import compare_runs
from tfx.report.kept import KeptRun, read_kept

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "RESULTS.md"
FOLDER = ROOT / "docs" / "results"
TABLES: dict[str, Callable[[], str]] = {}
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NONE = "–"

Arm = Sequence[KeptRun]


def table(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES[name] = make
        return make

    return register


def make(page: str) -> str:
    """The page with its tables made anew; raises `KeyError` where a marker names no table, or a table has no marker."""
    unused = set(TABLES)

    def replace(match: re.Match[str]) -> str:
        unused.discard(match[2])
        return f"{match[1]}{TABLES[match[2]]()}{match[3]}"

    made = MARKED.sub(replace, page)
    if unused:
        raise KeyError(f"no marker in the page names {', '.join(sorted(unused))}")
    return made


# What the files hold.


@cache
def kept_runs() -> dict[str, KeptRun]:
    found = {}
    for file in sorted(FOLDER.glob("*.runs.jsonl")):
        for path, run in read_kept(file):
            if isinstance(run, str):
                raise ValueError(f"{path}: {run}")
            found[path.relative_to(FOLDER).as_posix()] = run
    return found


def arm(*names: str) -> Arm:
    """The runs of the arms, in the order of their seeds; a name that ends with a seed is that run alone."""
    found = [
        (name.rsplit("/seed", 1)[1], run)
        for name, run in kept_runs().items()
        if name in names or name.rsplit("/seed", 1)[0] in names
    ]
    if not found:
        raise KeyError(f"no kept run is named {' or '.join(names)}")
    return [run for _, run in sorted(found, key=lambda item: item[0])]


def seed(run: KeptRun) -> str:
    return run.name.rsplit("seed", 1)[1]


@cache
def printed(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def interval(of: str, name: str) -> dict[str, Any]:
    """What `tfx report` printed of an arm, of which only the run directories' predictions could give it again."""
    found: dict[str, Any]
    (found,) = (row for row in printed("intervals")["rows"] if (row["table"], row["arm"]) == (of, name))
    return found


# Numbers of an arm.


def scores(runs: Arm, split: str, metric: str = "bleu") -> list[float]:
    return [run.summary[split][metric] for run in runs]


def mean(runs: Arm, split: str, metric: str = "bleu") -> float:
    return fmean(scores(runs, split, metric))


def by_seed(runs: Arm, split: str, metric: str = "bleu", digits: int = 2) -> str:
    return ", ".join(f"{score:.{digits}f}" for score in scores(runs, split, metric))


def spread(runs: Arm, split: str) -> str:
    values = scores(runs, split)
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def against(runs: Arm, others: Arm, split: str) -> str:
    """The difference of the means over the seeds that both have."""
    pairs = {seed(run): run for run in others}
    shared = [run for run in runs if seed(run) in pairs]
    return signed(mean(shared, split) - mean([pairs[seed(run)] for run in shared], split))


def lost(runs: Arm, split: str) -> str:
    """The mean difference to the reference that each run was measured beside."""
    return signed(fmean(run.summary[split]["bleu"] - run.summary["reference"][split]["bleu"] for run in runs))


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("+0.00", "0.00").replace("-0.00", "0.00")


def ratio(runs: Arm) -> str:
    """How many times smaller weights and header are than as plain fp32."""
    return size(fmean(run.summary["bytes"]["ratio"] for run in runs))


def size(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def megatokens(run: KeptRun) -> str:
    return f"{run.summary['train']['tokens'] / 1e6:.2f} M"


def rows_of(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(NONE if cell is None else str(cell) for cell in line) + " |\n" for line in lines)


def benchmark(name: str, columns: Sequence[tuple[str, str, str]]) -> str:
    """A printed file's rows: for each column its title, its key, and how its numbers are written."""
    cells = [
        [
            value if isinstance(value := row.get(key), (str, type(None))) else format(value, how)
            for _, key, how in columns
        ]
        for row in printed(name)["rows"]
    ]
    return rows_of([title for title, _, _ in columns], cells)


# Dense models.

BASE = "multi30k-dense/6m-decay0.3-dropout0.05"
TRIALS = "small-files-trials"


@table("repeats")
def repeats() -> str:
    rows = [
        [what, by_seed(runs, "valid"), by_seed(runs, "test")]
        for what, runs in (
            ("first version", arm("small-files-trials/decay-rate1.9-2m-bits5-repeat")),
            ("second version", arm("small-files/rate1.9/seed2")),
        )
    ]
    return rows_of(["the same config and seed, by two versions of the code", "valid BLEU", "test BLEU"], rows)


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
    return rows_of(["model", "tokens of its last training", "valid BLEU by seed", "test BLEU by seed"], rows)


@table("weight-decay")
def weight_decay() -> str:
    rows = []
    for what, name in (
        ("`optimizer.weight_decay=0`, dropout 0.15", "multi30k-dense/6m"),
        ("0.3 (the default)", "multi30k-dense/6m-decay0.3"),
        ("0.3 and `model.dropout=0.05`", BASE),
    ):
        runs = arm(name)
        rows.append([what, by_seed(runs, "valid", "loss", 3), by_seed(runs, "valid"), by_seed(runs, "test")])
    return rows_of(["settings", "valid loss by seed", "valid BLEU", "test BLEU"], rows)


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
            "`trainer.budget.tokens=4500000` (a decay of 0.3, the default)",
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
        ("a decay of 0.3 (the default), one thread", "gpt-nano-decay0.3"),
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
    return rows_of(["settings", "valid loss", "bits a byte", "training", "tokens/s"], rows)


# Speed.

PAIRED = (
    ("arm", "arm", ""),
    ("tokens/s (median)", "tokens_per_second", ",.0f"),
    ("ratio", "ratio", ".3f"),
    ("lowest", "lowest", ".3f"),
    ("highest", "highest", ".3f"),
)
TABLES["training-speed"] = lambda: benchmark(
    "training-speed", [(title, key, how.replace("3", "2")) for title, key, how in PAIRED]
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
        ("training stands still, s", "stands_still_s", ".3f"),
        ("until it is on the disk, s", "on_disk_s", ".3f"),
        ("share of five minutes, %", "share_percent", ".3f"),
        ("with the writing, %", "share_with_writing_percent", ".3f"),
    ],
)
TABLES["decoding"] = lambda: benchmark(
    "decoding", [("arm", "arm", ""), ("batch 1", "batch_1", ".2f"), ("batch 32", "batch_32", ".2f")]
)


# Shuffle, mixup, distill.


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
        ("shuffle (a tenth of the sequences, falling to none at the end)", "techniques/shuffle-share0.1-annealed"),
        ("shuffle as it ships (5 %, falling to none by half of the budget)", "techniques/shuffle-default"),
    )
    return rows_of(["arm", *JUDGED], technique_rows("techniques-equal-tokens", arms, lambda runs: []))


def teraflops(run: KeptRun) -> tuple[float, float]:
    """What the run took, a teacher's decoding with it, and with all that the teacher's training took."""
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
        ("distill, sequence-level, its decoding counted", "techniques/distill-sequence-equal-flops"),
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
            "baseline, trained for more than teacher and student together",
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
            ("smoothing-default", "label smoothing as it ships"),
            ("smoothing0", "`trainer.label_smoothing=0`"),
        ),
        (
            "shuffle, mixup and distill",
            "shuffle-mixup-distill-logits",
            ("plain", "the first settings of the three"),
            ("tuned", "their second settings"),
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
    return rows_of(["arm, before any was tuned", "seeds", "valid BLEU", "test BLEU"], rows)


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
        ("distill, as it ships (alpha 0.8)", "distill-alpha0.8"),
        ("distill, alpha 0.5, the same teacher", "distill-alpha0.5"),
        ("distill, alpha 0.5, trains its own teacher", "distill-alpha0.5-trains-teacher"),
    ):
        runs = arm(f"normalize/{name}")
        match = [by_seed(runs, split, "exact_match", 3) for split in ("valid", "test")]
        rows.append([what, *match, by_seed(runs, "test", "loss", 3)])
    teacher = arm("normalize/distill-alpha0.8")[0].summary["reference"]
    scored = [f"{teacher[split]['exact_match']:.3f}" for split in ("valid", "test")]
    rows.append(["their teacher (400 s)", *scored, f"{teacher['test']['loss']:.3f}"])
    return rows_of(["arm", "exact match by seed, valid", "test", "loss on test"], rows)


# Compression.


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
            ("the same, scales by root mean square (before)", "rate3-rms-scales"),
            ("`rate=2 bits=5`", "rate2"),
            ("the same, scales by root mean square (before)", "rate2-rms-scales"),
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
            ("`rate=3 bits=5`, scales by root mean square", "rate3"),
            ("`rate=2`, scales by root mean square", "rate2"),
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
            ("the same with 8 bits a channel", "prune50-8bit-channel"),
        ),
    )


def trained_on(
    study: str, arms: Sequence[tuple[str, Sequence[str]]], others: Sequence[str] = ("dense",)
) -> list[list[Any]]:
    """Rows of arms that were trained on: ratio, BLEU by seed, difference to each dense arm over the seeds shared."""
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
        ("dense, trained on", ["dense"]),
        ("the same in 8 bits a channel, in one shot", ["dense-8bit-channel"]),
        ("4 bits in groups of 64", ["4bit"]),
        ("half of all weights pruned, fp16 (seeds 1 and 2; 1 without decay)", ["prune50-no-decay", "prune50"]),
        ("a rate of 1.9", ["rate1.9"]),
        ("a rate of 1.7", ["rate1.7"]),
        ("a rate of 1.5", ["rate1.5"]),
    )
    header = [
        "arm",
        "times smaller",
        "valid BLEU by seed",
        "test BLEU by seed",
        "difference, valid and test",
        "95 % on test",
    ]
    return rows_of(header, trained_on("small-files", arms))


def equal_bytes(arms: Sequence[tuple[str, str, str, str]]) -> str:
    """Narrow models beside the compressed one of their size: width, what differs, its arm, the compressed arm."""
    dense = arm(BASE)[0].summary["bytes"]["dense_fp32"]
    rows = []
    for width, what, name, other in arms:
        runs, compressed = arm(name), arm(f"{other}/seed1")
        held = fmean(run.summary["bytes"]["weights"] + run.summary["bytes"]["header"] for run in runs)
        beside = [f"{mean(compressed, split):.2f}" for split in ("valid", "test")]
        label = f"{other.rsplit('/', 1)[1]} ({ratio(compressed)})"
        rows.append([width, what, size(dense / held), by_seed(runs, "valid"), by_seed(runs, "test"), label, *beside])
    header = ["width, 8 bits", "settings", "times smaller than width 128", "valid BLEU", "test BLEU"]
    return rows_of([*header, "compressed, seed 1", "valid", "test"], rows)


@table("equal-bytes")
def equal_bytes_with_decay() -> str:
    own = "decay 0.3, dropout 0.05"
    return equal_bytes(
        (
            ("80", own, "small-files/narrow80-8bit", "small-files/4bit"),
            ("48", own, "small-files/narrow48-8bit", "small-files/rate1.9"),
            ("48", f"{own}, their teacher", "small-files/narrow48-8bit-distill", "small-files/rate1.9"),
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
            ("length, of the references'", "length_ratio", ".3f"),
            ("brevity penalty", "brevity_penalty", ".3f"),
        ],
    )


@table("scales")
def scales() -> str:
    rows = []
    for tokens, rate, what, name in (
        ("1.2 M", "1.9", "root mean square", f"{TRIALS}/decay-rate1.9-1.2m-rms-scales"),
        ("1.2 M", "1.9", "gradients of the last 50 steps", f"{TRIALS}/decay-rate1.9-1.2m-last-50-steps"),
        ("1.2 M", "1.9", "gradients of all steps so far (what tfx does)", f"{TRIALS}/decay-rate1.9-1.2m-all-steps"),
        ("2 M", "1.9", "root mean square", f"{TRIALS}/decay-rate1.9-2m-rms-scales-longer-outputs"),
        ("2 M", "1.9", "gradients of all steps so far", f"{TRIALS}/decay-rate1.9-2m-bits6"),
        ("2 M", "1.9", "root mean square, shorter outputs", f"{TRIALS}/decay-rate1.9-2m-rms-scales"),
        ("2 M", "1.9", "gradients of all steps so far", "small-files/rate1.9"),
        ("2 M", "1.5", "root mean square, shorter outputs", f"{TRIALS}/decay-rate1.5-2m-rms-scales"),
        ("2 M", "1.5", "gradients of all steps so far", "small-files/rate1.5/seed1"),
    ):
        runs = arm(name)
        bits = runs[0].config["technique"]["quantize"]["bits"]
        cells = [f"{mean(runs, 'valid', 'loss'):.3f}", f"{mean(runs, 'valid'):.2f}", f"{mean(runs, 'test'):.2f}"]
        rows.append([tokens, rate, bits, what, len(runs), *cells])
    return rows_of(["tokens", "rate", "`bits`", "scales by", "seeds", "valid loss", "valid BLEU", "test BLEU"], rows)


def trials(arms: Sequence[tuple[str, str]]) -> str:
    rows = []
    for what, name in arms:
        runs = arm(f"{TRIALS}/{name}")
        cells = [f"{mean(runs, 'valid', 'loss'):.3f}", f"{mean(runs, 'valid'):.2f}", f"{mean(runs, 'test'):.2f}"]
        rows.append([what, *cells])
    return rows_of(["what", "valid loss", "valid BLEU", "test BLEU"], rows)


@table("recipe")
def recipe() -> str:
    return trials(
        (
            ("`optimizer.lr=0.001 optimizer.matrix_lr=0.005`, dropout 0.15, `schedule=wsd`", "rate1.9-lr1"),
            ("twice the learning rates", "rate1.9-lr2"),
            ("four times", "rate1.9-lr4"),
            ("twice, `model.dropout=0.05`", "rate1.9-lr2-dropout0.05"),
            ("twice, distilled by logits", "rate1.9-lr2-distill"),
            ("`model.dropout=0.05`", "rate1.9-lr1-dropout0.05"),
            ("`model.dropout=0 schedule=linear`", "rate1.9-lr1-linear-dropout0"),
            ("distilled by logits (alpha 0.8) from a teacher of valid 34.72", "rate1.9-distill"),
            ("the same, `schedule=linear`", "rate1.9-distill-linear"),
            ("the same, `model.dropout=0.05`", "rate1.9-distill-linear-dropout0.05"),
            ("the same without dropout, from 32 cached logits a position", "rate1.9-distill-linear-dropout0-cached"),
            ("dropout 0.05, cached, from a better teacher (valid 37.08)", "rate1.9-better-teacher"),
            ("the same, `optimizer.weight_decay=0.3`", "rate1.9-better-teacher-decay0.3"),
            ("the same, `optimizer.weight_decay=1`", "rate1.9-better-teacher-decay1"),
            ("dense: its own dropout and schedule", "dense-dropout0.15"),
            ("dense: `schedule=linear`", "dense-linear"),
            ("dense: `schedule=linear model.dropout=0.05`", "dense-linear-dropout0.05"),
            ("the same, `optimizer.weight_decay=0.3`", "dense-linear-dropout0.05-decay0.3"),
            ("the same, `optimizer.weight_decay=1`", "dense-linear-dropout0.05-decay1"),
        )
    )


@table("small-files-without-decay")
def small_files_without_decay() -> str:
    taught = ["dense-distill", "dense-distill-no-decay"]
    arms = (
        ("dense, trained on", ["dense"]),
        ("the same with the teacher (seeds 2 and 3 without decay)", taught),
        ("4 bits in groups of 64", ["4bit"]),
        ("half of all weights pruned, fp16 (seed 1)", ["prune50"]),
        ("a rate of 1.9", ["rate1.9"]),
        ("a rate of 1.5", ["rate1.5"]),
        ("a rate of 1.2 (seed 1)", ["rate1.2"]),
    )
    rows = trained_on("small-files-without-decay", arms, ("dense", " ".join(taught)))
    header = ["arm", "times smaller", "valid BLEU by seed", "test BLEU by seed"]
    return rows_of([*header, "to dense, valid and test", "to dense with the teacher", "to dense on test, 95 %"], rows)


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
    return rows_of(["arm, by a beam of 5, three seeds", "valid BLEU", "test BLEU", "difference, valid and test"], rows)


@table("longer")
def longer() -> str:
    rows = []
    for what, name in (("dense", "dense-4m"), ("a rate of 1.9", "rate1.9-4m"), ("a rate of 1.5", "rate1.5-4m")):
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


@table("demo")
def demo() -> str:
    timed = {row.get("run_kept", row["run"]): row for row in printed("demo")["rows"]}

    def minutes(row: dict[str, Any]) -> str | None:
        seconds = row.get("seconds")
        return f"{seconds // 60} min {seconds % 60} s" if seconds else None

    rows: list[list[Any]] = []
    for what, name in (
        ("decay 0 (what it ships with)", "normalize/demo/seed1"),
        ("decay 0.3", "normalize/demo-decay0.3/seed1"),
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
    return rows_of([*header, "ms a sentence", "as plain fp32"], rows)


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
        ("prune (50 %, embeddings left out)", "prune"),
        ("prune, quantize", "prune+quantize"),
        ("a narrower dense model, width 72, 8 bits a channel", "narrow72-8bit"),
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
    return rows_of(["technique", "alone", "given the others", "on average over all orders"], rows)


@table("tried")
def tried() -> str:
    plain, decay = "small-files-without-decay/rate1.9/seed1", "small-files/rate1.9/seed1"
    short = f"{TRIALS}/decay-rate1.9-1.2m-all-steps"
    dense5 = f"{TRIALS}/from-5m-dense-2.5m/seed1"
    rows: list[list[Any]] = []
    for what, name, beside, other in (
        (
            "shuffle of a tenth of the sequences, annealed",
            "techniques/shuffle-share0.1-annealed",
            "no technique",
            "techniques/baseline",
        ),
        ("mixup of half of the examples", "techniques/untuned-mixup", "no technique", "techniques/baseline"),
        (
            "shuffle and mixup beside logits",
            "techniques/shuffle-mixup-distill-logits",
            "logits alone",
            "techniques/distill-logits",
        ),
        (
            "recipe of 1.9 without decay, logits alone",
            f"{TRIALS}/rate1.9-2m-no-decay-logits",
            "decay and the teacher's outputs",
            plain,
        ),
        ("recipe of 1.9 without decay", f"{TRIALS}/rate1.9-2m-no-decay-logits-and-outputs", "decay 1", plain),
        ("an average of the weights", f"{TRIALS}/rate1.9-2m-averaged", "none", plain),
        ("soft targets alone (alpha 1)", f"{TRIALS}/rate1.9-2m-soft-targets-alone", "alpha 0.8", plain),
        ("twice the learning rates", f"{TRIALS}/rate1.9-2m-lr2", "the recipe", plain),
        ("half of them, twice the decay", f"{TRIALS}/rate1.9-2m-lr0.5-decay2", "the recipe", plain),
        ("no outputs of the teacher", f"{TRIALS}/rate1.9-2m-no-outputs", "its outputs too", plain),
        ("the dense arm as teacher, 2 M tokens", f"{TRIALS}/decay-rate1.9-2m-own-teacher", "a better teacher", decay),
        (
            "its logits on real targets, 1.2 M tokens",
            f"{TRIALS}/decay-rate1.9-1.2m-own-teacher-logits",
            "a better teacher",
            short,
        ),
        (
            "its last hidden states as well",
            f"{TRIALS}/decay-rate1.9-1.2m-own-teacher-hidden",
            "logits",
            f"{TRIALS}/decay-rate1.9-1.2m-own-teacher-logits",
        ),
        ("a rate that falls from 3.5 to 1.9", f"{TRIALS}/decay-rate1.9-1.2m-ramp", "1.9 from the start", short),
        ("an L1 penalty", f"{TRIALS}/decay-rate1.9-1.2m-l1-penalty", "weight decay", short),
        (
            "a rate of 1.9 as it was first, 3 M tokens",
            f"{TRIALS}/rate1.9-3m-first",
            "dense",
            "multi30k-dense/6m-then-3m",
        ),
        (
            "the same on the teacher's outputs",
            f"{TRIALS}/rate1.9-3m-first-outputs",
            "dense",
            "multi30k-dense/6m-then-3m",
        ),
        (
            "half pruned, logits, 2 M tokens, no decay",
            f"{TRIALS}/prune50-2m-no-decay",
            "dense",
            f"{TRIALS}/dense-2m-no-decay",
        ),
        ("60 % pruned and 3 bits, 2.5 M tokens", f"{TRIALS}/from-5m-prune60-3bit-2.5m", "dense", dense5),
        ("the same with logits of a better teacher", f"{TRIALS}/from-5m-prune60-3bit-logits-2.5m", "dense", dense5),
        ("the same on its own outputs", f"{TRIALS}/from-5m-prune60-3bit-outputs-2.5m", "dense", dense5),
        ("70 % pruned and 3 bits on its own outputs", f"{TRIALS}/from-5m-prune70-3bit-outputs-2.5m", "dense", dense5),
        ("2 bits in groups on its own outputs", f"{TRIALS}/from-5m-2bit-outputs-2.5m", "dense", dense5),
        ("4 bits, 1.25 M tokens", f"{TRIALS}/from-5m-4bit-1.25m", "dense", f"{TRIALS}/from-5m-dense-1.25m"),
        (
            "the same with its own logits",
            f"{TRIALS}/from-5m-4bit-logits-1.25m",
            "dense",
            f"{TRIALS}/from-5m-dense-1.25m",
        ),
        (
            "the same on its own outputs",
            f"{TRIALS}/from-5m-4bit-outputs-1.25m",
            "dense",
            f"{TRIALS}/from-5m-dense-1.25m",
        ),
        (
            "half of the blocks' weights pruned, 1.25 M tokens",
            f"{TRIALS}/from-5m-prune50-blocks-1.25m",
            "dense",
            f"{TRIALS}/from-5m-dense-1.25m",
        ),
    ):
        runs, others = arm(name), arm(other)
        cells = [
            f"{mean(x, 'valid', 'loss'):.3f}; {mean(x, 'valid'):.2f}, {mean(x, 'test'):.2f}" for x in (runs, others)
        ]
        rows.append([what, ratio(runs), cells[0], beside, cells[1]])
    rows += [[row["tried"], None, row["result"], None, None] for row in printed("tried")["rows"]]
    header = ["tried", "times smaller", "valid loss; BLEU on valid, test", "instead of, or beside", "which has"]
    return rows_of(header, rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where the page would change")
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    made = make(page)
    if options.check:
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
