"""Feature-feature statistics: mean and centred scatter matrix, per class.

    scatter_c = sum_i (x_i - mean_c)(x_i - mean_c)^T        covariance_c = scatter_c / n_c

Used by UniDD and CFM as feature-feature correlation ("FFC"), centred and over all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from rayd.derived import class_grid
from rayd.statistics.base import VECTORS, Statistic, centred, feature_vectors, ratio
from rayd.statistics.transforms import Transform


@dataclass(frozen=True, eq=False)
class Covariance(Statistic):
    """Count, mean and scatter matrix per class.

    >>> features = torch.tensor([[[0.0, 1.0]], [[2.0, 3.0]]])  # (N, s, d)
    >>> Covariance.of(features, torch.tensor([0, 0]), classes=1).covariance.tolist()
    [[[1.0, 1.0], [1.0, 1.0]]]
    """

    count: Tensor
    """Number of feature vectors (C,)."""
    mean: Tensor
    """Their mean (C, d); zero for an empty class."""
    scatter: Tensor
    """Sum of outer products of deviations from the mean (C, d, d)."""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int) -> Self:
        """Covariance of a batch of feature vectors (N, s, d) with class indices (N,)."""
        count, mean, deviation = centred(features, labels, classes)
        by_class = grouped(deviation, labels.long(), classes)
        return cls(count, mean, by_class.transpose(1, 2) @ by_class)

    @classmethod
    def empty(cls, classes: int, dimension: int) -> Self:
        """Covariance of no samples."""
        return cls(
            torch.zeros(classes, dtype=torch.float64),
            torch.zeros(classes, dimension, dtype=torch.float64),
            torch.zeros(classes, dimension, dimension, dtype=torch.float64),
        )

    @classmethod
    def of_all(cls, features: Tensor) -> Self:
        """Covariance (one row) of all feature vectors (N, s, d) of a batch, without grouping by
        class.
        """
        features = feature_vectors(features)
        rows = features.reshape(-1, features.shape[-1])
        mean, scatter = _Scatter.apply(rows)
        return cls(mean.new_full((1,), len(rows)), mean.unsqueeze(0), scatter.unsqueeze(0))

    def like(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """The same statistic of another batch; with one row, over the whole batch."""
        if len(self.count) == 1:
            return self.of_all(transform.vectors(features))
        return self.of(transform.vectors(features), labels, len(self.count))

    def merge(self, other: Self) -> Self:
        """Chan's formula for matrices, class by class."""
        self.check_mergeable(other)
        count = self.count + other.count
        gap = other.mean - self.mean
        share = ratio(other.count, count)
        outer = gap.unsqueeze(-1) * gap.unsqueeze(-2)
        scatter = self.scatter + other.scatter + outer * (share * self.count)[:, None, None]
        return type(self)(count, self.mean + gap * share.unsqueeze(-1), scatter)

    @property
    def covariance(self) -> Tensor:
        """Biased covariance per class (C, d, d)."""
        return ratio(self.scatter, self.count)

    def pooled(self) -> Self:
        """Covariance of all classes together (one row), including the part between classes."""
        count = self.count.sum().reshape(1)
        mean = ratio((self.count.unsqueeze(-1) * self.mean).sum(0, keepdim=True), count)
        gap = self.mean - mean
        between = (self.count.unsqueeze(-1) * gap).T @ gap
        return type(self)(count, mean, (self.scatter.sum(0) + between).unsqueeze(0))


class _Scatter(torch.autograd.Function):
    """Mean (d,) and scatter matrix (d, d) of rows (M, d).

    With g and G the gradients of both, that of row x is g / M + (G + G^T)(x - mean), which is one
    matrix product where autograd needs two. Differentiable (twice).
    """

    @staticmethod
    def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
        mean = rows.sum(0) / max(len(rows), 1)
        deviation = rows - mean
        return mean, deviation.T @ deviation

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        rows, mean = ctx.saved_tensors
        along, across = gradients
        return torch.addmm(along / max(len(rows), 1), rows - mean, across + across.T)


def grouped(deviation: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Deviations (N, s, d) as (C, m*s, d): by class, padded with zeros to the largest class m, for
    one batched product.
    """
    grid = class_grid(labels, classes)
    padded = deviation.new_zeros(classes, grid.width, *deviation.shape[1:])
    padded = padded.index_put((grid.rows, grid.places), deviation[grid.order])
    return padded.flatten(1, 2)
