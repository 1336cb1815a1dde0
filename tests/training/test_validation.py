"""When validations are due."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfx.config.compose import compose
from tfx.errors import UserError
from tfx.training.validation import Selection

CONFIG = compose([])


def due_after(every, progress):
    """Counted one by one."""
    number = 1
    while number * every <= progress + 1e-9:
        number += 1
    return number


@given(every=st.floats(0.003, 1), first=st.floats(0, 1), second=st.floats(0, 1))
def test_the_next_one_is_the_first_that_is_later(every, first, second):
    CONFIG.trainer.validate_every = every
    selection = Selection(CONFIG, [])
    for progress in sorted((first, second)):
        assume(1e-6 < (progress + 1e-9) / every % 1 < 1 - 1e-6)  # at an exact multiple the last digit decides
        selection.passed(progress)
        assert selection.next_validation == due_after(every, progress)
        assert not selection.is_due(progress) or progress == 1


def test_very_frequent_ones_take_no_time():
    CONFIG.trainer.validate_every = 1e-9
    selection = Selection(CONFIG, [])
    selection.passed(1.0)  # it was counted up to, one by one
    assert selection.next_validation == pytest.approx(1e9, rel=1e-6)
    with pytest.raises(UserError, match="at least 1e-09"):
        compose(["trainer.validate_every=1e-300"])
