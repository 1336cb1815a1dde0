"""`metrics.jsonl`: one JSON object per line, appended during the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends rows with ``split``, ``step``, ``tokens``, ``seconds`` and the values under their own names.

    ``place`` comes from an earlier log of the same file: what was written after it is removed.
    """

    def __init__(self, path: Path, place: dict[str, int] | None = None) -> None:
        self._file = open(path, "ab")
        self._step = 0
        if place is not None:
            self._file.truncate(place["bytes"])
            self._step = place["step"]

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
