"""What is minimised: terms over statistics and observations, in pure torch, one family a module."""

from rayd.objectives.characteristic_function import CharacteristicFunctionMatching
from rayd.objectives.classification import ClassAware, CrossEntropy
from rayd.objectives.densification import Densification
from rayd.objectives.flatness import Flatness
from rayd.objectives.gaps import squared_mean_gap
from rayd.objectives.gradients import GradientMatching
from rayd.objectives.moments import MomentMatching
from rayd.objectives.regularisers import REGULARISERS
from rayd.objectives.relations import Centralization, CovarianceMatching
from rayd.objectives.ridge import RidgeRegression
from rayd.objectives.spectral_filter import SpectralFilterMatching
from rayd.objectives.terms import Batch, Context, Discrepancy, RealStatistics, StatisticSpec, Term

__all__ = [
    "REGULARISERS",
    "Batch",
    "Centralization",
    "CharacteristicFunctionMatching",
    "ClassAware",
    "Context",
    "CovarianceMatching",
    "CrossEntropy",
    "Densification",
    "Discrepancy",
    "Flatness",
    "GradientMatching",
    "MomentMatching",
    "RealStatistics",
    "RidgeRegression",
    "SpectralFilterMatching",
    "StatisticSpec",
    "Term",
    "squared_mean_gap",
]
