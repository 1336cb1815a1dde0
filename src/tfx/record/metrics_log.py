"""`metrics.jsonl`: one JSON object per line, appended during the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tfx.record.files import write_bytes


class MetricsLog:
    """Appends rows with ``split``, ``step``, ``tokens``, ``seconds`` and the values under their own names.

    ``place`` comes from an earlier log of the same file: what was written after it is removed. Where the file has been
    altered before that place, ``is_altered``, whole rows up to the step of the place stay.
    """

    def __init__(self, path: Path, place: dict[str, int] | None = None) -> None:
        self._step = 0
        self.is_altered = False
        if place is not None:
            self._step = place["step"]
            content = path.read_bytes() if path.exists() else b""
            found = content[: place["bytes"]]
            self.is_altered = len(found) < place["bytes"] or found[-1:] not in (b"", b"\n")
            if self.is_altered:
                found = b"".join(line for line in content.splitlines(keepends=True) if _is_row(line, self._step))
            if found != content:
                write_bytes(path, found)
        self._file = open(path, "ab")

    def write(self, split: str, *, step: int, tokens: int, seconds: float, **values: float) -> None:
        """Appends one row, and flushes it to the operating system at once."""
        row: dict[str, Any] = {"split": split, "step": step, "tokens": tokens, "seconds": round(seconds, 3)}
        self._file.write((json.dumps(row | values) + "\n").encode())
        self._file.flush()
        self._step = step

    def place(self) -> dict[str, int]:
        """The current position in the log; everything before it is on the disk."""
        os.fsync(self._file.fileno())
        return {"bytes": os.fstat(self._file.fileno()).st_size, "step": self._step}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _is_row(line: bytes, last: int) -> bool:
    """Whether a line is whole, and a row of a step up to the ``last``."""
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= last)
    except (ValueError, TypeError, KeyError):
        return False
