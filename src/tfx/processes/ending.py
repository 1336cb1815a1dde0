"""The end of one of several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

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
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # it is closed, or has lost its reader
                stream.flush()
        os._exit(status)
    return status
