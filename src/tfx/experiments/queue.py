"""Jobs on the machines of a cluster, through submitit: what Hydra's launcher `submitit_slurm` does for a sweep.

Here each job is still a command of its own and a run directory on a file system that all machines share. So the pool
skips what is done, resumes what was stopped, and says why a job failed, as it does on one machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfx.errors import UserError
from tfx.experiments.machine import Machine, Process
from tfx.system.processors import cores
from tfx.system.signals import interruptible_children

# What Hydra's launchers are called, and what submitit calls the same.
CLUSTERS = {"submitit_local": "local", "submitit_slurm": "slurm"}
# Settings of those launchers that every cluster has. The others are told apart by the name of the cluster.
_SHARED = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"} | {
    "stderr_to_stdout"
}
_NOT_FOR_JOBS = ("_target_", "submitit_folder", "max_num_timeout")


def _submitit() -> Any:
    """The library, whose import would otherwise configure logging anew: that closes every handler of the process."""
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    import submitit

    return submitit


@dataclass(frozen=True)
class Queue(Machine):
    """A cluster's queue: ``settings`` of Hydra's launcher, and the ``folder`` where submitit keeps its files."""

    cluster: str = "local"
    folder: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, launcher: str, settings: Mapping[str, Any], folder: Path) -> Queue:
        """The queue of a Hydra launcher, for jobs below ``folder``. Raises `UserError`."""
        try:
            _submitit()
        except ImportError:
            raise UserError(f"hydra/launcher={launcher} needs an extra: pip install 'path/to/tfx[submitit]'") from None
        for name in ("nodes", "tasks_per_node"):
            if settings.get(name, 1) != 1:
                raise UserError(f"hydra.launcher.{name}={settings[name]}: each job here is one process, leave it out")
        threads = int(settings.get("cpus_per_task") or 1)
        cluster = CLUSTERS[launcher]
        # A cluster's own queue decides how many run; here they share the cores.
        at_once = int(settings["array_parallelism"]) if cluster == "slurm" else max(1, cores() // threads)
        return cls(at_once, threads, (), False, cluster, str(folder / ".submitit" / "%j"), dict(settings))

    def start(self, arguments: Sequence[str], log: Path, slot: int, *, goes_on: bool) -> Process:
        """Puts a job into the queue."""
        executor = _submitit().AutoExecutor(cluster=self.cluster, folder=self.folder)
        executor.update_parameters(
            **{
                key if key in _SHARED else f"{self.cluster}_{key}": value
                for key, value in self.settings.items()
                if key not in _NOT_FOR_JOBS
            }
        )
        if not goes_on:
            log.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tfx", *arguments]
        with interruptible_children():  # by SIGINT the local executor ends a job
            return _Queued(executor.submit(run_command, command, self.environment(slot), str(log)), log)


class _Queued:
    def __init__(self, job: Any, log: Path) -> None:
        self._job, self._log = job, log
        self._sent = 0

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception as error:  # submitit has several, and a cluster that took the job away has none of its own
            if self._sent:
                return -self._sent
            with open(self._log, "a", encoding="utf-8") as log:
                log.write(f"the queue ended the job ({self._job.state}): {_last_line(error)}\n")
            return 1

    def signal(self, number: int) -> None:
        self._sent = self._sent or number
        self._job.cancel(check=False)


def run_command(command: Sequence[str], environment: Mapping[str, str], log: str) -> int:
    """What runs on the other machine: the command, with its output in ``log``. Returns its exit status.

    A queue that ends a job signals this process, which passes that on and waits: the run saves its state.
    """
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | environment,
            start_new_session=True,
        )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: child.send_signal(received))
    return child.wait()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1] if lines else type(error).__name__
