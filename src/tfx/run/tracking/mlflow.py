"""MLflow: a server, or a local store such as SQLite, as ``MLFLOW_TRACKING_URI`` names it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfx.run.tracking.contract import TrackedRun, Tracker

# What one call to a server may hold, and the longest value of a parameter.
_PARAMETERS, _METRICS, _LENGTH = 100, 1000, 6000


class MLflow(Tracker):
    """One run of MLflow, in the experiment that the project names."""

    def __init__(self, run: TrackedRun, identity: str | None, step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        self._client = MlflowClient()
        if identity is not None:
            self._id = identity
            self._client.update_run(identity, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(run.project)
        experiment = self._client.create_experiment(run.project) if found is None else found.experiment_id
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        parameters = [Param(name, str(value)[:_LENGTH]) for name, value in run.config.items()]
        for start in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._id, params=parameters[start : start + _PARAMETERS])
        self._client.log_batch(self._id, tags=[RunTag(tag, "true") for tag in run.tags])

    @property
    def identity(self) -> str:
        return str(self._id)

    @property
    def place(self) -> str | None:
        return f"run {self._id} in {self._client.tracking_uri}"

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + _METRICS])

    def summarize(self, values: Mapping[str, float], table: str) -> None:
        self.log({f"summary/{name}": value for name, value in values.items()}, 0)
        self._client.set_tag(self._id, "mlflow.note.content", f"```\n{table}\n```")

    def upload(self, files: Sequence[Path]) -> None:
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def close(self, completed: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if completed else "FAILED")


def _allowed(name: str) -> str:
    """The name with the characters that MLflow allows in one."""
    return "".join(char if char.isalnum() or char in "_-. :/" else "_" for char in name)


open_run = MLflow
