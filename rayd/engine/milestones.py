"""Milestones: steps after which a sweep gets the unfinished set, and may continue differently.

Also warm starts of a synthesis from another run's checkpoints (`WarmStart`). The callbacks that
users write are in `rayd.callbacks`.
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
    """An unfinished synthetic set."""

    fraction: float
    """Fraction of finished steps, of every block; of all blocks together if they are sequential."""
    distilled: Distilled
    """The current set."""
    checkpoints: Path
    """Directory of its checkpoints."""
    judge: Callable[[], Report]
    """Evaluates the set with the recipe's students, on the run's workers; the synthesis pauses."""


@dataclass(frozen=True)
class Callback:
    """A function that is called with the unfinished set; not called for a cached set."""

    fractions: tuple[float, ...]
    """Fractions of the synthesis after which it is called: ascending, in (0, 1)."""
    on_milestone: Callable[[Milestone], None]
    """The function; the synthesis pauses while it runs. A resumed run may repeat the last call."""

    def steps_by_block(self, steps: int, blocks: int, sequential: bool) -> list[tuple[int, ...]]:
        """The steps of each block after which the function is called.

        Args:
            steps: of a block.
            blocks: number of them.
            sequential: whether fractions count the steps of all blocks, one after another.
        """
        total = steps * blocks if sequential else steps
        milestones = sorted(
            {min(max(round(fraction * total), 1), total - 1) for fraction in self.fractions} - {0}
        )
        if not sequential:
            return [tuple(milestones)] * blocks
        by_block: list[list[int]] = [[] for _ in range(blocks)]
        for milestone in milestones:
            # counted from 1, so that the last step of a block belongs to it, not to the next one
            block, step = divmod(milestone - 1, steps)
            by_block[block].append(step + 1)
        return [tuple(block) for block in by_block]


@dataclass(frozen=True)
class WarmStart:
    """The state of another synthesis, with other settings, to start from."""

    checkpoints: Path
    """Directory of its checkpoints."""
    history: tuple[Mapping[str, Any], ...]
    """JSON-able settings of the synthesis so far, which also determine the result."""
