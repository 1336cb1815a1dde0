"""`tfx export` says what is missing before it reads anything."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

import tfx
from tfx.cli import main
from tfx.exchange import target, to_safetensors
from tfx.exchange.targets import TARGETS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "transformer", "--output", "out"], "did you mean 'transformers'?"),
        (["--to", "ctranslate2", "--output", "out"], "pip install 'path/to/tfx[ctranslate2]'"),
        (["--to", "transformers", "--output", "."], "--output . exists already: name a new folder"),
        (["--to", "transformers", "--output", "out", "--inputs", "0"], "it must be at least 1"),
    ],
)
def test_a_missing_library_or_a_wrong_word_is_one_line(here, monkeypatch, capsys, words, message):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    assert main(["export", "run", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(here.iterdir())


def test_the_models_that_export_are_listed(capsys):
    assert main(["list", "models", "--json"]) == 0
    exports = json.loads(capsys.readouterr().out)["exports"]
    assert exports["seq2seq_tiny"] == ["ctranslate2", "onnx", "safetensors"]
    assert exports["gpt_nano"] == ["transformers", "ctranslate2", "onnx", "safetensors"]
    assert exports["encoder_tiny"] == ["onnx", "safetensors"]
    assert exports["encoder_base"] == ["transformers", "onnx", "safetensors"]


SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
QUICK = ["trainer.budget.steps=4", "evaluation=greedy", "evaluation.latency_inputs=2", "dataset.limit.train=40"]
FEW = ["dataset.limit.valid=20", "dataset.limit.test=20"]


@pytest.fixture(scope="module")
def run(folder):
    path = folder / "run"
    stack = ["+technique=[prune,quantize]", "technique.quantize.group=4"]
    assert main(["train", *SMALL, *QUICK, *FEW, *stack, "seed=7", f"hydra.run.dir={path}"]) == 0
    return path


def test_a_compressed_run_leaves_as_plain_tensors_with_a_card(run, tmp_path, capsys):
    capsys.readouterr()
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "safetensors", "--output", str(out), "--card", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["equal"], found["inputs"], found["dequantized"]) == (1.0, 20, True)
    ours = tfx.load(run)
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    tensors = safetensors.torch.load_file(out / "model.safetensors")
    state = ours.model.state_dict()
    assert set(tensors) == set(state) - {"output.weight", "source_embedding.weight"}
    assert all(torch.equal(tensors[name], state[name]) for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == json.loads(json.dumps(ours.model.architecture.to_dict()))
    assert config["tied"] == {"output.weight": "embedding.weight", "source_embedding.weight": "embedding.weight"}
    assert (out / "tokenizer.json").read_text() == ours.tokenizer.to_json()
    check_card((out / "README.md").read_text(), json.loads((run / "summary.json").read_text()))


def check_card(text, summary):
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "unknown"
    assert facts["tags"] == ["tfx", "prune", "quantize"]
    assert facts["metrics"] == list(summary["test"])
    for line in (
        "- data set: normalize",
        f"- tokens: {summary['train']['tokens']:,}",
        "- techniques: prune, quantize",
        "- seed: 7",
        f"- bytes of the run's file: {summary['bytes']['file']:,} ({summary['bytes']['dense_fp32']:,} as plain",
        f"p50 {summary['inference']['file']['latency_ms']['p50']:.1f} ms",
        f"| loss | {summary['test']['loss']:.4g} |",
        "one run with seed 7",
        "- latency in this format: unknown",
        "dequantized",
    ):
        assert line in body
    # The signature holds bars, which must not end a cell of the table.
    assert summary["signatures"]["chrf"].replace("|", "\\|") in body


def test_a_card_of_a_bare_file_says_what_is_unknown(run, tmp_path, capsys):
    words = ["export", str(run / "model.safetensors"), "--to", "safetensors", "--output", str(tmp_path / "out")]
    assert main([*words, "--card", "--numbers", "bfloat16", "--inputs", "4", "dataset=normalize", *FEW]) == 0
    assert "weights in bfloat16" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- data set: unknown" in text
    assert "- licence of the data: unknown\n" in text
    assert "Unknown: no run with scores was given." in text
    assert main([*words, "dataset=normalize", "--texts", "x"]) == 2
    tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_tensors_that_read_back_otherwise_leave_nothing(run, tmp_path, capsys, monkeypatch):
    def spoiled(folder: Path, loaded):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        tensors["decoder.blocks.0.ffn.up.weight"] += 0.3
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
        return to_safetensors.Plain(folder, loaded)

    monkeypatch.setitem(TARGETS, "safetensors", replace(TARGETS["safetensors"], reopen=spoiled))
    assert main(["export", str(run), "--to", "safetensors", "--output", str(tmp_path / "out")]) == 2
    assert "the model in safetensors differs" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
