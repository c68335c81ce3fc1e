"""Empirical characteristic function of features at fixed frequencies, per class.

    phi_c(t) = (1/n_c) sum_i exp(i <t, x_i>) = real_c(t) + i imaginary_c(t)

At fixed frequencies it is a sum over samples like any other statistic. It needs memory for the
frequencies, the sums, and a bounded part of the angles <t, x> (`rayd.statistics.wave_sums`). Used
by NCFM and CSDM.
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
from rayd.statistics.wave_sums import wave_sums


@dataclass(frozen=True, eq=False)
class CharacteristicFunction(Statistic):
    """Sums of cosines and sines per class, and their frequencies.

    >>> features = torch.zeros(3, 1, 2)  # (N, s, d)
    >>> frequencies = torch.rand(4, 2)  # (M, d)
    >>> found = CharacteristicFunction.of(features, torch.tensor([0, 0, 1]), 2, frequencies)
    >>> found.cosine.tolist()
    [[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]]
    """

    shared = constant = frozenset({"frequencies"})

    count: Tensor
    """Number of feature vectors (C,)."""
    cosine: Tensor
    """Sum of cos<t, x> (C, M)."""
    sine: Tensor
    """Sum of sin<t, x> (C, M)."""
    frequencies: Tensor
    """The frequencies t (M, d), equal in all parts that are merged."""

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, frequencies: Tensor) -> Self:
        """Characteristic function at frequencies (M, d) of a batch of feature vectors (N, s, d)
        with class indices (N,).

        Raises:
            ValueError: frequencies and feature vectors have different dimensions.
        """
        features = feature_vectors(features)
        if frequencies.ndim != 2 or frequencies.shape[1] != features.shape[2]:
            raise ValueError(
                "Frequencies must be of the dimension of the feature vectors, "
                f"(M, {features.shape[2]}). Got {tuple(frequencies.shape)} instead."
            )
        labels = class_indices(labels, len(features), classes)
        spread = features.shape[1]
        count = membership(labels, classes, features.dtype).sum(0) * spread
        each = labels.repeat_interleave(spread)
        cosine, sine = wave_sums(
            features.flatten(0, 1), frequencies.to(features.dtype), each, classes
        )
        return cls(count, cosine, sine, frequencies)

    @classmethod
    def empty(cls, classes: int, frequencies: Tensor) -> Self:
        """Characteristic function of no samples at frequencies (M, d)."""
        zeros = torch.zeros(
            classes, len(frequencies), dtype=torch.float64, device=frequencies.device
        )
        return cls(zeros.new_zeros(classes), zeros, zeros.clone(), frequencies.double())

    def like(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """The same statistic of another batch, at the same frequencies."""
        return self.of(transform.vectors(features), labels, len(self.count), self.frequencies)

    def merge(self, other: Self) -> Self:
        """Add the sums.

        Raises:
            ValueError: the frequencies or the numbers of classes differ.
        """
        if self.frequencies is not other.frequencies and not torch.equal(
            self.frequencies, other.frequencies
        ):
            raise ValueError("Characteristic functions at different frequencies cannot be merged.")
        self.check_mergeable(other)
        return type(self)(
            self.count + other.count,
            self.cosine + other.cosine,
            self.sine + other.sine,
            self.frequencies,
        )

    @property
    def real(self) -> Tensor:
        """Real part of phi (C, M)."""
        return ratio(self.cosine, self.count)

    @property
    def imaginary(self) -> Tensor:
        """Imaginary part of phi (C, M)."""
        return ratio(self.sine, self.count)
