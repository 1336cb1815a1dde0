from __future__ import annotations

import math

import pytest
import torch

from tfx.model.dropout import Dropout, TokenDropout, keep_mask

COUNT = 400_000
SIGMAS = 6.0


def dropped(rate, seed=3):
    torch.manual_seed(seed)
    keep, scale = keep_mask(torch.Size([COUNT]), rate)
    return (~keep).double(), scale


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_each_quarter_of_the_draw_drops_at_the_rate(rate):
    lanes = dropped(rate)[0].view(-1, 4)
    bound = SIGMAS * math.sqrt(rate * (1 - rate) / len(lanes)) + 2**-16
    assert (lanes.mean(0) - rate).abs().max() < bound


@pytest.mark.parametrize("distance", [1, 2, 3, 4])
def test_neighbouring_elements_are_independent(distance):
    rate = 0.3
    lanes = (dropped(rate)[0] - rate) / math.sqrt(rate * (1 - rate))
    product = lanes[distance:] * lanes[:-distance]
    for lane in range(4):
        part = product[lane::4]
        assert abs(part.mean()) < SIGMAS / math.sqrt(len(part))


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3, 1 - 1e-9])
def test_scale_is_exact_for_the_probability_that_is_drawn(rate):
    # All 2^16 values of a quarter, seen through the threshold.
    share = (dropped(rate)[0] == 0).double().mean().item()
    scale = dropped(rate)[1]
    assert 1 / scale == pytest.approx(1 - rate, abs=2**-16)
    assert share == pytest.approx(1 / scale, abs=SIGMAS * math.sqrt(0.25 / COUNT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_and_what_is_dropped_is_zero(dtype):
    torch.manual_seed(1)
    x = torch.rand(31, 7, dtype=dtype) + 0.5
    y = Dropout(0.25).train()(x)
    assert y.dtype == dtype
    kept = y != 0
    assert 0 < kept.sum() < x.numel()
    torch.testing.assert_close(y[kept], (x * torch.tensor(1 / 0.75, dtype=dtype))[kept])


@pytest.mark.parametrize("kind", [Dropout, TokenDropout])
def test_evaluation_and_rate_zero_change_nothing(kind):
    x = torch.rand(5, 4)
    assert kind(0.5).eval()(x) is x
    assert kind(0.0).train()(x) is x


@pytest.mark.parametrize("kind", [Dropout, TokenDropout])
def test_draws_follow_torchs_seed(kind):
    x, draws = torch.rand(40, 4), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(kind(0.5).train()(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_gradient_passes_where_the_element_was_kept():
    x = torch.rand(9, 5, requires_grad=True)
    y = Dropout(0.5).train()(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, (y != 0) * 2.0)


def test_token_dropout_zeroes_whole_tokens_and_scales_the_rest():
    torch.manual_seed(1)
    x = torch.rand(20, 100, 6) + 0.5
    y = TokenDropout(0.2).train()(x)
    gone = (y == 0).all(-1)
    assert torch.equal(gone, (y == 0).any(-1))
    assert gone.float().mean().item() == pytest.approx(0.2, abs=SIGMAS * math.sqrt(0.16 / 2000))
    torch.testing.assert_close(y[~gone], x[~gone] / 0.8)


def test_token_dropout_of_the_model_leaves_positions_in_place(make_model):
    model = make_model(family="lm", token_dropout=0.5).train()
    torch.manual_seed(1)
    tokens = torch.zeros(1, 20, dtype=torch.long)
    x = model.embed(tokens, model.embedding) - model.sinusoids[:20]
    gone = (x.abs() < 1e-9).all(-1)
    assert 0 < gone.sum() < 20
    torch.testing.assert_close(x[~gone], (model.embedding.weight[:1] * 8.0).expand(int((~gone).sum()), -1))


def test_added_to_a_residual_it_is_the_sum_of_both():
    dropout = Dropout(0.3)
    x, y = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    torch.manual_seed(4)
    expected = x + dropout(y)
    torch.manual_seed(4)
    actual = dropout.add(x, y)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.square().sum(), (x, y)), torch.autograd.grad(expected.square().sum(), (x, y))
    )
    dropout.eval()
    assert torch.equal(dropout.add(x, y), x + y)
