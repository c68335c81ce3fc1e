"""Methods, one module per paper. `build` configures the method that a recipe names.

To add a method:

1. Write a module here with a subclass of `Method` (`rayd.methods.base` documents what it may
   declare); its `name` registers it. The head of the module has the citation, the objective with
   every symbol, and where paper and released code differ.
2. Add terms that do not exist yet as modules of `rayd.objectives`.
3. Import the class below and add it to `__all__`; importing it registers the method.
4. Add its recipes to `rayd/recipes/`, and a test to `tests/methods/`.

A method outside the package needs only the first step, see `docs/pages/own-method.md`.
"""

from rayd import plugins
from rayd.config import Recipe
from rayd.errors import ConfigError, unknown
from rayd.methods.base import Method
from rayd.methods.cafe import FeatureAlignment
from rayd.methods.cda import CurriculumDataAugmentation
from rayd.methods.cfm import CurriculumFrequencyMatching
from rayd.methods.csdm import ClassAwareSpectralMatching
from rayd.methods.datadam import AttentionDistillation
from rayd.methods.datm import DifficultyAlignedMatching
from rayd.methods.dc import DatasetCondensation, SiameseDatasetCondensation
from rayd.methods.dcc import ContrastiveCondensation
from rayd.methods.dm import DistributionMatching
from rayd.methods.dwa import DirectedWeightAdjustment
from rayd.methods.edc import ElucidatedCondensation
from rayd.methods.frepo import FeatureRegression, KernelRidgeRegression
from rayd.methods.gvbsm import GeneralizedMatching
from rayd.methods.haba import Factorization
from rayd.methods.idc import EfficientParameterization
from rayd.methods.idm import ImprovedDistributionMatching
from rayd.methods.iid import RelatedDistributionMatching, RelatedImprovedMatching
from rayd.methods.kip import KernelInducingPoints
from rayd.methods.lsmtt import LowRankSpaceMatching
from rayd.methods.mtt import MatchingTrainingTrajectories
from rayd.methods.ncfm import NeuralCharacteristicFunctionMatching
from rayd.methods.rded import RealisticPatches
from rayd.methods.sre2l import SqueezeRecoverRelabel
from rayd.methods.tesla import ConstantMemoryMatching
from rayd.methods.unidd import SpectralFiltering

__all__ = [
    "AttentionDistillation",
    "ClassAwareSpectralMatching",
    "ConstantMemoryMatching",
    "ContrastiveCondensation",
    "CurriculumDataAugmentation",
    "CurriculumFrequencyMatching",
    "DatasetCondensation",
    "DifficultyAlignedMatching",
    "DirectedWeightAdjustment",
    "DistributionMatching",
    "EfficientParameterization",
    "ElucidatedCondensation",
    "Factorization",
    "FeatureAlignment",
    "FeatureRegression",
    "GeneralizedMatching",
    "ImprovedDistributionMatching",
    "KernelInducingPoints",
    "KernelRidgeRegression",
    "LowRankSpaceMatching",
    "MatchingTrainingTrajectories",
    "Method",
    "NeuralCharacteristicFunctionMatching",
    "RealisticPatches",
    "RelatedDistributionMatching",
    "RelatedImprovedMatching",
    "SiameseDatasetCondensation",
    "SpectralFiltering",
    "SqueezeRecoverRelabel",
    "build",
    "get",
    "names",
]


def names() -> list[str]:
    """Names of all methods."""
    return sorted(Method.registry)


def get(name: str) -> type[Method]:
    """Look up a method by name, or by `package.module:Name`.

    Raises:
        ConfigError: there is none, or the name refers to something that is not a method.
    """
    if name in Method.registry:
        return Method.registry[name]
    found = plugins.find("methods", name)
    # importing the plug-in may have registered the method
    found = Method.registry.get(name) if found is None else found
    if found is None:
        hint = (
            "To use your own method, name it as 'package.module:Name', pass '--import FILE.py' on "
            "the command line, or give its class in Python."
        )
        raise ConfigError(f"{unknown('method', name, names())} {hint}")
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ConfigError(f"'{name}' must be a subclass of rayd.methods.Method. Got {found!r}.")
    if not hasattr(found, "name"):
        raise ConfigError(f"Method '{name}' has no name: give its class a 'name'.")
    return found


def build(recipe: Recipe) -> Method:
    """Configure the method that a recipe names."""
    return get(recipe.method)(recipe)
