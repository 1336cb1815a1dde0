from __future__ import annotations

import pytest
import torch
from torch import nn

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.attention import Attention, Bias
from tfx.model.layers import Block, FeedForward

PAIRS = [("pre", "relu"), ("pre", "gelu"), ("post", "relu"), ("post", "gelu")]


def copy_attention(reference: nn.MultiheadAttention, own: Attention) -> None:
    reference.in_proj_weight.copy_(torch.cat([own.q.weight, own.k.weight, own.v.weight]))
    reference.in_proj_bias.copy_(torch.cat([own.q.bias, own.k.bias, own.v.bias]))
    reference.out_proj.load_state_dict(own.o.state_dict())


@torch.no_grad()
def torch_layer(block: Block, *, pre: bool, activation: str, width: int, heads: int) -> nn.Module:
    """torch's own layer with the weights of ``block``."""
    kind = nn.TransformerEncoderLayer if block.cross is None else nn.TransformerDecoderLayer
    layer = kind(width, heads, block.ffn.up.out_features, 0.0, activation, batch_first=True, norm_first=pre)
    layer.double()
    copy_attention(layer.self_attn, block.attention)
    parts = [(layer.linear1, block.ffn.up), (layer.linear2, block.ffn.down), (layer.norm1, block.attention_norm)]
    if block.cross is None:
        parts.append((layer.norm2, block.ffn_norm))
    else:
        copy_attention(layer.multihead_attn, block.cross)
        parts += [(layer.norm2, block.cross_norm), (layer.norm3, block.ffn_norm)]
    for theirs, own in parts:
        theirs.load_state_dict(own.state_dict())
    return layer


@pytest.mark.parametrize(("norm_position", "activation"), PAIRS)
def test_encoder_block_is_torchs_encoder_layer(make_model, norm_position, activation):
    block = make_model(norm_position=norm_position, activation=activation).encoder.blocks[1]
    layer = torch_layer(block, pre=norm_position == "pre", activation=activation, width=16, heads=4)
    x = torch.randn(3, 6, 16, dtype=torch.float64)
    real = torch.arange(6) < torch.tensor([[6], [4], [1]])
    expected = layer(x, src_key_padding_mask=~real)
    torch.testing.assert_close(block(x, Bias(real[:, None, None, :]))[real], expected[real])


@pytest.mark.parametrize(("norm_position", "activation"), PAIRS)
def test_decoder_block_is_torchs_decoder_layer(make_model, norm_position, activation):
    block = make_model(norm_position=norm_position, activation=activation).decoder.blocks[1]
    layer = torch_layer(block, pre=norm_position == "pre", activation=activation, width=16, heads=4)
    x, memory = torch.randn(3, 5, 16, dtype=torch.float64), torch.randn(3, 6, 16, dtype=torch.float64)
    real = torch.arange(6) < torch.tensor([[6], [4], [1]])
    causal = torch.ones(5, 5).triu(1).bool()
    expected = layer(x, memory, tgt_mask=causal, memory_key_padding_mask=~real)
    actual = block(x, Bias(causal=True), memory, Bias(real[:, None, None, :]))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_whole_transformer_is_torchs_stacks_on_the_same_embeddings(make_model, example, norm_position):
    model = make_model(norm_position=norm_position, tied_embeddings="none")
    target, source, mask = example("seq2seq")
    pre = norm_position == "pre"
    stacks = []
    for own in (model.encoder, model.decoder):
        stack = nn.ModuleList(torch_layer(block, pre=pre, activation="relu", width=16, heads=4) for block in own.blocks)
        stacks.append((stack, own.norm))
    memory = model.source_embedding.weight[source] * 4.0 + model.sinusoids[:6]
    for layer in stacks[0][0]:
        memory = layer(memory, src_key_padding_mask=~mask)
    memory = stacks[0][1](memory)
    x = model.embedding.weight[target] * 4.0 + model.sinusoids[:7]
    for layer in stacks[1][0]:
        x = layer(x, memory, tgt_mask=torch.ones(7, 7).triu(1).bool(), memory_key_padding_mask=~mask)
    x = stacks[1][1](x)
    torch.testing.assert_close(model(target, source, mask), x)
    torch.testing.assert_close(model.project(model(target, source, mask)), x @ model.output.weight.t())


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu2", lambda up, gate: up.clamp(min=0) ** 2),
        ("gelu", lambda up, gate: up * 0.5 * (1 + torch.erf(up / 2**0.5))),
        ("swiglu", lambda up, gate: up * gate / (1 + torch.exp(-gate))),
    ],
)
def test_feed_forward_is_the_formula_of_its_paper(activation, formula):
    ffn = FeedForward(6, 10, activation=activation, bias=True, dropout=0.0).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    up = x @ ffn.up.weight.t() + ffn.up.bias
    gate = x @ ffn.gate.weight.t() + ffn.gate.bias if ffn.gate is not None else None
    torch.testing.assert_close(ffn(x), formula(up, gate) @ ffn.down.weight.t() + ffn.down.bias)


def test_without_bias_no_layer_has_one_and_rmsnorm_divides_by_the_root_mean_square(make_model):
    model = make_model(bias=False, norm="rmsnorm")
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    x = torch.randn(2, 16, dtype=torch.float64)
    norm = model.decoder.norm
    torch.testing.assert_close(norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight)


def test_layer_dropout_changes_outputs_in_training_only(make_model, example):
    target, source, mask = example("seq2seq")
    plain, dropping = make_model(), make_model(layer_dropout=0.5)
    expected = plain(target, source, mask)
    torch.testing.assert_close(dropping(target, source, mask), expected)
    dropping.train()
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        seen.add(round(dropping(target, source, mask).abs().sum().item(), 6))
    assert len(seen) > 4


def test_layer_dropout_of_all_blocks_leaves_embeddings_under_the_closing_norm(make_model, example):
    target, _, _ = example("lm")
    model = make_model(family="lm", layer_dropout=1 - 1e-9).train()
    torch.testing.assert_close(model(target), model.decoder.norm(model.embed(target, model.embedding)))


@pytest.mark.parametrize(
    "rates", [{}, {"dropout": 0.2, "attention_dropout": 0.1, "ffn_dropout": 0.1, "layer_dropout": 0.3}]
)
def test_activation_checkpointing_changes_no_gradient(make_model, example, rates):
    target, source, mask = example("seq2seq")
    gradients = []
    for enabled in (False, True):
        model = make_model(**rates, decoder_layers=4).train()
        model.set_checkpointing(enabled)
        torch.manual_seed(3)
        model(target, source, mask).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_activation_checkpointing_keeps_fewer_activations(make_model, example):
    target, source, mask = example("seq2seq")
    kept = []
    for enabled in (False, True):
        model = make_model().train()
        model.set_checkpointing(enabled)
        elements = 0

        def count(tensor):
            nonlocal elements
            elements += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(target, source, mask)
        kept.append(elements)
    assert kept[1] < kept[0] / 2


def test_blocks_of_different_widths_build_and_run():
    config = ModelConfig(width=16, heads=4, ffn_width=24, encoder_layers=1, decoder_layers=2, context=8)
    uniform = Architecture.from_config(config, 11).to_dict()
    uniform["decoder"][1].update(heads=2, kv_heads=1, cross_heads=1, cross_kv_heads=1, ffn=5)
    architecture = Architecture.from_dict(uniform)
    block = Block(architecture, architecture.decoder[1], dropout=0.0, attention_dropout=0.0, ffn_dropout=0.0)
    x = torch.randn(2, 3, 16)
    assert block(x, Bias(causal=True), x, Bias()).shape == x.shape
    assert block.attention.q.weight.shape == (8, 16)
    assert block.attention.k.weight.shape == (4, 16)
    assert block.ffn.up.weight.shape == (5, 16)
