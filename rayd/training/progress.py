"""Progress events of a training."""

from __future__ import annotations

from dataclasses import dataclass

MILESTONES = 100
"""Maximum number of progress events of a training."""


@dataclass(frozen=True)
class EpochProgress:
    """A milestone of a training."""

    index: int
    """Index of the milestone, from 0."""
    total: int
    """Number of milestones."""
    epoch: int
    """Number of completed epochs."""
    epochs: int
    """Total number of epochs."""
    loss: float
    """Mean training loss of the last epoch."""
    validation_accuracy: float | None
    """Validation accuracy, a fraction; None unless it selects the best epoch."""


def milestones(epochs: int) -> tuple[int, ...]:
    """Numbers of epochs after which progress is reported: at most `MILESTONES`, evenly spaced.

    >>> milestones(3), len(milestones(1000)), milestones(1000)[:3]
    ((1, 2, 3), 100, (10, 20, 30))
    """
    count = min(epochs, MILESTONES)
    return tuple(epochs * (k + 1) // count for k in range(count))
