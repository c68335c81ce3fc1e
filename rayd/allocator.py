"""How the C library's allocator treats the memory of tensors.

glibc maps every large tensor afresh and unmaps it when it is freed, or grows and shrinks the heap
around it, so that the kernel has to clear the same pages again in every step: up to a third of the
time of a training step on the CPU. With `keep_freed_memory` what is freed stays with the process
and serves the next tensor.

Nothing that is computed depends on it. The price is memory: what was freed is given back only
beyond `KEPT` bytes, or by `give_back`. Tensors above `HEAPED` are still mapped one by one. Without
mappings at all (`M_MMAP_MAX` 0) steps on larger tensors would take a quarter less time again, but
holes that no aligned tensor fits into then add up: half as much memory again was seen.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache

KEPT = 2**30
"""Bytes of free memory at the end of the heap above which it is given back; at most 2**31 - 1."""
HEAPED = 2**25
"""Bytes up to which a tensor lies in the heap; the most that glibc allows."""

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
"""Environment variables by which users set the allocator themselves."""


@lru_cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors, from now on.

    Returns:
        Whether that was possible: not where another C library than glibc runs, nor where the user
            has set the allocator by an
        environment variable, see `VARIABLES`.
    """
    library = _glibc()
    if library is None or any(name in os.environ for name in VARIABLES):
        return False
    # both are needed: either one switches off glibc's own rule, which adapts the other
    return bool(
        library.mallopt(_M_TRIM_THRESHOLD, KEPT) and library.mallopt(_M_MMAP_THRESHOLD, HEAPED)
    )


def give_back() -> None:
    """Return freed memory to the operating system, before work that needs it for something else."""
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
