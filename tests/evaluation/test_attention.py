"""Attention maps are softmax(QK^T) as written in the paper, and sum to one over what may be seen."""

import math

import numpy as np
import pytest
import torch

from tfx.config.schema import ModelConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.evaluation.attention import record_attention
from tfx.model.architecture import Architecture
from tfx.model.attention import Attention, Bias
from tfx.model.transformer import Transformer, initialise

TEXTS = ["a cat sat on the mat", "the dog ran"]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
def test_weights_are_the_softmax_of_the_scaled_products(kv_heads, kind):
    torch.manual_seed(0)
    attention = Attention(16, 4, kv_heads, 4, bias=True, qk_norm=False, dropout=0.0).eval()
    x_BTD = torch.randn(2, 5, 16)
    visible = {
        "full": torch.ones(5, 5, dtype=torch.bool),
        "causal": torch.ones(5, 5, dtype=torch.bool).tril(),
        "masked": torch.tensor([1, 1, 0, 1, 0], dtype=torch.bool).expand(5, 5),
    }[kind]
    bias = {"full": Bias(), "causal": Bias(causal=True), "masked": Bias(visible[None, None])}[kind]
    weights_BHTS = attention.weights(x_BTD, None, bias)
    for head in range(4):
        rows, group = slice(4 * head, 4 * head + 4), head * kv_heads // 4
        shared = slice(4 * group, 4 * group + 4)
        q_BTK = x_BTD @ attention.q.weight[rows].T + attention.q.bias[rows]
        k_BTK = x_BTD @ attention.k.weight[shared].T + attention.k.bias[shared]
        scores = (q_BTK @ k_BTK.mT / math.sqrt(4)).masked_fill(~visible, -math.inf)
        assert torch.allclose(weights_BHTS[:, head], scores.softmax(-1), atol=1e-6)


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
@pytest.mark.parametrize("positions", ["rotary", "alibi", "sinusoidal"])
def test_every_layer_is_recorded_with_its_tokens(family, positions):
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), TEXTS, word_initial_space=False)
    layers = {"encoder_layers": 2 if family == "seq2seq" else 0, "decoder_layers": 2}
    config = ModelConfig(family=family, width=16, heads=2, ffn_width=16, positions=positions, **layers)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size), config)
    initialise(model, 1)
    model.train()
    source = TEXTS[0] if family == "seq2seq" else None
    (row,) = record_attention(model, tokenizer, [(source, TEXTS[1])])
    assert model.training
    names = {
        "seq2seq": ["encoder 0 self", "encoder 1 self"]
        + [f"decoder {i} {kind}" for i in range(2) for kind in ("self", "cross")],
        "lm": ["decoder 0 self", "decoder 1 self"],
    }  # fmt: skip
    assert [layer["name"] for layer in row["layers"]] == names[family]
    for layer in row["layers"]:
        weights_HTS = np.asarray(layer["weights"])
        queries = row["tokens_source" if layer["name"].startswith("encoder") else "tokens_target"]
        keys = row[
            "tokens_target" if layer["name"].startswith("decoder") and "self" in layer["name"] else "tokens_source"
        ]
        assert weights_HTS.shape == (2, len(queries), len(keys))
        assert weights_HTS.sum(-1) == pytest.approx(1, abs=0.02)
        if layer["name"].startswith("decoder") and "self" in layer["name"]:
            assert not np.triu(weights_HTS, 1).any()


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
def test_texts_are_cut_to_a_context_that_is_shorter_than_a_map(family):
    tokenizer = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=40), TEXTS, word_initial_space=False)
    layers = {"encoder_layers": 1 if family == "seq2seq" else 0, "decoder_layers": 1}
    config = ModelConfig(family=family, width=16, heads=2, ffn_width=16, context=8, positions="learned", **layers)
    model = Transformer(Architecture.from_config(config, tokenizer.vocab_size), config)
    (row,) = record_attention(model, tokenizer, [(TEXTS[0] if family == "seq2seq" else None, TEXTS[0])])
    assert len(row["tokens_target"]) == 8
    assert len(row["tokens_source"]) == (8 if family == "seq2seq" else 0)
