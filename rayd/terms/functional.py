"""Functional forms of the terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayd.terms.batches import GradientMatching, RidgeRegression
from rayd.terms.comparisons import (
    AttentionMatching,
    Centralization,
    CharacteristicFunctionMatching,
    CovarianceMatching,
    CurriculumFilterMatching,
    MeanMatching,
    MomentMatching,
    NormalizationMatching,
    SpectralFilterMatching,
    StatisticMatching,
)
from rayd.terms.outputs import Calibration, ClassAware, CrossEntropy, Densification, Flatness

if TYPE_CHECKING:
    from torch import Tensor


def mean_matching(
    real: Any, synthetic: Any, real_labels: Tensor, labels: Tensor, *, classes: int | None = None
) -> Tensor:
    """Functional form of `MeanMatching`.

    >>> import torch
    >>> features = torch.eye(2)
    >>> mean_matching(features, -features, torch.arange(2), torch.arange(2)).item()
    8.0
    """
    return MeanMatching()(real, synthetic, real_labels, labels, classes=classes)


def _functional(term: type[Any], name: str, calls: tuple[str, ...]) -> Any:
    """The function of a term: arguments of its call, then its settings by keyword."""

    def function(*tensors: Any, **options: Any) -> Tensor:
        given = {key: options.pop(key) for key in calls if key in options}
        value: Tensor = term(**options)(*tensors, **given)
        return value

    function.__name__ = name
    function.__qualname__ = name
    function.__doc__ = (
        f"Functional form of `{term.__name__}`: its tensors, then its settings by keyword."
    )
    return function


_COMPARED = ("real_labels", "labels", "classes", "generator", "context")

attention_matching = _functional(AttentionMatching, "attention_matching", _COMPARED)
calibration = _functional(Calibration, "calibration", ("labels",))
centralization = _functional(Centralization, "centralization", _COMPARED)
characteristic_function_matching = _functional(
    CharacteristicFunctionMatching, "characteristic_function_matching", _COMPARED
)
class_aware = _functional(ClassAware, "class_aware", ("labels", "accuracy"))
covariance_matching = _functional(CovarianceMatching, "covariance_matching", _COMPARED)
cross_entropy = _functional(CrossEntropy, "cross_entropy", ("labels",))
curriculum_filter_matching = _functional(
    CurriculumFilterMatching, "curriculum_filter_matching", _COMPARED
)
densification = _functional(Densification, "densification", ("labels",))
flatness = _functional(Flatness, "flatness", ("average_logits",))
gradient_matching = _functional(
    GradientMatching, "gradient_matching", ("real_labels", "labels", "network")
)
moment_matching = _functional(MomentMatching, "moment_matching", _COMPARED)
normalization_matching = _functional(NormalizationMatching, "normalization_matching", _COMPARED)
ridge_regression = _functional(
    RidgeRegression, "ridge_regression", ("real_labels", "labels", "classes")
)
spectral_filter_matching = _functional(
    SpectralFilterMatching, "spectral_filter_matching", _COMPARED
)
statistic_matching = _functional(StatisticMatching, "statistic_matching", _COMPARED)
