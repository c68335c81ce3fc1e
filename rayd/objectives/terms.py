"""Terms of an objective, and what they need to know of the real data.

An objective is a weighted sum of terms. A term looks at one observer's view of the synthetic images
(an `Observation`) and, where it compares with the real data, at statistics of the same observer's
view of them. It says what it needs; the engine measures that once, over the whole real set, or
samples it, whichever the recipe asks for: the term cannot tell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayd.config import NetworkGroup, Recipe
from rayd.derived import derived, uploaded
from rayd.networks import LayerRole, Observation
from rayd.statistics import (
    CharacteristicFunction,
    Covariance,
    Frequencies,
    LabelCorrelation,
    LocalCovariance,
    Moments,
    Statistic,
    View,
    dimension,
    size,
    vectors,
)


@dataclass(frozen=True)
class StatisticSpec:
    """A statistic of the real data that a term asks for: where it is taken, how maps become
    vectors, and which.
    """

    tap: LayerRole
    """Where the observer is listened to."""
    statistic: (
        type[Moments]
        | type[Covariance]
        | type[LocalCovariance]
        | type[LabelCorrelation]
        | type[CharacteristicFunction]
    )
    """Which statistic."""
    view: View = "flat"
    """How a feature map becomes feature vectors."""
    patch: int = 0
    """Side of a patch in pixels of the map, for the view of patches alone."""
    pooled: bool = False
    """Whether classes are taken together from the start: the statistic has one row, whose size does
    not grow with classes. It is what `pooled()` makes of one kept by class, the part between
    classes included.
    """
    frequencies: Frequencies | None = None
    """Where a characteristic function is taken; None for other statistics."""
    normalize: bool = False
    """Whether feature vectors are divided by their Euclidean norm."""

    def __post_init__(self) -> None:
        if (self.patch > 0) != (self.view == "patches") or self.patch < 0:
            raise ValueError(
                "The 'patch' of a Need must be above 0 for the view 'patches' and 0 for all others. "
                f"Got {self.patch} for '{self.view}' instead."
            )
        if (self.statistic is CharacteristicFunction) != (self.frequencies is not None):
            raise ValueError(
                "The 'frequencies' of a Need must be given for a CharacteristicFunction and for nothing else. "
                f"Got {self.frequencies} for {self.statistic.__name__} instead."
            )

    @property
    def key(self) -> str:
        """A stable name, for files and cache keys."""
        parts = [
            self.tap.value,
            f"{self.view}{self.patch or ''}",
            *(["normalized"] if self.normalize else []),
        ]
        parts += ["pooled"] if self.pooled else []
        parts += [
            self.statistic.__name__,
            *([self.frequencies.key] if self.frequencies is not None else []),
        ]
        return ".".join(parts)

    def spread(
        self, parts: tuple[Statistic, ...], labels: Tensor, classes: int
    ) -> tuple[Statistic, ...]:
        """Statistics of all classes made of those whose rows are the classes among `labels`, in
        order.
        """
        places = self._places(labels, parts)
        return tuple(part.spread(places, self._count(classes)) for part in parts)

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
        return self.frequencies is not None

    @property
    def looks_first(self) -> bool:
        """Whether `resolved` must be shown real images, for a length that is a median of their
        features.
        """
        return self.frequencies is not None and self.frequencies.scale == "median"

    def resolved(self, seen: Sequence[Observation]) -> tuple[Frequencies, ...]:
        """Its frequencies with their lengths, one a layer, by what an observer sees of some real
        images, in parts.

        Raises:
            DataError: a length cannot be the median distance of these features.
        """
        if self.frequencies is None:
            return ()
        layers = zip(*(part.taps[self.tap] for part in seen), strict=True)
        heard = (
            torch.cat([vectors(*self._features(part)).flatten(0, 1) for part in parts])
            for parts in layers
        )
        return tuple(self.frequencies.resolved(features) for features in heard)

    def empty(
        self,
        classes: int,
        dimensions: list[tuple[int, ...]],
        generator: torch.Generator | None = None,
        lengths: Sequence[Frequencies] | None = None,
    ) -> tuple[Statistic, ...]:
        """Neutral elements, one a layer that the tap listens to.

        Args:
            classes: how many there are.
            dimensions: the layers' shapes without batch axis.
            generator: draws frequencies, layer after layer; equal for all parts that are to be
                merged.
            lengths: what `resolved` found, for a need that looks first; equal for all parts too.

        Raises:
            ValueError: there are frequencies to draw, and no generator, or no lengths where they
                are medians.
        """
        rows = self._count(classes)
        if self.frequencies is None:
            return tuple(
                self.statistic.sized(rows, *size(shape, self.view, self.patch))
                for shape in dimensions
            )
        if generator is None or (self.looks_first and lengths is None):
            raise ValueError(
                f"The need '{self.key}' must be given a generator, and lengths where its scale is a median."
            )
        across = [dimension(shape, self.view, self.patch) for shape in dimensions]
        specs = [self.frequencies] * len(dimensions) if lengths is None else lengths
        drawn = [spec.draw(width, generator) for spec, width in zip(specs, across, strict=True)]
        return tuple(CharacteristicFunction.empty(rows, frequencies) for frequencies in drawn)

    def of(
        self, seen: Observation, labels: Tensor, like: tuple[Statistic, ...]
    ) -> tuple[Statistic, ...]:
        """The statistic of what an observer saw, differentiable, one a layer; `like` gives classes
        and frequencies.
        """
        layers = zip(like, seen.taps[self.tap], strict=True)
        heard = ((kind, *self._features(layer)) for kind, layer in layers)
        rows = self._rows(labels)
        return tuple(
            kind.like(features, rows, view, patch) for kind, features, view, patch in heard
        )

    def update(self, into: tuple[Statistic, ...], seen: Observation, labels: Tensor) -> None:
        """Add what an observer saw of real images, in place, in float64."""
        rows = self._rows(labels)
        for statistic, layer in zip(into, seen.taps[self.tap], strict=True):
            features, view, patch = self._features(layer)
            statistic.update(features, rows, view, patch)

    def _count(self, classes: int) -> int:
        """Rows of the statistic."""
        return 1 if self.pooled else classes

    def _places(self, labels: Tensor, parts: tuple[Statistic, ...]) -> Tensor:
        """Rows of the whole statistic that the classes among `labels` have, where the parts are."""
        places: Tensor = torch.unique(self._rows(labels))
        # the labels of a shard are on the CPU, while statistics of work in process stay on the
        # device
        return places.to(parts[0].device) if parts else places

    def _rows(self, labels: Tensor) -> Tensor:
        """Which row of the statistic each image belongs to (N,)."""
        return derived(labels, "one row", lambda: _zeros(labels)) if self.pooled else labels

    def _features(self, layer: Tensor) -> tuple[Tensor, View, int]:
        """What a layer heard, with the view and the side of a patch through which it is looked
        at.
        """
        if not self.normalize:
            return layer, self.view, self.patch
        # dead features have no direction; with a smaller eps their gradient would be as good as
        # infinite
        return (
            functional.normalize(vectors(layer, self.view, self.patch), dim=-1, eps=1e-6),
            "vectors",
            0,
        )


def _zeros(labels: Tensor) -> Tensor:
    return uploaded(torch.zeros(len(labels), dtype=labels.dtype), labels.device)


def _no_draws(purpose: str) -> torch.Generator:
    raise RuntimeError(f"This context has no generator for the purpose '{purpose}'.")


def _no_average() -> Tensor:
    raise RuntimeError(
        "There is no moving average of the images: the term must have an 'averaging' decay."
    )


RealStatistics = Mapping[StatisticSpec, tuple[Statistic, ...]]
"""Statistics of the real data by need, one a layer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The real mini-batch of a step, as the observer sees it."""

    images: Tensor
    """Network input (N, C, H, W), augmented like the synthetic images."""
    labels: Tensor
    """Class indices (N,)."""
    look: Callable[[], Observation]
    """Forwards them; what the observer says of them has no graph."""


@dataclass(frozen=True)
class Context:
    """Where a term is called: what it may depend on beside the images of the step."""

    generator: Callable[[str], torch.Generator] = _no_draws
    """A private generator for a purpose; equal in every repetition of the step."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """What the term keeps from call to call, for this observer and this block of images: read it,
    and write the new values. Tensors in it are without graph and must not be changed in place.
    """
    average_logits: Callable[[], Tensor] = _no_average
    """Logits (N, classes) of the moving average of the images, seen through the same view, without
    graph; for terms with an `averaging` decay.
    """
    accuracy: float | Tensor = 0.0
    """Fraction of the real training images that the observer gets right, a number or a scalar on a
    device; 0 for one that was not trained.
    """
    progress: float = 0.0
    """Share of the block's steps that are done, in [0, 1)."""
    block: int = 0
    """Which block of images, from 0."""
    blocks: int = 1
    """Blocks in all. Where a method's blocks follow one another (`sequential`), a block's first
    call finds in `memory` what the last call of the block before left there.
    """
    class_counts: Tensor | None = None
    """Real images of each class of the training split (classes,); a run always tells them."""
    network: nn.Module | None = None
    """The observer's network, frozen; a term must leave it as it is."""
    batch: Batch | None = None
    """The real mini-batch, for terms that need it."""

    def seen_through(self) -> tuple[nn.Module, Batch]:
        """Network and real mini-batch.

        Raises:
            RuntimeError: they did not come: the term must have `needs_batch`.
        """
        if self.network is None or self.batch is None:
            raise RuntimeError("There is no real mini-batch: the term must have 'needs_batch'.")
        return self.network, self.batch


class Term(ABC):
    """One summand of an objective."""

    name: str
    """What it is called in recipes, logs and `terms.<name>.weight`."""
    weight: float
    """Its factor, unless the recipe sets another."""
    needs: tuple[StatisticSpec, ...] = ()
    """Statistics of the real data that it compares with."""
    taps: frozenset[LayerRole] = frozenset()
    """Where else it listens."""
    optional: frozenset[LayerRole] = frozenset()
    """Which of all these taps a network may lack; the term then does without."""
    through: NetworkGroup = "observers"
    """Which networks it looks through."""
    needs_classes: bool = False
    """Whether these networks must know the classes, that is be trained on the real data."""
    needs_batch: bool = False
    """Whether it looks at a real mini-batch itself, not at a statistic; only `real: sampled` has
    one.
    """
    learns_labels: bool = False
    """Whether it can do with rows of probabilities for labels, and has a gradient for them."""
    averaging: float | None = None
    """Decay of the moving average of the synthetic images that it looks at; None where it looks at
    none.
    """

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that gives the term nothing to work on (a ConfigError that says what to
        use instead).
        """
        return

    @abstractmethod
    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """The unweighted value, a scalar, differentiable in what was seen of the synthetic
        images.
        """


class Discrepancy(Term):
    """A term that compares one statistic of the real images with the same statistic of the
    synthetic ones, layer by layer.
    """

    def __init__(
        self, name: str, need: StatisticSpec, gap: Callable[[Any, Any], Tensor], weight: float = 1.0
    ):
        """Sum of `gap(real, synthetic)` over the layers that the need's tap listens to."""
        self.name = name
        self.weight = weight
        self.needs = (need,)
        self.gap = gap

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum of the gaps of all layers."""
        (need,) = self.needs
        synthetic = need.of(seen, labels, real[need])
        gaps = [self.gap(theirs, ours) for theirs, ours in zip(real[need], synthetic, strict=True)]
        total = gaps[0]
        for gap in gaps[1:]:
            total = total + gap
        return total
