"""Runs jobs side by side, each in its own process, so that a failure of one does not affect the others.

Results do not depend on how many run at a time: every job gets as many CPU threads as it would get alone, because
sums over another number of threads round differently.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tfx.config.grammar import escaped, quoted
from tfx.config.schema import LauncherConfig
from tfx.experiments.jobs import ENDED_BADLY, RUNNING, SKIPPED, Job
from tfx.experiments.table import SweepView
from tfx.record.lock import locked
from tfx.system.signals import StoppedBySignal, is_echo, leave_signals

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Machine:
    """What the jobs of a sweep share: how many run at a time, threads per process, and the GPUs (none: the CPU).

    ``gpus`` has an entry for each job that runs at a time: one GPU, or as many as it has processes, with commas.
    ``assigns``: each job gets one of the entries, and sees no other. Else the jobs name theirs themselves.
    """

    jobs: int
    threads: int
    gpus: tuple[str, ...]
    assigns: bool = True

    @classmethod
    def of(cls, settings: LauncherConfig, device: str, devices: int = 1) -> Machine:
        """This machine, for jobs with this ``trainer.device`` and ``trainer.devices``."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        kind, _, number = device.partition(":")
        gpus = _gpus() if kind in ("auto", "cuda") else ()
        if number:
            gpus = gpus[int(number) : int(number) + 1] if number.isdecimal() else ()
        given = os.environ.get("OMP_NUM_THREADS", "")
        # It must not depend on how many jobs run at a time.
        threads = settings.threads or (int(given) if given.isdecimal() else max(1, cores // len(gpus)) if gpus else 1)
        # Where there are too few for one job, that will say so.
        starts = range(0, max(1, len(gpus) - devices + 1), devices) if gpus else ()
        shares = tuple(",".join(gpus[start : start + devices]) for start in starts)
        return cls(settings.jobs or len(shares) or max(1, cores // (threads * devices)), threads, shares, not number)

    def environment(self, slot: int) -> dict[str, str]:
        """Environment variables of the job in a slot (0, 1, … ``jobs`` - 1)."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        found = dict.fromkeys(names, str(self.threads))
        if self.gpus and self.assigns:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1")
    import torch

    return tuple(str(index) for index in range(torch.cuda.device_count()))


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    settings: LauncherConfig,
    machine: Machine,
    ended: Callable[[Job], None] = lambda job: None,
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
        _Pool(waiting, commands, settings, machine, SweepView(jobs, machine.jobs), ended).run()


class _Pool:
    def __init__(
        self,
        waiting: list[Job],
        commands: dict[int, str | None],
        settings: LauncherConfig,
        machine: Machine,
        view: SweepView,
        ended: Callable[[Job], None],
    ) -> None:
        self._waiting, self._commands, self._settings, self._machine = waiting, commands, settings, machine
        self._view, self._ended = view, ended
        self._running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
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
                    _signal(process, signal.SIGKILL)

    def _start(self) -> None:
        for slot in range(self._machine.jobs):
            if slot not in self._running and self._waiting:
                job = self._waiting.pop(0)
                job.state = RUNNING
                self._view.started(job)
                self._running[slot] = (job, self._launch(job, slot))

    def _launch(self, job: Job, slot: int) -> subprocess.Popen[bytes]:
        command = str(self._commands[job.number])
        if command == "resume":
            arguments = [command, str(job.folder)]
        else:
            hydra = [f"hydra.run.dir={quoted(escaped(str(job.folder)))}", f"hydra.job.num={job.number}"]
            arguments = [command, *job.flags, *job.overrides, *hydra]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab" if command == "resume" else "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tfx", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._machine.environment(slot),
                start_new_session=True,  # Ctrl-C reaches only this process, which passes it on to each job once
                preexec_fn=_die_with_parent(),
            )

    def _collect(self) -> None:
        for slot, (job, process) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[slot]
            job.end(status)
            self._view.ended(job)
            self._ended(job)
            if job.state in ENDED_BADLY and self._settings.on_failure == "stop":
                self._waiting.clear()

    def _stop(self) -> None:
        """Passes the signal on and waits, so that the jobs can save their state; a second one kills them."""
        self._view.note(
            f"stopping {len(self._running)} jobs: a second {signal.Signals(self._signals[0]).name} kills them"
        )
        for _, process in self._running.values():
            _signal(process, self._signals[0])
        killed = False
        while self._running:
            if len(self._signals) > 1 and not killed:
                killed = True
                for _, process in self._running.values():
                    _signal(process, signal.SIGKILL)
            self._collect()
            time.sleep(_POLL_SECONDS)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signals the job's whole process group, including data workers and compilers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _die_with_parent() -> Callable[[], None] | None:
    """A child calls this first, so that it ends with this process even if that is killed (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # this process ended before the call
            os._exit(1)

    return prepare


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
