"""Relations between samples and between features: class centralization and covariance matching.

Wenxiao Deng, Wenbin Li, Tianyu Ding, Lei Wang, Hongguang Zhang, Kuihua Huang, Jing Huo and Yang
Gao, "Exploiting Inter-sample and Inter-feature Relations in Dataset Distillation" (IID), CVPR 2024.
Two terms that any method may add:

    L_CC = sum_c sum_{j in c} max(0, exp(alpha || psi(s_j) - centre_c ||^2) - beta)      class centralization
    L_CM = sum_c || Sigma_c(S) - Sigma_c(T) ||_F^2                                        covariance matching

    psi       features (d,) before the classifier of a network that was trained on the real data, another one in each step
    centre_c  their mean over the synthetic images of class c          s_j  synthetic image j
    Sigma_c   covariance of the local descriptors of the observer's last map, (d, d); see `rayd.statistics.local_covariance`

**Paper and released code differ.** The code has no exponential and no threshold: it sums ||
psi(s_j) - centre_c ||^2 and remarks that the result is the same; a form with alpha = 0.02 is
commented out. The sum is the default here (`form: squared`), as the weights stated in the paper
(0.05 and 0.01) belong to it and the exponential overflows at distances that are common at the
start. As exp(alpha x) is at least 1, a threshold of at most 1 is never reached in the printed form:
it shifts the loss by a constant and changes no gradient. Means of real classes may be the centres
instead (`centre: real`), which is not in the paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayd.config import NetworkGroup, Recipe
from rayd.config.choices import LayerRole
from rayd.errors import ConfigError
from rayd.objectives.statistic_term import StatisticTerm, class_sum
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.specification import StatisticSpec
    from rayd.statistics import LocalCovariance

Form = Literal["squared", "exponential"]
"""Form of class centralization: the released code's, or the paper's."""
Centre = Literal["synthetic", "real"]
"""Images whose mean features are the centres of the classes."""


def dispersion(
    features: Tensor, labels: Tensor, classes: int, centres: Tensor | None = None
) -> Tensor:
    """Squared distance of every feature vector (N, d) from its class's centre, (N,).

    Args:
        features: feature vectors (N, d).
        labels: class indices (N,).
        classes: number of classes.
        centres: centres of the classes (classes, d); if None, the means of `features`.
    """
    from rayd.statistics.base import membership, ratio

    if centres is None:
        member = membership(labels, classes, features.dtype)
        centres = ratio(member.T @ features, member.sum(0))
    return (features - centres[labels]).square().sum(1)


def centralization(
    distances: Tensor, form: Form, alpha: float, beta: float, counts: Tensor | None = None
) -> Tensor:
    """Sum over samples of squared distances (N,), or of max(0, exp(alpha distance) - beta); with a
    mask (N,), over the selected samples only.
    """
    if form == "exponential":
        distances = ((alpha * distances).exp() - beta).clamp(min=0)
    return distances.sum() if counts is None else (distances * counts).sum()


class Centralization(Term):
    """Pulls the features of a class together, in networks that know the classes."""

    name = "centralization"
    for_any_method = True
    through: ClassVar[NetworkGroup] = "classifiers"
    needs_classes = True
    splits = True

    weight: float = Field(default=0.05, ge=0)
    """Factor of the term; 0 switches it off."""
    form: Form = "squared"
    """`squared` distances (released code), or the `exponential` one of the paper."""
    alpha: float = Field(default=0.02, gt=0)
    """`exponential`: scale of the squared distance."""
    beta: float = Field(default=0.0, ge=0)
    """`exponential`: threshold below which a sample is close enough; values of up to 1 have no
    effect.
    """
    centre: Centre = "synthetic"
    """Centre of a class: the mean of its synthetic images (paper), or of its real ones."""

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """Moments of the features, if their means are the centres."""
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Flat, Moments

        features = StatisticSpec(LayerRole.FEATURES, Flat(), Moments)
        return (features,) if self.centre == "real" else ()

    @property
    def layer_roles(self) -> frozenset[LayerRole]:
        """The features."""
        return frozenset({LayerRole.FEATURES})

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over all images; differentiable, also through the centres. Images of a class without
        real images have no real centre, and are omitted.
        """
        from rayd.statistics.transforms import wide

        (features,) = (wide(layer) for layer in seen.layers[LayerRole.FEATURES])
        centres = None
        counts = None
        for spec in self.specs:
            (moments,) = real[spec]
            state = moments.state()
            centres = state["mean"]
            counts = state["count"][labels] > 0
        distances = dispersion(features, labels, seen.logits.shape[1], centres)
        return centralization(distances, self.form, self.alpha, self.beta, counts)


def squared_covariance_gap(real: LocalCovariance, synthetic: LocalCovariance) -> Tensor:
    """Sum over classes of the squared Frobenius distance of local covariances; classes without
    samples on either side are omitted.
    """
    distances = (real.covariance - synthetic.covariance).square().sum((1, 2))
    return class_sum(distances, real, synthetic)


class CovarianceMatching(StatisticTerm):
    """Squared distances of the local covariances of the last map, class by class."""

    name = "covariance"
    for_any_method = True

    weight: float = Field(default=0.01, ge=0)
    """Factor of the term; 0 switches it off."""

    @property
    def spec(self) -> StatisticSpec:
        """Local covariances of the last map."""
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import Channels, LocalCovariance

        return StatisticSpec(LayerRole.LAST_MAP, Channels(), LocalCovariance)

    def distance(self, real: LocalCovariance, synthetic: LocalCovariance) -> Tensor:
        """Sum over the classes."""
        return squared_covariance_gap(real, synthetic)

    def check(self, recipe: Recipe) -> None:
        """Refuse one image per class, whose covariance is always zero.

        Raises:
            ConfigError: there is only one, with advice on what to use instead.
        """
        if recipe.synthetic.kind == "lowrank":
            # the budget allows more images than `ipc` per class
            return
        if recipe.ipc * recipe.synthetic.expansion < 2:
            raise ConfigError(
                f"The term '{self.name}' needs at least two images of a class, as the covariance of one is zero. Use ipc=2 or "
                "more, or synthetic.kind=partitioned, which makes four of each image (as in method 'iid-idm')."
            )
        if recipe.synthesis.block == "classes" and recipe.synthetic.expansion < 2:
            raise ConfigError(
                f"The term '{self.name}' needs at least two images of a class in a block, as the "
                "covariance of one is zero: set 'synthesis.block: null', or a number of images that "
                "includes several of each class."
            )
