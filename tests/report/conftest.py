"""Run directories as `tfx train` writes them, with made-up results."""

import json
from pathlib import Path

import numpy as np
import pytest


def write_run(
    folder: Path,
    *,
    techniques: tuple[str, ...] = (),
    seed: int = 1,
    quality: float = 0.6,
    sentences: int = 40,
    hypothesis: str = "ein Hund",
    bytes_: int = 9_000_000,
    tokens: int = 1000,
    fingerprint: str = "a",
    rows: list | None = None,
    summary: dict | None = None,
) -> Path:
    """A completed run of exact-match ``quality``; ``rows`` and ``summary`` replace what is made up."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed + 1000 * len(techniques))
    if rows is None:
        hits = random.random(sentences) < quality
        rows = [
            {"source": f"sentence {i}", "reference": "ein Hund", "hypothesis": hypothesis if hit else "eine Katze",
             "nll": float(random.uniform(5, 9)), "targets": 5, "exact_match": float(hit)}
            for i, hit in enumerate(hits)
        ]  # fmt: skip
    score = float(np.mean([row.get("exact_match", 0.0) for row in rows]))
    stages = [
        {"name": name, "valid": {"loss": 2.0 + i / 10}, "bytes": bytes_ / (i + 1), "parameters": 9, "seconds": 1.0}
        for i, name in enumerate(("trained", *techniques, "file"))
    ]
    content = {
        "status": "completed", "task": "seq2seq", "model": "tiny", "dataset": "made-up", "techniques": list(techniques),
        "seed": seed, "primary_metric": "exact_match", "test": {"loss": 2.0, "exact_match": score},
        "test_split": "test",
        "signatures": {}, "bytes": {"file": bytes_ // (1 + len(techniques))},
        "train": {"steps": 10, "tokens": tokens, "seconds": 5.0, "flops": 1e9 * tokens},
        "inference": {"file": {"latency_ms": {"p50": 3.0 + len(techniques)}}}, "reference": None, "stages": stages,
    } | (summary or {})  # fmt: skip
    technique = "".join(f"\n  {name}: {{share: 0.5}}" for name in techniques) or " {}"
    (folder / "config.yaml").write_text(f"seed: {seed}\nmodel: {{name: tiny}}\ntechnique:{technique}\n")
    (folder / "summary.json").write_text(json.dumps(content))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {
        "fingerprints": {"data": fingerprint, "tokenizer": "t"},
        "hardware": {"processor": "p"},
        "packages": {},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    curve = [{"split": "valid", "step": s, "tokens": s * 100, "seconds": s, "loss": 3 - s / 5} for s in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    return folder


def write_extras(folder: Path) -> None:
    """`tensors.json` and `attention.json`."""
    tensors = [
        {"name": f"{side}.blocks.{i}.{part}.weight", "shape": [8, 8], "codec": "grid", "bits_per_weight": 4.0 + i,
         "sparsity": i / 4, "bytes": 32}
        for side in ("encoder", "decoder") for i in range(3) for part in ("attention.q", "ffn.up")
    ]  # fmt: skip
    (folder / "tensors.json").write_text(json.dumps(tensors))
    weights = np.eye(3)[None].tolist()
    layers = [{"name": name, "weights": weights} for name in ("encoder 0 self", "decoder 0 cross")]
    row = {"tokens_source": ["a", "<b>", "$c$"], "tokens_target": ["x", "y", "z"], "layers": layers}
    (folder / "attention.json").write_text(json.dumps([row]))


@pytest.fixture
def run_writer():
    """`write_run`, for tests that need more runs than `sweep` has."""
    return write_run


@pytest.fixture
def sweep(tmp_path):
    """Two arms with three seeds each, and one run with every side file."""
    for seed in (1, 2, 3):
        write_run(tmp_path / f"base{seed}", seed=seed)
        write_run(tmp_path / f"prune{seed}", seed=seed, techniques=("prune",), quality=0.3)
    write_extras(tmp_path / "base1")
    return tmp_path
