"""The memory of a CPU training: freed tensors stay with the process, on huge pages.

A step takes and frees thousands of tensors. By default the C library gives each large one back to the system, and the
next one is mapped anew and filled with zeros page by page: a tenth of a small model's step.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

# Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
# The largest that the library accepts for the threshold above which an allocation is a mapping of its own.
_LARGEST_THRESHOLD = 32 << 20
# Address space that the heap takes at a time; memory is used only where tensors lie.
_RESERVE = 1 << 30
_HUGE_PAGE = 2 << 20
# With one of these the user has chosen how memory is allocated.
_CHOICES = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory() -> bool:
    """Has the C library keep what is freed, on huge pages where the system has them; returns whether it does.

    It leaves alone what the user's environment chooses, and does nothing where the library is not glibc.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _CHOICES):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes = [ctypes.c_size_t], [ctypes.c_ssize_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    kept = libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_TOP_PAD, _RESERVE)
    start = libc.sbrk(0)
    # More than the heap has left, so that it grows now.
    libc.free(libc.malloc(_LARGEST_THRESHOLD - 4096))
    first, end = -(-start // _HUGE_PAGE) * _HUGE_PAGE, libc.sbrk(0)
    if end > first:
        libc.madvise(first, end - first, mmap.MADV_HUGEPAGE)
    libc.mallopt(_TOP_PAD, _HUGE_PAGE)
    return bool(kept)
