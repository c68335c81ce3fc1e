"""Loss terms on plain tensors: use them in any torch loop, with features of any network.

Each term has an object form, whose arguments are its settings, and a functional form:

    loss = rayd.terms.MeanMatching()(real, synthetic, real_labels, labels)
    loss = rayd.terms.mean_matching(real, synthetic, real_labels, labels)

These classes derive from those of `rayd.objectives` and give the same values; they can also be
terms of your own method. As there, a value is unweighted: `weight` is the factor in a method's
objective.

Symbols:

    N, M    real and synthetic images          C       classes
    d       dimension of a feature vector      h, w    height and width of a map
    c       channels of a map

Modules:

    comparisons  terms that compare statistics of real and synthetic features
    outputs      terms of synthetic images only
    batches      terms that take a batch of real images
    calling      calls on plain tensors, as objects and as functions
    checking     validation of plain tensors
"""

from rayd.objectives.terms import Term
from rayd.terms.batches import (
    GradientMatching,
    RidgeRegression,
    gradient_matching,
    ridge_regression,
)
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
    attention_matching,
    centralization,
    characteristic_function_matching,
    covariance_matching,
    curriculum_filter_matching,
    mean_matching,
    moment_matching,
    normalization_matching,
    spectral_filter_matching,
    statistic_matching,
)
from rayd.terms.outputs import (
    Calibration,
    ClassAware,
    CrossEntropy,
    Densification,
    Flatness,
    calibration,
    class_aware,
    cross_entropy,
    densification,
    flatness,
)

__all__ = [
    "AttentionMatching",
    "Calibration",
    "Centralization",
    "CharacteristicFunctionMatching",
    "ClassAware",
    "CovarianceMatching",
    "CrossEntropy",
    "CurriculumFilterMatching",
    "Densification",
    "Flatness",
    "GradientMatching",
    "MeanMatching",
    "MomentMatching",
    "NormalizationMatching",
    "RidgeRegression",
    "SpectralFilterMatching",
    "StatisticMatching",
    "Term",
    "attention_matching",
    "calibration",
    "centralization",
    "characteristic_function_matching",
    "class_aware",
    "covariance_matching",
    "cross_entropy",
    "curriculum_filter_matching",
    "densification",
    "flatness",
    "gradient_matching",
    "mean_matching",
    "moment_matching",
    "normalization_matching",
    "ridge_regression",
    "spectral_filter_matching",
    "statistic_matching",
]
