"""TensorBoard: event files in the run's own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfx.run.tracking.contract import TrackedRun, Tracker

_FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Scalars by split; config and closing table as text. It has no place for files: they lie beside the events."""

    def __init__(self, run: TrackedRun, identity: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after this step are dropped by TensorBoard: the resumed run writes them again.
        self._writer = SummaryWriter(str(run.folder / _FOLDER), purge_step=None if identity is None else step + 1)
        self._step = step
        if identity is None:
            self._writer.add_text("config", _code(json.dumps(run.config, indent=1)))

    @property
    def identity(self) -> str:
        return _FOLDER

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def summarize(self, values: Mapping[str, float], table: str) -> None:
        self._writer.add_text("result", _code(table), self._step)
        for name, value in values.items():
            self._writer.add_scalar(f"summary/{name}", value, self._step)

    def upload(self, files: Sequence[Path]) -> None:
        self._writer.add_text("files", _code("\n".join(str(file) for file in files)), self._step)

    def close(self, completed: bool) -> None:
        self._writer.close()


def _code(text: str) -> str:
    """The text as Markdown that keeps its lines."""
    return "\n".join(f"    {line}" for line in text.splitlines())


open_run = TensorBoard
