"""Cross-entropy of the synthetic images in networks that know the classes.

    cross-entropy    loss = mean_i CE(phi(x_i), y_i)
    calibration      loss = sum_c mean_{i in c} CE(phi(x_i), c)
    class-aware      loss = p sum_c mean_{i in c} CE(phi(x_i), c)

    phi  the observer, logits        y_i  class index of image x_i
    p    the observer's accuracy on real images, a fraction

The first is a term of SRe2L, CDA, G-VBSM and EDC (R_cross, weight 1). The second is that of NCFM
(Wang et al., CVPR 2025), whose matching is a sum over classes, too. The third is that of IDM (Zhao,
Li, Qin and Yu, "Improved Distribution Matching for Dataset Condensation", CVPR 2023): the loss of
an observer counts in proportion to its accuracy. The released code of IDM takes p in percent, 0 to
100, so its weights of 0.1 to 0.8 are 10 to 80 here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from rayd.config import NetworkGroup
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation


class CrossEntropy(Term):
    """Mean cross-entropy of the logits with hard labels."""

    name = "cross_entropy"
    for_any_method = True
    needs_classes = True
    splits = True

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Mean over the images; logits (N, classes), labels are class indices (N,)."""
        from torch.nn import functional

        return functional.cross_entropy(seen.logits, labels)


def _over_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the classes of the mean cross-entropy of their images; logits (N, classes), labels
    are class indices (N,).
    """
    from torch.nn import functional

    from rayd.derived import class_sizes

    each = functional.cross_entropy(logits, labels, reduction="none")
    images = class_sizes(labels, logits.shape[1])
    return (each / images[labels]).sum()


class Calibration(Term):
    """Cross-entropy of every class in networks with their trained weights, even if observers have
    others.
    """

    name = "calibration"
    needs_classes = True
    splits = True
    through: ClassVar[NetworkGroup] = "classifiers"

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over the classes of the mean over their images; logits (N, classes), labels are class
        indices (N,).
        """
        return _over_classes(seen.logits, labels)


class ClassAware(Term):
    """Cross-entropy of every class, weighted by the observer's accuracy on the real images."""

    name = "class_aware"
    for_any_method = True
    needs_classes = True
    splits = True

    weight: float = Field(default=50.0, ge=0)
    """Factor of the term; 0 switches it off."""

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over the classes of the mean over their images; logits (N, classes), labels are class
        indices (N,).
        """
        from torch import Tensor

        loss = _over_classes(seen.logits, labels)
        accuracy = context.accuracy
        if isinstance(accuracy, Tensor):
            accuracy = accuracy.to(loss)
        return accuracy * loss
