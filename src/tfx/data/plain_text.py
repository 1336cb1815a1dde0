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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tfx.errors import UserError

# A name may have one of these after its own suffix; the first bytes of a file decide what it is.
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_GZIP, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_LFS = b"version https://git-lfs.github.com/spec/"
# Bytes that are read at once.
_BLOCK = 1 << 22
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")  # a text may begin with the first three


def plain_name(path: Path) -> str:
    """The name of a file without its compression suffix."""
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in COMPRESSED else path.name


def file_digest(path: Path) -> bytes:
    """SHA-256 of a stored file; raises `UserError` if it cannot be read, or is a Git LFS pointer."""
    try:
        with open(path, "rb") as file:
            refuse_pointer(path, file)
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


class Unchanged:
    """Files as they are before they are read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._before = {path: _stamp(path) for path in paths}

    def holds(self) -> bool:
        """Whether none of the files has been written since, or replaced; raises `UserError` if one is gone."""
        return all(_stamp(path) == before for path, before in self._before.items())

    def check(self) -> None:
        """Raises `UserError` if one of the files has been written since: what was read of it may be of two contents."""
        if not self.holds():
            names = " or ".join(str(path) for path, before in self._before.items() if _stamp(path) != before)
            raise UserError(f"{names} changed while it was read: start again when nothing writes into it")


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns, found.st_ino


def refuse_pointer(path: Path, file: BinaryIO) -> None:
    """Raises `UserError` for a file that stands in for one that Git LFS has; else it is at its beginning again."""
    if file.read(len(_LFS)) == _LFS:
        raise UserError(f"{path} is a pointer of Git LFS and not the data: get them with `git lfs pull`")
    file.seek(0)


def unpacked(path: Path) -> Iterator[bytes]:
    """The content of a file block by block, unpacked if it is compressed; raises `UserError` if that fails."""
    is_packed = False
    try:
        with open(path, "rb") as file:
            opened = _unpacker(path, file)
            is_packed = opened is not file
            with opened as stream:
                while block := stream.read(_BLOCK):
                    yield block
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if not is_packed and isinstance(error, OSError):
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        raise UserError(f"{path} is compressed and cannot be unpacked ({error}): it is cut or damaged") from error


def _unpacker(path: Path, file: BinaryIO) -> Any:
    """What reads the content of an open file, by its first bytes: the file itself, if it is not compressed."""
    first = file.read(16)
    file.seek(0)
    if first.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    if _BZIP2.match(first):
        return io.BufferedReader(_Streams(file, bz2.BZ2Decompressor))
    if first.startswith(_XZ):
        return io.BufferedReader(_Streams(file, lzma.LZMADecompressor, padding=b"\0"))
    if first.startswith(_ZSTD):
        import pyarrow

        return pyarrow.input_stream(str(path), compression="zstd")
    if first.startswith(_ZIP):
        archive = zipfile.ZipFile(file)
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if len(names) != 1:
            held = ", ".join(names[:5]) or "none"
            raise UserError(f"{path} holds {len(names)} files ({held}), and one is needed: unpack it into a folder")
        return archive.open(names[0])
    return file


class _Streams(io.RawIOBase):
    """Compressed streams one after the other, with ``padding`` between, as one content.

    Python's own files end in silence at what is no stream, and so at one that is damaged in its first bytes.
    """

    def __init__(self, file: BinaryIO, make: Callable[[], Any], padding: bytes = b"") -> None:
        self._file, self._make, self._padding = file, make, padding
        self._stream = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            given = b""
            if self._stream.eof:
                given = self._stream.unused_data.lstrip(self._padding)
                while not given:
                    if not (block := self._file.read(_BLOCK)):
                        return 0
                    given = block.lstrip(self._padding)
                self._stream = self._make()
            elif self._stream.needs_input and not (given := self._file.read(_BLOCK)):
                raise EOFError("it ends inside a stream")
            if found := self._stream.decompress(given, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


def decoded(path: Path) -> Iterator[str]:
    """A UTF-8 file in pieces that end where lines end, a byte order mark removed.

    Raises `UserError` for other encodings and binary files.
    """
    pieces = _pieces(path)
    for line, piece in pieces:
        _refuse_nul(path, line, piece)
        try:
            yield piece.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            for later in pieces:  # a binary file is named as such
                _refuse_nul(path, *later)
            line = _line(piece, error.start, line)
            raise UserError(
                f"{path}, line {line}: not UTF-8 (byte {piece[error.start]:#04x}): convert the file to UTF-8"
            ) from None


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """Blocks of a file that end where a line ends, each with the number of its first line."""
    line, held = 1, bytearray()
    for block in unpacked(path):
        before = max(0, len(held) - 1)
        held += block
        # A last \r may be half of a line end.
        end = held.rfind(b"\n", before) + 1 or held.rfind(b"\r", before, len(held) - 1) + 1
        if end:
            piece = bytes(held[:end])
            yield line, piece
            line = _line(piece, end, line)
            del held[:end]
    if held:
        yield line, bytes(held)


def _refuse_nul(path: Path, line: int, piece: bytes) -> None:
    if b"\0" in piece:
        line = _line(piece, piece.index(b"\0"), line)
        raise UserError(f"{path}, line {line}: a NUL byte; the file is binary or UTF-16, and UTF-8 text is needed")


def _line(piece: bytes, place: int, first: int) -> int:
    """The line of a place in a piece that begins with the line ``first``."""
    before = piece[:place]
    return before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n") + first


class TextFile:
    """A UTF-8 file that is read in pieces of whole lines. What is said of its lines is complete at its end.

    ``crlf`` lines ended in ``\\r\\n``, ``cr`` in ``\\r`` alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.crlf = self.cr = self._marks = self._first_mark = 0

    def pieces(self, *, one_line_end: bool = True) -> Iterator[str]:
        """The pieces; all lines end in ``\\n``, or with ``one_line_end=False`` as they do in the file."""
        self.crlf = self.cr = self._marks = self._first_mark = 0
        lines, begins = 0, False
        for text in decoded(self.path):
            crlf = text.count("\r\n")
            cr = text.count("\r") - crlf
            self.crlf, self.cr = self.crlf + crlf, self.cr + cr
            if one_line_end and (crlf or cr):
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            if "\ufeff" in text:
                self._count_marks(text, lines, begins)
            lines += text.count("\n")
            begins = text.endswith("\n")
            yield text

    def lines(self) -> Iterator[str]:
        """The lines without their ends."""
        for piece in self.pieces():
            lines = piece.split("\n")
            if lines[-1] == "":
                lines.pop()
            yield from lines

    def text(self) -> str:
        """The whole text, with one kind of line end."""
        return "".join(self.pieces())

    def _count_marks(self, text: str, lines: int, begins: bool) -> None:
        at_start = begins and text.startswith("\ufeff")
        if count := text.count("\n\ufeff") + at_start:
            place = 0 if at_start else text.find("\n\ufeff") + 1
            self._first_mark = self._first_mark or lines + text.count("\n", 0, place) + 1
            self._marks += count

    def mark_note(self) -> list[str]:
        """Notes byte order marks at the start of lines, as in concatenated files; no note if there are none."""
        where = f"the first line {self._first_mark:,}, and are taken as text"
        note = f"{self.path.name}: {self._marks:,} byte order marks (U+FEFF) begin lines, {where}"
        return [note] if self._marks else []


def cr_note(path: Path, count: int) -> list[str]:
    """Notes how many lines end in a way that few programs read; no note if none does."""
    return [f"{path.name}: {count:,} lines end in \\r alone, which is read as a line end"] if count else []
