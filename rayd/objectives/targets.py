"""Targets of the moments of synthetic images, derived from one observer's real statistics, once.

All layers are concatenated into one table: a column for each feature of each layer, D in total, and
a row for each of the K classes in a block of images, or one row for all classes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from rayd.derived import class_sizes, derived, on_host, present_classes
from rayd.objectives.sources import Sources
from rayd.statistics import Moments


class Target(NamedTuple):
    """Means and variances for the rows of a table."""

    mean: Tensor
    """(K, D)."""
    variance: Tensor
    """(K, D)."""
    share: Tensor
    """Weights of the rows (K,), which add up to 1."""


class ClassTargets:
    """Targets for the classes in a block of images."""

    def __init__(self, statistics: Sequence[Moments], labels: Tensor, inside: bool):
        """Compute the rows of these classes.

        Args:
            statistics: statistics of the real images, one per layer.
            labels: class indices (N,).
            inside: whether the variance is only the part inside images.
        """
        present, self.rows = present_classes(labels)
        """Index of each image's row (N,)."""
        parts = [statistic.rows(present) for statistic in statistics]
        count = parts[0].count.to(parts[0].mean.dtype)
        # relative to the largest, so that classes of equal size have weights of exactly 1 / K
        size = count / count.max().clamp(min=1)
        mean = torch.cat([part.mean for part in parts], 1)
        variance = torch.cat(
            [part.within_variance if inside else part.variance for part in parts], 1
        )
        self.each = Target(mean, variance, size / size.sum().clamp(min=1))
        """One row per class, weighted by its share of the real images of these classes; classes
        without real images have weight 0.
        """

    @cached_property
    def average(self) -> Target:
        """One row: the average over the images of their classes' rows."""
        images = class_sizes(self.rows, len(self.each.share)) * self.each.share.sign()
        weight = (images / images.sum().clamp(min=1)).unsqueeze(0)
        return Target(weight @ self.each.mean, weight @ self.each.variance, weight.new_ones(1))


class Targets:
    """Everything derived from one observer's real statistics, without a reference to them."""

    def __init__(self, statistics: Sequence[Moments], inside: bool):
        """Targets of these statistics, one per layer; `inside` as for `ClassTargets`."""
        self.sources = Sources(statistics)
        """References to the statistics."""
        self._inside = inside
        self._block: tuple[tuple[int, ...], ClassTargets] | None = None
        self.widths = [statistic.mean.shape[1] for statistic in statistics]
        """Number of columns of each layer."""
        self.plan: tuple[Tensor, Tensor] | None = None
        """One-hot layer of each column, and weights of the layers, for comparing all of them."""

    @cached_property
    def everything(self) -> Target:
        """One row for all classes together; the variance includes the part between classes."""
        pooled = [statistic.pooled() for statistic in self._statistics]
        mean = torch.cat([statistic.mean for statistic in pooled], 1)
        return Target(
            mean, torch.cat([statistic.variance for statistic in pooled], 1), mean.new_ones(1)
        )

    def classes(self, labels: Tensor) -> ClassTargets:
        """Targets for the classes of a block with these labels (N,); those of the last block are
        cached.
        """
        key = derived(labels, "as a tuple", lambda: tuple(on_host(labels).tolist()))
        if self._block is None or self._block[0] != key:
            self._block = key, ClassTargets(self._statistics, labels, self._inside)
        return self._block[1]

    @property
    def _statistics(self) -> list[Moments]:
        return self.sources.alive()
