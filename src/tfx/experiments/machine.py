"""Where the jobs of many runs have their processes: this machine, and how many it runs at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

from tfx.config.schema import LauncherConfig
from tfx.system.parent import asks_for_signal
from tfx.system.processors import cores


class Process(Protocol):
    """The process of a job, here or on another machine."""

    def poll(self) -> int | None:
        """Its exit status, negative if a signal killed it; None while it runs."""

    def signal(self, number: int) -> None:
        """Signals it and all processes that it has started; nothing happens if it is gone."""


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
        kind, _, number = device.partition(":")
        gpus = _gpus() if kind in ("auto", "cuda") else ()
        if number:
            gpus = gpus[int(number) : int(number) + 1] if number.isdecimal() else ()
        given = os.environ.get("OMP_NUM_THREADS", "")
        # It must not depend on how many jobs run at a time.
        threads = settings.threads or (int(given) if given.isdecimal() else max(1, cores() // len(gpus)) if gpus else 1)
        # Where there are too few for one job, that will say so.
        starts = range(0, max(1, len(gpus) - devices + 1), devices) if gpus else ()
        shares = tuple(",".join(gpus[start : start + devices]) for start in starts)
        return cls(settings.jobs or len(shares) or max(1, cores() // (threads * devices)), threads, shares, not number)

    def environment(self, slot: int) -> dict[str, str]:
        """Environment variables of the job in a slot (0, 1, … ``jobs`` - 1)."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
        found = dict.fromkeys(names, str(self.threads))
        if self.gpus and self.assigns:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return found

    def start(self, arguments: Sequence[str], log: Path, slot: int, *, goes_on: bool) -> Process:
        """Starts `tfx` for the job in a slot. Its output goes to ``log``, and to its end if it ``goes_on``."""
        with open(log, "ab" if goes_on else "wb") as output:
            return _Local(
                subprocess.Popen(
                    [sys.executable, "-m", "tfx", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | self.environment(slot),
                    start_new_session=True,  # Ctrl-C reaches only this process, which passes it on to each job once
                    preexec_fn=_ends_with_parent(),
                )
            )


class _Local:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        # The whole group, including data workers and compilers.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _ends_with_parent() -> Callable[[], None]:
    """What a child calls first, so that it ends with this process even if that is killed (Linux only)."""
    ask, parent = asks_for_signal(signal.SIGKILL), os.getpid()

    def prepare() -> None:
        ask()
        if os.getppid() != parent:  # this process ended before the call
            os._exit(1)

    return prepare


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # As CUDA reads it: what stands behind the first name that is none counts no more.
        names = (name.strip() for name in visible.split(","))
        return tuple(takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))
    import torch

    return tuple(str(index) for index in range(torch.cuda.device_count()))
