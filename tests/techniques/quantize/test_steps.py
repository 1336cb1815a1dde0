"""Steps of a trellis: together they meet the rate, and no other steps make a smaller loss at it."""

import numpy as np
import pytest
import torch

from tfx.compression.trellis import quantizers, row_scales, split_scales
from tfx.techniques.quantize.rounding import GridKind, to_grid
from tfx.techniques.quantize.steps import choose, entropy, measure, scalar_steps
from tfx.techniques.quantize.trellis import trellis

COLUMNS = 64


@pytest.fixture(scope="module")
def problem():
    """Two matrices; the loss feels the rows of the first very differently, and the second little."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        "words": torch.randn(256, COLUMNS, generator=generator),
        "dull": torch.randn(128, COLUMNS, generator=generator),
    }
    felt = {"words": 4.0 ** torch.linspace(-2, 3, 256), "dull": torch.full((128,), 0.3)}
    squares = {name: (value / len(value)).double() for name, value in felt.items()}
    moments = {name: torch.eye(COLUMNS, dtype=torch.float64) for name in weights}
    return weights, felt, squares, moments


def steps_of(problem, rate, by_row):
    weights, _, squares, moments = problem
    matrices = {name: measure(weights[name], moments[name], squares[name], by_row) for name in weights}
    return choose(matrices, rate, torch.float16)


def loss_and_bits(problem, steps):
    weights, felt, _, moments = problem
    loss = bits = count = 0.0
    for name, weight in weights.items():
        grid = trellis(weight, moments[name], steps[name])
        loss += float((felt[name].unsqueeze(1) * (grid.values() - weight).square()).sum())
        bits += entropy(grid.levels(), weight / steps[name]) * weight.numel()
        count += weight.numel()
    return loss, bits / count


@pytest.mark.parametrize("rate", [1.2, 2.5])
def test_levels_take_the_rate_and_rows_that_matter_more_have_finer_steps(problem, rate):
    together, apart = (steps_of(problem, rate, by_row) for by_row in (False, None))
    assert together["words"].shape == (1, 1)
    assert apart["words"].shape == (256, 1)
    assert apart["dull"].shape == (1, 1), "rows that are felt alike share a step"
    found = [loss_and_bits(problem, steps) for steps in (together, apart)]
    for _, bits in found:
        assert bits == pytest.approx(rate, rel=0.04)
    assert found[1][0] < 0.75 * found[0][0]
    # Rows of more than a quarter of the mean have steps in proportion to 1 / sqrt(what they cost).
    costs = problem[1]["words"].clamp(min=float(problem[1]["words"].mean()) / 4)
    products = apart["words"].flatten() * costs.sqrt()
    assert float(products.max() / products.min()) < 2**0.55


def test_no_matrix_becomes_empty_however_little_it_matters():
    weight = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(1))
    squares = {"q": torch.full((64,), 1e-14), "v": torch.full((64,), 1.0)}
    eye = torch.eye(COLUMNS, dtype=torch.float64)
    steps = choose({name: measure(weight, eye, square, None) for name, square in squares.items()}, 0.8, torch.float16)
    assert bool(trellis(weight, eye, steps["q"]).values().any())
    uniform = scalar_steps(dict.fromkeys(squares, weight), squares, 0.8, None)
    assert bool(to_grid(weight, uniform["q"], None, GridKind(8)).values().any())


def test_uniform_steps_for_training_have_about_the_error_of_the_trellis(problem):
    weights, felt, squares, _ = problem
    loss, _ = loss_and_bits(problem, steps_of(problem, 2.0, None))
    uniform = scalar_steps(weights, squares, 2.0, None)
    grids = {name: to_grid(weight, uniform[name], None, GridKind(8)) for name, weight in weights.items()}
    rounded = sum(
        float((felt[name].unsqueeze(1) * (grid.values() - weights[name]).square()).sum())
        for name, grid in grids.items()
    )
    assert rounded == pytest.approx(loss, rel=0.15)


def test_levels_reach_the_largest_weight_of_every_row():
    weight = torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(2))
    weight[:, 3] *= 1000
    eye = torch.eye(COLUMNS, dtype=torch.float64)
    for by_row in (True, False):
        steps = choose({"w": measure(weight, eye, torch.full((64,), 1e6), by_row)}, 2.0, torch.float16)["w"]
        grid = trellis(weight, eye, steps)
        assert float((grid.values() - weight)[:, 3].abs().max()) <= 4 * float(steps.max())


def test_scales_of_rows_are_two_bases_and_exponents():
    bases = torch.tensor([0.75, 0.53125])
    exponents = torch.tensor([0, 1, 5, 14, 31])
    scales = row_scales(bases, exponents)
    expected = [float(bases[e % 2]) * 2.0 ** -(e // 2) for e in exponents.tolist()]
    assert scales.flatten().tolist() == expected
    assert all(torch.equal(a, b) for a, b in zip(split_scales(scales), (bases, exponents), strict=True))
    with pytest.raises(ValueError, match="two bases"):
        split_scales(torch.tensor([[0.5], [0.6], [0.7]]))


def test_the_entropy_is_that_of_levels_given_quantizer_and_size_of_the_row():
    levels = torch.tensor([[1, 0, 1, 0] * 8] * 4, dtype=torch.int16)
    rows = levels.float()
    # By the recursion of quantizers these levels repeat, so count them by hand.
    chosen = quantizers(levels)
    bits = 0.0
    for q in (0, 1):
        share = np.unique(levels[chosen == q].numpy(), return_counts=True)[1]
        bits -= float((share * np.log2(share / share.sum())).sum())
    assert entropy(levels, rows) == pytest.approx(bits / levels.numel())
