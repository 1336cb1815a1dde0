from __future__ import annotations

import math
import os

import pytest
import torch
from torch.nn import functional

from tfx.model import loss as loss_module
from tfx.model.batch import IGNORE
from tfx.model.loss import CrossEntropy, projected_losses

# `scripts/check_gpu.py` runs these tests on a GPU.
DEVICE = torch.device(os.environ.get("TFX_TEST_DEVICE", "cpu"))


def linear_cross_entropy(hidden, weight, target, smoothing=0.0, dtype=torch.float32):
    total, (nll,) = projected_losses(hidden, weight, [(CrossEntropy([(target, None)], smoothing), 1.0)], dtype=dtype)
    return total, nll


def problem(rows, vocab, ignored=0.2):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=generator).to(DEVICE).requires_grad_()
    weight = torch.randn(vocab, 8, generator=generator).to(DEVICE).requires_grad_()
    target = torch.randint(0, vocab, (rows,), generator=generator)
    target[torch.rand(rows, generator=generator) < ignored] = IGNORE
    return hidden, weight, target.to(DEVICE)


def reference(hidden, weight, target, smoothing):
    logits = hidden.double() @ weight.double().t()
    loss = functional.cross_entropy(logits, target, reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing)
    nll = functional.cross_entropy(logits, target, reduction="none", ignore_index=IGNORE)
    return loss, nll, torch.autograd.grad(loss / 7, (hidden, weight))


@pytest.fixture(params=[False, True], ids=["", "as on a GPU"])
def columns(request, monkeypatch):
    """Has the products of a CPU as many columns as those of a GPU."""
    if request.param:
        whole = loss_module._columns
        monkeypatch.setattr(loss_module, "_columns", lambda vocab, device: whole(vocab, torch.device("cuda")))


# A vocabulary of 9,000 makes slices of 128 rows; the others fit into one.
@pytest.mark.parametrize(("rows", "vocab"), [(1, 11), (128, 9000), (129, 9000), (300, 9000), (255, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradients_are_torchs_cross_entropy(columns, rows, vocab, smoothing):
    hidden, weight, target = problem(rows, vocab, ignored=0.0 if rows == 1 else 0.2)
    expected, expected_nll, expected_grads = reference(hidden, weight, target, smoothing)
    loss, nll = linear_cross_entropy(hidden, weight, target, smoothing=smoothing)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nll.double(), expected_nll, rtol=1e-5, atol=1e-5)
    assert not nll.requires_grad
    # Divided as in the training loop: the backward pass must scale the gradient of the sum by the incoming one.
    for actual, wanted in zip(torch.autograd.grad(loss / 7, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("held", [128, 256, 1024])
@pytest.mark.parametrize("rows", [1, 256, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_of_any_number_of_slices_make_the_same_gradients(columns, held, rows, dtype, monkeypatch):
    """Slices of 128 rows, one, two or all of which are multiplied together; the last block may have fewer."""
    monkeypatch.setattr(loss_module, "_SLICE_ELEMENTS_CPU", 128 * 50)
    monkeypatch.setattr(loss_module, "_ERROR_ELEMENTS_CPU", held * 50)
    hidden, weight, target = problem(rows, 50)
    *_, expected_grads = reference(hidden, weight, target, 0.1)
    loss, _ = linear_cross_entropy(hidden, weight, target, smoothing=0.1, dtype=dtype)
    for factor in (1, 7):  # as it is, and divided
        found = torch.autograd.grad(loss / factor, (hidden, weight), retain_graph=True)
        for actual, wanted in zip(found, expected_grads, strict=True):
            most = 1e-5 if dtype == torch.float32 else 0.02
            assert (actual - wanted * 7 / factor).norm() <= most * (wanted * 7 / factor).norm()


@pytest.mark.parametrize("rows", [1, 127, 300])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bfloat16_products_stay_near_full_precision(columns, rows, smoothing):
    hidden, weight, target = problem(rows, 9000)
    expected, _, expected_grads = reference(hidden, weight, target, smoothing)
    loss, nll = linear_cross_entropy(hidden, weight, target, smoothing=smoothing, dtype=torch.bfloat16)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=0.01, atol=0.01)
    for actual, wanted in zip(torch.autograd.grad(loss / 7, (hidden, weight)), expected_grads, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - wanted).norm() <= 0.02 * wanted.norm()


def test_columns_beyond_the_vocabulary_never_win(columns):
    """A product with zeros is 0, which is far more than any logit here."""
    weight = torch.full((5, 1), -1.0, device=DEVICE, requires_grad=True)
    hidden = torch.full((1, 1), 100.0, device=DEVICE, requires_grad=True)
    loss, nll = linear_cross_entropy(hidden, weight, torch.tensor([1], device=DEVICE), smoothing=0.1)
    assert loss.item() == pytest.approx(math.log(5), rel=1e-5)
    assert nll.item() == pytest.approx(math.log(5), rel=1e-5)
    gradient, _ = torch.autograd.grad(loss, (weight, hidden))
    assert gradient.shape == weight.shape
    assert gradient.sum().item() == pytest.approx(0.0, abs=1e-4)


def test_only_ignored_targets_give_no_loss_and_no_gradient():
    hidden, weight, target = problem(130, 9, ignored=2.0)
    loss, nll = linear_cross_entropy(hidden, weight, target, smoothing=0.1)
    grads = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 0.0
    assert not nll.any()
    assert not any(grad.any() for grad in grads)


def test_scoring_without_gradients_gives_the_same_values():
    hidden, weight, target = problem(300, 9000)
    expected, expected_nll = linear_cross_entropy(hidden, weight, target, smoothing=0.1)
    with torch.inference_mode():
        loss, nll = linear_cross_entropy(hidden, weight, target, smoothing=0.1)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(nll, expected_nll)


def test_an_impossible_target_has_a_large_but_finite_loss():
    hidden, weight = torch.full((1, 1), 1e4, device=DEVICE), torch.tensor([[1.0], [-1.0]], device=DEVICE)
    loss, _ = linear_cross_entropy(hidden, weight, torch.tensor([1], device=DEVICE))
    assert loss.item() == pytest.approx(2e4)
