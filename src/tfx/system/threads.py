"""How threads of OpenMP wait for one another: torch's products on a CPU run on them."""

from __future__ import annotations

import os

_SPINS = "GOMP_SPINCOUNT"
# Of the waiting loop, before a thread gives its core away. The default of 300,000 is about a millisecond. Fewer than these
# cost speed on a quiet machine, and more of them beside a busy process: docs/RESULTS.md.
_FEW = "2000"


def wait_briefly() -> None:
    """Makes threads that wait give their cores away soon, unless the user's environment says how they wait.

    By default they spin: beside another busy process they then hold the very cores that their partners wait for, and
    training is several times slower. OpenMP reads this once, so torch must not be loaded yet.
    """
    if _SPINS not in os.environ and "OMP_WAIT_POLICY" not in os.environ:
        os.environ[_SPINS] = _FEW


def how_they_wait() -> str:
    """The setting in force, as a shell takes it; empty: OpenMP's own."""
    names = [name for name in (_SPINS, "OMP_WAIT_POLICY") if name in os.environ]
    return " ".join(f"{name}={os.environ[name]}" for name in names)
