"""A signal for a process whose parent has ended."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def asks_for_signal(number: int) -> Callable[[], object]:
    """What a process calls so that it gets the signal ``number`` when its parent ends; nothing on others than Linux.

    All that takes a lock is done here, so that a child may call it between fork and exec.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, number)
