"""What libraries write to stderr past Python's own stream."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Inside, nothing reaches stderr, of libraries that know no setting for that. It may be closed."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
