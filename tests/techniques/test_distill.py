"""Distillation losses against torch's own formulas and autograd."""

import pytest
import torch
from torch.nn import functional

from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.loss import LogitSlice, projected_losses
from tfx.model.transformer import Transformer, initialise
from tfx.techniques.distill import ABSENT, SoftTargets, copy_layers, divergence

KINDS = ["forward_kl", "reverse_kl", "jensen_shannon"]


def piece(logits):
    return LogitSlice(slice(0, len(logits)), logits)


def by_hand(kind, teacher, student, temperature):
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)

    def kl(a, b):
        return functional.kl_div(b.log(), a, reduction="none").sum(1)

    m = (p + q) / 2
    value = {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jensen_shannon": (kl(p, m) + kl(q, m)) / 2}[kind]
    return value * temperature**2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_divergence_and_its_gradient_equal_autograd(kind, temperature):
    torch.manual_seed(0)
    teacher, student = torch.randn(7, 11).double(), torch.randn(7, 11).double().requires_grad_()
    expected = by_hand(kind, teacher, student, temperature)
    (gradient,) = torch.autograd.grad(expected.sum(), student)
    value, error = divergence(kind, teacher.clone(), piece(student.detach()), temperature)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(error, gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(kind):
    logits = torch.randn(5, 9, dtype=torch.float64)
    value, error = divergence(kind, logits.clone(), piece(logits), 2.0)
    assert value.abs().max() < 1e-12
    assert error.abs().max() < 1e-12


def test_a_hot_temperature_tends_to_half_the_squared_distance_of_centred_logits():
    # Hinton 2015, section 2.1: T^2 KL -> sum of squared differences of zero-mean logits over 2V.
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 10).double(), torch.randn(4, 10).double()
    value, _ = divergence("forward_kl", teacher.clone(), piece(student), 1000.0)
    centred = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
    torch.testing.assert_close(value, centred.square().sum(1) / 20, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_logits_outside_its_top_k_stay_finite(kind):
    teacher = torch.full((3, 8), ABSENT)
    teacher[:, :2] = torch.randn(3, 2)
    value, error = divergence(kind, teacher, piece(torch.randn(3, 8)), 1.0)
    assert torch.isfinite(value).all()
    assert torch.isfinite(error).all()


def test_padding_counts_nothing_in_loss_and_gradient():
    class Fixed(SoftTargets):
        def teacher_logits(self, rows):
            return teacher[rows].clone()

    torch.manual_seed(0)
    teacher, counts = torch.randn(300, 50), torch.ones(300)
    counts[::3] = 0
    hidden, weight = torch.randn(300, 6, requires_grad=True), torch.randn(50, 6, requires_grad=True)
    total, _ = projected_losses(hidden, weight, [(Fixed("forward_kl", 2.0, counts), 0.7)])
    total.backward()
    ours = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    expected = 0.7 * (by_hand("forward_kl", teacher, hidden @ weight.t(), 2.0) * counts).sum()
    expected.backward()
    torch.testing.assert_close(total, expected.detach().reshape(()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-4)
    assert (ours[0][::3] == 0).all()


def small(layers: int, width: int = 16) -> Transformer:
    config = ModelConfig(width=width, heads=2, ffn_width=32, encoder_layers=layers, decoder_layers=layers, dropout=0.0)
    model = Transformer(Architecture.from_config(config, 20))
    initialise(model, layers)
    return model


def test_a_student_of_the_same_depth_starts_as_its_teacher():
    teacher, student = small(3), small(3)
    initialise(student, 99)
    tokens = torch.randint(4, 20, (2, 5))
    assert not torch.equal(teacher(tokens, tokens), student(tokens, tokens))
    assert copy_layers(teacher, student) == 6
    assert torch.equal(teacher(tokens, tokens), student(tokens, tokens))


def test_initialising_from_another_width_is_refused():
    with pytest.raises(UserError, match="width"):
        copy_layers(small(2, width=32), small(2))
