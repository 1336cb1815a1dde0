"""Locks between processes, on run directories and cache entries; a dead process holds none."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tfx.errors import UserError
from tfx.record.directory import RunDirectory, cache_folder

# What a file system without such locks says, as some that many machines share.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process; raises `UserError` if another one does.

    The lock is the operating system's, on the open file ``.lock``, so it ends with its process in any case.
    The file stays: removing it would let two processes lock two files of the same name.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        yield
        return
    path = RunDirectory(folder).lock
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
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(f"note: {folder} is on a disk without locks: start no second tfx process there", file=sys.stderr)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def making(entry: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the cache ``entry`` (a file or folder, there or not), so that processes that need it make it once.

    If another process holds it, calls ``waiting`` and waits. The lock file is not inside the entry: a damaged entry
    is removed, its lock never.
    """
    try:
        import fcntl
    except ImportError:  # on Windows an entry may be made twice; each is still written completely
        yield
        return
    path = cache_folder() / "locks" / f"{entry.parent.name}-{entry.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Users who share a cache lock each other's files: opening one for writing would need its owner's permission.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"the cache folder {path.parent} cannot be written ({error.strerror}): name another one with TFX_CACHE"
        ) from error
    with os.fdopen(descriptor) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise  # else an entry may be made twice; each is still written completely
        yield
