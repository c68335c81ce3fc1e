"""Terms of an objective, and what they need to know of the real data.

An objective is a weighted sum of terms. A term looks at one observer's view of the synthetic images (an `Observation`) and,
where it compares with the real data, at statistics of the same observer's view of them. It says what it needs; the engine
measures that once, over the whole real set, or samples it, whichever the recipe asks for: the term cannot tell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rayd.networks import Observation, Tap
from rayd.statistics import Covariance, LabelCorrelation, Moments, Statistic, View, vectors


@dataclass(frozen=True)
class Need:
    """A statistic of the real data that a term asks for: where it is taken, how maps become vectors, and which."""

    tap: Tap
    """Where the observer is listened to."""
    statistic: type[Moments] | type[Covariance] | type[LabelCorrelation]
    """Which statistic."""
    view: View = "flat"
    """How a feature map becomes feature vectors."""

    @property
    def key(self) -> str:
        """A stable name, for files and cache keys."""
        return f"{self.tap.value}.{self.view}.{self.statistic.__name__}"

    def empty(self, classes: int, dimensions: list[tuple[int, ...]]) -> tuple[Statistic, ...]:
        """Neutral elements, one a layer that the tap listens to; `dimensions` are the layers' shapes without batch axis."""
        return tuple(self.statistic.empty(classes, self._dimension(shape)) for shape in dimensions)

    def _dimension(self, shape: tuple[int, ...]) -> int:
        if self.view == "channels":
            return shape[0]
        size = 1
        for side in shape:
            size *= side
        return size

    def of(self, seen: Observation, labels: Tensor, like: tuple[Statistic, ...]) -> tuple[Statistic, ...]:
        """The statistic of what an observer saw, differentiable, one a layer; `like` gives classes and frequencies."""
        layers = zip(like, seen.taps[self.tap], strict=True)
        return tuple(kind.like(vectors(layer.float(), self.view), labels) for kind, layer in layers)

    def update(self, into: tuple[Statistic, ...], seen: Observation, labels: Tensor) -> None:
        """Add what an observer saw of real images, in place, in float64."""
        for statistic, layer in zip(into, seen.taps[self.tap], strict=True):
            statistic.update(vectors(layer, self.view), labels)


Measured = Mapping[Need, tuple[Statistic, ...]]
"""Statistics of the real data by need, one a layer."""


class Term(ABC):
    """One summand of an objective."""

    name: str
    """What it is called in recipes, logs and `terms.<name>.weight`."""
    weight: float
    """Its factor, unless the recipe sets another."""
    needs: tuple[Need, ...] = ()
    """Statistics of the real data that it compares with."""
    taps: frozenset[Tap] = frozenset()
    """Where else it listens."""

    @abstractmethod
    def __call__(self, real: Measured, seen: Observation, labels: Tensor) -> Tensor:
        """The unweighted value, a scalar, differentiable in what was seen of the synthetic images."""


class Discrepancy(Term):
    """A term that compares one statistic of the real images with the same statistic of the synthetic ones, layer by layer."""

    def __init__(self, name: str, need: Need, gap: Callable[[Any, Any], Tensor], weight: float = 1.0):
        """Sum of `gap(real, synthetic)` over the layers that the need's tap listens to."""
        self.name, self.weight, self.needs, self.gap = name, weight, (need,), gap

    def __call__(self, real: Measured, seen: Observation, labels: Tensor) -> Tensor:
        """Sum of the gaps of all layers."""
        (need,) = self.needs
        synthetic = need.of(seen, labels, real[need])
        gaps = [self.gap(theirs, ours) for theirs, ours in zip(real[need], synthetic, strict=True)]
        total = gaps[0]
        for gap in gaps[1:]:
            total = total + gap
        return total
