"""First and second moments of every feature, per class.

    mean_c = (1/n_c) sum_i x_i          m2_c = sum_i (x_i - mean_c)^2          variance_c = m2_c / n_c

Parts are merged by the parallel formula of Chan, Golub and LeVeque (1979), which does not cancel as sums of squares do.
Used by DM (means), SRe2L, CDA, G-VBSM and EDC (means and variances).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rayd.statistics.base import Statistic, centred, membership, ratio


@dataclass(frozen=True)
class Moments(Statistic):
    """Count, mean and centred second moment per class."""

    count: Tensor
    """Feature vectors seen (C,)."""
    mean: Tensor
    """Their mean (C, d); zero for an empty class."""
    m2: Tensor
    """Sum of squared deviations from the mean (C, d)."""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Moments of a batch of feature vectors (N, s, d) with class indices (N,)."""
        count, mean, deviation = centred(features, labels, classes)
        return cls(count, mean, membership(labels, classes, features.dtype).T @ deviation.square().sum(1))

    @classmethod
    def empty(cls, classes: int, dimension: int) -> Self:
        """Moments of no samples."""
        zeros = torch.zeros(classes, dimension, dtype=torch.float64)
        return cls(torch.zeros(classes, dtype=torch.float64), zeros, zeros.clone())

    def like(self, features: Tensor, labels: Tensor) -> Self:
        """The same statistic of another batch."""
        return self.of(features, labels, len(self.count))

    def merge(self, other: Self) -> Self:
        """Chan's formula, class by class."""
        count = self.count + other.count
        gap = other.mean - self.mean
        share = ratio(other.count, count).unsqueeze(-1)
        m2 = self.m2 + other.m2 + gap.square() * share * self.count.unsqueeze(-1)
        return type(self)(count, self.mean + gap * share, m2)

    @property
    def variance(self) -> Tensor:
        """Biased variance per class and feature (C, d); zero for an empty class."""
        return ratio(self.m2, self.count)

    def pooled(self) -> Self:
        """Moments of all classes together (one row): the variance holds the part between classes."""
        count = self.count.sum().reshape(1)
        mean = ratio((self.count.unsqueeze(-1) * self.mean).sum(0, keepdim=True), count)
        between = (self.count.unsqueeze(-1) * (self.mean - mean).square()).sum(0, keepdim=True)
        return type(self)(count, mean, self.m2.sum(0, keepdim=True) + between)
