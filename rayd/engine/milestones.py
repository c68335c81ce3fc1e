"""Milestones: steps after which a sweep is handed the unfinished set, and may go on otherwise.

Also the start of a synthesis from another run's checkpoints (`WarmStart`). The callbacks that users
write are in `rayd.callbacks`.
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
    """Share of the steps that are done, of every block; of all together for sequential blocks."""
    distilled: Distilled
    """The current set."""
    checkpoints: Path
    """Directory of its checkpoints."""
    judge: Callable[[], Report]
    """Trains the recipe's students on the set, on the run's workers, while the synthesis pauses."""


@dataclass(frozen=True)
class Callback:
    """A function to be called with the unfinished set; it is not called for a cached set."""

    fractions: tuple[float, ...]
    """Shares of the synthesis after which it is called: ascending, in (0, 1)."""
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
            # counted from 1: the last step of a block belongs to it, not to the next one
            block, step = divmod(milestone - 1, steps)
            by_block[block].append(step + 1)
        return [tuple(block) for block in by_block]


@dataclass(frozen=True)
class WarmStart:
    """The state of another synthesis, with other settings, to start from."""

    checkpoints: Path
    """Directory of its checkpoints."""
    history: tuple[Mapping[str, Any], ...]
    """JSON-able settings of the synthesis up to there, on which the result depends too."""
