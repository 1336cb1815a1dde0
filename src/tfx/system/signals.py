"""SIGINT, SIGTERM and SIGHUP: the first one lets a run end in order, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedBySignal(KeyboardInterrupt):
    """One of `leave_signals` came. Derived from `KeyboardInterrupt`, so that no ``except Exception`` swallows it.

    ``is_told`` says whether the user has been told what became of the run.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number
        self.is_told = False


def leave_signals() -> list[int]:
    """SIGINT, SIGTERM, and SIGHUP (the terminal was closed) where it is not ignored, as it is under nohup."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return [signal.SIGINT, signal.SIGTERM]
    return [signal.SIGINT, signal.SIGTERM, hangup]


def is_echo(number: int) -> bool:
    """Whether a second signal is only a repetition.

    The shell and the system each send a SIGHUP when a terminal is closed; a user in a hurry sends another signal.
    """
    return number == getattr(signal, "SIGHUP", None)


@contextmanager
def leaving_on_signals(*, once: bool = False) -> Iterator[None]:
    """Inside, the first of `leave_signals` raises `StoppedBySignal`; a second one ends the process at once.

    The exit status is 128 + the signal's number both ways. Outside the main thread, which alone gets signals,
    and inside another such block nothing changes. With ``once`` a second signal does nothing: a process of several may
    get the same one from its terminal, its cluster and its launcher.
    """
    global _once, _held
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _leave:
        yield
        return
    _once = once
    before = {number: signal.signal(number, _leave) for number in leave_signals()}
    try:
        yield
    finally:
        is_held, _once, _held = _held, False, False
        _came.clear()
        _waiting.clear()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if is_held else handler)


@contextmanager
def deferring_signals() -> Iterator[None]:
    """Inside, the first signal waits for `raise_if_signalled`, or for the end of the block."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    raise_if_signalled()


def defer_signals() -> None:
    """From now on the first signal waits for the end of the innermost `ending_deferral`."""
    global _deferring
    _deferring += 1


@contextmanager
def ending_deferral() -> Iterator[None]:
    """At its end `defer_signals` ends, and a signal that has waited is raised."""
    global _deferring
    before = _deferring
    try:
        yield
    finally:
        _deferring = before
    if not before:
        raise_if_signalled()


@contextmanager
def interruptible_children() -> Iterator[None]:
    """Processes that start inside heed SIGINT, also where this one ignores it, as in the background of a script.

    A process inherits what is ignored, but no handler.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Inside, and outside `leaving_on_signals`, SIGINT ends the process as SIGTERM does: at once, with no traceback."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or not is_default:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # not held
            signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_if_signalled() -> None:
    """Raises `StoppedBySignal` if a signal was deferred."""
    if _waiting:
        raise StoppedBySignal(_waiting.pop())


def hold_signals() -> None:
    """From now on signals do nothing: one of several processes ends, and first says why.

    Its launcher signals it where another one has ended.
    """
    global _held
    _waiting.clear()
    _came.append(0)
    _held = True


def deferred_signal() -> int:
    """The number of the signal that waits; 0: none does."""
    return _waiting[-1] if _waiting else 0


def stop_as_others(number: int) -> None:
    """Raises `StoppedBySignal` for a signal that came to another process of the run: it counts as come to this one."""
    _waiting.clear()
    if not _came:
        _came.append(number)
    raise StoppedBySignal(number)


_came: list[int] = []
_waiting: list[int] = []
_deferring = 0
_once = False
_held = False


def _leave(number: int, frame: FrameType | None) -> None:
    if _came:
        if _once or is_echo(number):
            return
        os._exit(128 + number)
    _came.append(number)
    if _deferring:
        _waiting.append(number)
    else:
        raise StoppedBySignal(number)
