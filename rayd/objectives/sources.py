"""The statistics that something was derived from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import ref


class Sources:
    """References to statistics that do not keep them alive.

    What is derived from statistics is kept beside them; a strong reference would keep the statistics
    of every step of a sampled real side.

    Args:
        statistics: what something is derived from.
    """

    def __init__(self, statistics: Iterable[Any]):
        self._of = [ref(statistic) for statistic in statistics]

    def are(self, statistics: Sequence[Any]) -> bool:
        """Whether they are these very objects."""
        return len(statistics) == len(self._of) and all(
            a() is b for a, b in zip(self._of, statistics, strict=True)
        )

    def alive(self) -> list[Any]:
        """Those that still exist."""
        return [statistic for place in self._of if (statistic := place()) is not None]
