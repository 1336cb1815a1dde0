from __future__ import annotations

import pytest

from tfx.config.schema import Budget
from tfx.training import budget
from tfx.training.budget import Clock


@pytest.fixture
def now(monkeypatch):
    """The time, as a list of one number that the test moves."""
    moment = [100.0]
    monkeypatch.setattr(budget.time, "perf_counter", lambda: moment[0])
    return moment


def test_steps_are_counted():
    clock = Clock(Budget(steps=4))
    seen = []
    while clock.progress < 1:
        seen.append((clock.progress, clock.middle_of_step()))
        clock.advance(10)
    assert seen == [(0.0, 0.125), (0.25, 0.375), (0.5, 0.625), (0.75, 0.875)]
    assert (clock.steps, clock.tokens) == (4, 40)


def test_tokens_are_counted_and_the_middle_is_taken_from_the_step_before():
    clock = Clock(Budget(tokens=100))
    assert clock.middle_of_step() == 0.0
    clock.advance(40)
    assert clock.progress == pytest.approx(0.4)
    assert clock.middle_of_step() == pytest.approx(0.6)
    clock.advance(80)
    assert clock.progress == 1.0
    assert clock.middle_of_step() == 1.0


def test_seconds_are_counted_while_steps_run(now):
    clock = Clock(Budget(seconds=10.0))
    now[0] += 2.0
    clock.advance(5)
    assert clock.progress == pytest.approx(0.2)
    assert clock.middle_of_step() == pytest.approx(0.3)
    now[0] += 20.0
    assert clock.progress == pytest.approx(0.2)  # it moves at the end of a step
    clock.advance(5)
    assert clock.progress == 1.0
    assert clock.history == [pytest.approx(0.2), 1.0]


def test_a_pause_counts_neither_inside_nor_after(now):
    clock = Clock(Budget(seconds=10.0))
    now[0] += 3.0
    clock.advance(1)
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
    clock = Clock(Budget(seconds=10.0))

    def validate():
        with clock.paused():
            now[0] += 50.0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        validate()
    now[0] += 1.0
    assert clock.seconds == pytest.approx(1.0)


def test_a_pause_inside_a_pause_is_refused(now):
    clock = Clock(Budget(seconds=10.0))
    with clock.paused(), pytest.raises(AssertionError, match="paused already"), clock.paused():
        pass


@pytest.mark.parametrize("config", [Budget(steps=0), Budget(tokens=0), Budget(seconds=0.0)])
def test_a_zero_budget_is_spent_at_once(config):
    clock = Clock(config)
    assert clock.progress == 1.0
    assert clock.middle_of_step() == 1.0


def test_a_clock_without_a_budget_is_a_mistake_of_the_program():
    with pytest.raises(AssertionError, match="exactly one value"):
        Clock(Budget())


def test_a_recorded_history_is_repeated_whatever_the_time(now):
    first = Clock(Budget(seconds=10.0))
    for passed in (1.0, 4.0, 7.0):
        now[0] += passed
        first.advance(3)
    again = Clock(Budget(seconds=10.0), first.history)
    seen = []
    for _ in range(3):
        now[0] += 0.5
        again.advance(3)
        seen.append((again.progress, again.middle_of_step()))
    assert [progress for progress, _ in seen] == first.history == again.history == [0.1, 0.5, 1.0]
    assert seen[1][1] == pytest.approx(0.7)


@pytest.mark.parametrize("config", [Budget(steps=8), Budget(tokens=80), Budget(seconds=8.0)])
def test_a_clock_goes_on_where_another_stood(config, now):
    first = Clock(config)
    for _ in range(3):
        now[0] += 1.0
        first.advance(10)
    state = first.state_dict()
    now[0] += 1000.0
    second = Clock(config)
    second.load_state_dict(state)
    assert (second.steps, second.tokens, second.progress) == (3, 30, pytest.approx(3 / 8))
    assert second.middle_of_step() == first.middle_of_step()
    assert second.seconds == pytest.approx(3.0)  # the time between the two counts for neither
    longer = Clock(Budget(**{name: value and 2 * value for name, value in vars(config).items()}))
    longer.load_state_dict(state)
    assert longer.progress == pytest.approx(3 / 16)


@pytest.mark.parametrize(
    ("config", "words", "typed"),
    [
        (Budget(tokens=1_500_000), "1,500,000 tokens", "trainer.budget.tokens=1500000"),
        (Budget(steps=400), "400 steps", "trainer.budget.steps=400"),
        (Budget(seconds=0.25), "0.25 seconds", "trainer.budget.seconds=0.25"),
    ],
)
def test_a_budget_is_told_with_all_of_its_digits(config, words, typed):
    assert str(config) == words
    assert config.override == typed
