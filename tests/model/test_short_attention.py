from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tfx.config.schema import ModelConfig
from tfx.model import attention as attention_module
from tfx.model.architecture import Architecture
from tfx.model.attention import Attention, Bias
from tfx.model.linear import products_in
from tfx.model.positions import rotary_table, rotate
from tfx.model.short_attention import attend, is_short

HEADS, WIDTH = 3, 8


def angles(length):
    return rotary_table(Architecture.from_config(ModelConfig(width=WIDTH, heads=1, context=length), 2))


def expected(q_side, kv_side, mask, rotary):
    """Torch's own kernel on the parts."""
    sides = [(q_side, 3)] if kv_side is None else [(q_side, 1), (kv_side, 2)]
    q, k, v = (
        part.unflatten(-1, (HEADS, WIDTH)).transpose(1, 2) for side, n in sides for part in side.chunk(n, dim=-1)
    )
    if rotary is not None:
        q, k = rotate(q, *rotary), rotate(k, *rotary)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def masks(queries, keys):
    padding = torch.arange(keys) < torch.tensor([keys, max(1, keys - 2), max(1, keys // 2)]).unsqueeze(1)
    causal = torch.ones(queries, keys, dtype=torch.bool).tril()
    return {"none": None, "padding": padding[:, None, None, :], "causal": causal}


@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
@pytest.mark.parametrize("length", [1, 5, 16, 21])
@pytest.mark.parametrize("turned", [True, False])
def test_self_attention_and_its_gradient_are_torchs(length, mask, turned):
    torch.manual_seed(length)
    side = torch.randn(3, length, 3 * HEADS * WIDTH, requires_grad=True)
    rotary = angles(length) if turned else None
    grad = torch.randn(3, length, HEADS * WIDTH)
    given = masks(length, length)[mask]
    wanted, actual = expected(side, None, given, rotary), attend(side, None, HEADS, given, rotary)
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(actual, side, grad), torch.autograd.grad(wanted, side, grad), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mask", ["none", "padding"])
@pytest.mark.parametrize("keys", [2, 15, 17])
def test_cross_attention_and_its_gradient_are_torchs(keys, mask):
    torch.manual_seed(keys)
    q_side = torch.randn(3, 4, HEADS * WIDTH, requires_grad=True)
    kv_side = torch.randn(3, keys, 2 * HEADS * WIDTH, requires_grad=True)
    grad = torch.randn(3, 4, HEADS * WIDTH)
    given = masks(4, keys)[mask]
    wanted, actual = expected(q_side, kv_side, given, None), attend(q_side, kv_side, HEADS, given, None)
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    sides = (q_side, kv_side)
    torch.testing.assert_close(
        torch.autograd.grad(actual, sides, grad), torch.autograd.grad(wanted, sides, grad), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("is_cross", [True, False])
def test_in_bfloat16_it_is_off_by_the_roundings_of_products_alone(turned, is_cross):
    """Softmax and angles are exact, so that errors are those of a kernel that rounds what it multiplies."""
    torch.manual_seed(4)
    heads_width = HEADS * WIDTH
    q_side = torch.randn(3, 9, (1 if is_cross else 3) * heads_width).bfloat16()
    kv_side = torch.randn(3, 9, 2 * heads_width).bfloat16() if is_cross else None
    rotary, mask, grad = angles(9) if turned else None, masks(9, 9)["padding"], torch.randn(3, 9, heads_width)
    given = [side.requires_grad_() for side in (q_side, kv_side) if side is not None]
    exact = [side.detach().float().requires_grad_() for side in given]
    actual = attend(q_side, kv_side, HEADS, mask, rotary)
    wanted = expected(exact[0], exact[1] if is_cross else None, mask, rotary)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - wanted).norm() < 0.006 * wanted.norm()
    found = torch.autograd.grad(actual, given, grad.bfloat16())
    for ours, theirs in zip(found, torch.autograd.grad(wanted, exact, grad), strict=True):
        assert (ours.float() - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(("keys", "width", "is_faster"), [(128, 32, True), (129, 32, False), (512, 128, True)])
def test_in_bfloat16_longer_sequences_are_short(keys, width, is_faster):
    assert is_short(keys, keys, width, None, torch.bfloat16) == is_faster
    assert not is_short(keys, keys, width, None, torch.float32)


def layer(**settings):
    torch.manual_seed(3)
    return Attention(24, HEADS, HEADS, WIDTH, bias=True, qk_norm=False, **{"dropout": 0.0, **settings})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_cross", [True, False])
def test_a_layer_gives_the_same_in_training_with_its_products_joined(is_cross, dtype, monkeypatch):
    attention = layer()
    x = torch.randn(2, 6, 24, requires_grad=True)
    memory = torch.randn(2, 7, 24) if is_cross else None
    bias = Bias() if is_cross else Bias(causal=True)
    rotary = None if is_cross else angles(6)
    calls = []
    monkeypatch.setattr(attention_module, "attend", lambda *args: calls.append(args) or attend(*args))
    found = []
    for short in (True, False):
        monkeypatch.setattr(attention_module, "is_short", lambda *args, short=short: short)
        with products_in(dtype):
            out = attention(x, memory, bias, rotary)
        found.append((out, *torch.autograd.grad(out.square().sum(), [x, *attention.parameters()])))
    assert len(calls) == 1
    # A rounding of bfloat16 may fall on the other side.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found[0], found[1], **tolerance)


def test_what_needs_the_layers_apart_gets_them(monkeypatch):
    def refuse(*args):
        raise AssertionError("joined")

    monkeypatch.setattr(attention_module, "attend", refuse)
    x = torch.randn(2, 6, 24)
    rotary = angles(6)
    assert is_short(6, 6, WIDTH, rotary, torch.float32)
    with pytest.raises(AssertionError, match="joined"):
        layer()(x, None, Bias(), rotary)
    watched = layer()
    seen = []
    watched.k.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    watched(x, None, Bias(), rotary)
    assert len(seen) == 1
    layer().eval()(x, None, Bias(), rotary)
    layer(alibi=True)(x, None, Bias(), rotary)
    layer(dropout=0.5)(x, None, Bias(), rotary)


@pytest.mark.parametrize("kind", ["plain", "qk_norm", "alibi", "buckets", "kv_heads"])
def test_training_and_evaluation_attend_alike_whatever_the_kind(kind):
    torch.manual_seed(0)
    options = {"qk_norm": kind == "qk_norm", "alibi": kind == "alibi", "buckets": 4 if kind == "buckets" else 0}
    kv_heads = 1 if kind == "kv_heads" else HEADS
    layer = Attention(HEADS * WIDTH, HEADS, kv_heads, WIDTH, bias=False, dropout=0.0, **options)
    if layer.relative_bias is not None:
        torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(2, 6, HEADS * WIDTH)
    places = torch.arange(6)
    distance = places - places.unsqueeze(1)
    bias = Bias(None, distance_TS=distance if kind == "alibi" else None, bucket_TS=distance.abs().clamp(max=3))
    torch.testing.assert_close(layer.train()(x, None, bias), layer.eval()(x, None, bias), rtol=1e-5, atol=1e-6)
