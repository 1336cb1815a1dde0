"""The end of one of several processes."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from tfx.processes.group import is_one_of_several


def run_and_end(work: Callable[[], int]) -> int:
    """Returns the exit status of ``work``, which is all that this process does.

    One of several processes ends here instead. While Python cleans up, torch's threads for their messages run on, if
    anything still holds their group: now and then they abort the process, or wait for a message that nobody sends.
    """
    try:
        status = work()
    except Exception:
        if not is_one_of_several():
            raise
        sys.excepthook(*sys.exc_info())
        status = 1
    if is_one_of_several():
        _end(status)
    return status


def end_at_exit(status: int) -> None:
    """As `run_and_end` for a process that another library ends, with ``status``, after it has stored a job's result."""
    if is_one_of_several():
        atexit.register(_end, status)  # called before all that was registered earlier, torch's among them


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or has lost its reader
            stream.flush()
    os._exit(status)
