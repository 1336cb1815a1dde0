"""Another library decodes what the model decodes, from a file that is converted once."""

from __future__ import annotations

import importlib.util
import io
import json

import pytest
import torch

from tfx.cli import main
from tfx.compression.checkpoint import load, save
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.evaluation.engines import opening
from tfx.exchange.target import Target
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise

ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs extra {name}"))
    for name, module in (("ctranslate2", "ctranslate2"), ("onnx", "onnxruntime"))
]
SMALL = {
    "width": 16,
    "heads": 2,
    "ffn_width": 16,
    "context": 64,
    "decoder_layers": 1,
    "positions": "rotary",
    "output_bias": True,
}
PAIRS = ["dataset=parallel", "dataset.path=pairs", "dataset.source=en", "dataset.target=de"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, texts):
    """Data, an encoder-decoder and a language model, each with every weight of weight."""
    here = tmp_path_factory.mktemp("engines")
    (here / "pairs").mkdir()
    for split in ("train", "valid", "test"):
        for side in ("en", "de"):
            (here / "pairs" / f"{split}.{side}").write_text("".join(f"{text}\n" for text in texts[:30]))
    for family, blocks in (("seq2seq", 1), ("lm", 0)):
        config = ModelConfig(dropout=0.0, family=family, encoder_layers=blocks, **SMALL)
        tokenizer = Tokenizer.train(
            TokenizerConfig(kind="bpe", vocab_size=280), texts, word_initial_space=family == "seq2seq"
        )
        model = Transformer(Architecture.from_config(config, tokenizer.vocab_size))
        initialise(model, 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)), alpha=0.3)
            # So that outputs end by themselves: a limit of CTranslate2 is that of a whole batch.
            model.output.bias[tokenizer.eos] += 5.0 if family == "seq2seq" else 0.0
        save(here / f"{family}.safetensors", model, tokenizer, EvaluationConfig())
    return here


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("TFX_CACHE", str(place / "cache"))


def evaluated(tmp_path, capsys, *words):
    """Outputs, and what was said."""
    file = tmp_path / "predictions.jsonl"
    assert main(["evaluate", "seq2seq.safetensors", *PAIRS, *words, "--predictions", str(file), "--device", "cpu"]) == 0
    return [json.loads(line)["hypothesis"] for line in file.read_text().splitlines()], capsys.readouterr().err


@pytest.mark.parametrize("engine", ENGINES)
def test_the_outputs_are_those_of_the_model_and_it_is_converted_once(tmp_path, capsys, monkeypatch, engine):
    own = {method: evaluated(tmp_path, capsys, *method)[0] for method in METHODS}
    assert len(set(own[METHODS[0]])) > 5
    for method, expected in own.items():
        found, said = evaluated(tmp_path, capsys, *method, f"evaluation.engine={engine}")
        assert found == expected
        assert "length^alpha" not in said
        # From the second time on no model is read for it, and none written.
        monkeypatch.setattr(opening, "_convert", None)
    capsys.readouterr()
    _, said = evaluated(tmp_path, capsys, "evaluation.beam=2", f"evaluation.engine={engine}")
    assert ("length^alpha" in said) == (engine == "ctranslate2")


METHODS = (("evaluation=greedy",), ("evaluation.beam=3", "evaluation.length_penalty=0"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_language_model_continues_as_it_does_itself(capsys, monkeypatch, engine):
    def generated(*words):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the quick\nlazy dog while eleven good boys\n")))
        assert main(["generate", "lm.safetensors", "--new-tokens", "8", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    expected = generated("--method", "greedy")
    assert generated("--method", "greedy", "--engine", engine) == expected
    if engine == "onnx":
        assert generated("--method", "sample", "--engine", engine) == generated("--method", "sample") != expected
    words = ["generate", "lm.safetensors", "the", "--method", "greedy", "--new-tokens", "70"]
    assert main(words) == 0
    long = capsys.readouterr().out
    assert main([*words, "--engine", engine]) == (2 if engine == "ctranslate2" else 0)
    shown = capsys.readouterr()
    assert "stops at the context of 64 tokens" in shown.err if engine == "ctranslate2" else shown.out == long


def test_one_that_decodes_by_itself_gives_no_scores(capsys):
    pytest.importorskip("ctranslate2")
    words = ["generate", "seq2seq.safetensors", "the quick", "--engine", "ctranslate2", "--method", "greedy", "--json"]
    assert main(words) == 2
    assert "gives one output, without prefix, score and log-probabilities" in capsys.readouterr().err
    assert main(["generate", "seq2seq.safetensors", "the", "--engine", "ctranslate2", "--min-length", "3"]) == 2
    assert "does not follow evaluation.min_length" in capsys.readouterr().err


def test_what_an_engine_cannot_do_and_what_is_missing_is_one_line(monkeypatch):
    loaded = load("seq2seq.safetensors")

    def message(**settings):
        with pytest.raises(UserError) as error:
            opening.open_engine(loaded, EvaluationConfig(**settings))
        return str(error.value)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert message(engine="onnx") == "evaluation.engine=onnx needs an extra: pip install 'path/to/tfx[onnx]'"
    monkeypatch.setattr(Target, "require", lambda target, what: None)
    assert "decodes by greedy and beam search" in message(engine="ctranslate2", method="sample")
    assert "no weights in int16: set evaluation.engine_numbers to one of" in message(
        engine="onnx", engine_numbers="int16"
    )
    assert opening.open_engine(loaded, EvaluationConfig()) is None
