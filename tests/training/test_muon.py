from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from tfx.training import muon
from tfx.training.muon import Muon

# What torch's own Muon takes, five times.
TORCHS = (3.4445, -4.7750, 2.0315)
SETTINGS = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}


def parameters(shapes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(sets, seed, missing=()):
    generator = torch.Generator().manual_seed(seed)
    for number, group in enumerate(zip(*sets, strict=True)):
        gradient = torch.randn(group[0].shape, generator=generator)
        for parameter in group:
            parameter.grad = None if number in missing else gradient.clone()


def take_torchs_polynomials(monkeypatch):
    monkeypatch.setattr(muon, "_POLYNOMIALS", (TORCHS,) * 5)
    monkeypatch.setattr(muon, "_MARGIN", 1.0)


@pytest.mark.parametrize("most", [1 << 26, 1000], ids=["one stack a shape", "stacks of one or two"])
def test_stacks_take_the_steps_of_torchs_muon(monkeypatch, most):
    monkeypatch.setattr(muon, "_STACK_ELEMENTS_CPU", most)
    take_torchs_polynomials(monkeypatch)
    shapes = [(16, 24), (24, 16), (16, 24), (16, 16), (24, 16), (16, 24)]
    ours, theirs = parameters(shapes), parameters(shapes)
    stacked, single = Muon(ours, **SETTINGS), torch.optim.Muon(theirs, **SETTINGS)
    for step in range(4):
        # A weight without a gradient keeps its value and has no moment yet.
        give_gradients([ours, theirs], step, missing={2} if step == 0 else ())
        stacked.step()
        single.step()
    for own, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=2e-4)
    for own, wanted in zip(stacked.state.values(), single.state.values(), strict=True):
        torch.testing.assert_close(own["momentum_buffer"], wanted["momentum_buffer"])


def test_a_state_of_torchs_muon_goes_on(monkeypatch):
    take_torchs_polynomials(monkeypatch)
    shapes = [(8, 12), (8, 12)]
    ours, theirs = parameters(shapes), parameters(shapes)
    single = torch.optim.Muon(theirs, **SETTINGS)
    give_gradients([theirs], 0)
    single.step()
    for own, other in zip(ours, theirs, strict=True):
        own.data.copy_(other.data)
    stacked = Muon(ours, **SETTINGS)
    stacked.load_state_dict(copy.deepcopy(single.state_dict()))
    give_gradients([ours, theirs], 1)
    stacked.step()
    single.step()
    for own, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=2e-4)


def test_the_products_are_of_stacks(monkeypatch):
    calls = []
    real = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: calls.append(a.shape) or real(a, b))
    weights = parameters([(8, 12)] * 3 + [(12, 12)] * 2)
    optimizer = Muon(weights, **SETTINGS)
    give_gradients([weights], 1)
    optimizer.step()
    assert set(calls) == {(3, 8, 12), (2, 12, 12)}


def composed(polynomials, t):
    for a, b, c in polynomials:
        t = a * t + b * t**3 + c * t**5
    return t


def test_the_polynomials_lead_near_one_from_where_torchs_do_not():
    t = torch.logspace(math.log10(0.003), 0, 20_001, dtype=torch.float64)
    away = (composed(muon._POLYNOMIALS, t) - 1).abs().max()
    assert away < 0.1983
    assert (composed((TORCHS,) * 5, t) - 1).abs().max() > 0.3


def test_each_polynomial_is_the_best_of_its_degree():
    """Chebyshev's alternation: its largest errors, four of alternating sign, are equal."""
    low, high = 0.003, 1.0
    for a, b, c in muon._POLYNOMIALS:
        turns = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a])))
        errors = np.array([composed([(a, b, c)], t) - 1 for t in (low, *turns, high)])
        np.testing.assert_allclose(errors, errors[0] * np.array([1, -1, 1, -1]), atol=0.003)
        low, high = 1 - abs(errors[0]), 1 + abs(errors[0])


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_directions_stay_and_lengths_become_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = muon.orthogonalise(x.unsqueeze(0).bfloat16(), 1e-7, muon._POLYNOMIALS)[0].float()
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    turned = left.mT @ found @ right.mT
    lengths = turned.diagonal()
    assert lengths.min() > 0.75
    assert lengths.max() < 1.25
    assert (turned - lengths.diag()).abs().max() < 0.12


def test_a_matrix_of_rank_one_does_not_grow():
    """Its one singular value is its norm: rounding must not lead above where the polynomials hold."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 1, generator=generator) @ torch.randn(1, 48, generator=generator)
        found = muon.orthogonalise(x.unsqueeze(0).bfloat16(), 1e-7, muon._POLYNOMIALS)[0].float()
        assert torch.linalg.svdvals(found)[0] < 1.3
