"""Kinds of statistics: which one is taken, over which rows, and with which arguments.

    kind                        rows       statistic
    ByClass(statistic)          classes    any `Statistic` that needs nothing but a size
    AtFrequencies(frequencies)  classes    `CharacteristicFunction` at drawn frequencies
    Pooled(statistic)           one        that of all classes together

Wherever a kind is expected, a class alone stands for `ByClass` of it.

A statistic whose empty element needs arguments has a kind of its own in this module.
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
            rows: how many rows it has.
            vectors: feature vectors of one sample (s).
            dimension: their dimension (d).
            generator: makes the draws of a kind that `draws`.
        """

    def count(self, classes: int) -> int:
        """How many rows there are for so many classes."""
        return classes

    def rows(self, labels: Tensor) -> Tensor:
        """Which row each sample belongs to (N,), of class indices (N,)."""
        return labels

    @property
    def draws(self) -> bool:
        """Whether `empty` draws, so needs a generator."""
        return False

    @property
    def data_dependent(self) -> bool:
        """Whether `resolved` must be given real features before `empty` can be."""
        return False

    def resolved(self, features: Tensor) -> Self:
        """The kind with arguments that follow from real feature vectors (n, d).

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
    """Characteristic functions of classes at frequencies that are drawn for each layer."""

    frequencies: Frequencies
    """How they are drawn."""

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
        """The neutral element, at frequencies that are drawn.

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
    """A statistic of all classes together, whose size does not grow with their number. It is what
    `pooled()` makes of one kept by class, the part between classes included.
    """

    of: type[Statistic] | StatisticKind
    """The statistic, or the kind of it, that is pooled."""

    @property
    def inner(self) -> StatisticKind:
        """The kind that is pooled; everything but the rows is as there."""
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
        """One row, however many classes there are."""
        return 1

    def rows(self, labels: Tensor) -> Tensor:
        """Row 0 for all samples (N,)."""
        return derived(labels, "one row", lambda: _zeros(labels))

    @property
    def draws(self) -> bool:
        """Whether the inner kind's `empty` draws."""
        return self.inner.draws

    @property
    def data_dependent(self) -> bool:
        """Whether the inner kind is data-dependent."""
        return self.inner.data_dependent

    def resolved(self, features: Tensor) -> Self:
        """With the inner kind resolved by these features."""
        return replace(self, of=self.inner.resolved(features))


def kind_of(statistic: type[Statistic] | StatisticKind) -> StatisticKind:
    """The kind, of a kind or of a class alone.

    >>> from rayd.statistics import Moments
    >>> kind_of(Moments) == ByClass(Moments)
    True
    """
    return ByClass(statistic) if isinstance(statistic, type) else statistic


def _zeros(labels: Tensor) -> Tensor:
    return uploaded(torch.zeros(len(labels), dtype=labels.dtype), labels.device)
