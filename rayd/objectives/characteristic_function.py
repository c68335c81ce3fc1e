"""Distance of the characteristic functions of classes: the term of NCFM and CSDM.

The formula and its symbols are in `rayd.objectives.characteristic_function_distance`. Defaults are
CSDM's; NCFM has others.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from pydantic import BeforeValidator, Field, model_validator

from rayd.config import When
from rayd.config.choices import Kernel, LayerRole, OverClasses, Scale, Split
from rayd.objectives.terms import Context, RealStatistics, Term

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.characteristic_function_distance import CharacteristicFunctionDistance
    from rayd.objectives.specification import StatisticSpec


def _length(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "median" and not (number and 0 < cast(float, value) < math.inf):
        raise ValueError("a length is a finite number above 0, or 'median'")
    return value


Length = Annotated[Scale, BeforeValidator(_length)]
"""A length in units of the features, or `median`."""

DRAWN = When(kernel=get_args(Kernel))
"""Marks settings of frequencies, which have no effect with a linear kernel."""


class CharacteristicFunctionMatching(Term):
    """Distance of the characteristic functions of classes, with amplitudes and phases weighted by
    the size of the class.
    """

    name = "characteristic_function"
    former_name = "spectral"
    splits = True

    weight: float = Field(default=300.0, ge=0)
    """Factor of the term; 0 switches it off."""
    layers: Literal["features", "last_map"] = "features"
    """Layer role: the input of the classifier, or the last map, as one vector per image."""
    kernel: Literal[Kernel, "linear"] = "gaussian"
    """Kernel from whose spectrum frequencies are drawn; `linear` uses no frequencies and compares
    means, as DM does.
    """
    scale: Annotated[Length, DRAWN] = "median"
    """Length of the kernel in units of the features, or the median distance between real features,
    determined for each observer.
    """
    frequencies: Annotated[int, DRAWN] = Field(default=1024, ge=1)
    """Number of frequencies that are drawn for each observer."""
    smoothness: Annotated[float, When(kernel="matern")] = Field(default=1.5, ge=0.25)
    """`matern`: its nu; below 1/4, some frequencies become arbitrarily large."""
    mixture: Annotated[float, When(kernel="rational-quadratic")] = Field(default=1.0, gt=0)
    """`rational-quadratic`: its exponent a."""
    normalize: bool = False
    """Whether features are divided by their Euclidean norm."""
    head_amplitude_weight: float = Field(default=0.8, ge=0, le=1)
    """Weight a of the amplitude (diversity) in head classes; the phase (realism) has weight 1 - a.
    In tail classes the weights are swapped.
    """
    split: Split = "median"
    """Which classes are head classes: those of at least the median size, the larger half, each
    class to a degree given by the logarithm of its size, or all equally (`uniform`).
    """
    factor: float = Field(default=2.0, gt=0)
    """Factor of the amplitude and phase terms; with 2 and a weight of 1/2 the distance is the
    squared maximum mean discrepancy.
    """
    root: bool = False
    """Whether to take the square root, frequency by frequency."""
    over_classes: OverClasses = "mean"
    """Reduction over classes."""
    sampling_network: bool = False
    """Whether an adversarial network weights the frequencies; see
    `rayd.objectives.frequency_network`.
    """
    sampling_rate: Annotated[float, When(sampling_network=True)] = Field(default=1e-3, gt=0)
    """Step size of the sampling network."""

    @model_validator(mode="after")
    def _something(self) -> CharacteristicFunctionMatching:
        nothing = (1,) if self.split == "uniform" else (0, 1)
        if self.kernel == "linear" and self.head_amplitude_weight in nothing:
            raise ValueError(
                f"with 'kernel: linear' and 'split: {self.split}' a 'head_amplitude_weight' of {self.head_amplitude_weight:g} "
                "leaves classes with nothing to match, as means are pure phase; use a weight between 0 and 1"
            )
        if self.sampling_network and self.kernel == "linear":
            raise ValueError(
                "'sampling_network' needs frequencies to weight: set a 'kernel' other than linear"
            )
        return self

    @property
    def statistic(self) -> StatisticSpec:
        """The statistic that is compared."""
        from rayd.objectives.specification import StatisticSpec
        from rayd.statistics import AtFrequencies, Flat, Frequencies, Moments, Normalized

        transform = Normalized(Flat()) if self.normalize else Flat()
        role = LayerRole(self.layers)
        if self.kernel == "linear":
            return StatisticSpec(role, transform, Moments)
        frequencies = Frequencies(
            kernel=self.kernel,
            scale=self.scale,
            number=self.frequencies,
            smoothness=self.smoothness,
            mixture=self.mixture,
        )
        return StatisticSpec(role, transform, AtFrequencies(frequencies))

    @cached_property
    def distance(self) -> CharacteristicFunctionDistance:
        """The distance that these settings define."""
        from rayd.objectives.characteristic_function_distance import CharacteristicFunctionDistance
        from rayd.objectives.frequency_network import FrequencyAdversary

        adversary = None
        if self.sampling_network:
            adversary = FrequencyAdversary(self.sampling_rate)
        return CharacteristicFunctionDistance(
            self.statistic,
            head_amplitude_weight=self.head_amplitude_weight,
            split=self.split,
            factor=self.factor,
            root=self.root,
            over_classes=self.over_classes,
            adversary=adversary,
        )

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """The statistic that is compared."""
        return self.distance.specs

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """The distance; labels are class indices (N,)."""
        return self.distance(real, seen, labels, context)
