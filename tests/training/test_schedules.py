from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfx.config.schema import ScheduleConfig
from tfx.training.schedules import schedule_factor

NAMES = ["constant", "inverse_sqrt", "cosine", "linear", "polynomial", "wsd"]


def at(progress, name="cosine", **settings):
    return schedule_factor(ScheduleConfig(name=name, **settings), progress)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", [0.05, 0.5, 0.9])
def test_warm_up_is_linear_from_zero_and_meets_the_peak_without_a_jump(name, warmup):
    assert at(0.0, name, warmup=warmup) == 0.0
    assert at(warmup / 4, name, warmup=warmup) == pytest.approx(0.25)
    assert at(warmup - 1e-9, name, warmup=warmup) == pytest.approx(1.0, abs=1e-6)
    assert at(warmup, name, warmup=warmup) == pytest.approx(1.0)
    assert at(warmup + 1e-9, name, warmup=warmup) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_without_warm_up_the_first_step_is_at_the_peak(name):
    assert at(0.0, name, warmup=0.0) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_over_the_whole_budget_rises_to_its_end(name):
    assert at(0.999, name, warmup=1.0) == pytest.approx(0.999)
    assert 0.0 <= at(1.0, name, warmup=1.0) <= 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "polynomial", "wsd"])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_decay_ends_at_the_final_factor(name, final):
    assert at(1.0, name, final=final) == pytest.approx(final)


@pytest.mark.parametrize(
    ("name", "progress", "expected"),
    [
        ("constant", 0.7, 1.0),
        ("cosine", 0.6, 0.5),
        ("cosine", 0.4, 0.5 * (1 + math.cos(math.pi / 4))),
        ("linear", 0.6, 0.5),
        ("polynomial", 0.6, 0.125),
        ("inverse_sqrt", 0.8, 0.5),
    ],
)
def test_shapes_are_their_formulas(name, progress, expected):
    assert at(progress, name, warmup=0.2, power=3.0) == pytest.approx(expected)


def test_final_factor_is_the_floor_that_shapes_are_scaled_onto():
    assert at(0.6, "linear", warmup=0.2, final=0.5) == pytest.approx(0.75)


def test_wsd_is_flat_until_its_linear_decay():
    for progress in (0.1, 0.4, 0.7):
        assert at(progress, "wsd", warmup=0.1, decay=0.3) == pytest.approx(1.0)
    assert at(0.85, "wsd", warmup=0.1, decay=0.3) == pytest.approx(0.5)


@settings(deadline=None)
@given(
    st.sampled_from(NAMES), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 1), st.floats(0.1, 5)
)
def test_the_factor_is_always_between_zero_and_one(name, progress, warmup, final, decay, power):
    assert 0.0 <= at(progress, name, warmup=warmup, final=final, decay=decay, power=power) <= 1.0


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.floats(0, 0.99), st.floats(0, 1), st.floats(0, 1))
def test_the_factor_never_rises_after_the_warm_up(name, warmup, first, second):
    early, late = sorted(warmup + (1 - warmup) * share for share in (first, second))
    assert at(late, name, warmup=warmup) <= at(early, name, warmup=warmup) + 1e-9
