"""Kinds of statistics: statistic, rows and arguments.

    kind                        rows       statistic
    ByClass(statistic)          classes    any `Statistic` that only needs a size
    AtFrequencies(frequencies)  classes    `CharacteristicFunction` at drawn frequencies
    Pooled(statistic)           one        that of all classes together

Wherever a kind is expected, a class alone means `ByClass` of it.

A statistic whose neutral element needs arguments has its own kind in this module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from rayd.derived import derived, uploaded
from rayd.statistics.base import Statistic
from rayd.statistics.characteristic_function import CharacteristicFunction
from rayd.statistics.frequencies import Frequencies


@dataclass(frozen=True)
class StatisticKind(ABC):
    """A kind of statistic of feature vectors. Equal kinds give equal statistics."""

    @property
    @abstractmethod
    def key(self) -> str:
        """A stable name of the kind and its arguments, for files and cache keys."""

    @property
    @abstractmethod
    def statistic(self) -> type[Statistic]:
        """The class of its statistics."""

    @abstractmethod
    def empty(
        self, rows: int, vectors: int, dimension: int, generator: torch.Generator | None = None
    ) -> Statistic:
        """The neutral element.

        Args:
            rows: number of rows.
            vectors: number of feature vectors of one sample (s).
            dimension: their dimension (d).
            generator: draws random values, if the kind `draws`.
        """

    def count(self, classes: int) -> int:
        """Number of rows for a number of classes."""
        return classes

    def rows(self, labels: Tensor) -> Tensor:
        """Row index of each sample (N,), from class indices (N,)."""
        return labels

    @property
    def draws(self) -> bool:
        """Whether `empty` draws random values, and thus needs a generator."""
        return False

    @property
    def data_dependent(self) -> bool:
        """Whether `resolved` must be called with real features before `empty`."""
        return False

    def resolved(self, features: Tensor) -> Self:
        """The kind with arguments determined from real feature vectors (n, d).

        Raises:
            DataError: these features do not determine them.
        """
        return self


@dataclass(frozen=True)
class ByClass(StatisticKind):
    """A statistic that is kept class by class."""

    of: type[Statistic]
    """The statistic."""

    @property
    def key(self) -> str:
        """The name of the statistic's class."""
        return self.of.__name__

    @property
    def statistic(self) -> type[Statistic]:
        """`of`."""
        return self.of

    def empty(
        self, rows: int, vectors: int, dimension: int, generator: torch.Generator | None = None
    ) -> Statistic:
        """The neutral element; see `Statistic.sized`."""
        return self.of.sized(rows, vectors, dimension)


@dataclass(frozen=True)
class AtFrequencies(StatisticKind):
    """Characteristic functions of classes, at frequencies drawn for each layer."""

    frequencies: Frequencies
    """Distribution and number of the frequencies."""

    @property
    def key(self) -> str:
        """The name of the statistic, and the frequencies' key."""
        return f"{CharacteristicFunction.__name__}.{self.frequencies.key}"

    @property
    def statistic(self) -> type[Statistic]:
        """`CharacteristicFunction`."""
        return CharacteristicFunction

    def empty(
        self, rows: int, vectors: int, dimension: int, generator: torch.Generator | None = None
    ) -> Statistic:
        """The neutral element, at newly drawn frequencies.

        Raises:
            ValueError: there is no generator, or the scale is a median that is not resolved.
        """
        if generator is None:
            raise ValueError(f"The statistic '{self.key}' must be given a generator.")
        return CharacteristicFunction.empty(rows, self.frequencies.draw(dimension, generator))

    @property
    def draws(self) -> bool:
        """True: `empty` draws the frequencies."""
        return True

    @property
    def data_dependent(self) -> bool:
        """Whether the kernel's length is the median distance of real features."""
        return self.frequencies.scale == "median"

    def resolved(self, features: Tensor) -> AtFrequencies:
        """The kind with the median distance of these features as the kernel's length."""
        return AtFrequencies(self.frequencies.resolved(features))


@dataclass(frozen=True)
class Pooled(StatisticKind):
    """A statistic of all classes together, whose size does not grow with their number. It equals
    `pooled()` of a statistic by class, including the part between classes.
    """

    of: type[Statistic] | StatisticKind
    """The statistic to pool, or its kind."""

    @property
    def inner(self) -> StatisticKind:
        """The kind to pool; everything except the rows is delegated to it."""
        return kind_of(self.of)

    @property
    def key(self) -> str:
        """`pooled`, and the key of the inner kind."""
        return f"pooled.{self.inner.key}"

    @property
    def statistic(self) -> type[Statistic]:
        """The inner kind's."""
        return self.inner.statistic

    def empty(
        self, rows: int, vectors: int, dimension: int, generator: torch.Generator | None = None
    ) -> Statistic:
        """The inner kind's neutral element."""
        return self.inner.empty(rows, vectors, dimension, generator)

    def count(self, classes: int) -> int:
        """One row, for any number of classes."""
        return 1

    def rows(self, labels: Tensor) -> Tensor:
        """Row 0 for all samples (N,)."""
        return derived(labels, "one row", lambda: _zeros(labels))

    @property
    def draws(self) -> bool:
        """Whether the inner kind's `empty` draws random values."""
        return self.inner.draws

    @property
    def data_dependent(self) -> bool:
        """Whether the inner kind is data-dependent."""
        return self.inner.data_dependent

    def resolved(self, features: Tensor) -> Self:
        """The same with the inner kind resolved on these features."""
        return replace(self, of=self.inner.resolved(features))


def kind_of(statistic: type[Statistic] | StatisticKind) -> StatisticKind:
    """Convert a class alone to its kind, and return kinds unchanged.

    >>> from rayd.statistics import Moments
    >>> kind_of(Moments) == ByClass(Moments)
    True
    """
    return ByClass(statistic) if isinstance(statistic, type) else statistic


def _zeros(labels: Tensor) -> Tensor:
    return uploaded(torch.zeros(len(labels), dtype=labels.dtype), labels.device)
