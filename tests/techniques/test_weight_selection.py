"""Techniques choose weights by what they are there for, whatever their shape is."""

import pytest
import torch
from torch import nn

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer
from tfx.techniques.weight_selection import left_alone, select_weights


@pytest.fixture
def model():
    config = ModelConfig(width=8, heads=2, ffn_width=12, context=8, encoder_layers=1, decoder_layers=1)
    return Transformer(Architecture.from_config(config, 11), config)


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("vectors", [False, True])
def test_what_a_technique_trains_of_its_own_is_no_weight_of_the_model(model, embeddings, vectors):
    expected = list(select_weights(model, [], "skip", embeddings=embeddings, vectors=vectors))
    rest = left_alone(model, expected)
    assert ("embedding.weight" in expected) == embeddings
    assert ("encoder.norm.weight" in expected) == vectors
    model.decoder.blocks[0].scales = nn.ParameterDict({"square": torch.ones(4, 4), "row": torch.ones(4)})
    assert list(select_weights(model, [], "skip", embeddings=embeddings, vectors=vectors)) == expected
    assert left_alone(model, expected) == rest
    assert ("matrices left alone: embedding.weight" in rest) == (not embeddings)
