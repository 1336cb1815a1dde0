import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.techniques.quantize.learned import step_gradient
from tfx.techniques.quantize.rounding import GridKind, entropy_bits, fit, nearest, scales_for_rate, to_grid

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
    torch.testing.assert_close(to_grid(weight, scale, zero, kind).values(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("symmetric", "most"), [(True, 0.8), (False, 0.9)])
def test_clipping_by_error_is_never_worse_and_better_with_outliers(symmetric, most):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:4, 0] = 6.0
    weight[4:, 1] = -9.0
    plain, clipped = (nearest(weight, GridKind(3, symmetric, group=0, clip=clip)) for clip in (False, True))
    errors = [(grid.values() - weight).square().sum(1) for grid in (plain, clipped)]
    assert bool((errors[1] <= errors[0]).all())
    assert float(errors[1].sum()) < most * float(errors[0].sum())
    # Only the range is another one: zero is still a level of it.
    weight[:, 2] = 0
    assert bool((nearest(weight, GridKind(3, symmetric, group=0, clip=True)).values()[:, 2] == 0).all())


# --- a rate -----------------------------------------------------------------------------------------


def drawn(tails):
    """Matrices of quite different spread, of normal weights or of some with many far outliers."""
    generator = torch.Generator().manual_seed(4)
    weights = {}
    for number, (rows, columns) in enumerate([(96, 64), (40, 128), (300, 32)]):
        weight = torch.randn(rows, columns, generator=generator)
        if tails == "heavy":
            # Student's t with 4 degrees of freedom.
            chi = torch.randn(4, rows, columns, generator=generator).square().mean(0)
            weight = weight / chi.sqrt()
        weights[str(number)] = weight * 0.02 * 3**number
    return weights


def entropy(grids):
    """Bits a weight of the codes, each tensor with the frequencies of its own, from numpy's counts."""
    bits = count = 0.0
    for grid in grids:
        share = np.unique(grid.codes_RC.numpy(), return_counts=True)[1] / grid.codes_RC.numel()
        bits -= float((share * np.log2(share)).sum()) * grid.codes_RC.numel()
        count += grid.codes_RC.numel()
    return bits / count


def rated(weights, rate, bits, group, dtype=torch.float16):
    kind = GridKind(bits, group=group, scale_dtype=dtype)
    scales = scales_for_rate(weights, rate, kind)
    return {name: to_grid(weight, scales[name], None, kind) for name, weight in weights.items()}


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("rate", [0.8, 1.7, 2.5, 3.4, 5.0])
@pytest.mark.parametrize("group", [None, 0])
def test_the_entropy_of_the_codes_is_the_rate(tails, rate, group):
    weights = drawn(tails)
    grids = rated(weights, rate, min(8, int(np.ceil(rate + 3))), group)
    assert entropy(grids.values()) == pytest.approx(rate, abs=0.01)
    # Each scale is the same multiple of the spread of what shares it.
    multiples = []
    for name, weight in weights.items():
        spread = weight.square().mean() if group is None else weight.square().mean(1, keepdim=True)
        assert grids[name].scale.dtype == torch.float16
        assert grids[name].scale.shape == ((1, 1) if group is None else (len(weight), 1))
        multiples.append((grids[name].scale.float() / spread.sqrt()).flatten())
    multiples = torch.cat(multiples)
    assert float(multiples.max() / multiples.min()) < 1.002


@pytest.mark.parametrize("tails", ["normal", "heavy"])
@pytest.mark.parametrize("bits", [3, 4])
def test_for_the_same_bits_it_is_closer_than_a_few_levels_over_the_range_of_groups(tails, bits):
    weights = drawn(tails)
    grouped = {name: nearest(weight, GridKind(bits, group=32, clip=True)) for name, weight in weights.items()}
    # A scale in fp16 for 32 weights is half a bit for each of them.
    ours = rated(weights, entropy(grouped.values()) + 0.5, 8, None)
    assert entropy(ours.values()) <= entropy(grouped.values()) + 0.51
    errors = [
        sum(float(((grids[n].values() - w) / w.std()).square().sum()) for n, w in weights.items())
        for grids in (ours, grouped)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_at_a_rate_no_other_steps_make_a_loss_smaller_that_feels_each_matrix_differently():
    """Against brute force: one matrix's step is changed, and all are scaled until the codes take as many bits."""
    weights = drawn("normal")
    sensitivities = dict(zip(weights, (30.0, 0.5, 1.0), strict=True))
    kind = GridKind(8)

    def loss_and_bits(steps):
        loss = bits = 0.0
        for name, weight in weights.items():
            grid = to_grid(weight, torch.tensor([[steps[name]]]), None, kind)
            loss += sensitivities[name] * float((grid.values() - weight).square().sum())
            bits += entropy([grid]) * weight.numel()
        return loss, bits

    def at_rate(steps, bits):
        fine, coarse = -6.0, 6.0
        for _ in range(25):
            middle = (fine + coarse) / 2
            is_cheap = loss_and_bits({name: step * 2**middle for name, step in steps.items()})[1] <= bits
            fine, coarse = (fine, middle) if is_cheap else (middle, coarse)
        return loss_and_bits({name: step * 2**coarse for name, step in steps.items()})[0]

    ours = {n: float(s) for n, s in scales_for_rate(weights, 3.0, GridKind(8, group=None), sensitivities).items()}
    loss, bits = loss_and_bits(ours)
    assert bits / sum(weight.numel() for weight in weights.values()) == pytest.approx(3.0, abs=0.01)
    for name in weights:
        for factor in (0.7, 1.4):
            assert at_rate({**ours, name: ours[name] * factor}, bits) > 1.005 * loss
    blind = {n: float(s) for n, s in scales_for_rate(weights, 3.0, GridKind(8, group=None)).items()}
    assert at_rate(blind, bits) > 1.5 * loss


def test_sensitivities_leave_the_steps_of_rows_to_their_spread_and_may_be_zero():
    weights = drawn("normal")
    kind = GridKind(8, group=0)
    plain = scales_for_rate(weights, 2.0, kind)
    felt = scales_for_rate(weights, 2.0, kind, dict(zip(weights, (1.0, 4.0, 0.0), strict=True)))
    for name, scale in plain.items():
        ratios = felt[name].float() / scale.float()
        assert float(ratios.max() / ratios.min()) < 1.002
    # Hardly anything is worth a bit where there is no gradient.
    assert float((to_grid(weights["2"], felt["2"], None, kind).values() != 0).float().mean()) < 0.05
    none = scales_for_rate(weights, 2.0, kind, dict.fromkeys(weights, 0.0))
    assert all(torch.equal(none[name], scale) for name, scale in plain.items())


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_a_matrix_of_zeros_or_a_very_sensitive_one_leaves_the_codes_their_room(bits):
    weights = drawn("normal")
    for sensitivities in ((1.0, 1.0, 1.0), (1e4, 1.0, 1.0)):
        felt = dict(zip(weights, sensitivities, strict=True)) | {"zeros": 1.0}
        everything = weights | {"zeros": torch.zeros(64, 64)}
        scales = scales_for_rate(everything, 1.9, GridKind(bits, group=None), felt)
        for name, weight in weights.items():
            grid = to_grid(weight, scales[name], None, GridKind(bits, group=None))
            assert float((grid.values() - weight).abs().max()) <= 0.51 * float(grid.scale)  # nothing is clamped
        assert entropy(to_grid(w, scales[n], None, GridKind(bits)) for n, w in everything.items()) <= 1.91


def test_weights_that_are_mostly_zero_meet_any_rate_that_they_have():
    weights = {name: weight * (weight.abs() > weight.abs().median()) for name, weight in drawn("normal").items()}
    assert entropy(rated(weights, 1.5, 8, None).values()) == pytest.approx(1.5, abs=0.01)
    nothing = {"zeros": torch.zeros(4, 8)}
    assert bool((rated(nothing, 2.0, 4, None)["zeros"].values() == 0).all())


@pytest.mark.parametrize("sensitivities", [None, 1.0])
def test_a_rate_that_pruned_weights_do_not_have_cuts_none_of_them(sensitivities):
    # Three in ten of them would need nine bits each: more than their codes have.
    weights = {name: weight * (weight.abs() > weight.abs().quantile(0.7)) for name, weight in drawn("normal").items()}
    felt = sensitivities and dict.fromkeys(weights, sensitivities)
    kind = GridKind(8, group=None)
    scales = scales_for_rate(weights, 3.616, kind, felt)
    grids = {name: to_grid(weight, scales[name], None, kind) for name, weight in weights.items()}
    for name, weight in weights.items():
        assert float((grids[name].values() - weight).abs().max()) <= 0.51 * float(scales[name])
    assert 2.3 < entropy(grids.values()) < 3.616


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


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_no_matrix_becomes_empty_however_little_it_matters(kind):
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn if kind == "normal" else torch.rand
    weights = {name: draw(64, 64, generator=generator) - (kind == "uniform") * 0.5 for name in ("q", "v")}
    grid = GridKind(8, group=None)
    scales = scales_for_rate(weights, 1.0, grid, {"q": 1e-12, "v": 1.0})
    assert all(to_grid(weight, scales[name], None, grid).values().any() for name, weight in weights.items())


@pytest.mark.parametrize("group", [None, 0])
@pytest.mark.parametrize("sensitivities", [None, {"down": 100.0, "up": 1.0}])
def test_a_few_weights_beyond_the_codes_of_their_matrix_have_rows_with_coarser_steps(sensitivities, group):
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(64, 128, generator=generator) for name in ("down", "up")}
    weights["down"][7, 30], weights["down"][9, 31] = 60.0, -45.0  # as pretrained encoders have them
    kind = GridKind(8, group=group)
    scales = scales_for_rate(weights, 4.5, kind, sensitivities)
    grids = {name: to_grid(weight, scales[name], None, kind) for name, weight in weights.items()}
    for name, grid in grids.items():
        error = (grid.values() - weights[name]).abs()
        assert bool((error <= 0.51 * scales[name].float()).all()), name
    if group is None:
        assert scales["up"].shape == (1, 1)
        others = [row for row in range(64) if row not in (7, 9)]
        assert float(scales["down"][7]) > float(scales["down"][9]) > float(scales["down"][others].max())
        assert len(scales["down"][others].unique()) == 1
    bits = sum(entropy_bits(grid.codes_RC) for grid in grids.values()) / (2 * 64 * 128)
    assert bits == pytest.approx(4.5, abs=0.01)
