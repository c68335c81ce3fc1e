"""Settings of the C library's allocator for the memory of tensors.

glibc maps every large tensor anew and unmaps it when it is freed, or grows and shrinks the heap
around it, so that the kernel clears the same pages in every step, which takes up to a third of the
time of a training step on the CPU. With `keep_freed_memory`, freed memory stays with the process
and is reused for the next tensor.

Results do not depend on it. The drawback is memory: freed memory is only returned beyond `KEPT`
bytes, or by `give_back`. Tensors above `HEAPED` are still mapped individually. Without any mapping
(`M_MMAP_MAX` 0), steps on larger tensors would take another quarter less time, but gaps too small
for aligned tensors accumulate: up to half as much memory again was measured.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

KEPT = 2**30
"""Free bytes at the end of the heap above which they are returned; at most 2**31 - 1."""
HEAPED = 2**25
"""Maximum bytes of a tensor allocated in the heap; the most that glibc allows."""

# from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

VARIABLES = (
    "GLIBC_TUNABLES",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
)
"""Environment variables by which users configure the allocator."""


@lru_cache
def keep_freed_memory() -> bool:
    """Make this process reuse freed memory for its next tensors, from now on.

    Returns:
        Whether that was possible. It is not with a C library other than glibc, or if the user has
        configured the allocator by an environment variable, see `VARIABLES`.
    """
    library = _glibc()
    if library is None or any(name in os.environ for name in VARIABLES):
        return False
    # both are needed: setting either disables glibc's dynamic adjustment of the other
    return bool(
        library.mallopt(_M_TRIM_THRESHOLD, KEPT) and library.mallopt(_M_MMAP_THRESHOLD, HEAPED)
    )


def give_back() -> None:
    """Return freed memory to the operating system, before other work that needs it."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@lru_cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "gnu_get_libc_version") else None
