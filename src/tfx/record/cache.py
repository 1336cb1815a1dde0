"""Entries of the cache that are folders: complete or absent, made once, and made anew where they are damaged."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tfx.errors import UserError
from tfx.record.lock import making

Entry = TypeVar("Entry")
# A day without a write.
_ABANDONED_SECONDS = 86_400


def cached(folder: Path, read: Callable[[Path], Entry], write: Callable[[Path], None]) -> Entry:
    """What ``read`` finds in a cache entry. ``write`` fills a folder beside it first, if it is missing or damaged.

    ``read`` raises an error of reading or parsing where the entry is damaged. If two runs need an entry at once, one
    makes it and the other waits. Raises `UserError` if the cache cannot be read or written.
    """
    with making(folder):
        for _ in range(2):
            if folder.is_dir():
                try:
                    return read(folder)
                except PermissionError as error:  # another user's: not ours to remove
                    what = f"the cache entry {folder} cannot be read ({error.strerror})"
                    raise UserError(f"{what}: name your own cache with TFX_CACHE") from error
                except (OSError, EOFError, ValueError, TypeError, KeyError):
                    shutil.rmtree(folder, ignore_errors=True)
            _fill(folder, write)
    raise UserError(
        f"the cache folder {folder} is damaged and cannot be replaced: remove it, or name another cache with TFX_CACHE"
    )


def _fill(folder: Path, write: Callable[[Path], None]) -> None:
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        # Of a process that was killed: one that goes on writes into it.
        with suppress(OSError):
            if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        write(temporary)
        for path in temporary.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())  # or a power cut could leave a file of zeros after the rename
        os.rename(temporary, folder)
    except OSError as error:
        if not folder.is_dir():  # else another run was faster
            raise UserError(unwritable(folder.parent, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unwritable(folder: Path, error: OSError) -> str:
    """The message for a folder of the cache that an error keeps from being written."""
    return f"the cache folder {folder} cannot be written ({error.strerror}): name another one with TFX_CACHE"
