"""How much memory there is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux keeps its control groups."""


def available_memory() -> int | None:
    """Bytes that this process can still use without swapping; None where the system does not tell.

    Linux: what the kernel deems available, but no more than the control groups (a container, a job
    of a scheduler) still have. Elsewhere: the machine's memory.
    """
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(
            int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")
        )
        return max(0, min([available, *_left_to_groups()]))
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_to_groups() -> Iterator[int]:
    """What the limits of this process's control groups leave, as far as they can be seen."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            root, names = (GROUPS / "memory", VERSION_1) if controllers else (GROUPS, VERSION_2)
            inside = Path(group.lstrip("/"))
            for place in {root / inside, *(root / parent for parent in inside.parents)}:
                with suppress(OSError, ValueError):
                    yield _left(place, *names)


VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a group's limit and use, and what gives way of the use: pages of files that nobody
looked at for a while.
"""


def _left(group: Path, limit: str, used: str, yielding: str) -> int:
    """Bytes that one group has left; ValueError where it has no limit."""
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    gives_way = next((int(value) for name, value in lines if name == yielding), 0)
    return int((group / limit).read_text()) - int((group / used).read_text()) + gives_way
