"""The lock of a run directory: one process at a time, and a dead one holds nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfx.errors import UserError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process; raises `UserError` where another one does.

    The lock is the operating system's, on the open file ``.lock``, so it ends with its process however that
    ends. The file stays: removing it would let two processes lock two files of one name.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    path = folder / ".lock"
    try:
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{folder} is in use by another tfx process (id {holder}): wait for it or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
