"""Terms that compare one statistic of the real data with that of the synthetic images."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.specification import StatisticSpec


class StatisticTerm(Term):
    """Sum over layers of a distance between two statistics.

    A subclass defines the statistic (`spec`) and the distance (`distance`).
    """

    splits = True

    @property
    @abstractmethod
    def spec(self) -> StatisticSpec:
        """The statistic."""

    @abstractmethod
    def distance(self, real: Any, synthetic: Any) -> Tensor:
        """The distance between the statistics of one layer, a scalar."""

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """The statistic."""
        return (self.spec,)

    def layers(self) -> slice:
        """Select the layers to compare."""
        return slice(None)

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over the layers."""
        import torch

        layers = self.layers()
        spec = self.spec
        theirs = real[spec][layers]
        ours = spec.of(seen, labels, real[spec])[layers]
        distances = [self.distance(one, other) for one, other in zip(theirs, ours, strict=True)]
        # zero, with a graph, if the network has none of the layers
        return torch.stack(distances).sum() if distances else seen.logits.sum() * 0


def class_sum(distances: Tensor, real: Any, synthetic: Any) -> Tensor:
    """Sum of distances by class (C,) over the classes of which both statistics have samples."""
    both: Tensor = (real.count > 0) & (synthetic.count > 0)
    return (distances * both).sum()
