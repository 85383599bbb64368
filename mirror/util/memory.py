"""Reduces memory use with a setting of the C library's memory allocator."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8  # mallopt(3)
_HEAPS = 1


def limit_heaps() -> None:
    """Make threads that start later share the heap of the main thread.

    glibc gives threads separate heaps, up to eight per core, and each heap keeps the pages of large manifests that were
    freed: 100 MiB in total for an index with 60 manifests of 7 MiB. Python threads rarely allocate at the same time, so
    one heap is enough. Other C libraries have no such setting."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _HEAPS)
