"""Trackio: a local store (``TRACKIO_DIR``) that `trackio show` opens, or a server or Space of the environment's."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfx.run.tracking.contract import TrackedRun, Tracker


class Trackio(Tracker):
    """One run of Trackio. It finds runs by their name, so a random end makes the name the run's own."""

    def __init__(self, run: TrackedRun, identity: str | None, step: int) -> None:
        import trackio

        self._name = identity or f"{run.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", run.project),
            name=self._name,
            config={**run.config, "tags": run.tags},
            resume="never" if identity is None else "allow",
            embed=False,
            auto_log_gpu=False,
        )

    @property
    def identity(self) -> str:
        return self._name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def summarize(self, values: Mapping[str, float], table: str) -> None:
        import trackio

        numbers = {f"summary/{name}": value for name, value in values.items()}
        self._run.log({**numbers, "result": trackio.Markdown(f"```\n{table}\n```")})

    def upload(self, files: Sequence[Path]) -> None:
        for file in files:
            self._run.log_artifact(str(file), name=file.stem, type="model" if file.suffix == ".safetensors" else "page")

    def close(self, completed: bool) -> None:
        self._run.finish()


open_run = Trackio
