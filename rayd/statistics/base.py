"""Base of all statistics of features: sums over samples, hence commutative monoids.

A statistic is kept per class. Symbols used in this package:

    N  samples (images)               C  classes
    s  feature vectors of one sample  d  dimension of a feature vector

Real side: start from the neutral element, `update` it with batches in float64, and `merge` the
parts computed by other workers. Synthetic side: `real.like(batch)`, differentiable, in the
precision of the features. Both take feature maps together with a transform.

To add a statistic, write a module with a frozen dataclass that derives from `Statistic` and has

    fields      tensors, whose first axis is the class
    empty       class method `empty(classes, dimension)`: the neutral element. Where its size depends
                on s as well, override `sized` instead, as `LocalCovariance` does
    like        the same statistic of a batch, usually by calling a class method `of(features,
                labels, classes)`
    merge       the statistic of two parts combined; with `empty` it must obey the laws of a
                commutative monoid, which `tests/statistics/test_laws.py` checks (add it to `EMPTY`)
    distance    only for matching by name (`terms.statistic.of`): `distance(self, synthetic)`, a
                scalar; terms of a method may compare it in their own way
    properties  derived quantities (means, ...)

and export it from `rayd.statistics`. It needs its own kind in `rayd.statistics.kinds` only if its
neutral element takes more arguments, such as drawn frequencies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rayd import plugins
from rayd.derived import index_range, present_classes
from rayd.repeats import INSTEAD, repeated
from rayd.statistics.transforms import Transform, Vectors, wide
from rayd.transfer import upload

VECTORS = Vectors()
"""Transform for features that already are feature vectors (N, s, d)."""


def class_indices(labels: Tensor, samples: int, classes: int) -> Tensor:
    """Validate labels and return class indices int64 (samples,), from 0 to below `classes`.

    Values are checked only on a CPU, as the check would wait for a device in every step.

    Raises:
        ValueError: labels are not integers, their number differs from `samples`, or one is out of
            range.
    """
    kind = str(labels.dtype).removeprefix("torch.")
    integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not integers or labels.shape != (samples,):
        raise ValueError(
            f"Labels of a statistic must be class indices, integers ({samples},). Got {kind} "
            f"{tuple(labels.shape)} instead."
        )
    # reading the values must not be counted as an operation
    if samples and INSTEAD.get() is None and labels.device.type == "cpu":
        least, most = index_range(labels)
        if least < 0 or most >= classes:
            raise ValueError(
                f"Labels of a statistic of {classes} classes must be from 0 to {classes - 1}. Got "
                f"{least} to {most} instead."
            )
    return labels.long()


def feature_vectors(features: Tensor) -> Tensor:
    """Validate feature vectors (N, s, d) and convert them to float32 at least, for accurate sums.

    Raises:
        ValueError: they have a different number of dimensions.
    """
    if features.ndim != 3:
        raise ValueError(
            "Features of a statistic must be feature vectors (samples, vectors, dimension). Got "
            f"shape {tuple(features.shape)} instead: a transform makes them of feature maps."
        )
    return wide(features)


def membership(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """One-hot rows (N, classes) of class indices (N,), with which class sums are one deterministic
    matrix product.
    """
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).to(dtype)


def centred(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (C,), class means (C, d), zero for an empty class, and deviations from them (N, s, d),
    of vectors (N, s, d).
    """
    features = feature_vectors(features)
    labels = class_indices(labels, len(features), classes)
    member = membership(labels, classes, features.dtype)
    count = member.sum(0) * features.shape[1]
    mean = ratio(member.T @ features.sum(1), count)
    return count, mean, features - mean[labels].unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Statistic(ABC):
    """A commutative monoid over feature vectors. Fields are tensors whose first axis is the class,
    except those in `shared`.

    Equality is identity, so that a statistic can be the key of a cache of values derived from it.
    The row of an empty class is zero.
    """

    shared: ClassVar[frozenset[str]] = frozenset()
    """Fields without a class axis."""
    constant: ClassVar[frozenset[str]] = frozenset()
    """Shared fields that do not depend on samples, and must be equal in parts that are merged."""
    registry: ClassVar[dict[str, type[Statistic]]] = {}
    """All statistics by the name of their class, which is part of cache keys."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Statistic.registry[cls.__name__] = cls
        plugins.own(cls.__name__, cls)

    @classmethod
    def sized(cls, classes: int, vectors: int, dimension: int) -> Self:
        """The neutral element for samples of `vectors` feature vectors (s) of a dimension (d)."""
        made: Self = cls.empty(classes, dimension)  # type: ignore[attr-defined]
        return made

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """The statistic of both parts combined."""

    @abstractmethod
    def like(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """The same statistic of another batch, with equal classes and frequencies. Differentiable
        in the features.

        Args:
            features: feature vectors (N, s, d), or the input of `transform`.
            labels: class indices (N,).
            transform: converts features to feature vectors.
        """

    def update(self, features: Tensor, labels: Tensor, transform: Transform = VECTORS) -> Self:
        """Add a batch in float64, without autograd, in place; returns self. Only rows of classes in
        the batch change.

        Raises:
            ValueError: the labels are not class indices of this statistic, or the features differ
                from it in dimension or device.
        """
        self.check_device(features)
        with torch.no_grad():
            labels = class_indices(labels, len(features), self._rows)
            present, compact = present_classes(labels)
            _add_batch(self, features, compact, present, transform)
        return self

    def rows(self, classes: Tensor) -> Self:
        """The statistic restricted to some classes, in the given order."""
        return type(self)(
            **{
                name: tensor if name in self.shared else tensor[classes]
                for name, tensor in self.state().items()
            }
        )

    def spread(self, classes: Tensor, count: int) -> Self:
        """The inverse of `rows`: a statistic of `count` classes with these rows at `classes`, the
        others being empty.
        """

        def placed(tensor: Tensor) -> Tensor:
            return tensor.new_zeros(count, *tensor.shape[1:]).index_copy_(0, classes, tensor)

        return type(self)(
            **{name: t if name in self.shared else placed(t) for name, t in self.state().items()}
        )

    @torch.no_grad()
    def add(self, part: Self, classes: Tensor) -> Self:
        """Merge a statistic of some of the classes, in the given order, in place; returns self.
        Other classes do not change.

        Raises:
            ValueError: the dimension of the part's features differs.
        """
        self.check_alike(part)
        for name, after in self.rows(classes).merge(part).state().items():
            if name in self.shared - self.constant:
                getattr(self, name).copy_(after)
            elif name not in self.constant:
                getattr(self, name).index_copy_(0, classes, after)
        return self

    def check_device(self, features: Tensor) -> None:
        """Refuse features on a different device.

        Raises:
            ValueError: the devices differ.
        """
        # while operations are counted, placeholders may be on any device
        if INSTEAD.get() is None and features.device != self.device:
            raise ValueError(
                f"Features of a statistic on '{self.device}' must be there, too. Got features on "
                f"'{features.device}': move the statistic to them with '.to(features.device)'."
            )

    def check_mergeable(self, other: Self) -> None:
        """Refuse to merge statistics that would broadcast although their classes or dimensions
        differ.

        Raises:
            ValueError: they differ.
        """
        if self._rows != other._rows:
            raise ValueError(
                "Statistics must be of the same classes to be merged. Got "
                f"{self._rows} and {other._rows} of them instead."
            )
        self.check_alike(other)

    def check_alike(self, other: Self) -> None:
        """Refuse statistics that would broadcast although their dimensions differ.

        Raises:
            ValueError: they differ.
        """
        theirs = other.state()
        for name, tensor in self.state().items():
            if tensor.shape[1:] != theirs[name].shape[1:]:
                raise ValueError(
                    f"Statistics must be of features of the same dimension to be merged. Got '{name}' "
                    f"of shape {tuple(tensor.shape)} and {tuple(theirs[name].shape)} instead."
                )

    @property
    def _rows(self) -> int:
        """Number of classes."""
        return next(len(t) for name, t in self.state().items() if name not in self.shared)

    @property
    def device(self) -> torch.device:
        """Device of its tensors."""
        return next(iter(self.state().values())).device

    def state(self) -> dict[str, Tensor]:
        """Its tensors by name, for sending and storing."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Self:
        """The inverse of `state`."""
        return cls(**state)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """The same statistic on another device or in another precision."""
        moved = {
            name: tensor if dtype is None else tensor.to(dtype)
            for name, tensor in self.state().items()
        }
        if device is not None:
            moved = {name: upload(tensor, torch.device(device)) for name, tensor in moved.items()}
        return type(self)(**moved)


@repeated
def _add_batch(
    statistic: Statistic, features: Tensor, labels: Tensor, classes: Tensor, transform: Transform
) -> None:
    """Add a batch in place; its labels (N,) index the classes (K,) that it contains."""
    part = statistic.rows(classes).like(features.double(), labels, transform)
    statistic.add(part, classes)


def ratio(numerator: Tensor, count: Tensor) -> Tensor:
    """`numerator / count`, or zero where the count is zero; the count's axes are the numerator's
    first ones.
    """
    shape = count.shape + (1,) * (numerator.ndim - count.ndim)
    return numerator / count.clamp(min=1).reshape(shape)
