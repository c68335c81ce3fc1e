"""Covariance of local descriptors per class: joint variation of a map's channels between samples.

    mean_cp = (1/n_c) sum_i x_ip          scatter_c = sum_i sum_p (x_ip - mean_cp)(x_ip - mean_cp)^T

    x_ip  descriptor of sample i at position p (d,); a map (d, h, w) has s = h w of them      n_c  samples of class c

Deviations are from the mean *at the same position*, over the samples of the class, whereas
`Covariance` also takes the mean over positions. The two differ by the variation of the mean map
between positions, which is not a relation between features of samples. Few samples suffice: n_c s
descriptors determine d (d + 1) / 2 numbers, while a covariance of whole maps would have (d s)^2.

Used by IID (covariance matching; Deng et al., CVPR 2024, Eq. 6 and 7).
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
from rayd.statistics.covariance import grouped
from rayd.statistics.transforms import Transform


@dataclass(frozen=True, eq=False)
class LocalCovariance(Statistic):
    """Number of samples, mean at every position, and scatter matrix per class.

    >>> descriptors = torch.rand(4, 9, 5)  # (N, s, d)
    >>> LocalCovariance.of(descriptors, torch.tensor([0, 0, 1, 1]), classes=2).scatter.shape
    torch.Size([2, 5, 5])
    """

    count: Tensor
    """Samples seen (C,)."""
    mean: Tensor
    """Mean descriptor at every position (C, s, d); zero for an empty class."""
    scatter: Tensor
    """Sum over samples and positions of outer products of deviations (C, d, d)."""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Compute the statistic of a batch of descriptors (N, s, d) with class indices (N,)."""
        features = feature_vectors(features)
        labels = class_indices(labels, len(features), classes)
        member = membership(labels, classes, features.dtype)
        count = member.sum(0)
        mean = ratio((member.T @ features.flatten(1)).reshape(classes, *features.shape[1:]), count)
        by_class = grouped(features - mean[labels], labels, classes)
        return cls(count, mean, by_class.transpose(1, 2) @ by_class)

    @classmethod
    def sized(cls, classes: int, vectors: int, dimension: int) -> Self:
        """The statistic of no samples."""
        counts = torch.zeros(classes, dtype=torch.float64)
        return cls(
            counts,
            counts.new_zeros(classes, vectors, dimension),
            counts.new_zeros(classes, dimension, dimension),
        )

    def like(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """The same statistic of another batch."""
        return self.of(transform.vectors(features), labels, len(self.count))

    def merge(self, other: Self) -> Self:
        """Chan's formula for matrices, class by class, summed over positions."""
        self.check_mergeable(other)
        count = self.count + other.count
        gap = other.mean - self.mean
        share = ratio(other.count, count)
        outer = gap.transpose(1, 2) @ gap
        scatter = self.scatter + other.scatter + outer * (share * self.count)[:, None, None]
        return type(self)(count, self.mean + gap * share[:, None, None], scatter)

    @property
    def covariance(self) -> Tensor:
        """Mean over samples of the sum over positions of outer products (C, d, d): the paper's
        Sigma, not divided by s.
        """
        return ratio(self.scatter, self.count)
