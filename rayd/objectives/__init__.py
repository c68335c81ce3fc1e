"""Terms of objectives, one module per family: fields are settings, and `__call__` computes the
term.

To add a term:

1.  A module here with a subclass of `Term` (`terms`), or of `StatisticTerm` (`statistic_term`) if it
    compares one statistic: its fields are its settings, its docstring has formula, symbols and source.
2.  Its import below, which registers it under its `name`.
3.  Methods return it from `Method.objective`; with `for_any_method = True`, any recipe may add it
    under `terms`.
4.  To offer it for plain tensors: its class and its function in `rayd.terms`.

Modules without a term support those that have one:

    terms, statistic_term      base classes of terms, and their arguments
    specification, sources     statistics to compare, and references to them
    targets, running           targets of moments; their running means over the blocks of a set
    filters, factors           spectral filters, and cached filtered statistics
    head_and_tail, frequency_network, moment_distance, characteristic_function_distance,
    spectral_filter_distance, kernel_discrepancy, neural_kernels, trajectory
                               the mathematics of terms
    batch_parts                a batch that is forwarded in parts

Terms are imported without torch, so that recipes can be validated without delay; names that need
torch are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayd.objectives.any_statistic import StatisticMatching
from rayd.objectives.attention import AttentionMatching
from rayd.objectives.characteristic_function import CharacteristicFunctionMatching
from rayd.objectives.classification import Calibration, ClassAware, CrossEntropy
from rayd.objectives.densification import Densification
from rayd.objectives.discrimination import Discrimination, LayerMeanMatching
from rayd.objectives.flatness import Flatness
from rayd.objectives.gradients import GradientMatching
from rayd.objectives.hallucinations import HallucinatorContrast
from rayd.objectives.kernel_discrepancy import KernelDiscrepancy
from rayd.objectives.means import MeanMatching, squared_mean_gap
from rayd.objectives.moments import MomentMatching, NormalizationMatching
from rayd.objectives.neural_kernels import KernelRegression
from rayd.objectives.relations import Centralization, CovarianceMatching
from rayd.objectives.ridge import RidgeRegression
from rayd.objectives.spectral_filter import CurriculumFilterMatching, SpectralFilterMatching
from rayd.objectives.terms import Batch, Context, RealStatistics, Term

if TYPE_CHECKING:
    from rayd.objectives.characteristic_function_distance import CharacteristicFunctionDistance
    from rayd.objectives.moment_distance import MomentDistance
    from rayd.objectives.specification import StatisticSpec
    from rayd.objectives.spectral_filter_distance import SpectralFilterDistance

__all__ = [
    "AttentionMatching",
    "Batch",
    "Calibration",
    "Centralization",
    "CharacteristicFunctionDistance",
    "CharacteristicFunctionMatching",
    "ClassAware",
    "Context",
    "CovarianceMatching",
    "CrossEntropy",
    "CurriculumFilterMatching",
    "Densification",
    "Discrimination",
    "Flatness",
    "GradientMatching",
    "HallucinatorContrast",
    "KernelDiscrepancy",
    "KernelRegression",
    "LayerMeanMatching",
    "MeanMatching",
    "MomentDistance",
    "MomentMatching",
    "NormalizationMatching",
    "RealStatistics",
    "RidgeRegression",
    "SpectralFilterDistance",
    "SpectralFilterMatching",
    "StatisticMatching",
    "StatisticSpec",
    "Term",
    "squared_mean_gap",
]

_LATER = {
    "CharacteristicFunctionDistance": "rayd.objectives.characteristic_function_distance",
    "MomentDistance": "rayd.objectives.moment_distance",
    "SpectralFilterDistance": "rayd.objectives.spectral_filter_distance",
    "StatisticSpec": "rayd.objectives.specification",
}


def __getattr__(name: str) -> Any:
    """Import names that need torch on first use."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'rayd.objectives' has no attribute '{name}'")
