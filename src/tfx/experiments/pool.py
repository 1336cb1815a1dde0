"""Runs jobs side by side, each in its own process, so that a failure of one does not affect the others.

Results do not depend on how many run at a time: every job gets as many CPU threads as it would get alone, because
sums over another number of threads round differently.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tfx.config.grammar import escaped, quoted
from tfx.config.schema import LauncherConfig
from tfx.experiments.jobs import ENDED_BADLY, RUNNING, SKIPPED, Job
from tfx.experiments.machine import Machine, Process
from tfx.experiments.table import SweepView
from tfx.record.lock import locked
from tfx.system.signals import StoppedBySignal, is_echo, leave_signals
from tfx.terminal.console import counted

_POLL_SECONDS = 0.1


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    settings: LauncherConfig,
    machine: Machine,
) -> None:
    """Runs the unfinished ``jobs`` in the sweep's ``folder``, and sets state and reason of each.

    Raises `UserError` if another process runs the sweep, or if a job's folder holds another run, and
    `StoppedBySignal` at SIGINT, SIGTERM and SIGHUP, after passing the signal on and waiting for the jobs to end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        commands = {job.number: job.take_over() for job in jobs}
        for job in jobs:
            if commands[job.number] is None:
                job.state = SKIPPED
        waiting = [job for job in jobs if commands[job.number] is not None]
        _Pool(waiting, commands, settings, machine, SweepView(jobs, machine.jobs)).run()


class _Pool:
    def __init__(
        self,
        waiting: list[Job],
        commands: dict[int, str | None],
        settings: LauncherConfig,
        machine: Machine,
        view: SweepView,
    ) -> None:
        self._waiting, self._commands, self._settings, self._machine = waiting, commands, settings, machine
        self._view = view
        self._running: dict[int, tuple[Job, Process]] = {}
        self._signals: list[int] = []

    def run(self) -> None:
        with _handled(self._signals), self._view:
            try:
                while self._running or self._waiting:
                    self._start()
                    self._collect()
                    if self._signals:
                        self._stop()
                        raise StoppedBySignal(self._signals[0])
                    self._view.update()
                    if self._running:
                        time.sleep(_POLL_SECONDS)
            finally:
                for _, process in self._running.values():
                    process.signal(signal.SIGKILL)

    def _start(self) -> None:
        for slot in range(self._machine.jobs):
            if slot not in self._running and self._waiting:
                job = self._waiting.pop(0)
                job.state = RUNNING
                self._view.started(job)
                self._running[slot] = (job, self._launch(job, slot))

    def _launch(self, job: Job, slot: int) -> Process:
        command = str(self._commands[job.number])
        if command == "resume":
            arguments = [command, str(job.folder)]
        else:
            hydra = [f"hydra.run.dir={quoted(escaped(str(job.folder)))}", f"hydra.job.num={job.number}"]
            arguments = [command, *job.flags, *job.overrides, *hydra]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        return self._machine.start(arguments, job.log, slot, goes_on=command == "resume")

    def _collect(self) -> None:
        for slot, (job, process) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[slot]
            job.end(status)
            self._view.ended(job)
            if job.state in ENDED_BADLY and self._settings.on_failure == "stop":
                self._waiting.clear()

    def _stop(self) -> None:
        """Passes the signal on and waits, so that the jobs can save their state; a second one kills them."""
        self._view.note(
            f"stopping {counted(len(self._running), 'job')}: a second {signal.Signals(self._signals[0]).name} kills "
            f"{'it' if len(self._running) == 1 else 'them'}"
        )
        for _, process in self._running.values():
            process.signal(self._signals[0])
        killed = False
        while self._running:
            if len(self._signals) > 1 and not killed:
                killed = True
                for _, process in self._running.values():
                    process.signal(signal.SIGKILL)
            self._collect()
            time.sleep(_POLL_SECONDS)


@contextmanager
def _handled(signals: list[int]) -> Iterator[None]:
    """Collects SIGINT, SIGTERM and SIGHUP in a list instead of ending the process."""

    def note(number: int, frame: FrameType | None) -> None:
        if not (signals and is_echo(number)):
            signals.append(number)

    before: dict[int, Any] = {}
    for number in leave_signals():
        before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for handled, handler in before.items():
            signal.signal(handled, handler)
