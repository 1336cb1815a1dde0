"""What came in is trained, compressed, distilled from and evaluated like any model, from the command line."""

from __future__ import annotations

import json

import pytest

import tfx
from tfx.cli import main

QUICK = ["trainer.budget.steps=2", "trainer.threads=1", "evaluation.latency_inputs=1", "evaluation=greedy"]
STACK = ["+technique=[prune,quantize]", "technique.quantize.group=4", "technique.prune.start=0"]


@pytest.fixture
def place(here, texts, make):
    (here / "pairs").mkdir()
    for split in ("train", "valid", "test"):
        for side in ("en", "de"):
            (here / "pairs" / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts[:20]))
    make("marian", here / "marian")
    return here


PAIRS = ["dataset=parallel", "dataset.path=pairs", "dataset.source=en", "dataset.target=de"]


def test_a_marian_model_is_imported_pruned_quantized_and_scored(place, capsys):
    assert main(["import", "marian", "--output", "ours.safetensors", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "marian"
    assert facts["bytes"] == (place / "ours.safetensors").stat().st_size
    assert main(["import", "marian", "--output", "ours.safetensors"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["train", "init_from=marian", *STACK, *QUICK, "hydra.run.dir=run"]) == 2
    assert "name the data with dataset=" in capsys.readouterr().err
    assert main(["train", "init_from=marian", *PAIRS, *STACK, *QUICK, "hydra.run.dir=run"]) == 0
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert summary["bytes"]["ratio"] > 3
    assert summary["reference"]["path"].endswith("marian")
    assert tfx.load(place / "run").tokenizer.roles == tfx.load(place / "ours.safetensors").tokenizer.roles
    capsys.readouterr()
    assert main(["evaluate", "marian", *PAIRS, "evaluation=greedy", "--json", "--device", "cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert json.dumps(summary["reference"]["test"]["loss"])[:6] in json.dumps(scores)


def test_a_marian_model_teaches_a_student_with_its_tokens(place):
    distill = ["technique=distill", "technique.distill.teacher=marian", "dataset.tokenizer.path=marian"]
    small = ["model.encoder_layers=1", "model.decoder_layers=1", "model.width=16", "model.heads=2"]
    assert main(["train", *PAIRS, *distill, *small, *QUICK, "hydra.run.dir=student"]) == 0
    summary = json.loads((place / "student" / "summary.json").read_text())
    assert summary["evidence"]["distill"]["divergence"] > 0
    # The student's own folder has what another run needs to read the same tokens.
    from tfx.data.tokenizer import Tokenizer

    again = Tokenizer.load(place / "student" / "tokenizer.json")
    assert again.fingerprint == tfx.load(place / "student").tokenizer.fingerprint
