"""Time and memory of `tfx report` on many run directories, and the size of its page.

    python scripts/bench_report.py --runs 500 --sentences 1000

Writes made-up runs (BLEU counts of that many sentences, five seeds a config) to a temporary folder and reports on
them in a process of its own. Prints what was measured; asserts nothing.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SEEDS = 5


def write_run(folder: Path, config: int, seed: int, sentences: int) -> None:
    random = np.random.default_rng([config, seed])
    totals = np.maximum(random.integers(8, 20, sentences)[:, None] - np.arange(4), 1)
    matches = random.binomial(totals, 0.3 + 0.003 * config)
    rows = [
        {
            "source": f"source sentence number {i} of about the usual length",
            "reference": "ein Satz von etwa der üblichen Länge, wie er in Testdaten steht",
            "hypothesis": f"ein Satz von etwa der üblichen Länge, Fassung {matches[i, 0]}",
            "nll": round(float(random.uniform(10, 40)), 4),
            "targets": 15,
            "bleu": [int(totals[i, 0]), int(totals[i, 0]), *map(int, matches[i]), *map(int, totals[i])],
            "chrf": [50, 50, 30] * 6,
        }
        for i in range(sentences)
    ]
    score = 20 + config / 10 + float(random.normal(0, 0.3))
    tensors = [
        {"name": f"{side}.blocks.{i}.{part}.weight", "shape": [128, 128], "codec": "grid", "bits_per_weight": 4.0,
         "sparsity": 0.5, "bytes": 8192}
        for side in ("encoder", "decoder") for i in range(4) for part in ("attention.q", "ffn.up", "ffn.down")
    ]  # fmt: skip
    curve = [
        {"split": split, "step": s, "tokens": s * 4000, "seconds": s / 3, "loss": 8 / s**0.3}
        for s in range(1, 500)
        for split in (("train", "valid") if s % 50 == 0 else ("train",))
    ]
    summary = {
        "status": "completed", "task": "seq2seq", "model": "tiny", "dataset": "made-up",
        "techniques": ["prune"] * (config > 0), "seed": seed, "primary_metric": "bleu",
        "test": {"loss": 2.0, "bleu": score}, "test_split": "test", "reference": None,
        "signatures": {"bleu": "v"}, "bytes": {"file": 9_000_000 - 40_000 * config},
        "train": {"steps": 500, "tokens": 2_000_000, "seconds": 150 + config, "flops": 1e13 + 1e11 * config},
        "inference": {"file": {"latency_ms": {"p50": 20 + float(random.normal())}}},
        "stages": [
            {"name": name, "valid": {"loss": 2 + i / 10}, "bytes": 9e6 / (i + 1), "seconds": 1.0}
            for i, name in enumerate(("trained", "prune", "file"))
        ],
    }  # fmt: skip
    folder.mkdir(parents=True)
    technique = f"{{prune: {{sparsity: {config / 1000}}}}}" if config else "{}"
    settings = "".join(f"  setting_{i}: {i}\n" for i in range(100))
    (folder / "config.yaml").write_text(f"seed: {seed}\ntechnique: {technique}\nmodel:\n{settings}")
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "tensors.json").write_text(json.dumps(tensors))
    for name, lines in (("predictions", rows), ("metrics", curve)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--sentences", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index in range(options.runs):
            write_run(folder / f"{index:04}", index // SEEDS, index % SEEDS, options.sentences)
        code = (
            "import resource, sys; from tfx.cli import main; status = main(sys.argv[1:]);"
            "print('kB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
        )
        start = time.perf_counter()
        command = [sys.executable, "-c", code, "report", str(folder), "--margin", "0.5"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        memory = int(re.findall(r"kB (\d+)", done.stdout)[-1]) / 1e6
        page = (folder / "report.html").stat().st_size / 1e6
        print(
            f"{options.runs} runs, {options.sentences} sentences: {seconds:.1f} s, {memory:.2f} GB, page {page:.2f} MB"
        )


if __name__ == "__main__":
    main()
