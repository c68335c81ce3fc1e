"""Running calls of workers, and their loss."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rayd.engine.on_ray import metrics
from rayd.engine.wire import size, unpack


@dataclass
class Call:
    """A running call of a worker."""

    item: int
    worker: int
    method: str
    since: float = field(default_factory=time.monotonic)
    """When it began, or last yielded an event."""
    longest: float | None = None
    """Longest time between two events, in seconds; None before the first one."""
    stuck_for: float | None = None
    """Seconds after which it was ended as stuck."""

    def silent(self) -> float:
        """Seconds since it began, or since its last event."""
        return time.monotonic() - self.since

    def answered(self) -> None:
        """Note an event."""
        self.longest = max(self.longest or 0.0, self.silent())
        self.since = time.monotonic()


class LostError(Exception):
    """The worker of a call died or is unusable; another one may repeat the call."""

    def __init__(self, fault: str | None = None):
        """Describe the loss.

        Args:
            fault: of its GPU.
        """
        super().__init__(fault)
        self.fault = fault
        self.stuck_for: float | None = None

    def of(self, call: Call) -> LostError:
        """The loss of a call, which may have been ended as stuck."""
        self.stuck_for = call.stuck_for
        return self


def unpacked(packed: Any) -> Any:
    """Unpack a result that arrived, and count its bytes as moved."""
    metrics.count("rayd_bytes_moved", size(packed), direction="in")
    return unpack(packed)
