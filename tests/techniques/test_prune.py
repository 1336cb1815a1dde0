import math

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.errors import UserError
from tfx.techniques.prune import (
    PruneSettings,
    magnitude_masks,
    parse_pattern,
    pattern_mask,
    smallest,
    sparsity_at,
)

matrices = arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 12)), elements=st.integers(-3, 3))


@given(matrices, st.floats(0, 0.99), st.sampled_from(["tensor", "row", "global"]))
@settings(max_examples=200, deadline=None)
def test_exactly_the_share_goes_and_nothing_larger_goes_before_something_smaller(values, sparsity, scope):
    weights = {"a": torch.from_numpy(values), "b": torch.from_numpy(values[::-1].copy())}
    masks = magnitude_masks(weights, sparsity, scope)
    if scope == "global":
        units = [
            (
                np.concatenate([values.ravel(), values[::-1].ravel()]),
                np.concatenate([masks[n].numpy().ravel() for n in "ab"]),
            )
        ]
    elif scope == "tensor":
        units = [(weights[n].numpy().ravel(), masks[n].numpy().ravel()) for n in "ab"]
    else:
        units = [pair for n in "ab" for pair in zip(weights[n].numpy(), masks[n].numpy(), strict=True)]
    for unit, mask in units:
        assert (~mask).sum() == round(sparsity * unit.size)
        if mask.any() and not mask.all():
            assert np.abs(unit[~mask]).max() <= np.abs(unit[mask]).min()


@given(matrices, st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_among_equals_the_first_go(values, count):
    magnitude = torch.from_numpy(np.abs(values))
    count = min(count, magnitude.shape[1])
    gone = smallest(magnitude, count)
    for row, mask in zip(np.abs(values), gone.numpy(), strict=True):
        assert set(np.argsort(row, kind="stable")[:count]) == set(np.flatnonzero(mask))


@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_a_pattern_holds_in_every_group(keep, of):
    weight = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    mask = pattern_mask(weight, keep, of)
    groups = mask.view(-1, of)
    assert bool((groups.sum(1) == keep).all())
    kept = weight.abs().view(-1, of)
    assert all(kept[i][groups[i]].min() >= kept[i][~groups[i]].max() for i in range(len(groups)))


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "2:2", "a:b", "-1:4", "2:4:8"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match="n:m"):
        parse_pattern(text)


def test_the_ramp_is_that_of_zhu_and_gupta():
    given_ = PruneSettings(start=0.2, end=0.7, sparsity=0.8, initial=0.1)
    assert sparsity_at(given_, 0.1) == 0.0
    assert sparsity_at(given_, 0.2) == pytest.approx(0.1)
    assert sparsity_at(given_, 0.45) == pytest.approx(0.8 + (0.1 - 0.8) * (1 - 0.5) ** 3)
    assert sparsity_at(given_, 0.7) == sparsity_at(given_, 1.0) == pytest.approx(0.8)
    linear = PruneSettings(start=0.0, end=1.0, sparsity=0.6, schedule="linear")
    assert sparsity_at(linear, 0.5) == pytest.approx(0.3)
    assert math.isclose(sparsity_at(PruneSettings(schedule="once"), 0.2), 0.5)
