"""When a state is due: by steps, by the clock, or by whichever comes first."""

from tfx.config.schema import SaveConfig
from tfx.training import state


def due(monkeypatch, minutes_at_step, **config) -> list[int]:
    """The steps after which a state is saved, given the time at each."""
    now = [0.0]
    monkeypatch.setattr(state.time, "monotonic", lambda: now[0])
    saving = state.SaveSchedule(SaveConfig(**config), 0)
    found = []
    for step, minutes in enumerate(minutes_at_step, 1):
        now[0] = 60.0 * minutes
        if saving.is_due(step):
            found.append(step)
    return found


def test_a_state_is_due_every_so_many_steps_and_minutes(monkeypatch):
    assert due(monkeypatch, range(10), every_steps=3, every_minutes=None) == [3, 6, 9]
    assert due(monkeypatch, range(12), every_steps=None, every_minutes=5.0) == [6, 11]
    # Whatever comes first, counted from the last state of either kind.
    assert due(monkeypatch, [0, 1, 2, 9, 9, 9, 9, 9], every_steps=3, every_minutes=6.0) == [3, 4, 7]
    assert due(monkeypatch, range(100), every_steps=None, every_minutes=None) == []
