import numpy as np
import pytest
import torch

from tfx.techniques.quantize.gptq import gptq
from tfx.techniques.quantize.rounding import GridKind, entropy_bits, nearest, scales_for_rate, to_grid


def problem(rows=24, columns=48, seed=0):
    """A weight, and the second moments of strongly correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) * (np.arange(columns) < 8)[:, None] + 0.3 * np.eye(columns)
    x = rng.normal(size=(500, columns)) @ mixing
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    return torch.from_numpy(weight), torch.from_numpy(x.T @ x / len(x))


def plain(weight, moments, bits, damping=0.01):
    """GPTQ by its definition: after each column the best correction of all the columns behind it, solved anew."""
    w = weight.numpy().astype(np.float64).copy()
    h = moments.numpy() + damping * np.mean(np.diag(moments.numpy())) * np.eye(len(moments))
    half = 2 ** (bits - 1)
    scale = np.maximum(w.max(1) / (half - 1), -w.min(1) / half).astype(np.float32)
    out = np.zeros_like(w)
    for j in range(w.shape[1]):
        codes = np.clip(np.round(w[:, j].astype(np.float32) / scale), -half, half - 1)
        out[:, j] = codes * scale
        error = w[:, j] - out[:, j]
        if j + 1 < w.shape[1]:
            # min over d of (e, d) H (e, d)^T with the first part fixed: d = -e H_jr H_rr^-1, written with its sign.
            correction = np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
            w[:, j + 1 :] += error[:, None] * correction[None, :]
    return out


def output_error(weight_RC, grid, moments_CC):
    """The mean squared error of a layer's outputs, relative to their mean square, from its inputs' moments."""
    weight, moments = weight_RC.double().cpu(), moments_CC.double().cpu()
    difference = weight - grid.values().double().cpu()
    whole = float(((weight @ moments) * weight).sum())
    return float(((difference @ moments) * difference).sum()) / whole if whole else 0.0


@pytest.mark.parametrize("bits", [2, 4])
def test_it_equals_a_plain_numpy_version(bits):
    weight, moments = problem()
    ours = gptq(weight, moments, GridKind(bits, group=0, scale_dtype=torch.float32)).values()
    theirs = plain(weight, moments, bits)
    assert np.mean(np.abs(ours.numpy() - theirs) > 1e-4) < 0.01  # ties may fall to either side


@pytest.mark.parametrize("kind", [GridKind(3, group=0), GridKind(3, False, 16, clip=True), GridKind(4, group=None)])
def test_it_beats_rounding_to_nearest_on_the_layers_output(kind):
    weight, moments = problem()
    ours, theirs = (
        output_error(weight, grid, moments) for grid in (gptq(weight, moments, kind), nearest(weight, kind))
    )
    assert ours < 0.7 * theirs


def test_blocks_of_columns_change_nothing(monkeypatch):
    weight, moments = problem()
    kind = GridKind(4, group=16, clip=True)
    whole = gptq(weight, moments, kind)
    monkeypatch.setattr("tfx.techniques.columns._BLOCK", 8)
    pieces = gptq(weight, moments, kind)
    assert float((whole.codes_RC != pieces.codes_RC).float().mean()) < 0.01
    torch.testing.assert_close(whole.scale, pieces.scale, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_a_mask_took_stays_zero_and_its_loss_is_made_up_for(symmetric):
    weight, moments = problem()
    mask = weight.abs() > weight.abs().median()
    kind = GridKind(4, symmetric, group=0)
    masked = gptq(weight, moments, kind, mask)
    assert bool((masked.values()[~mask] == 0).all())
    assert output_error(weight, masked, moments) < 0.7 * output_error(weight, nearest(weight * mask, kind), moments)


def test_an_input_that_is_always_zero_is_no_obstacle():
    weight, moments = problem()
    moments[:, 3] = moments[3, :] = 0
    assert bool(gptq(weight, moments, GridKind(4)).values().isfinite().all())


@pytest.mark.parametrize("rate", [2.0, 3.0])
@pytest.mark.parametrize("group", [None, 0])
def test_with_scales_of_a_rate_it_keeps_them_and_beats_rounding_to_nearest(rate, group):
    weight, moments = problem()
    kind = GridKind(6, group=group)
    scale = scales_for_rate({"w": weight}, rate, kind)["w"]
    grid = gptq(weight, moments, kind, given=(scale, None))
    assert torch.equal(grid.scale, scale)
    assert output_error(weight, grid, moments) < 0.7 * output_error(weight, to_grid(weight, scale, None, kind), moments)
    own = entropy_bits(grid.codes_RC) / weight.numel()
    # It moves weights before they are rounded, so its codes take about as many bits and not just so many.
    assert own == pytest.approx(rate, abs=0.2)
