"""Starts the processes of a run on this machine, by torch's elastic launcher, and waits for their end."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from tfx.system.parent import asks_for_signal
from tfx.system.signals import StoppedBySignal, leave_signals

# How long processes may take to save their state after a signal before they are killed.
_SAVING_SECONDS = 300
# The interface that a machine talks to itself by.
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
# Set in the environment of the processes that `launch` starts.
_LAUNCHED = "TFX_LAUNCHED"


class LaunchedError(Exception):
    """The processes of a run failed; ``status`` is the exit status of their command.

    ``killed`` is the number of a process that a signal ended at once, so that it could not report anything, as any
    signal does while it is still loading; else None.
    """

    def __init__(self, status: int, killed: int | None, signal_number: int = 0) -> None:
        super().__init__(status)
        self.status, self.killed, self.signal_number = status, killed, signal_number


def launch(arguments: Sequence[str], count: int, threads: int, folder: str) -> None:
    """Runs ``python arguments`` in ``count`` processes, each with its `Place` in its environment.

    Where the user's environment does not say how many threads a process has, it gets ``threads``. ``folder`` is for
    what torch's launcher writes. Raises `LaunchedError` if one of them fails, which ends the others, and
    `StoppedBySignal` after a signal, which all get.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _silence("torch.distributed.")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"tfx-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        shutdown_timeout=_SAVING_SECONDS,
        signals_to_handle=",".join(signal.Signals(number).name for number in leave_signals()),
    )
    if was_launched():
        raise AssertionError("a process of a run never starts others")
    given = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": _LOOPBACK, _LAUNCHED: "1"}
    try:
        with _environment(given), _own_handlers():
            elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        raise _what_failed({rank: failure.exitcode for rank, failure in error.failures.items()}) from None
    except SignalException as stopped:
        raise StoppedBySignal(stopped.sigval) from None


def was_launched() -> bool:
    """Whether `launch` started this process."""
    return _LAUNCHED in os.environ


def end_with_parent() -> None:
    """Lets a process that `launch` started get a SIGTERM when the launcher itself is killed (on Linux)."""
    global _launcher
    if was_launched():
        _launcher = os.getppid()
        asks_for_signal(signal.SIGTERM)()


def launcher_is_gone() -> bool:
    """Whether the launcher of this process ended before it."""
    return _launcher not in (None, os.getppid())


# The launcher's process, in one that it has started.
_launcher: int | None = None


def _what_failed(statuses: dict[int, int]) -> LaunchedError:
    """The first process reports what it can, so its status counts; after it, those that were not ended by SIGTERM.

    A process that fails makes the launcher end the others by SIGTERM, which they answer with their own status, or not
    at all where they are still loading. ``statuses`` come in the order of the ends: where SIGTERM ended all of them,
    the first one's was not the launcher's.
    """
    own = statuses.get(0, 0)
    if own > 0:
        return LaunchedError(own, None)
    killed = {rank: -status for rank, status in statuses.items() if status < 0 and -status != signal.SIGTERM}
    failed = sorted(status for status in statuses.values() if status > 0)
    if killed or not failed:
        rank = min(killed, default=next(iter(statuses)))
        return LaunchedError(1, rank, -statuses[rank])
    return LaunchedError(failed[0], None)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """The launcher has handlers of its own, and leaves them behind."""
    before = {number: signal.getsignal(number) for number in leave_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(ValueError):  # not the main thread
                signal.signal(number, handler)


@contextmanager
def _environment(given: dict[str, str]) -> Iterator[None]:
    """Inside, these variables are set where the user has not set them."""
    added = {name: value for name, value in given.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _silence(prefix: str) -> None:
    """Of the launcher's own words about failures: the processes have reported them. Each of its files has a logger."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(prefix):
            logging.getLogger(name).setLevel(logging.CRITICAL)
