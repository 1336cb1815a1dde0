"""What came in is trained, compressed, distilled from and evaluated like any model, from the command line."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
import yaml

import tfx
from tfx.cli import main
from tfx.data.tokenizer import Tokenizer

QUICK = ["trainer.budget.steps=2", "trainer.threads=1", "evaluation.latency_inputs=1", "evaluation=greedy"]
STACK = ["+technique=[prune,quantize]", "technique.quantize.group=4", "technique.prune.start=0"]


KINDS = ("gpt2", "llama", "marian")


def trained(model, ids, steps=4):
    """Some steps by the library's own loss and torch's optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory, texts, make):
    """Data, and a model of each class, made and trained by `transformers`."""
    here = tmp_path_factory.mktemp("commands")
    (here / "pairs").mkdir()
    for split in ("train", "valid", "test"):
        for side in ("en", "de"):
            (here / "pairs" / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts[:20]))
        (here / f"{split}.txt").write_text(" ".join(texts) * 3)
    generator = torch.Generator().manual_seed(1)
    for kind in KINDS:
        model = make(kind, here / kind)
        trained(model.train(), torch.randint(5, model.config.vocab_size, (4, 12), generator=generator))
        model.eval().save_pretrained(here / kind)
    return here


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("TFX_CACHE", str(place / "cache"))


PAIRS = ["dataset=parallel", "dataset.path=pairs", "dataset.source=en", "dataset.target=de"]
TEXT = ["dataset=text", "dataset.path=."]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_transformers_trained_comes_in_small_and_goes_out_again(place, capsys, tmp_path, kind):
    data = PAIRS if kind == "marian" else TEXT
    run = tmp_path / "run"
    assert main(["train", f"init_from={kind}", *data, *STACK, *QUICK, f"hydra.run.dir={run}"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["bytes"]["ratio"] > 3
    assert summary["evidence"]["prune"]["sparsity"] > 0.3
    assert summary["reference"]["path"].endswith(kind)
    # The config says what came in, not the model that is trained where none is named.
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    theirs = json.loads((place / kind / "config.json").read_text())
    assert (model["name"], model["width"], model["heads"]) == (kind, 16, 4)
    assert model["decoder_layers"] == theirs.get("decoder_layers", 2)
    assert model["kv_heads"] == (2 if kind == "llama" else None)
    assert model["positions"] == {"gpt2": "learned", "llama": "rotary", "marian": "sinusoidal"}[kind]
    capsys.readouterr()
    assert main(["evaluate", kind, *data, "evaluation=greedy", "--json", "--device", "cpu"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["metrics"]["loss"] == pytest.approx(summary["reference"]["test"]["loss"], rel=1e-5)
    words = ["export", str(run), "--to", "transformers", "--output", str(tmp_path / "out"), "--inputs", "4"]
    assert main([*words, "--card", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dequantized"]
    assert facts["equal"] == 1.0
    assert facts["theirs"] == pytest.approx(facts["loss"], abs=1e-4)
    assert f"- started from: {kind}\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_user_may_limit_the_new_tokens_of_an_exported_model_without_a_warning(tmp_path, capsys, caplog):
    words = ["export", "llama", "--to", "transformers", "--output", str(tmp_path / "out"), "--inputs", "2", *TEXT]
    assert main(words) == 0
    transformers.utils.logging.set_verbosity_warning()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with caplog.at_level("WARNING"):
        transformers.utils.logging.enable_propagation()
        assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False).shape[1] <= 5
        transformers.utils.logging.disable_propagation()
    assert "max_length" not in caplog.text


def test_an_imported_file_is_not_overwritten_and_says_what_it_is(place, capsys, tmp_path):
    file = tmp_path / "ours.safetensors"
    assert main(["import", "marian", "--output", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "marian"
    assert facts["bytes"] == file.stat().st_size
    assert main(["import", "marian", "--output", str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["train", "init_from=marian", *STACK, *QUICK, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "name the data with dataset=" in capsys.readouterr().err
    for words in (["model.width=16"], ["model=seq2seq_small"], ["experiment=small", "model.convolution=3"]):
        assert main(["train", "init_from=marian", *PAIRS, *words, *QUICK, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
        error = capsys.readouterr().err
        assert words[-1].partition("=")[0] in error
        assert "leave it out" in error
    assert tfx.load(file).tokenizer.roles == Tokenizer.load(place / "marian").roles


SMALL = ["model.encoder_layers=1", "model.decoder_layers=1", "model.width=16", "model.heads=2", "model.ffn_width=16"]


def test_a_marian_model_teaches_a_student_with_its_tokens_by_logits(tmp_path):
    distill = ["technique=distill", "technique.distill.teacher=marian", "dataset.tokenizer.path=marian"]
    assert main(["train", *PAIRS, *distill, *SMALL, *QUICK, f"hydra.run.dir={tmp_path / 'student'}"]) == 0
    summary = json.loads((tmp_path / "student" / "summary.json").read_text())
    assert summary["evidence"]["distill"]["divergence"] > 0
    # The student's own folder has what another run needs to read the same tokens.
    again = Tokenizer.load(tmp_path / "student" / "tokenizer.json")
    assert again.fingerprint == tfx.load(tmp_path / "student").tokenizer.fingerprint


def test_a_marian_model_teaches_a_student_with_other_tokens_by_its_outputs(place, tmp_path):
    distill = ["technique=distill", "technique.distill.teacher=marian", "technique.distill.sequence_level=true"]
    distill += ["technique.distill.loss=none", "dataset.tokenizer.vocab_size=270"]
    assert main(["train", *PAIRS, *distill, *SMALL, *QUICK, f"hydra.run.dir={tmp_path / 'student'}"]) == 0
    summary = json.loads((tmp_path / "student" / "summary.json").read_text())
    student, teacher = tfx.load(tmp_path / "student").tokenizer, Tokenizer.load(place / "marian")
    assert student.fingerprint != teacher.fingerprint
    assert summary["evidence"]["distill"]["targets_changed"] > 0
