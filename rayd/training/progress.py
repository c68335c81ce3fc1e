"""How far a training is."""

from __future__ import annotations

from dataclasses import dataclass

MILESTONES = 100
"""Most progress events of a training."""


@dataclass(frozen=True)
class EpochProgress:
    """A milestone of a training."""

    index: int
    """Which milestone, from 0."""
    total: int
    """How many there are."""
    epoch: int
    """Epochs done."""
    epochs: int
    """Epochs to do."""
    loss: float
    """Mean training loss of the last epoch."""
    validation_accuracy: float | None
    """Fraction of the validation images that are right; None unless the best epoch is chosen by
    it.
    """


def milestones(epochs: int) -> tuple[int, ...]:
    """The numbers of epochs after which a training reports progress: evenly spread, at most
    `MILESTONES`, the last at the end.

    >>> milestones(3), len(milestones(1000)), milestones(1000)[:3]
    ((1, 2, 3), 100, (10, 20, 30))
    """
    count = min(epochs, MILESTONES)
    return tuple(epochs * (k + 1) // count for k in range(count))
