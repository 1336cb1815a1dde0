"""Weights & Biases, online or offline (``WANDB_MODE=offline``); its own environment variables say where and who."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfx.run.tracking.contract import TrackedRun, Tracker


class WeightsAndBiases(Tracker):
    """One run of W&B, whose files lie in the run's folder."""

    def __init__(self, run: TrackedRun, identity: str | None, step: int) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", run.project),
            id=identity,
            resume="allow",
            name=run.name,
            tags=run.tags,
            config=run.config,
            dir=str(run.folder),
            reinit="create_new",
            # It would write over the console's live line.
            settings=wandb.Settings(silent=True, console="off"),
        )
        # After resuming, steps come again that W&B's own counter would refuse.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    @property
    def identity(self) -> str:
        return str(self._run.id)

    @property
    def place(self) -> str | None:
        return self._run.url or f"offline, `wandb sync {Path(self._run.dir).parent}` sends it"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def summarize(self, values: Mapping[str, float], table: str) -> None:
        self._run.summary.update({**values, "result": table})

    def upload(self, files: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self._run.id}", type="model")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else 1)


open_run = WeightsAndBiases
