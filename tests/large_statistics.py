"""Observers that report statistics of any size, without computing them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayd.engine.observer import States
from rayd.engine.observer_tasks import ObserverTasks
from rayd.statistics import Moments


class LargeStatistics(ObserverTasks):
    """Reports moments of features with enough dimensions to take a given number of MB.

    Args:
        megabytes: size of the moments of all classes.
    """

    def __init__(self, megabytes: int, *arguments: Any):
        super().__init__(*arguments)
        # mean, m2 and within: three float64 tensors with a row for each class
        self._dimension = megabytes * 10**6 // (3 * 8 * self._facts.classes)

    def measure(self, team: Any, shard: Any, lean: bool = False) -> list[States]:
        """Moments of the shard, all of the same value."""
        _, labels = shard.get()
        count = torch.tensor(np.bincount(labels)[np.unique(labels)], dtype=torch.float64)
        rows = torch.ones(len(count), self._dimension, dtype=torch.float64)
        moments = Moments(count, rows, rows.clone(), rows.clone())
        (spec,) = self._method.specs(team[0][0].group)
        return [{spec.key: [moments.state()]} for _ in team]
