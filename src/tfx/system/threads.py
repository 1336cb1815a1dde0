"""How threads of OpenMP wait for one another: torch's products on a CPU run on them."""

from __future__ import annotations

import os
import time
from pathlib import Path

_SPINS = "GOMP_SPINCOUNT"
# Of the waiting loop, before a thread gives its core away; OpenMP's own 300,000 are about a millisecond. On a quiet
# machine 3,000 cost no speed and 1,000 some; beside a busy process 1,000 keep the most: docs/RESULTS.md.
_ALONE, _BESIDE_OTHERS = "3000", "1000"
# The system's count of tasks that run or could, how often it is looked at, and the seconds between two looks.
_LOADAVG = Path("/proc/loadavg")
_LOOKS, _PAUSE = 5, 0.004


def wait_briefly() -> None:
    """Makes threads that wait give their cores away soon, unless the user's environment says how they wait.

    By default they spin: beside another busy process they then hold the very cores that their partners wait for, and
    training is several times slower. How soon depends on whether there is such a process now. OpenMP reads this once,
    so torch must not be loaded yet.
    """
    if not how_they_wait():
        os.environ[_SPINS] = _BESIDE_OTHERS if others_compute() else _ALONE


def others_compute() -> bool:
    """Whether another process computes, in most of a few looks; True where the system does not say."""
    seen = 0
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        try:
            running = int(_LOADAVG.read_text().split()[3].partition("/")[0])
        except (OSError, IndexError, ValueError):
            return True
        seen += running > 1  # one of them is this process
    return seen > _LOOKS // 2


def how_they_wait() -> str:
    """The setting in force, as a shell takes it; empty: OpenMP's own."""
    names = [name for name in (_SPINS, "OMP_WAIT_POLICY") if os.environ.get(name)]
    return " ".join(f"{name}={os.environ[name]}" for name in names)
