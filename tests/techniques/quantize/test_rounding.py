import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.techniques.quantize.rounding import GridKind, encode, fit, nearest
from tfx.techniques.quantize.technique import step_gradient

weights = st.integers(1, 5).flatmap(
    lambda rows: arrays.arrays(
        np.float32, (rows, 12), elements=st.floats(-8, 8, width=16).filter(lambda x: x == 0 or abs(x) > 1e-3)
    )
)
kinds = st.builds(
    GridKind,
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group=st.sampled_from([None, 0, 4, 6]),
    clip=st.just(False),
    scale_dtype=st.sampled_from([torch.float16, torch.float32]),
)


@given(weights, kinds)
@settings(max_examples=200, deadline=None)
def test_the_error_of_rounding_is_at_most_half_a_step(values, kind):
    weight = torch.from_numpy(values)
    grid = nearest(weight, kind)
    step = grid.scale.float()
    groups = step.shape[1]
    step = step.repeat_interleave(12 // groups, 1) if groups > 1 else step
    # An affine zero point is itself rounded: at the ends another half step.
    bound = step * (0.5 if kind.symmetric else 1.0)
    assert bool(((grid.values() - weight).abs() <= bound * (1 + 1e-5) + 1e-9).all())


@given(weights, kinds)
@settings(max_examples=100, deadline=None)
def test_zeros_stay_exactly_zero(values, kind):
    weight = torch.from_numpy(values)
    weight[:, ::3] = 0
    assert bool((nearest(weight, kind).values()[:, ::3] == 0).all())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_grids_equal_torchs_own_fake_quantization(bits, symmetric):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(bits))
    kind = GridKind(bits, symmetric, group=0, scale_dtype=torch.float32)
    scale, zero = fit(weight, kind)
    start = torch.full((6,), 2 ** (bits - 1)) if zero is None else zero[:, 0].int()
    theirs = torch.fake_quantize_per_channel_affine(weight, scale[:, 0], start.int(), 0, 0, 2**bits - 1)
    torch.testing.assert_close(encode(weight, scale, zero, kind).values(), theirs, rtol=1e-6, atol=1e-6)


def test_clipping_by_error_is_never_worse_and_better_with_outliers():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 6.0
    plain, clipped = (nearest(weight, GridKind(3, group=0, clip=clip)) for clip in (False, True))
    errors = [float((grid.values() - weight).square().sum()) for grid in (plain, clipped)]
    assert errors[1] < 0.8 * errors[0]


def test_scales_in_half_precision_are_rounded_up_so_that_the_range_is_covered():
    weight = torch.tensor([[1.0003, -0.2]])
    scale, _ = fit(weight, GridKind(4, group=0))
    assert scale.dtype == torch.float16
    assert float(scale) * 7 >= 1.0003
    assert float(torch.nextafter(scale, torch.zeros_like(scale))) * 7 < 1.0003


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_learned_steps_equal_those_of_autograd(symmetric):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 8, generator=generator)
    outer = torch.randn(4, 8, generator=generator)
    kind = GridKind(3, symmetric, group=4, scale_dtype=torch.float32)
    scale, zero = fit(weight * 0.6, kind)  # some weights lie outside of the range
    passed, by_scale = step_gradient(weight, outer, scale, zero, kind)

    def round_through(x):
        return x + (x.round() - x).detach()

    w, s = weight.clone().requires_grad_(), scale.clone().requires_grad_()
    wide = s.repeat_interleave(4, 1)
    start = torch.full_like(wide, 4.0) if zero is None else zero.float().repeat_interleave(4, 1)
    codes = round_through((w / wide + start).clamp(0, 7))
    (((codes - start) * wide) * outer).sum().backward()
    torch.testing.assert_close(passed, w.grad)
    strength = (4 * (3 if symmetric else 7)) ** -0.5
    torch.testing.assert_close(by_scale, s.grad * strength)
