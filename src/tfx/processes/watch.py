"""Ends a process that waits for a message of another one that is gone, where nothing else can.

A process that waits for a GPU is in a call which does not return when another process has ended: no error comes, and
Python runs no handler of a signal. So a thread looks how the others do, and ends the process in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING

from tfx.processes.failure import FAILURE, Failure, last_word

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# In place of a beat: the process does not watch yet, or has come to its end, and nobody waits for its beats.
_AWAY = "away"
# Of a report, which may hang as the main thread does.
_REPORTING_SECONDS = 30.0


class Watch:
    """Beats for its process, and looks whether the others beat or have failed.

    Times but the first are numbers of looks, which do not go on while a machine sleeps or something else keeps Python's
    lock, as the reading of a large file does. ``patience`` is how long another process may be silent. Then, or where
    one has told of its failure or the store does not answer, the main thread has ``grace`` to end by itself, and
    ``saving`` after a signal, when processes end in order and one of them writes the state: all of it less than a
    launcher waits that kills them then.
    """

    def __init__(
        self,
        store: Store,
        key: Callable[..., str],
        rank: int,
        size: int,
        report: Callable[[Failure | None], int],
        *,
        seconds: float = 5.0,
        patience: int = 36,
        grace: int = 4,
        saving: int = 48,
    ) -> None:
        """``store`` is a connection of its own: one that waits for a key lets no other thread through.

        ``key`` makes the keys in it. ``report`` gets the last word of the process that failed, None if it was killed,
        and returns the exit status of this one.
        """
        self._store, self._failure, self._own = store, key(FAILURE), key("beat", rank)
        self._others = [key("beat", other) for other in range(size) if other != rank]
        self._report, self._seconds = report, seconds
        self._patience, self._grace, self._saving = patience, grace, saving
        self._beats = 0
        self._seen = dict.fromkeys(self._others, _AWAY)
        self._silent = dict.fromkeys(self._others, 0)
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)
        for beat in self._others:
            store.compare_set(beat, "", _AWAY)  # a key that is not there would be waited for
        self._all_beat()
        self._thread.start()

    def stop(self, *, in_order: bool) -> None:
        """Ends the watch; where that is ``in_order``, the others do not take the silence for death."""
        self._stopping.set()
        # Where it ends the process already, this waits for that.
        self._thread.join()
        if in_order:
            with suppress(RuntimeError):  # the store is gone with its process: the next message tells of that
                self._store.set(self._own, _AWAY)

    def _run(self) -> None:
        failure: Failure | None = None
        waited = 0
        while not self._stopping.wait(self._seconds):
            if failure is None:
                failure = last_word(self._store, self._failure)
            if failure is None and self._all_beat():
                waited = 0
                continue
            waited += 1
            if waited > (self._saving if failure is not None and failure.kind == "signal" else self._grace):
                self._end(failure)

    def _all_beat(self) -> bool:
        """Beats, and looks whether all others do, as far as they watch.

        A lost store is a lost first process, where the next looks find none either.
        """
        self._beats += 1
        try:
            self._store.set(self._own, str(self._beats))
            values = [value.decode() for value in self._store.multi_get(self._others)]
        except RuntimeError:
            return False
        for other, value in zip(self._others, values, strict=True):
            is_new = value == _AWAY or value != self._seen[other]
            self._silent[other] = 0 if is_new else self._silent[other] + 1
            self._seen[other] = value
        return max(self._silent.values()) <= self._patience

    def _end(self, failure: Failure | None) -> None:
        """Ends the process, with a report if that does not need what the main thread holds."""
        statuses = [1]
        reporting = Thread(target=lambda: statuses.append(self._report(failure)), daemon=True)
        reporting.start()
        reporting.join(_REPORTING_SECONDS)
        os._exit(statuses[-1])
