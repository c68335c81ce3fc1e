"""Who looks at a synthetic set on its way, and a synthesis that goes on from where another one came
to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayd.distilled import Distilled
from rayd.evaluation.report import Report


@dataclass(frozen=True)
class Milestone:
    """A synthetic set on its way."""

    fraction: float
    """Share of the steps that are done: of every block, or, where blocks follow one another, of all
    together.
    """
    distilled: Distilled
    """The set as it is now."""
    checkpoints: Path
    """Directory of the checkpoints from which it will go on."""
    judge: Callable[[], Report]
    """Trains the recipe's students on it, on the run's own workers, which do nothing else
    meanwhile.
    """


@dataclass(frozen=True)
class Callback:
    """Somebody who looks at a synthetic set on its way. It is not looked at before where a run
    found it finished.
    """

    fractions: tuple[float, ...]
    """When: ascending, in (0, 1)."""
    on_milestone: Callable[[Milestone], None]
    """Told each time; the synthesis goes on when it returns. A run that is resumed may tell the
    last one again.
    """

    def pauses(self, steps: int, blocks: int, sequential: bool) -> list[tuple[int, ...]]:
        """The steps of every block after which it is looked at; of all blocks together where they
        go `sequential`.
        """
        total = steps * blocks if sequential else steps
        places = sorted(
            {min(max(round(fraction * total), 1), total - 1) for fraction in self.fractions} - {0}
        )
        if not sequential:
            return [tuple(places)] * blocks
        return [
            tuple((place - 1) % steps + 1 for place in places if (place - 1) // steps == block)
            for block in range(blocks)
        ]


@dataclass(frozen=True)
class WarmStart:
    """What a synthesis goes on from, if not from the initial set: where another one, with other
    settings, came to.
    """

    checkpoints: Path
    """Directory of the other one's checkpoints."""
    history: tuple[Mapping[str, Any], ...]
    """JSON-able: what happened up to there, as the result depends on it too."""
