"""Blocks that run several times: the same layers one after another, with one set of weights."""

from __future__ import annotations

import pytest
import torch

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.attention import Bias
from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.source import read_source
from tfx.model.flops import forward_flops
from tfx.model.rewiring import unrolled
from tfx.model.transformer import States, count_parameters


def run_again(stack, x, *arguments, passes):
    """What the blocks make of x, each one called by hand."""
    for _ in range(passes):
        for block in stack.blocks:
            x = block(x, *arguments)
    return stack.norm(x)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_stack_runs_all_of_its_blocks_and_then_all_of_them_again(make_model, example, norm_position):
    model = make_model(passes=3, norm_position=norm_position)
    target, source, mask = example("seq2seq")
    embedded = model.embed(source, model.source_embedding)
    memory = run_again(model.encoder, embedded, Bias(mask[:, None, None, :]), passes=3)
    bias, memory_bias = Bias(causal=True), Bias(mask[:, None, None, :])
    expected = run_again(model.decoder, model.embed(target, model.embedding), bias, memory, memory_bias, passes=3)
    torch.testing.assert_close(model(target, source, mask), expected)


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
def test_each_pass_keeps_its_own_keys_and_values_when_decoding_step_by_step(make_model, example, family):
    model = make_model(passes=2, family=family, positions="rotary")
    target, source, mask = example(family)
    memory = None if source is None else model.encode(source, mask)
    decoder = Decoder(model, len(target), 1, memory, mask)
    with torch.inference_mode():
        steps = torch.stack([decoder.step(target[:, place]) for place in range(target.shape[1])], 1)
    torch.testing.assert_close(steps, model(target, source, mask))


def test_a_source_that_is_read_alone_goes_through_every_pass(make_model, example):
    model = make_model(passes=2, positions="rotary")
    _, source, _ = example("seq2seq")
    with torch.inference_mode():
        torch.testing.assert_close(read_source(model, source[:1], None), model.encode(source[:1], None))


def test_the_gradient_of_a_block_is_the_sum_over_its_passes(make_model, example):
    model = make_model(passes=2)
    whole, origins = unrolled(model)
    target, source, mask = example("seq2seq")
    for one in (model, whole):
        one.requires_grad_(True)
        one(target, source, mask).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in whole.named_parameters()}
    for name, parameter in model.named_parameters():
        layers = [gradients[layer] for layer, origin in origins.items() if origin == name and layer in gradients]
        assert len(layers) == (2 if ".blocks." in name else 1)
        torch.testing.assert_close(parameter.grad, sum(layers))


def test_an_unrolled_model_has_a_block_for_each_layer_and_the_same_outputs(make_model, example):
    model = make_model(passes=2, positions="relative")
    whole, _ = unrolled(model)
    assert (len(whole.encoder.blocks), len(whole.decoder.blocks), whole.architecture.passes) == (4, 4, 1)
    target, source, mask = example("seq2seq")
    torch.testing.assert_close(whole(target, source, mask), model(target, source, mask))
    plain = make_model()
    assert unrolled(plain)[0] is plain


def test_states_are_those_of_every_layer(make_model, example):
    model = make_model(passes=2)
    _, states = model(*example("seq2seq"), with_states=True)
    _, layers = unrolled(model)[0](*example("seq2seq"), with_states=True)
    assert isinstance(states, States)
    assert len(states.encoder) == len(states.decoder) == 5
    for found, expected in zip((*states.encoder, *states.decoder), (*layers.encoder, *layers.decoder), strict=True):
        torch.testing.assert_close(found, expected)


def test_passes_cost_time_and_no_weights(make_model):
    one, two = (Architecture.from_config(ModelConfig(passes=passes), 100) for passes in (1, 2))
    assert count_parameters(one) == count_parameters(two)
    deep = Architecture.from_config(ModelConfig(encoder_layers=8, decoder_layers=8), 100)
    assert forward_flops(two, 3, 5, 7) == forward_flops(deep, 3, 5, 7)
    assert Architecture.from_dict(two.to_dict()) == two
    assert "passes" not in one.to_dict()  # files of models without it stay as they were
