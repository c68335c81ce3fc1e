"""Features of all layers by class, and classification of real images by synthetic centres: CAFE.

Kai Wang et al., "CAFE: Learning to Condense Dataset by Aligning Features" (CVPR 2022):

    L_f = sum_l sum_c || mean_c f_l(T) - mean_c f_l(S) ||^2          layer-wise feature alignment
    L_d = mean_i CE( f(t_i) M^T, y_i )                               discrimination loss

    f_l   output of block l, flattened         f    what the classifier reads, (d,)
    M     class means of f over the synthetic images (C, d)
    t_i   real image i of class y_i in a mini-batch

The logits of a real image are inner products with the centres of the synthetic classes, so L_d is
small for centres that discriminate between real images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from rayd.config.choices import LayerRole
from rayd.objectives.means import squared_mean_gap
from rayd.objectives.statistic_term import StatisticTerm
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.specification import StatisticSpec
    from rayd.statistics import Moments


class LayerMeanMatching(StatisticTerm):
    """Squared distances of class means of the outputs of all blocks."""

    name = "layer_means"
    for_any_method = True

    @property
    def spec(self) -> StatisticSpec:
        """Moments of the outputs of blocks, as one vector per image."""
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Flat, Moments

        return StatisticSpec(LayerRole.BLOCK_OUTPUTS, Flat(), Moments)

    def distance(self, real: Moments, synthetic: Moments) -> Tensor:
        """Sum over the classes."""
        return squared_mean_gap(real, synthetic)


class Discrimination(Term):
    """Cross-entropy of real images whose logits are inner products with synthetic class centres."""

    name = "discrimination"
    for_any_method = True
    needs_batch = True

    weight: float = Field(default=0.01, ge=0)
    """Factor of the term; 0 switches it off."""

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """Input of the classifier."""
        return frozenset({LayerRole.FEATURES})

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Mean over the real images; `labels` are class indices (N,) of the synthetic images."""
        from torch.nn import functional

        from rayd.statistics.base import membership, ratio

        _, batch = context.seen_through()
        (ours,) = (layer.float() for layer in seen.layers[LayerRole.FEATURES])
        (theirs,) = (layer.float() for layer in batch.look().layers[LayerRole.FEATURES])
        member = membership(labels, seen.logits.shape[1], ours.dtype)
        centres = ratio(member.T @ ours, member.sum(0))
        return functional.cross_entropy(theirs @ centres.T, batch.labels)
