"""Specification of statistics that terms compare: layers, transform and kind of statistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayd.config.choices import LayerRole
from rayd.networks import Observation
from rayd.plugins import sources
from rayd.statistics import Moments, Statistic, StatisticKind, Transform
from rayd.statistics.base import VECTORS
from rayd.statistics.kinds import kind_of


@dataclass(frozen=True)
class StatisticSpec:
    """A statistic that a term compares: role of the layers, transform, and kind of statistic.

    >>> from rayd.statistics import Channels, Covariance, Flat, Moments, Pooled
    >>> StatisticSpec(LayerRole.FEATURES, Flat(), Moments).key
    'features.flat.Moments'
    >>> StatisticSpec(LayerRole.CONV_PATH, Channels(), Pooled(Covariance)).key
    'conv_path.channels.pooled.Covariance'
    """

    layer_role: LayerRole
    """Role of the layers whose features are used."""
    transform: Transform
    """Transform of their feature maps to feature vectors."""
    statistic: type[Statistic] | StatisticKind
    """Kind of statistic; a class alone means `ByClass` of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "statistic", kind_of(self.statistic))

    @property
    def kind(self) -> StatisticKind:
        """The kind of statistic."""
        return kind_of(self.statistic)

    @property
    def key(self) -> str:
        """A stable name for files, cache keys and the seeds of draws."""
        return f"{self.layer_role.value}.{self.transform.key}.{self.kind.key}"

    @property
    def sources(self) -> dict[str, str]:
        """Digests of the source code of statistics and transforms from outside the package."""
        kinds: list[type] = [type(self.kind), self.kind.statistic]
        transform: Transform | None = self.transform
        while transform is not None:
            kinds.append(type(transform))
            transform = getattr(transform, "inner", None)
        return sources(*kinds)

    def spread(
        self, parts: tuple[Statistic, ...], labels: Tensor, classes: int
    ) -> tuple[Statistic, ...]:
        """Expand statistics whose rows are the classes among `labels`, in order, to all classes."""
        places = self._places(labels, parts)
        return tuple(part.spread(places, self.kind.count(classes)) for part in parts)

    def add(
        self, into: tuple[Statistic, ...], parts: tuple[Statistic, ...], labels: Tensor
    ) -> None:
        """Merge, in place, statistics whose rows are the classes among `labels`, in order."""
        places = self._places(labels, parts)
        for statistic, part in zip(into, parts, strict=True):
            statistic.add(part, places)

    @property
    def draws(self) -> bool:
        """Whether `empty` draws random values, and thus needs a generator."""
        return self.kind.draws

    @property
    def data_dependent(self) -> bool:
        """Whether `resolved` must be called with real images before `empty`."""
        return self.kind.data_dependent

    def resolved(self, seen: Sequence[Observation]) -> tuple[StatisticKind, ...]:
        """Kinds of statistic, one per layer, with arguments determined from real images.

        Args:
            seen: an observer's output on the images, in parts.

        Raises:
            DataError: these features do not determine the arguments.
        """
        if not self.kind.data_dependent:
            return (self.kind,) * len(seen[0].layers[self.layer_role])
        kinds = []
        for parts in zip(*(part.layers[self.layer_role] for part in seen), strict=True):
            vectors = [self.transform.vectors(part).flatten(0, 1) for part in parts]
            kinds.append(self.kind.resolved(torch.cat(vectors)))
        return tuple(kinds)

    def empty(
        self,
        classes: int,
        shapes: Sequence[tuple[int, ...]],
        generator: torch.Generator | None = None,
        resolved: Sequence[StatisticKind] | None = None,
    ) -> tuple[Statistic, ...]:
        """Neutral elements, one per layer.

        Args:
            classes: number of classes.
            shapes: shapes of the layers' features, without the batch dimension.
            generator: draws random values, layer by layer; must be the same for all parts that are
                merged.
            resolved: result of `resolved`, for data-dependent statistics; must also be the same for
                all parts.

        Raises:
            ValueError: the statistic needs a generator, or is data-dependent and not resolved.
        """
        if self.draws and (generator is None or (self.data_dependent and resolved is None)):
            raise ValueError(
                f"The statistic '{self.key}' must be given a generator, and be resolved on real "
                "features where its scale is a median."
            )
        kinds = [self.kind] * len(shapes) if resolved is None else resolved
        empty = []
        for kind, shape in zip(kinds, shapes, strict=True):
            vectors, dimension = self.transform.size(shape)
            empty.append(kind.empty(kind.count(classes), vectors, dimension, generator))
        return tuple(empty)

    def of(
        self, seen: Observation, labels: Tensor, like: tuple[Statistic, ...]
    ) -> tuple[Statistic, ...]:
        """The statistic of an observer's output, differentiable, one per layer; `like` determines
        classes and frequencies.
        """
        rows = self.kind.rows(labels)
        found: list[Statistic] = []
        others = None if self.layer_role == LayerRole.FEATURES else seen.others
        if others is not None and self.kind.statistic is not Moments:
            rows = rows[others.rows]
        layers = seen.layers[self.layer_role]
        for place, (statistic, layer) in enumerate(zip(like, layers, strict=True)):
            features, transform = self._features(layer)
            if others is not None and isinstance(statistic, Moments):
                samples = others.samples(self, place, transform.moments(features))
                found.append(statistic.of_samples(samples, rows, len(statistic.count)))
                continue
            own = statistic.like(features, rows, transform)
            found.append(own if others is None else others.merged(self, place, own))
        return tuple(found)

    def update(self, into: tuple[Statistic, ...], seen: Observation, labels: Tensor) -> None:
        """Accumulate an observer's output on real images, in place, in float64."""
        rows = self.kind.rows(labels)
        for statistic, layer in zip(into, seen.layers[self.layer_role], strict=True):
            features, transform = self._features(layer)
            statistic.update(features, rows, transform)

    def _places(self, labels: Tensor, parts: tuple[Statistic, ...]) -> Tensor:
        """Row indices of the classes among `labels` in the whole statistic, on the device of the
        parts.
        """
        places: Tensor = torch.unique(self.kind.rows(labels))
        # labels are on the CPU
        return places.to(parts[0].device) if parts else places

    def _features(self, layer: Tensor) -> tuple[Tensor, Transform]:
        """Input of a statistic: the maps of a layer and the transform, or the vectors, computed in
        the precision of the maps.
        """
        if self.transform.in_place:
            return layer, self.transform
        return self.transform.vectors(layer), VECTORS
