"""Available memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Mount point of Linux control groups."""


def available_memory() -> int | None:
    """Bytes that this process can use without swapping; None if the system does not report them.

    On Linux, the kernel's estimate of available memory, capped by control groups (containers,
    scheduler jobs). On other systems, the machine's total memory.
    """
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")
        )
        return max(0, min([available, *_left_in_groups()]))
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_groups() -> Iterator[int]:
    """Yield the bytes left in each of this process's control groups that has a readable limit."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root, names = (GROUPS / "memory", VERSION_1) if controllers else (GROUPS, VERSION_2)
            inside = Path(group.lstrip("/"))
            for group_path in {root / inside, *(root / parent for parent in inside.parents)}:
                with suppress(OSError, ValueError):
                    yield _left(group_path, *names)


VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files with a group's limit and usage, and the statistic for reclaimable memory (inactive file
pages), by version of control groups.
"""


def _left(group: Path, limit: str, used: str, reclaimable: str) -> int:
    """Bytes left in one group.

    Raises:
        ValueError: the group has no limit.
    """
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    reclaimed = next((int(value) for name, value in lines if name == reclaimable), 0)
    return int((group / limit).read_text()) - int((group / used).read_text()) + reclaimed
