"""A statistic chosen by name: `terms.statistic.of=my_module:Skewness` adds it to any method.

loss = sum_l distance(T_l, S_l)

T_l, S_l    the statistic of real and synthetic features of layer l, class by class
distance    the statistic's own; for `Moments`, the squared distance of class means (DM)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayd.config import Recipe
from rayd.config.choices import LayerRole
from rayd.errors import ConfigError
from rayd.objectives.means import squared_mean_gap
from rayd.objectives.statistic_term import StatisticTerm

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.objectives.specification import StatisticSpec


class StatisticMatching(StatisticTerm):
    """Distance of a statistic that is chosen by name, summed over layers."""

    name = "statistic"
    for_any_method = True

    of: str = "Moments"
    """The statistic: the name of its class or of an entry point of `rayd.statistics`, or
    `package.module:Name`. Its class has a method `distance(synthetic)`.
    """
    role: LayerRole = LayerRole.FEATURES
    """Role of the layers whose features are used."""
    transform: str = "Flat"
    """Transform of feature maps to feature vectors: `Flat`, `Channels`, `Vectors`, or your own."""

    @property
    def spec(self) -> StatisticSpec:
        """The statistic by class.

        Raises:
            ConfigError: the statistic or the transform is unknown, or the statistic has no distance.
        """
        from rayd import statistics
        from rayd.objectives.specification import StatisticSpec

        transform = statistics.get_transform(self.transform)
        statistic = statistics.get(self.of)
        if statistic is not statistics.Moments and not hasattr(statistic, "distance"):
            raise ConfigError(
                f"Statistic '{self.of}' cannot be matched: give its class a method "
                "'distance(self, synthetic)' that returns a scalar."
            )
        return StatisticSpec(self.role, transform, statistic)

    def check(self, recipe: Recipe) -> None:
        """Raise the errors of `spec`."""
        _ = self.spec

    def distance(self, real: Any, synthetic: Any) -> Tensor:
        """Distance of the statistic."""
        from rayd.statistics import Moments

        if type(real) is Moments:
            return squared_mean_gap(real, synthetic)
        found: Tensor = real.distance(synthetic)
        return found
