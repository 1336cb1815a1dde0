from __future__ import annotations

import copy
import os

import pytest
import torch

from tfx.training import muon
from tfx.training.muon import Muon

# `scripts/check_gpu.py` runs these tests on a GPU.
DEVICE = torch.device(os.environ.get("TFX_TEST_DEVICE", "cpu"))
SETTINGS = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}


def parameters(shapes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE)) for shape in shapes]


def give_gradients(sets, seed, missing=()):
    generator = torch.Generator().manual_seed(seed)
    for number, group in enumerate(zip(*sets, strict=True)):
        gradient = torch.randn(group[0].shape, generator=generator).to(DEVICE)
        for parameter in group:
            parameter.grad = None if number in missing else gradient.clone()


@pytest.mark.parametrize("most", [1 << 26, 1000], ids=["one stack a shape", "stacks of one or two"])
def test_stacks_take_the_steps_of_torchs_muon(monkeypatch, most):
    monkeypatch.setattr(muon, "_STACK_ELEMENTS_CPU", most)
    monkeypatch.setattr(muon, "_STACK_ELEMENTS", most)
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


def test_a_state_of_torchs_muon_goes_on():
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


def test_products_in_fp32_give_the_polynomials_exactly():
    weight = parameters([(24, 16)])
    give_gradients([weight], 1)
    before, x = weight[0].detach().double(), weight[0].grad.double().mT
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    wanted = before * (1 - 0.02 * 0.3) - 0.2 * 24**0.5 * 0.02 * x.mT
    optimizer = Muon(weight, products=torch.float32, **SETTINGS)
    optimizer.step()
    torch.testing.assert_close(weight[0].detach().double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "blocks"), [((24, 16), [8, 8, 8]), ((20, 40), [8, 8, 4]), ((6, 16), [6])])
def test_blocks_take_the_steps_of_torchs_muon_on_matrices_of_their_own(shape, blocks):
    whole, other, single_other = parameters([shape]), parameters([(12, 10)], seed=3), parameters([(12, 10)], seed=3)
    before = whole[0].detach().clone()
    apart = [torch.nn.Parameter(part.clone()) for part in before.split(blocks)]
    stacked = Muon([{"params": whole, "block": 8}, {"params": other}], **SETTINGS)
    single = torch.optim.Muon([*apart, *single_other], **SETTINGS)
    for step in range(3):
        give_gradients([whole], step)
        give_gradients([other, single_other], step + 10)
        for part, gradient in zip(apart, whole[0].grad.split(blocks), strict=True):
            part.grad = gradient.clone()
        stacked.step()
        single.step()
    torch.testing.assert_close(whole[0], torch.cat(apart), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(other[0], single_other[0], rtol=1e-4, atol=2e-4)
    assert (whole[0] - before).abs().mean() > 0.005  # much more than the tolerance
