from __future__ import annotations

import pytest

from tfx.config.schema import BudgetConfig
from tfx.training import budget
from tfx.training.budget import Clock


@pytest.fixture
def now(monkeypatch):
    """The time, as a list of one number that the test moves."""
    moment = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: moment[0])
    return moment


def test_steps_are_counted():
    clock = Clock(BudgetConfig(steps=4))
    seen = []
    while clock.progress < 1:
        seen.append((clock.progress, clock.middle_of_step()))
        clock.advance(10)
    assert seen == [(0.0, 0.125), (0.25, 0.375), (0.5, 0.625), (0.75, 0.875)]
    assert (clock.steps, clock.tokens) == (4, 40)


def test_tokens_are_counted_and_the_middle_is_taken_from_the_step_before():
    clock = Clock(BudgetConfig(tokens=100))
    assert clock.middle_of_step() == 0.0
    clock.advance(40)
    assert clock.progress == pytest.approx(0.4)
    assert clock.middle_of_step() == pytest.approx(0.6)
    clock.advance(80)
    assert clock.progress == 1.0
    assert clock.middle_of_step() == 1.0


def test_seconds_are_counted_while_steps_run(now):
    clock = Clock(BudgetConfig(seconds=10.0))
    now[0] += 2.0
    clock.advance(5)
    assert clock.progress == pytest.approx(0.2)
    assert clock.middle_of_step() == pytest.approx(0.3)
    now[0] += 20.0
    assert clock.progress == 1.0


def test_a_pause_counts_neither_inside_nor_after(now):
    clock = Clock(BudgetConfig(seconds=10.0))
    now[0] += 3.0
    with clock.paused():
        # The validation reports where the training stands: as before the pause.
        assert clock.seconds == pytest.approx(3.0)
        now[0] += 50.0
        assert clock.seconds == pytest.approx(3.0)
        assert clock.progress == pytest.approx(0.3)
    now[0] += 1.0
    assert clock.seconds == pytest.approx(4.0)
    with clock.paused():
        now[0] += 7.0
    assert clock.seconds == pytest.approx(4.0)


def test_the_clock_goes_on_after_an_error_inside_a_pause(now):
    clock = Clock(BudgetConfig(seconds=10.0))

    def validate():
        with clock.paused():
            now[0] += 50.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        validate()
    now[0] += 1.0
    assert clock.seconds == pytest.approx(1.0)


def test_a_pause_inside_a_pause_is_refused(now):
    clock = Clock(BudgetConfig(seconds=10.0))
    with clock.paused(), pytest.raises(AssertionError, match="paused already"), clock.paused():
        pass


@pytest.mark.parametrize("config", [BudgetConfig(steps=0), BudgetConfig(tokens=0), BudgetConfig(seconds=0.0)])
def test_a_zero_budget_is_spent_at_once(config):
    clock = Clock(config)
    assert clock.progress == 1.0
    assert clock.middle_of_step() == 1.0


def test_a_clock_without_a_budget_is_a_mistake_of_the_program():
    with pytest.raises(AssertionError, match="exactly one value"):
        _ = Clock(BudgetConfig()).progress
