"""Dependent quantization: the search against all paths, the states against their recursion, and what it saves."""

import itertools

import numpy as np
import pytest
import torch

from tfx.compression.grid import Grid
from tfx.compression.trellis import STATES, following, multiples, quantizer, quantizers
from tfx.techniques.columns import inverse_factor
from tfx.techniques.quantize.gptq import gptq
from tfx.techniques.quantize.rounding import GridKind, entropy_bits
from tfx.techniques.quantize.trellis import search, trellis


def plain_quantizers(levels):
    """The quantizers of one row from the recursion that the format gives."""
    q = []
    for t in range(len(levels)):
        value = (q[t - 1] if t > 0 else 0) ^ (q[t - 3] if t > 2 else 0)
        q.append(value ^ (levels[t - 2] % 2 if t > 1 else 0))
    return q


def plain_values(levels):
    return [2 * k - q * ((k > 0) - (k < 0)) for k, q in zip(levels, plain_quantizers(levels), strict=True)]


def test_states_and_quantizers_follow_the_recursion():
    rng = np.random.default_rng(0)
    levels = rng.integers(-5, 6, (20, 17))
    found = quantizers(torch.from_numpy(levels))
    for row, q in zip(levels.tolist(), found.tolist(), strict=True):
        assert q == plain_quantizers(row)
        state, walked = 0, []
        for level in row:
            walked.append(quantizer(state))
            state = following(state, level % 2)
        assert walked == q
    assert sorted(following(s, p) for s in range(STATES) for p in (0, 1)) == sorted([*range(STATES)] * 2)
    values = multiples(torch.from_numpy(levels), found)
    assert values.tolist() == [plain_values(row) for row in levels.tolist()]


def cost_of(levels, row, factor):
    """GPTQ's cost of a row's levels, its errors passed on column by column."""
    rest, cost = row.copy(), 0.0
    for c, value in enumerate(plain_values(levels)):
        error = (rest[c] - value) / factor[c, c]
        cost += error**2
        rest[c:] -= error * factor[c, c:]
    return cost


def problem(rows, columns, seed=0, mixed=True):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, columns)) @ (rng.normal(size=(columns, columns)) if mixed else np.eye(columns))
    moments = torch.from_numpy(x.T @ x / len(x)) if mixed else torch.eye(columns, dtype=torch.float64)
    return torch.from_numpy(rng.normal(size=(rows, columns)) * 1.5).float(), moments


def best_of_all(row, factor):
    paths = itertools.product(range(-4, 5), repeat=len(row))
    return min((cost_of(path, row, factor), path) for path in paths)


def test_without_compensation_the_path_is_the_best_of_all():
    rows_RC, moments = problem(5, 4, mixed=False)
    factor = inverse_factor(moments, damping=0.0)
    levels = search(rows_RC, factor, bit_price=0.0)
    for row, level in zip(rows_RC.double().numpy(), levels.tolist(), strict=True):
        best, path = best_of_all(row, factor.numpy())
        assert cost_of(level, row, factor.numpy()) == pytest.approx(best, rel=1e-5)
        assert tuple(level) == path


def test_with_compensation_it_is_nearly_the_best_of_all_and_its_cost_is_the_error_of_the_outputs():
    rows_RC, moments = problem(6, 4)
    factor = inverse_factor(moments)
    levels = search(rows_RC, factor, bit_price=0.0)
    found, best, outputs = [], [], []
    damped = np.linalg.inv(factor.numpy().T @ factor.numpy())
    for row, level in zip(rows_RC.double().numpy(), levels.tolist(), strict=True):
        error = row - plain_values(level)
        found.append(cost_of(level, row, factor.numpy()))
        best.append(best_of_all(row, factor.numpy())[0])
        outputs.append(error @ damped @ error)
    np.testing.assert_allclose(found, outputs, rtol=1e-5)
    assert sum(best) <= sum(found) < 1.15 * sum(best)


def rate(levels_RC):
    chosen = quantizers(levels_RC)
    return sum(entropy_bits((levels_RC[chosen == q] + 128).to(torch.uint8)) for q in (0, 1)) / levels_RC.numel()


@pytest.mark.parametrize("mixed", [False, True])
def test_it_is_closer_than_gptq_at_fewer_bits(mixed):
    weight, moments = problem(256, 48, mixed=mixed)
    weight = weight / 1.5

    def error(grid):
        difference = (grid.values() - weight).double()
        return float(((difference @ moments) * difference).sum())

    levels = search(weight / 0.5, inverse_factor(moments))
    ours = Grid((levels + 128).to(torch.uint8), 8, torch.tensor([[0.5]]), trellis=True)
    theirs = gptq(weight, moments, GridKind(8, group=None), given=(torch.tensor([[0.85]]), None))
    bits = [rate(levels), entropy_bits(theirs.codes_RC) / weight.numel()]
    # Of the 0.25 bits between a scalar quantizer and the limit it wins more than half, at 2 bits a weight.
    assert bits[0] + 0.5 * np.log2(error(ours)) < bits[1] + 0.5 * np.log2(error(theirs)) - 0.13


def test_blocks_of_columns_and_pieces_of_rows_change_nothing(monkeypatch):
    rows_RC, moments = problem(20, 24)
    whole = search(rows_RC, inverse_factor(moments))
    monkeypatch.setattr("tfx.techniques.quantize.trellis._BLOCK", 7)
    monkeypatch.setattr("tfx.techniques.quantize.trellis._ROWS", 6)
    assert float((search(rows_RC, inverse_factor(moments)) != whole).float().mean()) < 0.02


def test_a_price_on_bits_makes_levels_rarer_and_what_a_mask_took_stays_zero():
    rows_RC, moments = problem(64, 24)
    factor = inverse_factor(moments)
    free, priced = (search(rows_RC, factor, bit_price=price) for price in (0.0, 0.3))
    assert rate(priced) < rate(free) - 0.05
    mask = rows_RC.abs() > rows_RC.abs().median()
    masked = trellis(rows_RC, moments, torch.ones(1, 1), mask)
    assert bool((masked.values()[~mask] == 0).all())
    assert isinstance(masked, Grid)
    assert masked.trellis
    assert float((masked.values()[mask] != 0).float().mean()) > 0.5
