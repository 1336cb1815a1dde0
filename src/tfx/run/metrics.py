"""`metrics.jsonl`: one JSON object a line, appended as the run goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends rows with ``split``, ``step``, ``tokens``, ``seconds`` and the values under their own names.

    Optionally writes the same values as TensorBoard events.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None) -> None:
        self._file = open(path, "a", encoding="utf-8")
        self._writer = None
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard))

    def write(self, split: str, *, step: int, tokens: int, seconds: float, **values: float) -> None:
        """Appends one row, and hands it to the operating system at once."""
        row: dict[str, Any] = {"split": split, "step": step, "tokens": tokens, "seconds": round(seconds, 3)}
        self._file.write(json.dumps(row | values) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()
