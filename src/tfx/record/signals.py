"""SIGINT and SIGTERM: the first one lets a run leave in order, the second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedBySignal(KeyboardInterrupt):
    """SIGINT or SIGTERM came. Derived from `KeyboardInterrupt`, so that no ``except Exception`` swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


@contextmanager
def leaving_on_signals() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises `StoppedBySignal`; a second one ends the process at once.

    The exit status is 128 + the signal's number both ways. Outside the main thread, which alone gets signals,
    and inside another such block nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _leave:
        yield
        return
    before = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _came.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


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


def raise_if_signalled() -> None:
    """Raises `StoppedBySignal` where a signal came that was deferred."""
    if _waiting:
        raise StoppedBySignal(_waiting.pop())


_came: list[int] = []
_waiting: list[int] = []
_deferring = 0


def _leave(number: int, frame: FrameType | None) -> None:
    if _came:
        os._exit(128 + number)
    _came.append(number)
    if _deferring:
        _waiting.append(number)
    else:
        raise StoppedBySignal(number)
