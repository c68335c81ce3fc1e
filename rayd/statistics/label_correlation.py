"""Feature-label statistic: the correlation of features with labels, X^T Y.

    total = sum_i y_i x_i^T                (C, d), the transpose of X^T Y
    correlation = total / n                ("FLC")

Labels are class indices or rows of soft labels. Used by UniDD / CFM (signal matching) and
ridge-regression methods.
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
from rayd.statistics.transforms import Transform


@dataclass(frozen=True, eq=False)
class LabelCorrelation(Statistic):
    """Sum of label-feature outer products, with the number of feature vectors.

    >>> features = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])  # (N, s, d)
    >>> LabelCorrelation.of(features, torch.tensor([0, 1]), classes=2).total.tolist()
    [[1.0, 2.0], [3.0, 4.0]]
    """

    shared = frozenset({"count"})

    count: Tensor
    """Number of feature vectors, a scalar, as soft labels have no count per class."""
    total: Tensor
    """Sum of outer products of labels with features (C, d)."""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Correlation of a batch of feature vectors (N, s, d) with class indices (N,) or soft
        labels (N, C).

        Raises:
            ValueError: shapes are inconsistent, or an index is out of range.
        """
        features = feature_vectors(features)
        if labels.is_floating_point() or labels.ndim == 2:
            if labels.shape != (len(features), classes):
                raise ValueError(
                    f"Soft labels must be rows of probabilities ({len(features)}, {classes}). Got "
                    f"{tuple(labels.shape)} instead."
                )
            soft = labels.to(features.dtype)
        else:
            labels = class_indices(labels, len(features), classes)
            soft = membership(labels, classes, features.dtype)
        count = features.new_full((), features.shape[0] * features.shape[1])
        return cls(count, soft.T @ features.sum(1))

    @classmethod
    def empty(cls, classes: int, dimension: int) -> Self:
        """Correlation of no samples."""
        return cls(
            torch.zeros((), dtype=torch.float64),
            torch.zeros(classes, dimension, dtype=torch.float64),
        )

    def like(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """The same statistic of another batch."""
        return self.of(transform.vectors(features), labels, len(self.total))

    def merge(self, other: Self) -> Self:
        """Sums add."""
        self.check_mergeable(other)
        return type(self)(self.count + other.count, self.total + other.total)

    def update(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """Add a batch in float64, without autograd, in place; returns self."""
        self.check_device(features)
        with torch.no_grad():
            part = self.like(features.double(), labels, transform)
            self.check_alike(part)
            self.count.add_(part.count)
            self.total.add_(part.total)
        return self

    @property
    def correlation(self) -> Tensor:
        """Mean of label-feature outer products (C, d): the FLC, transposed."""
        return ratio(self.total, self.count)
