"""The convolution of an encoder: torch's own on the same weights, whatever the padding, and what it adds to a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import tfx
from tfx.cli import main
from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.model.architecture import Architecture, Outputs
from tfx.model.flops import forward_flops
from tfx.model.parameter_roles import Role, parameter_roles
from tfx.model.transformer import Transformer, count_parameters, initialise
from tfx.techniques.distill.layers import copy_layers
from tfx.techniques.quantize.allocation import rates_of

CONFIG = ModelConfig(
    family="classification", encoder_layers=1, decoder_layers=0, width=8, heads=2, ffn_width=12, convolution=3
)
OUTPUTS = Outputs("one", ("a", "b"))


def model_of(**settings) -> Transformer:
    config = replace(CONFIG, **settings)
    model = Transformer(Architecture.from_config(config, 20, OUTPUTS), config).eval()
    initialise(model, 1)
    return model


@pytest.mark.parametrize("size", [1, 3, 5])
def test_it_is_torchs_convolution(size):
    model = model_of(convolution=size)
    up, down = model.convolution.ffn.up, model.convolution.ffn.down
    x_BSD = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    kernel = up.weight.view(len(up.weight), size, 8).permute(0, 2, 1)
    hidden = functional.conv1d(x_BSD.mT, kernel, up.bias, padding=size // 2).relu()
    wanted = x_BSD + functional.conv1d(hidden, down.weight.unsqueeze(-1), down.bias).mT
    torch.testing.assert_close(model.convolution(x_BSD, None), wanted)


def test_padding_changes_nothing():
    model = model_of()
    tokens = torch.randint(4, 20, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    states = model.encode(tokens, mask)
    torch.testing.assert_close(states[1:, :4], model.encode(tokens[1:, :4], None))


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_its_products_are_counted(activation):
    model = model_of(activation=activation, convolution=5)
    tokens = torch.zeros(3, 6, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.project(model(torch.zeros(3, 0, dtype=torch.long), tokens))
    assert forward_flops(model.architecture, 3, 6, 0) == counter.get_total_flops()
    assert count_parameters(model.architecture) == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"convolution": 4}, "model.convolution=4 has no middle token: use 5"),
        ({"family": "seq2seq", "decoder_layers": 1}, "model.convolution is for encoders, and model.family is seq2seq"),
    ],
)
def test_what_cannot_be_is_refused(settings, says):
    with pytest.raises(UserError, match=says):
        Architecture.from_config(replace(CONFIG, **settings), 20)


def test_a_file_that_says_so_is_refused():
    values = model_of().architecture.to_dict()
    assert values["convolution"] == 3
    with pytest.raises(UserError, match="a convolution of 2 tokens"):
        Architecture.from_dict(values | {"convolution": 2})


@pytest.mark.parametrize("quantized", ["group=8", "method=gptq", "method=trellis"])
def test_it_is_trained_compressed_and_read_back(tmp_path, monkeypatch, quantized):
    monkeypatch.chdir(tmp_path)
    words = [
        *("dataset=kinds", "dataset.limit.train=60", "dataset.limit.valid=10", "dataset.limit.test=10"),
        *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=2", "model.convolution=3"),
        *("+technique=[prune,quantize]", "technique.prune.structure.ffn=0.5", f"technique.quantize.{quantized}"),
        *("trainer.budget.steps=6", "evaluation.latency_inputs=1", "hydra.run.dir=run", "model.pooling=attention"),
        *(["technique.quantize.rate=2"] if quantized != "group=8" else []),
    ]
    assert main(["train", *words]) == 0
    model = tfx.load(tmp_path / "run").model
    assert model.architecture.convolution == 3
    assert model.architecture.encoder[0].ffn == 8  # pruned, and the convolution has its own width
    assert model.convolution.ffn.up.weight.shape == (32, 48)


def test_it_stays_whole_where_matrices_of_blocks_become_products(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        *("dataset=kinds", "dataset.limit.train=60", "dataset.limit.valid=10", "dataset.limit.test=10"),
        *("model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.convolution=3"),
        *("+technique=[factorize,quantize]", "technique.factorize.multiple=4", "technique.quantize.group=4"),
        *("trainer.budget.steps=6", "evaluation.latency_inputs=1", "hydra.run.dir=run"),
    ]
    assert main(["train", *words]) == 0
    model = tfx.load(tmp_path / "run").model
    assert model.architecture.encoder[0].ranks
    assert model.convolution.ffn.up.weight.shape == (32, 48)


def test_every_weight_of_it_has_a_gradient():
    model = model_of()
    model.project(model(torch.zeros(2, 0, dtype=torch.long), torch.arange(4, 14).view(2, 5)))[..., 0].sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in model.convolution.parameters())


@pytest.mark.parametrize("size", [1, 3, 31])
def test_it_begins_as_a_small_part_of_what_the_first_block_reads(size):
    model = model_of(convolution=size, width=64)
    x_BSD = torch.randn(4, 40, 64, generator=torch.Generator().manual_seed(1))
    added = model.convolution(x_BSD, None) - x_BSD
    assert 0.1 < added.std() < 1


def test_its_matrices_count_as_those_of_the_blocks():
    roles = parameter_roles(model_of())
    assert {roles[f"convolution.ffn.{layer}.weight"] for layer in ("up", "down")} == {Role.MATRIX}
    inner, outer = rates_of(dict.fromkeys(roles, 0), 2.0, 3.0)
    assert "convolution.ffn.up.weight" in inner[1]
    assert "output.weight" in outer[1]


def test_a_student_begins_with_its_teachers():
    teacher, student = model_of(), model_of()
    initialise(student, 2)
    assert not torch.equal(student.convolution.ffn.up.weight, teacher.convolution.ffn.up.weight)
    copy_layers(teacher, student)
    for own, theirs in zip(student.convolution.parameters(), teacher.convolution.parameters(), strict=True):
        assert torch.equal(own, theirs)
