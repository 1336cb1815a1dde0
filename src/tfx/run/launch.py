"""A run in several processes of this machine: starts them, and learns from the run directory how it ended."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfx.config import compose
from tfx.config.schema import Root
from tfx.errors import UserError
from tfx.processes.launch import LaunchedError, launch
from tfx.processes.place import Place
from tfx.record.directory import RunDirectory
from tfx.record.files import read_json, write_json, write_text
from tfx.record.lock import locked
from tfx.record.summary import COMPLETED, FAILED, Summary
from tfx.system.processors import cores
from tfx.system.signals import StoppedBySignal, defer_signals
from tfx.terminal.console import RunConsole

if TYPE_CHECKING:
    from tfx.run.setup import Setup

_CONFIG, _ORDER = "config.yaml", "order.json"


class ReportedError(Exception):
    """A run failed, or one of its processes. Its summary, its log and the console say so already.

    ``status`` is the exit status of the command.
    """

    def __init__(self, status: int = 1) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Order:
    """What the processes of a run are to do: ``train`` or ``resume``, with the arguments of `tfx.run.life`.

    With ``quiet`` the result goes to stderr too.
    """

    command: str
    typed: list[str]
    folder: str
    recorded: list[float]
    extends: bool
    quiet: bool

    @classmethod
    def read(cls, folder: Path) -> tuple[Root, Order]:
        """The config and the order that `run_in_processes` left in a folder."""
        return compose.load(folder / _CONFIG), cls(**read_json(folder / _ORDER))


def run_in_processes(
    command: str,
    setup: Setup,
    typed: Sequence[str],
    folder: Path,
    recorded: Sequence[float] = (),
    *,
    extends: bool = False,
) -> Summary:
    """Runs a command of `tfx.run.life` in ``trainer.devices`` processes, and returns the summary.

    Raises `ReportedError` if it failed.
    """
    # `reproduce` keeps stdout for its own result.
    order = Order(command, list(typed), str(folder), list(recorded), extends, quiet=sys.stdout is sys.stderr)
    config = setup.config
    count, run = config.trainer.devices, RunDirectory(folder)
    before = _complete_summary(run)
    with tempfile.TemporaryDirectory(prefix="tfx-") as place:
        write_text(Path(place) / _CONFIG, compose.to_yaml(config))
        write_json(Path(place) / _ORDER, asdict(order))
        try:
            launch(["-m", "tfx", "worker", place], count, threads=max(1, cores() // count), folder=place)
            defer_signals()  # the run is complete
        except LaunchedError as error:
            if error.killed is not None:  # where the first process failed itself, it has reported why
                _report_killed(error, setup, run, before, extends=extends)
            raise ReportedError(error.status) from None
        except StoppedBySignal as stopped:
            stopped.is_told = run.config.is_file()  # the first process has begun, and tells it
            raise
    return run.read_summary()


def _complete_summary(run: RunDirectory) -> bytes | None:
    """The content of the summary of a complete run; None: it is not complete."""
    with suppress(OSError, UserError):
        return run.summary.read_bytes() if run.read_summary().status == COMPLETED else None
    return None


def _report_killed(
    error: LaunchedError, setup: Setup, run: RunDirectory, before: bytes | None, *, extends: bool
) -> None:
    """Says which process was killed; where the first one could not, also in the log and the summary of the run.

    ``before`` is its `_complete_summary` of when the processes were started.
    """
    from tfx.run.result import facts_of

    what = f"process {error.killed} of the run was killed ({signal.Signals(error.signal_number).name})"
    console = RunConsole()
    if _complete_summary(run) not in (None, before):
        console.note(f"tfx: {what}: the run had already ended; its result is in {run.path}")
    elif not run.config.is_file():
        if run.lock.is_file():  # it was killed where it had just made the folder
            with suppress(OSError, UserError), locked(run.path):
                run.remove()
        console.note(f"tfx: {what}: nothing was saved")
    else:
        # Another process may go on with the run already: then it is told here only.
        with suppress(OSError, UserError), locked(run.path):
            console.open_log(run.log)
            if not extends:  # what was complete before keeps its summary
                Summary(FAILED, facts_of(setup.config, setup.stack), what).write(run.summary)
        console.note(f"tfx: {what}: continue with `tfx resume {shlex.quote(str(run.path))}`")
        console.close()


def is_to_be_launched(config: Root, place: Place) -> bool:
    """Whether the run is one of several processes, and none of them is there yet."""
    return config.trainer.devices > 1 and place.size == 1


def check_processes(config: Root, place: Place) -> None:
    """Raises `UserError` if ``trainer.devices`` disagrees with the processes that a launcher started."""
    count = config.trainer.devices
    if place.size > 1 and count not in (1, place.size, place.local_size):
        raise UserError(
            f"trainer.devices={count}, and a launcher has started {place.size} processes: leave trainer.devices out"
        )
