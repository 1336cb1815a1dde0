"""Steps that must not be taken are found, and each policy does what it says."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfx.config.schema import InstabilityConfig
from tfx.training.stability import HostGuard, UnstableError


def guard(**settings) -> HostGuard:
    return HostGuard(InstabilityConfig(**settings))


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_what_is_not_finite_is_a_fault(loss, norm):
    assert guard().fault(loss, norm) is not None


@given(st.lists(st.floats(0, 12), min_size=1, max_size=19), st.floats(0, 1e6))
def test_a_short_history_says_nothing(losses, last):
    watched = guard()
    assert [watched.fault(loss, 1.0) for loss in losses] == [None] * len(losses)
    assert watched.fault(last, 1.0) is None


def test_a_spike_stands_out_of_its_own_history_and_is_no_part_of_it():
    watched = guard(spike=2.0)
    for step in range(30):
        assert watched.fault(3.0 - 0.01 * step, 1.0) is None
    for _ in range(100):
        assert "was 2.8" in str(watched.fault(5.5, 1.0))
    assert watched.fault(4.5, 1.0) is None
    assert guard(spike=None).fault(1e9, 1.0) is None


def test_a_slow_rise_is_no_spike():
    watched = guard(spike=2.0)
    assert all(watched.fault(1.0 + 0.05 * step, 1.0) is None for step in range(500))


def test_stop_stops():
    with pytest.raises(UnstableError, match="policy=skip or back_off"):
        guard(policy="stop").respond("the loss is nan")


@pytest.mark.parametrize(("policy", "factors"), [("skip", [1.0, 1.0]), ("back_off", [0.5, 0.25])])
def test_skipping_goes_on_until_patience_is_spent(policy, factors):
    watched = guard(policy=policy, patience=3)
    seen = []
    for _ in range(2):
        watched.respond("the loss is nan")
        seen.append(watched.learning_rate_factor)
    assert seen == factors
    assert watched.fault(1.0, 1.0) is None  # a good step: patience begins anew
    for _ in range(2):
        watched.respond("the loss is nan")
    assert watched.skipped == 4
    with pytest.raises(UnstableError, match="3 steps in a row"):
        watched.respond("the loss is nan")


def test_a_guard_goes_on_where_another_stood():
    first = guard(policy="back_off")
    for loss in range(25):
        first.fault(3.0 + loss / 100, 1.0)
    first.respond("the loss is nan")
    second = guard(policy="back_off")
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.fault(9.0, 1.0) is not None
