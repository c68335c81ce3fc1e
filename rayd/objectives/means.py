"""Class means of features: distribution matching.

Zhao and Bilen, "Dataset Condensation with Distribution Matching" (WACV 2023), Eq. 4:

    loss = sum_c || mean_c(T) - mean_c(S) ||^2

    mean_c(T), mean_c(S)   mean features (d,) of the real and of the synthetic images of class c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayd.config.choices import LayerRole
from rayd.objectives.statistic_term import StatisticTerm, class_sum

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.objectives.specification import StatisticSpec
    from rayd.statistics import Moments


def squared_mean_gap(real: Moments, synthetic: Moments) -> Tensor:
    """Sum over classes of the squared distance of feature means, a scalar.

    Classes without samples on either side are omitted.
    """
    return class_sum((real.mean - synthetic.mean).square().sum(-1), real, synthetic)


class MeanMatching(StatisticTerm):
    """Squared distances of the class means of the classifier's input."""

    name = "mean"

    @property
    def spec(self) -> StatisticSpec:
        """Moments of the features."""
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Flat, Moments

        return StatisticSpec(LayerRole.FEATURES, Flat(), Moments)

    def distance(self, real: Moments, synthetic: Moments) -> Tensor:
        """Sum over the classes."""
        return squared_mean_gap(real, synthetic)
