from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tfx.model.device import choose_precision
from tfx.model.layers import FeedForward
from tfx.model.linear import Linear, Product, _ReducedLinears, inference_product, outputs_of, products_in, reduce_rows


def pair(shape, bias):
    torch.manual_seed(1)
    layer = Linear(24, 40, bias=bias)
    x = torch.randn(*shape, 24, requires_grad=True)
    grad = torch.randn(*shape, 40)
    return layer, x, grad


@pytest.mark.parametrize("shape", [(1,), (127,), (128,), (3, 43), (2, 5, 26)])
@pytest.mark.parametrize("bias", [True, False])
def test_mixed_products_and_gradients_stay_near_full_precision(shape, bias):
    layer, x, grad = pair(shape, bias)
    inputs = [x, *layer.parameters()]
    expected = functional.linear(x, layer.weight, layer.bias)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    with products_in(torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32
    assert y.shape == expected.shape
    assert not torch.equal(y, expected)
    assert (y - expected).norm() < 0.01 * expected.norm()
    grads = torch.autograd.grad(y, inputs, grad)
    if bias:
        torch.testing.assert_close(grads[2], expected_grads[2])  # a sum, not a matrix product
    for actual, wanted in zip(grads, expected_grads, strict=True):
        assert actual.dtype == torch.float32
        assert actual.shape == wanted.shape
        assert (actual - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("training", [True, False])
def test_outside_all_is_in_full_precision_whatever_the_mode(training):
    layer, x, _ = pair((5,), True)
    layer.train(training)
    expected = functional.linear(x, layer.weight, layer.bias)
    with products_in(torch.bfloat16):
        assert not torch.equal(layer(x), expected)
        with products_in(torch.float32):
            assert torch.equal(layer(x), expected)
        assert not torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)


def test_frozen_weights_still_pass_the_gradient_on():
    layer, x, grad = pair((5,), True)
    layer.requires_grad_(False)
    with products_in(torch.bfloat16):
        layer(x).backward(grad)
    assert layer.weight.grad is None
    assert (x.grad - grad @ layer.weight).norm() < 0.01 * x.grad.norm()


def test_every_linear_of_the_blocks_is_reached_and_mixed_training_stays_close(make_model, example, monkeypatch):
    model = make_model(dtype=torch.float32).train()
    inputs = example("seq2seq")
    expected = model(*inputs)
    reduced, plain = [], _ReducedLinears.apply

    def apply(x, dtype, out_dtype, side_by_side, *parameters):
        reduced.extend(map(len, parameters[::2]))
        return plain(x, dtype, out_dtype, side_by_side, *parameters)

    monkeypatch.setattr(_ReducedLinears, "apply", apply)
    with products_in(torch.bfloat16):
        actual = model(*inputs)
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(layers) == 2 * 6 + 2 * 10
    assert sum(reduced) == sum(layer.out_features for layer in layers)  # some share one product
    assert not torch.equal(actual, expected)
    assert (actual - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("rows", [(5,), (2, 64), (3, 50)])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_share_products_and_give_what_each_gives_alone(rows, bias):
    torch.manual_seed(2)
    layers = [Linear(24, width, bias=bias) for width in (40, 16, 32)]
    layers[1].weight.requires_grad_(False)
    x = torch.randn(*rows, 24, requires_grad=True)
    grads = [torch.randn(*rows, layer.out_features) for layer in layers]
    leaves = [x, *(each for layer in layers for each in layer.parameters() if each.requires_grad)]
    with products_in(torch.bfloat16):
        alone = [layer(x) for layer in layers]
        together = outputs_of(x, layers)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)
        assert other.is_contiguous()
    assert len({output.grad_fn for output in together}) == 1
    expected, found = torch.autograd.grad(alone, leaves, grads), torch.autograd.grad(together, leaves, grads)
    assert (found[0] - expected[0]).norm() < 0.01 * expected[0].norm()  # summed before it is rounded, not after
    for one, other in zip(expected[1:], found[1:], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2)


def test_a_layer_of_several_whose_output_nobody_used_has_a_gradient_of_zero():
    layers = [Linear(24, 8), Linear(24, 8)]
    x = torch.randn(4, 24, requires_grad=True)
    with products_in(torch.bfloat16):
        outputs_of(x, layers)[1].sum().backward()
    assert not layers[0].weight.grad.any()
    assert layers[1].weight.grad.any()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_layer_without_a_bias_shares_a_product_with_one_that_has_it(missing):
    layers = [Linear(24, 8, bias=number != missing) for number in range(2)]
    x = torch.randn(4, 24)
    with products_in(torch.bfloat16):
        found, expected = outputs_of(x, layers), [layer(x) for layer in layers]
        sum(y.sum() for y in found).backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(layers[1 - missing].bias.grad, torch.full((8,), 4.0))


@pytest.mark.parametrize("kind", ["hook", "another class", "full precision"])
def test_layers_that_are_watched_replaced_or_in_full_precision_run_by_themselves(kind):
    layers = [Linear(24, 8), Linear(24, 8)]
    x, seen = torch.randn(4, 24), []
    if kind == "hook":
        layers[0].register_forward_hook(lambda *_: seen.append("hook"))
    if kind == "another class":
        layers[0] = torch.nn.Sequential(layers[0])
    with products_in(torch.float32 if kind == "full precision" else torch.bfloat16):
        expected = [layer(x) for layer in layers]
        found = outputs_of(x, layers)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(seen) == (2 if kind == "hook" else 0)


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_blocks_that_run_again_backwards_have_the_same_numbers(make_model, example, precision):
    chosen, gradients = choose_precision(precision, torch.device("cpu")), []
    for checkpointing in (False, True):
        model = make_model(dtype=torch.float32).train()
        model.set_checkpointing(checkpointing)
        with chosen.forward(torch.device("cpu")):
            loss = model(*example("seq2seq")).float().square().sum()
        with chosen.backward():
            loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("rows", [1, 127, 128, 129])
def test_padded_rows_are_zero(rows):
    x = torch.randn(rows, 3)
    padded = reduce_rows(x, torch.bfloat16)
    assert padded.shape == (128 if rows <= 128 else 256, 3)
    assert torch.equal(padded[:rows], x.bfloat16())
    assert not padded[rows:].any()


@pytest.mark.parametrize("rows", [5, 128])
def test_rows_keep_their_gradient(rows):
    x = torch.randn(rows, 3, requires_grad=True)
    reduce_rows(x, torch.bfloat16).float().sum().backward()
    assert torch.equal(x.grad, torch.ones(rows, 3))


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_without_gradients_are_those_of_torch_for_few_and_many_rows(rows, bias, dtype):
    torch.manual_seed(rows)
    layer, x = Linear(64, 96, bias=bias).to(dtype), torch.randn(rows, 64, dtype=dtype)
    expected = functional.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        found = [layer(x), inference_product(x, layer.weight, layer.bias), Product(layer.weight, layer.bias)(x)]
    for y in found:
        torch.testing.assert_close(y, expected)


def test_what_only_a_product_reads_is_not_cast_there_and_back():
    """Between two layers of a feed-forward network, and between those of attention; its output is in fp32 again."""
    seen = []
    ffn = FeedForward(16, 32, activation="relu", bias=True, dropout=0.0).train()
    plain = ffn.activation
    ffn.activation = lambda hidden: seen.append(hidden.dtype) or plain(hidden)
    x = torch.randn(2, 5, 16, requires_grad=True)
    found = []
    for products in (torch.float32, torch.bfloat16):
        with products_in(products):
            out = ffn(x)
            assert out.dtype == torch.float32
            found.append((out, *torch.autograd.grad(out.square().sum(), [x, *ffn.parameters()])))
    assert seen == [torch.float32, torch.bfloat16]
    for exact, reduced in zip(*found, strict=True):
        assert reduced.dtype == torch.float32
        assert (reduced - exact).norm() < 0.03 * exact.norm()
    ffn.down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with products_in(torch.bfloat16):
        ffn(x)
    assert seen[2:] == [torch.float32, torch.float32]  # who watches a layer sees its inputs as ever
