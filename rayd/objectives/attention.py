"""Class means of spatial attention maps.

Sajedi et al., "DataDAM: Efficient Dataset Distillation with Attention Matching" (ICCV 2023), Eqs.
2 to 4:

    a(f)  = sum_i |f_i|^p                  f_i  channel i of a map f; a(f) as a vector (h w,)
    loss  = sum_l sum_c || mean_c a(f_l(T)) / ||a(f_l(T))|| - mean_c a(f_l(S)) / ||a(f_l(S))|| ||^2

    f_l    output of block l, the last block left out       mean_c  over the images of class c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayd.config.choices import LayerRole
from rayd.objectives.means import squared_mean_gap
from rayd.objectives.statistic_term import StatisticTerm

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.objectives.specification import StatisticSpec
    from rayd.statistics import Moments


class AttentionMatching(StatisticTerm):
    """Squared distances of class means of normalised attention maps, summed over blocks."""

    name = "attention"
    for_any_method = True

    power: float = Field(default=4.0, gt=0)
    """Power p of the absolute values that are summed over channels: the larger it is, the more the
    strongest channel dominates a map.
    """

    @property
    def spec(self) -> StatisticSpec:
        """Moments of the normalised attention maps of all blocks."""
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Attention, Moments, Normalized

        return StatisticSpec(LayerRole.BLOCK_OUTPUTS, Normalized(Attention(self.power)), Moments)

    def layers(self) -> slice:
        """All blocks except the last."""
        return slice(-1)

    def distance(self, real: Moments, synthetic: Moments) -> Tensor:
        """Sum over the classes."""
        return squared_mean_gap(real, synthetic)
