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

from rayd.config import NetworkGroup, Recipe
from rayd.networks import LayerRole, Observation
from rayd.statistics import Statistic, StatisticKind, Transform
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
    """How their feature maps become feature vectors."""
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
    def looks_first(self) -> bool:
        """Whether `resolved` must be given real images before `empty` can be called."""
        return self.kind.looks_first

    def resolved(self, seen: Sequence[Observation]) -> tuple[StatisticKind, ...]:
        """Its kinds, one a layer, with the arguments that follow from some real images.

        Args:
            seen: an observer's output on the images, in parts.

        Raises:
            DataError: these features do not determine the arguments.
        """
        if not self.kind.looks_first:
            return (self.kind,) * len(seen[0].taps[self.layer_role])
        kinds = []
        for parts in zip(*(part.taps[self.layer_role] for part in seen), strict=True):
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
        if self.draws and (generator is None or (self.looks_first and resolved is None)):
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
        found = []
        for statistic, layer in zip(like, seen.taps[self.layer_role], strict=True):
            features, transform = self._features(layer)
            found.append(statistic.like(features, rows, transform))
        return tuple(found)

    def update(self, into: tuple[Statistic, ...], seen: Observation, labels: Tensor) -> None:
        """Add an observer's output on real images, in place, in float64."""
        rows = self.kind.rows(labels)
        for statistic, layer in zip(into, seen.taps[self.layer_role], strict=True):
            features, transform = self._features(layer)
            statistic.update(features, rows, transform)

    def _places(self, labels: Tensor, parts: tuple[Statistic, ...]) -> Tensor:
        """Rows of the whole statistic that the classes among `labels` have, where the parts are."""
        places: Tensor = torch.unique(self.kind.rows(labels))
        # the labels of a shard are on the CPU, while statistics of work in process stay on the
        # device
        return places.to(parts[0].device) if parts else places

    def _features(self, layer: Tensor) -> tuple[Tensor, Transform]:
        """What a statistic is given of a layer: its maps and the transform, or the vectors, made
        in the precision of the maps.
        """
        if self.transform.in_place:
            return layer, self.transform
        return self.transform.vectors(layer), VECTORS


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
    former_name: str = ""
    """What checkpoints of the version before call it, where that is something else."""
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
