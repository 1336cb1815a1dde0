"""What decoding makes of a model once: the results of its modules, and never those of weights that have changed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.prepared import prepared
from tfx.model.decoding.source import read_source
from tfx.model.linear import Product

POSITIONS = ["sinusoidal", "learned", "rotary", "alibi", "relative"]
OTHERS = {"kv_heads": 1, "norm_position": "post", "norm": "layernorm", "bias": True}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():  # tensors of inference mode have no versions
        yield


def _steps(model, source, mask=None, hypotheses=3):
    """Hidden states (1, N, D) of two steps for one source, and those of teacher forcing."""
    tokens = torch.tensor([[1, 4], [1, 7], [1, 9]])[:hypotheses]
    decoder = Decoder(model, 1, hypotheses, read_source(model, source, mask), mask)
    decoder.step(tokens[:, 0])
    found = decoder.step(tokens[:, 1])
    rows = None if mask is None else mask.expand(hypotheses, -1)
    return found, model(tokens, source.expand(hypotheses, -1), rows)[:, -1]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("settings", [{}, OTHERS, {"qk_norm": True}, {"bias": True, "tied_embeddings": "none"}])
@pytest.mark.parametrize("length", [1, 6, 16, 70])
def test_a_sentence_alone_is_decoded_as_by_teacher_forcing(make_model, positions, settings, length):
    model = make_model(positions=positions, context=80, **settings)
    source = torch.randint(0, 11, (1, length), generator=torch.Generator().manual_seed(length))
    torch.testing.assert_close(*_steps(model, source))


def test_a_sentence_alone_may_have_padding(make_model):
    model = make_model()
    source, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[True, True, True, False, False]])
    found, expected = _steps(model, source, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, _steps(model, source[:, :3])[0])


@pytest.mark.parametrize("length", [3, 64, 65])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("settings", [{}, OTHERS])
def test_a_source_alone_is_read_as_in_a_batch(make_model, length, positions, settings):
    model = make_model(positions=positions, context=80, **settings)
    source = torch.randint(0, 11, (1, length), generator=torch.Generator().manual_seed(length))
    torch.testing.assert_close(read_source(model, source, None), model.encode(source, None))


def test_nothing_is_made_twice_while_the_model_stays(make_model):
    model = make_model()
    parts = prepared(model)
    _steps(model, torch.tensor([[5, 6, 7]]))
    assert prepared(model) is parts


@pytest.mark.parametrize(
    "name", ["decoder.blocks.1.attention.k", "decoder.blocks.0.cross.o", "encoder.blocks.0.ffn.up"]
)
@pytest.mark.parametrize("how", ["in place", "another tensor", "another module", "hook"])
def test_changed_weights_are_seen(make_model, name, how):
    source = torch.tensor([[5, 6, 7]])
    model = make_model()
    before, _ = _steps(model, source)
    layer = model.get_submodule(name)
    if how == "in place":
        layer.weight.detach().mul_(2)
    elif how == "another tensor":
        layer.weight = torch.nn.Parameter(layer.weight * 2)
    elif how == "hook":
        layer.register_forward_hook(lambda module, inputs, output: output * 2)
    else:
        parent, _, child = name.rpartition(".")
        changed = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).double()
        setattr(model.get_submodule(parent), child, changed)
    found, expected = _steps(model, source)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, before)


def test_a_model_that_is_gone_leaves_no_parts(make_model):
    model = make_model()
    parts = weakref.ref(prepared(model))
    del model
    gc.collect()
    assert parts() is None


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("fewest", [1, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_few_and_of_many_rows_are_those_of_a_linear_layer(copies, fewest, bias):
    layer = torch.nn.Linear(64, 300, bias=bias)
    product = Product(layer.weight, layer.bias, fewest, copies=copies)
    for rows in (1, 5, 40, 3, 200):
        x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows))
        torch.testing.assert_close(product(x), layer(x))
