"""An exported model is the same function in the library that it was written for, or is refused by its setting."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tfx.compression.checkpoint import LoadedModel
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.exchange import to_ctranslate2
from tfx.exchange.importing import read_folder
from tfx.exchange.target import fitted
from tfx.exchange.targets import TARGETS
from tfx.model.architecture import Architecture
from tfx.model.rewiring import rewire_blocks, whole_block
from tfx.model.transformer import Transformer, initialise
from tfx.run.export_check import export
from tfx.run.export_texts import compare_texts
from tfx.tasks.lm import Stream
from tfx.tasks.seq2seq import Pairs

SMALL = {"width": 16, "heads": 4, "ffn_width": 24, "context": 64, "encoder_layers": 2, "decoder_layers": 3}
MARIAN = {"positions": "sinusoidal", "norm_position": "post"}
PEGASUS = {"positions": "sinusoidal"}
# transformers 5.24 decodes T5 models of as many layers in both stacks alone.
T5 = {"positions": "relative", "norm": "rmsnorm", "bias": False, "embedding_scale": False, "decoder_layers": 2}
GPT2 = {"family": "lm", "positions": "learned", "tied_embeddings": "output"}
LLAMA = {"family": "lm", "positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}


@pytest.fixture
def loaded(texts):
    """Makes a random model of a few settings, whose every weight matters."""

    def make(**settings) -> LoadedModel:
        family = settings.get("family", "seq2seq")
        chosen = SMALL | ({"encoder_layers": 0} if family == "lm" else {}) | settings
        tokenizer = Tokenizer.train(
            TokenizerConfig(kind="bpe", vocab_size=290), texts, word_initial_space=family == "seq2seq"
        )
        model = Transformer(Architecture.from_config(ModelConfig(dropout=0.0, **chosen), tokenizer.vocab_size))
        initialise(model, 3)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            if settings.get("norm") == "rmsnorm" and settings.get("positions") == "relative":
                for stack in (model.encoder, model.decoder):  # T5 has one table for all blocks
                    for block in stack.blocks:
                        block.attention.relative_bias.copy_(stack.blocks[0].attention.relative_bias)
        return LoadedModel(model.eval(), tokenizer, EvaluationConfig(), Path("ours"), [])

    return make


def split_for(loaded, texts):
    ids = loaded.tokenizer.encode(texts)
    if loaded.model.architecture.is_seq2seq:
        return Pairs(Ragged.from_lists(ids, np.int64), Ragged.from_lists(ids[::-1], np.int64))
    return Stream(np.concatenate([np.asarray(row) for row in ids]), 1)


def exported(loaded, target, texts, output, kind, count):
    return export(loaded, target, output, kind, partial(compare_texts, split=split_for(loaded, texts), count=count))


TO_TRANSFORMERS = [
    ("MarianMTModel", MARIAN),
    ("MarianMTModel", MARIAN | {"activation": "gelu", "tied_embeddings": "output", "bias": False}),
    ("MarianMTModel", MARIAN | {"tied_embeddings": "none", "output_bias": True, "embedding_scale": False}),
    ("PegasusForConditionalGeneration", PEGASUS),
    ("T5ForConditionalGeneration", T5),
    ("T5ForConditionalGeneration", T5 | {"embedding_scale": True, "activation": "geglu_tanh"}),
    ("GPT2LMHeadModel", GPT2 | {"activation": "gelu"}),
    ("GPT2LMHeadModel", GPT2 | {"bias": False, "activation": "gelu_tanh", "tied_embeddings": "none"}),
    ("LlamaForCausalLM", LLAMA),
    ("LlamaForCausalLM", LLAMA | {"kv_heads": 2, "tied_embeddings": "none", "attention_bias": True}),
    ("LlamaForCausalLM", LLAMA | {"rotary_scaling": "linear", "rotary_factor": 4.0, "rotary_base": 50.0}),
]


@pytest.mark.parametrize(("name", "settings"), TO_TRANSFORMERS)
def test_transformers_opens_it_without_our_code_and_it_comes_back(tmp_path, loaded, texts, name, settings):
    model = loaded(**settings)
    found = exported(model, TARGETS["transformers"], texts, tmp_path / "out", "float32", 8)
    assert found.inputs == 8
    assert found.equal == 1.0
    assert found.largest < 1e-4
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [name]
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    frame = [model.tokenizer.eos] if model.model.architecture.is_seq2seq else []
    assert theirs(texts[:3])["input_ids"] == [ids + frame for ids in model.tokenizer.encode(texts[:3])]
    back = read_folder(tmp_path / "out").model
    target = torch.randint(290, (2, 7), generator=torch.Generator().manual_seed(1))
    source = target if model.model.architecture.is_seq2seq else None
    expected = model.model.project(model.model(target, source))
    torch.testing.assert_close(back.project(back(target, source)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["transformers", "ctranslate2", "onnx"])
def test_blocks_that_run_several_times_leave_as_a_block_for_each_layer(tmp_path, loaded, texts, name):
    model, target = loaded(passes=2, **MARIAN), TARGETS[name]
    found = exported(fitted(model, target), target, texts, tmp_path / "out", "float32", 8)
    assert found.equal == 1.0
    assert found.largest < 1e-4
    if name == "transformers":
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["encoder_layers"], config["decoder_layers"]) == (4, 6)


TO_CTRANSLATE2 = [
    MARIAN,
    PEGASUS,
    {"positions": "rotary", "kv_heads": 2, "activation": "gelu"},
    {"positions": "learned", "norm": "rmsnorm", "bias": False, "activation": "geglu_tanh", "output_bias": True},
    {"positions": "relative", "tied_embeddings": "inputs", "embedding_scale": False, "activation": "silu"},
    GPT2 | {"activation": "gelu"},
    LLAMA | {"kv_heads": 2},
    LLAMA | {"qk_norm": True},
    {"family": "lm", "positions": "alibi", "activation": "swiglu"},
]


@pytest.mark.parametrize("settings", TO_CTRANSLATE2)
def test_ctranslate2_gives_the_same_scores_and_outputs(tmp_path, loaded, texts, settings):
    pytest.importorskip("ctranslate2")
    model = loaded(**settings)
    found = exported(model, TARGETS["ctranslate2"], texts, tmp_path / "out", "float32", 8)
    assert found.largest < 1e-3
    assert found.equal == 1.0


@pytest.mark.parametrize("overflow", [False, True], ids=["as this processor does", "in floats"])
def test_int8_is_smaller_and_near(tmp_path, loaded, texts, overflow, monkeypatch):
    pytest.importorskip("ctranslate2")
    if overflow:
        monkeypatch.setattr(to_ctranslate2, "sums_int8_exactly", lambda: False)
    model = loaded(**MARIAN, width=64)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    found = exported(model, TARGETS["ctranslate2"], texts, tmp_path / "out", "int8", 8)
    assert 0 < found.mean < 0.1
    weights = 4 * sum(parameter.numel() for parameter in model.model.parameters())
    assert (tmp_path / "out" / "model.bin").stat().st_size < 0.4 * weights
    # Its quantization works in place, and must not reach our weights.
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_int8_is_compared_in_floats_and_says_so_where_its_sums_overflow(monkeypatch):
    for exactly in (True, False):
        monkeypatch.setattr(to_ctranslate2, "sums_int8_exactly", lambda exactly=exactly: exactly)
        assert (TARGETS["ctranslate2"].note("int8") is None) is exactly
        assert TARGETS["ctranslate2"].note("float32") is None


TO_GGUF = [
    GPT2 | {"activation": "gelu_tanh"},
    LLAMA,
    LLAMA | {"kv_heads": 2, "tied_embeddings": "none", "rotary_base": 500.0},
]


@pytest.mark.parametrize("settings", TO_GGUF)
def test_another_reader_of_gguf_gives_the_same_scores_and_outputs(tmp_path, loaded, texts, settings):
    pytest.importorskip("gguf")
    model = loaded(**settings)
    found = exported(model, TARGETS["gguf"], texts, tmp_path / "out", "float32", 8)
    assert found.largest < 1e-4
    assert found.equal == 1.0


def test_a_gguf_file_in_fewer_bits_is_near_and_keeps_the_tokenizer(tmp_path, loaded, texts):
    gguf = pytest.importorskip("gguf")
    model = loaded(**LLAMA | {"width": 64, "ffn_width": 64})
    found = exported(model, TARGETS["gguf"], texts, tmp_path / "out", "q8_0", 8)
    assert 0 < found.mean < 0.1
    file = tmp_path / "out" / "model.gguf"
    weights = sum(parameter.numel() for parameter in model.model.parameters())
    assert file.stat().st_size < 1.3 * weights + 20_000
    fields = gguf.GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [model.tokenizer.token(index) for index in range(model.tokenizer.vocab_size)]
    assert fields["tokenizer.ggml.eos_token_id"].contents() == model.tokenizer.eos
    merges = json.loads(model.tokenizer.to_json())["model"]["merges"]
    assert fields["tokenizer.ggml.merges"].contents() == [" ".join(merge) for merge in merges]


REFUSED = [
    ("transformers", {"positions": "rotary"}, r"model\.positions=rotary: train one with model\.positions=sinusoidal"),
    ("transformers", MARIAN | {"norm": "rmsnorm"}, r"model\.norm=rmsnorm: train one with model\.norm=layernorm"),
    ("transformers", MARIAN | {"activation": "swiglu"}, r"model\.activation=swiglu"),
    ("transformers", MARIAN | {"norm_eps": 1e-3}, r"model\.norm_eps=0\.001: train one with model\.norm_eps=1e-05"),
    ("transformers", GPT2 | {"qk_norm": True}, r"model\.qk_norm=true: train one with model\.qk_norm=false"),
    ("transformers", GPT2 | {"norm_position": "post"}, r"model\.norm_position=post"),
    ("gguf", MARIAN, r"gguf: llama\.cpp reads language models"),
    ("gguf", GPT2 | {"activation": "relu"}, r"model\.activation=relu: train one with model\.activation=gelu_tanh"),
    ("gguf", LLAMA | {"attention_bias": True}, r"model\.attention_bias=true"),
    ("ctranslate2", {"positions": "alibi"}, r"model\.positions=alibi"),
    ("ctranslate2", {"norm": "rmsnorm", "qk_norm": True}, r"model\.qk_norm=true"),
    ("ctranslate2", {"activation": "relu2"}, r"model\.activation=relu2"),
]


@pytest.mark.parametrize(("target", "settings", "message"), REFUSED)
def test_what_a_library_cannot_say_is_refused_by_its_setting(tmp_path, loaded, texts, target, settings, message):
    model = loaded(**settings)
    with pytest.raises(UserError, match=message):
        exported(model, TARGETS[target], texts, tmp_path / "out", "float32", 4)
    assert not list(tmp_path.iterdir())


def test_pruned_heads_are_refused_where_a_class_has_one_number_of_them(tmp_path, loaded, texts):
    model = loaded(**MARIAN)
    plans = {
        stack: [whole_block(i, shape) for i, shape in enumerate(getattr(model.model.architecture, stack))]
        for stack in ("encoder", "decoder")
    }
    plans["encoder"][0] = replace(plans["encoder"][0], heads=torch.tensor([0, 2]))
    rewire_blocks(model.model, plans["encoder"], plans["decoder"]).apply(model.model)
    for target, words in (("transformers", "structured pruning"), ("ctranslate2", "pruned heads")):
        with pytest.raises(UserError, match=words):
            exported(model, TARGETS[target], texts, tmp_path / "out", "float32", 4)


def test_outputs_that_differ_are_an_error_and_leave_nothing(tmp_path, loaded, texts):
    model = loaded(**MARIAN)

    def spoiled(folder, model):
        with torch.no_grad():
            model.model.decoder.blocks[0].ffn.up.weight.mul_(1.5)
        return TARGETS["transformers"].reopen(folder, model)

    target = replace(TARGETS["transformers"], reopen=spoiled)
    with pytest.raises(UserError, match=r"the model in transformers differs: log-probabilities by up to"):
        exported(model, target, texts, tmp_path / "out", "float32", 4)
    assert not list(tmp_path.iterdir())
