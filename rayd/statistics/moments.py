"""First and second moments of every feature, per class.

    mean_c = (1/n_c) sum_i x_i          m2_c = sum_i (x_i - mean_c)^2          variance_c = m2_c / n_c

A sample holds s feature vectors (the positions of a map), so the variance has two parts: within
samples, around the mean of each sample, and between the means of samples:

    m2_c = within_c + s sum_j (mean_j - mean_c)^2      within_c = sum_j sum_{i in j} (x_i - mean_j)^2      j  samples of class c

Both are computed from moments of the individual samples, (N, d) numbers, so that the statistic
costs the same for many classes as for one. Parts are merged by the parallel formula of Chan, Golub
and LeVeque (1979), which avoids the cancellation of sums of squares. Used by DM (means), SRe2L,
CDA, G-VBSM and EDC (means and variances).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rayd.statistics.base import (
    VECTORS,
    Statistic,
    class_indices,
    feature_vectors,
    membership,
    ratio,
)
from rayd.statistics.transforms import SampleMoments, Transform


@dataclass(frozen=True, eq=False)
class Moments(Statistic):
    """Count, mean and centred second moment per class.

    >>> features = torch.tensor([[[0.0]], [[2.0]], [[5.0]]])  # (N, s, d)
    >>> whole = Moments.of(features, torch.tensor([0, 0, 1]), classes=2)
    >>> whole.mean.squeeze(1).tolist(), whole.variance.squeeze(1).tolist()
    ([1.0, 5.0], [1.0, 0.0])
    >>> parts = [Moments.of(features[:1], torch.tensor([0]), 2)]
    >>> parts.append(Moments.of(features[1:], torch.tensor([0, 1]), 2))
    >>> parts[0].merge(parts[1]).variance.squeeze(1).tolist()
    [1.0, 0.0]
    """

    count: Tensor
    """Number of feature vectors (C,)."""
    mean: Tensor
    """Their mean (C, d); zero for an empty class."""
    m2: Tensor
    """Sum of squared deviations from the mean (C, d)."""
    within: Tensor
    """The part of m2 inside samples: sum of squared deviations from the sample's own mean (C,
    d).
    """

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Moments of a batch of feature vectors (N, s, d) with class indices (N,)."""
        return cls.of_samples(VECTORS.moments(feature_vectors(features)), labels, classes)

    @classmethod
    def of_samples(cls, samples: SampleMoments, labels: Tensor, classes: int) -> Self:
        """Moments of a batch from those of its samples, with class indices (N,)."""
        labels = class_indices(labels, len(samples.mean), classes)
        member = membership(labels, classes, samples.mean.dtype)
        images = member.sum(0)
        mean = ratio(member.T @ samples.mean, images)
        gap = samples.mean - mean[labels]
        within = member.T @ samples.m2
        return cls(
            images * samples.size, mean, within + samples.size * (member.T @ gap.square()), within
        )

    @classmethod
    def empty(cls, classes: int, dimension: int) -> Self:
        """Moments of no samples."""
        zeros = torch.zeros(classes, dimension, dtype=torch.float64)
        return cls(torch.zeros(classes, dtype=torch.float64), zeros, zeros.clone(), zeros.clone())

    def like(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """The same statistic of another batch."""
        return self.of_samples(transform.moments(features), labels, len(self.count))

    def merge(self, other: Self) -> Self:
        """Chan's formula, class by class."""
        self.check_mergeable(other)
        count = self.count + other.count
        gap = other.mean - self.mean
        share = ratio(other.count, count).unsqueeze(-1)
        m2 = self.m2 + other.m2 + gap.square() * share * self.count.unsqueeze(-1)
        return type(self)(count, self.mean + gap * share, m2, self.within + other.within)

    @property
    def variance(self) -> Tensor:
        """Biased variance per class and feature (C, d); zero for an empty class."""
        return ratio(self.m2, self.count)

    @property
    def within_variance(self) -> Tensor:
        """The part of the variance inside samples, i.e. the average biased variance of a sample (C,
        d).
        """
        return ratio(self.within, self.count)

    def pooled(self) -> Self:
        """Moments of all classes together (one row); the variance includes the part between
        classes.
        """
        count = self.count.sum().reshape(1)
        mean = ratio((self.count.unsqueeze(-1) * self.mean).sum(0, keepdim=True), count)
        between = (self.count.unsqueeze(-1) * (self.mean - mean).square()).sum(0, keepdim=True)
        return type(self)(
            count, mean, self.m2.sum(0, keepdim=True) + between, self.within.sum(0, keepdim=True)
        )
