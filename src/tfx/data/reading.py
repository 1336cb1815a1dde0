"""Bytes to text: compressed files as they are, UTF-8 alone, and what ends a line."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zipfile
import zlib
from pathlib import Path

from tfx.errors import UserError

# A name may end in one of these behind its own suffix; what a file is, its first bytes say.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_GZIP, _BZIP2, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"


def plain_name(path: Path) -> str:
    """The name of a file without the suffix of its compression."""
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in COMPRESSED else path.name


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file as it lies there; raises `UserError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked where it is compressed; raises `UserError` where that fails."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if data.startswith(_BZIP2):
            return bz2.decompress(data)
        if data.startswith(_XZ):
            return lzma.decompress(data)
        if data.startswith(_ZSTD):
            return _unpack_zstd(path)
        if data.startswith(_ZIP):
            return _unpack_zip(path, data)
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is compressed and cannot be unpacked ({error}): it is cut or damaged") from error
    return data


def _unpack_zstd(path: Path) -> bytes:
    import pyarrow

    with pyarrow.input_stream(str(path), compression="zstd") as stream:
        return stream.read()


def _unpack_zip(path: Path, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            held = ", ".join(names[:5]) or "none"
            raise UserError(f"{path} holds {len(names)} files ({held}), and one is needed: unpack it into a folder")
        return archive.read(names[0])


def read_text(path: Path) -> str:
    """A whole UTF-8 file, a byte order mark removed; raises `UserError` for other encodings and binary files.

    Where nothing but ``\\r`` ends a line, as on old Macs, ``\\n`` stands in its place.
    """
    data = read_bytes(path)
    if b"\n" not in data and b"\r" in data:
        data = data.replace(b"\r", b"\n")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UserError(f"{path}, line {line}: a NUL byte; the file is binary or UTF-16, and UTF-8 text is needed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}): convert the file to UTF-8"
        ) from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, as `read_text` reads it."""
    # Only \n, \r\n or in their absence \r end a line: str.splitlines would also cut at U+2028 and misalign two sides.
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
