"""Bytes to text: reads compressed files, only UTF-8, and defines what ends a line.

``\\n``, ``\\r\\n`` and ``\\r`` end a line in every file. `str.splitlines` would also cut at U+2028, and misalign two
sides.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from tfx.errors import UserError

# A name may have one of these after its own suffix; the first bytes of a file decide what it is.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_GZIP, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_LFS = b"version https://git-lfs.github.com/spec/"
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")  # a text may begin with the first three


def plain_name(path: Path) -> str:
    """The name of a file without its compression suffix."""
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in COMPRESSED else path.name


def file_digest(path: Path) -> bytes:
    """SHA-256 of a stored file; raises `UserError` if it cannot be read, or is a Git LFS pointer."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise UserError(f"{path} is a pointer of Git LFS and not the data: get them with `git lfs pull`")
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if it is compressed; raises `UserError` if that fails."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if _BZIP2.match(data):
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


def decoded(path: Path) -> str:
    """A whole UTF-8 file, a byte order mark removed; raises `UserError` for other encodings and binary files."""
    data = read_bytes(path)
    if b"\0" in data:
        line = _line(data, data.index(b"\0"))
        raise UserError(f"{path}, line {line}: a NUL byte; the file is binary or UTF-16, and UTF-8 text is needed")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(data, error.start)
        raise UserError(
            f"{path}, line {line}: not UTF-8 (byte {data[error.start]:#04x}): convert the file to UTF-8"
        ) from None


def _line(data: bytes, place: int) -> int:
    before = data[:place]
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + 1


@dataclass(frozen=True)
class Text:
    """A file whose lines all end in ``\\n``: ``crlf`` of them ended in ``\\r\\n``, ``cr`` in ``\\r`` alone."""

    text: str
    crlf: int
    cr: int

    @property
    def lines(self) -> list[str]:
        """The lines without their ends."""
        lines = self.text.split("\n")
        if lines[-1] == "":
            lines.pop()
        return lines


def read_text(path: Path) -> Text:
    """A file as `decoded` reads it, with one kind of line end."""
    text = decoded(path)
    crlf = text.count("\r\n")
    cr = text.count("\r") - crlf
    if crlf or cr:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Text(text, crlf, cr)


def cr_note(path: Path, count: int) -> list[str]:
    """Notes how many lines end in a way that few programs read; no note if none does."""
    return [f"{path.name}: {count:,} lines end in \\r alone, which is read as a line end"] if count else []


def mark_note(path: Path, text: str) -> list[str]:
    """Notes byte order marks at the start of lines, as in concatenated files; no note if there are none."""
    count = text.count("\n\ufeff")
    first = text.count("\n", 0, text.find("\n\ufeff")) + 2
    where = f"the first line {first:,}, and are taken as text"
    return [f"{path.name}: {count:,} byte order marks (U+FEFF) begin lines, {where}"] if count else []
