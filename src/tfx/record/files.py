"""Writes files completely or not at all, and reads them with helpful errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tfx.errors import UserError

# Of a file, where its kind is looked for.
_BEGINNING = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; on a clean exit it is synced and renamed to ``path``.

    A symbolic link stays, and what it leads to is replaced; a device or a pipe is refused. On an error the temporary
    file is removed and ``path`` is unchanged. A system's error names ``path``.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is no file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # Some writers make private files; a result gets the user's usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        number = error.errno if isinstance(error, OSError) else _system_error(error)
        if number is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _system_error(error: BaseException) -> int | None:
    """The system's error number in the message of a library that gives it only there (safetensors)."""
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` survive a power cut, if the system supports it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object per line, completely or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def check_replaced(path: Path, option: str, mark: bytes, what: str) -> None:
    """Raises `UserError` where an ``option`` cannot write its file, or something else is that this would replace.

    A ``what`` has a mark in it.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{option} {path} is a {'folder' if path.is_dir() else 'device or pipe'}: name a file")
    if not os.access(path.parent, os.W_OK):
        reason = "cannot be written to" if path.parent.is_dir() else "does not exist"
        raise UserError(f"{option} {path}: the folder {path.parent} {reason}")
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            if mark not in file.read(_BEGINNING):
                raise UserError(f"{option} {path} exists already, and is no {what}: name another file")


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises `UserError` if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
