"""Main memory that a process may still take."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
# Of version 2 and of version 1: what a group may take, and what it takes.
_OF_GROUP = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def installed_memory() -> int | None:
    """Bytes of main memory, in use or free; None if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def free_memory(meminfo: Path = _MEMINFO, groups: Path = _CGROUPS) -> int | None:
    """Bytes that can be taken without swapping, within the limit of this process's container; None if unknown."""
    found = []
    for line in _text(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for limit, used in _OF_GROUP:
        numbers = [_text(groups / name).strip() for name in (limit, used)]
        if all(number.isdecimal() for number in numbers):  # "max": there is no limit
            found.append(max(0, int(numbers[0]) - int(numbers[1])))
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
