"""Matching of means and variances of layers' inputs, over all images and class by class: the terms.

The formula and its symbols are in `rayd.objectives.moment_distance`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field

from rayd.config.choices import Category, LayerRole
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.moment_distance import MomentDistance
    from rayd.objectives.specification import StatisticSpec


class NormalizationMatching(Term):
    """Means and variances of the inputs of batch normalisations, over all images (SRe2L, CDA)."""

    name = "moments"
    splits = True

    weight: float = Field(default=0.01, ge=0)
    """Factor of the term; 0 switches it off."""
    first_layer_weight: float = Field(default=10.0, ge=0)
    """Factor of the first normalisation."""
    variance_weight: float = Field(default=1.0, ge=0)
    """Factor of the distance of variances, relative to that of means (DWA: 11)."""

    @cached_property
    def distance(self) -> MomentDistance:
        """The distance that these settings define."""
        from rayd.objectives.moment_distance import MomentDistance
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Channels, Moments

        normalizations = StatisticSpec(LayerRole.BN_INPUTS, Channels(), Moments)
        first = {LayerRole.BN_INPUTS: self.first_layer_weight}
        return MomentDistance(
            [normalizations], first_layer_weight=first, variance_weight=self.variance_weight
        )

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """Moments of the inputs by channel."""
        return self.distance.specs

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Weighted sum over the layers."""
        return self.distance(real, seen, labels, context)


class MomentMatching(Term):
    """Means and variances of the inputs of normalisations by channel, and of convolutions by
    channel and patch (G-VBSM, EDC). A network may lack normalisations.
    """

    name = "moments"
    splits = True

    weight: float = Field(default=0.01, ge=0)
    """Factor of the term; 0 switches it off."""
    alpha: float = Field(default=1.0, ge=0, le=1)
    """Share of the comparison over all images; the comparison by class has the rest."""
    category: Category = "class"
    """Comparison for classes: their whole variance (paper), the part inside images, or, over
    the whole batch, the average of the part inside images (released code).
    """
    momentum: float = Field(default=0.8, ge=0, lt=1)
    """Momentum of the smoothing of the synthetic statistics over steps; 0 for none."""
    drop: float = Field(default=0.4, ge=0, le=1)
    """Probability with which a convolution is left out of a step; normalisations never are."""
    patch: int = Field(default=4, ge=1)
    """Side of a patch, in positions of a convolution's input; 16 for large images."""
    first_layer_weight: float = Field(default=10.0, ge=0)
    """Factor of the input of the first convolution."""

    @cached_property
    def distance(self) -> MomentDistance:
        """The distance that these settings define."""
        from rayd.objectives.moment_distance import MomentDistance
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Channels, Moments, Patches

        normalizations = StatisticSpec(LayerRole.BN_INPUTS, Channels(), Moments)
        convolutions = StatisticSpec(LayerRole.CONV_INPUTS, Channels(), Moments)
        patches = StatisticSpec(LayerRole.CONV_INPUTS, Patches(self.patch), Moments)
        return MomentDistance(
            (normalizations, convolutions, patches),
            alpha=self.alpha,
            category=self.category,
            momentum=self.momentum,
            first_layer_weight={LayerRole.CONV_INPUTS: self.first_layer_weight},
            drop={LayerRole.CONV_INPUTS: self.drop},
        )

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """Moments of the inputs."""
        return self.distance.specs

    @property
    def optional(self) -> frozenset[LayerRole]:
        """Normalisations."""
        return frozenset({LayerRole.BN_INPUTS})

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Weighted sum over the layers; labels are class indices (N,)."""
        return self.distance(real, seen, labels, context)
