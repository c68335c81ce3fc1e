"""Statistics that terms compare: of which layers, of which feature vectors, and which."""

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
    """A statistic that a term compares: of which layers, of which feature vectors, and which.

    >>> from rayd.statistics import Channels, Covariance, Flat, Moments, Pooled
    >>> StatisticSpec(LayerRole.FEATURES, Flat(), Moments).key
    'features.flat.Moments'
    >>> StatisticSpec(LayerRole.CONV_PATH, Channels(), Pooled(Covariance)).key
    'conv_path.channels.pooled.Covariance'
    """

    layer_role: LayerRole
    """The role of the layers that it is taken of."""
    transform: Transform
    """Transform of their feature maps to feature vectors."""
    statistic: type[Statistic] | StatisticKind
    """Which statistic; a class alone stands for `ByClass` of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "statistic", kind_of(self.statistic))

    @property
    def kind(self) -> StatisticKind:
        """The kind of statistic."""
        return kind_of(self.statistic)

    @property
    def key(self) -> str:
        """A stable name, for files and cache keys; seeds of draws are derived from it, too."""
        return f"{self.layer_role.value}.{self.transform.key}.{self.kind.key}"

    @property
    def sources(self) -> dict[str, str]:
        """Digests of the source of a statistic and transforms from outside the package."""
        kinds: list[type] = [type(self.kind), self.kind.statistic]
        transform: Transform | None = self.transform
        while transform is not None:
            kinds.append(type(transform))
            transform = getattr(transform, "inner", None)
        return sources(*kinds)

    def spread(
        self, parts: tuple[Statistic, ...], labels: Tensor, classes: int
    ) -> tuple[Statistic, ...]:
        """Statistics of all classes, from those whose rows are the classes among `labels`, in
        order.
        """
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
        """Whether `empty` draws, so needs a generator."""
        return self.kind.draws

    @property
    def data_dependent(self) -> bool:
        """Whether `resolved` must be given real images before `empty` can be called."""
        return self.kind.data_dependent

    def resolved(self, seen: Sequence[Observation]) -> tuple[StatisticKind, ...]:
        """Its kinds, one a layer, with the arguments that follow from some real images.

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
        """Neutral elements, one a layer.

        Args:
            classes: how many there are.
            shapes: shapes of the layers' features, without the batch.
            generator: makes the draws, layer after layer; equal for all parts that are to be
                merged.
            resolved: result of `resolved`, for a statistic that looks first; equal for all parts
                too.

        Raises:
            ValueError: the statistic draws and there is no generator, or it looks first and is not
                resolved.
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
        """The statistic of an observer's output, differentiable, one a layer; `like` gives classes
        and frequencies.
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
        """Add an observer's output on real images, in place, in float64."""
        rows = self.kind.rows(labels)
        for statistic, layer in zip(into, seen.layers[self.layer_role], strict=True):
            features, transform = self._features(layer)
            statistic.update(features, rows, transform)

    def _places(self, labels: Tensor, parts: tuple[Statistic, ...]) -> Tensor:
        """Rows of the whole statistic that the classes among `labels` have, where the parts are."""
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
