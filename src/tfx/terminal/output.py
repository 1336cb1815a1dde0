"""The two streams that a command writes to: stdout for results, stderr for all else.

A command must not fail, let alone a training of hours, because nobody reads its output: stderr drops what it cannot
write, and stdout raises one error of its own, which callers can tell from all others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class LostOutputError(Exception):
    """Nothing more can be written to stdout: its reader has left, the disk is full, or it is closed."""


class Stream:
    """A text stream in place of ``sys.stdout`` or ``sys.stderr``; ``stream`` is None if the process has none.

    Characters that the stream's encoding lacks are written as ``?`` and counted in ``replaced``. ``error`` is the first
    failure, or None; after one nothing more is written. With ``raises`` a failure raises `LostOutputError`, otherwise
    it is dropped.
    """

    def __init__(self, stream: TextIO | None, *, raises: bool) -> None:
        self._stream, self._raises = stream, raises
        self.replaced = 0
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Writes the text; returns its length."""
        try:
            self._attempt("write", text)
        except UnicodeEncodeError:
            shown = text.encode(self.encoding, "replace").decode(self.encoding)
            self.replaced += sum(before != after for before, after in zip(text, shown, strict=True))
            self._attempt("write", shown)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Writes the texts one after another."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the buffer."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """Whether a terminal reads it."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    @property
    def encoding(self) -> str:
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _attempt(self, action: str, *arguments: str) -> None:
        if self.error is None:
            try:
                if self._stream is None:
                    raise ValueError("it is closed")
                getattr(self._stream, action)(*arguments)
            except UnicodeEncodeError:
                raise
            except (OSError, ValueError) as error:
                self.error = error
        if self.error is not None and self._raises:
            raise LostOutputError from self.error


@contextmanager
def streams() -> Iterator[Stream]:
    """Inside, stdout and stderr are streams that a command can rely on; yields that of stdout."""
    before = sys.stdout, sys.stderr
    _occupy_standard_files()
    output = Stream(before[0], raises=True)
    sys.stdout, sys.stderr = output, Stream(before[1], raises=False)
    try:
        yield output
    finally:
        sys.stdout, sys.stderr = before
        if isinstance(output.error, OSError):
            # The rest of the buffer cannot be written either, and Python would complain at exit.
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), before[0].fileno())


def _occupy_standard_files() -> None:
    """Opens file 0, 1 or 2 if it is closed: else the next file opened would get its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def lost(output: Stream) -> str | None:
    """One line on why the output did not reach stdout; None if it did, or if its reader has left."""
    if output.error is None:
        with suppress(LostOutputError):
            output.flush()
    if output.error is None or isinstance(output.error, BrokenPipeError):
        return None
    reason = getattr(output.error, "strerror", None) or str(output.error)
    return f"the output could not be written to stdout: {reason}"
