"""References to the statistics from which something was derived."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref


class Sources:
    """References to statistics that do not keep them alive.

    Derived values are cached together with these references; strong ones would keep the statistics
    of every step in memory if real data are sampled.

    Args:
        statistics: the statistics from which something is derived.
    """

    def __init__(self, statistics: Iterable[Any]):
        self._of = [ref(statistic) for statistic in statistics]

    def are(self, statistics: Sequence[Any]) -> bool:
        """Whether the references are to these very objects."""
        return len(statistics) == len(self._of) and all(
            a() is b for a, b in zip(self._of, statistics, strict=True)
        )

    def alive(self) -> list[Any]:
        """Those that still exist."""
        return [statistic for place in self._of if (statistic := place()) is not None]
