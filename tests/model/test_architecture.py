from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from tfx.config.choices import choices, model_settings
from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.model.architecture import Architecture, BlockShape


def test_a_config_becomes_uniform_blocks_with_cross_attention_in_the_decoder_only():
    architecture = Architecture.from_config(ModelConfig(width=32, heads=4, kv_heads=2, ffn_width=48), 100)
    assert architecture.encoder == (BlockShape(4, 2, 0, 0, 48),) * 4
    assert architecture.decoder == (BlockShape(4, 2, 4, 2, 48),) * 4
    assert architecture.head_width == 8
    assert architecture.is_seq2seq


def test_a_language_model_has_no_encoder_and_no_cross_attention():
    architecture = Architecture.from_config(ModelConfig(family="lm", encoder_layers=0), 100)
    assert architecture.encoder == ()
    assert {shape.cross_heads for shape in architecture.decoder} == {0}
    assert not architecture.is_seq2seq


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(family="lm", encoder_layers=0, qk_norm=True)])
def test_an_architecture_survives_json(config):
    architecture = Architecture.from_config(config, 100)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize("name", choices("model"))
def test_the_settings_of_an_architecture_build_it_again(name):
    model = model_settings(name)
    if model.family == "classification":
        pytest.skip("what its outputs stand for, the data says")
    architecture = Architecture.from_config(model, 100)
    told = architecture.to_config(ModelConfig(dropout=0.25, name="ours"))
    assert Architecture.from_config(told, 100) == architecture
    assert (told.dropout, told.name) == (0.25, "ours")


def test_heads_that_no_setting_can_say_keep_those_of_the_config():
    wide = replace(Architecture.from_config(ModelConfig(width=32, heads=4), 100), head_width=6)
    told = wide.to_config(ModelConfig(heads=2))
    assert (told.heads, told.kv_heads, told.width) == (2, None, 32)


def test_a_field_that_an_older_file_lacks_takes_its_default():
    @dataclass(frozen=True)
    class Later(Architecture):
        norm_epsilon: float = 1e-5

    old = Architecture.from_config(ModelConfig(), 100).to_dict()
    assert Later.from_dict(old).norm_epsilon == 1e-5
    assert Later.from_dict({**old, "norm_epsilon": 1e-6}).norm_epsilon == 1e-6
    with pytest.raises(UserError, match="does not know its norm_epsilon"):
        Architecture.from_dict({**old, "norm_epsilon": 1e-6})


MANY_HEADS = {"heads": 2048, "kv_heads": 2048, "cross_heads": 0, "cross_kv_heads": 0, "ffn": 1}
BROKEN = [{}, [], None, {"encoder": [{"heads": 1}]}, {"encoder": [MANY_HEADS]}, {"decoder": [MANY_HEADS] * 1001}]


@pytest.mark.parametrize("broken", [*BROKEN, {"context": 1 << 20}, {"context": 1 << 24, "positions": "rotary"}])
def test_a_broken_record_is_a_user_error(broken):
    whole = Architecture.from_config(ModelConfig(), 100).to_dict()
    value = whole | broken if broken else broken
    with pytest.raises(UserError, match="not readable"):
        Architecture.from_dict(value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30}, r"model\.width=30 must be a multiple of model\.heads=4"),
        ({"kv_heads": 3}, r"model\.kv_heads=3"),
        ({"kv_heads": 8}, r"model\.kv_heads=8"),
        ({"family": "lm"}, r"set model\.encoder_layers=0"),
        ({"encoder_layers": 0}, r"set model\.encoder_layers to 1"),
        ({"width": 20, "positions": "rotary"}, r"even head width, not 5"),
        ({"width": 9, "heads": 3}, r"even model\.width, not 9"),
        ({"context": 1 << 20}, r"model\.context=1048576 makes a table"),
        ({"context": 1 << 20, "positions": "rotary", "heads": 1}, r"model\.context=1048576 makes a table"),
    ],
)
def test_settings_that_cannot_be_built_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Architecture.from_config(ModelConfig(**settings), 100)


def test_what_was_added_later_is_in_the_file_only_where_it_says_something():
    plain = Architecture.from_config(ModelConfig(), 100)
    assert plain.to_dict().keys() <= {
        *("family", "vocab_size", "width", "head_width", "context", "encoder", "decoder", "positions"),
        *("norm_position", "norm", "activation", "qk_norm", "bias", "tied_embeddings"),
    }
    other = replace(plain, rotary_base=500.0, output_bias=True)
    assert other.to_dict() == plain.to_dict() | {"rotary_base": 500.0, "output_bias": True}
    assert Architecture.from_dict(other.to_dict()) == other
