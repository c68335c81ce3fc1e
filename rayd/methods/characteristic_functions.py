"""What the characteristic-function methods share: the settings of their distance. NCFM and CSDM
differ in its defaults.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from pydantic import BeforeValidator, Field, model_validator

from rayd.config import Only, Settings
from rayd.config.choices import Kernel, OverClasses, Scale, Split

if TYPE_CHECKING:
    from rayd.networks import LayerRole
    from rayd.objectives import CharacteristicFunctionMatching, StatisticSpec
    from rayd.objectives.frequency_network import FrequencyAdversary


def _length(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "median" and not (number and 0 < cast(float, value) < math.inf):
        raise ValueError("a length is a finite number above 0, or 'median'")
    return value


Length = Annotated[Scale, BeforeValidator(_length)]
"""A length in units of the features, or `median`."""

DRAWN = Only(kernel=get_args(Kernel))
"""Marks settings of frequencies, which a linear kernel has none of."""


class CharacteristicFunctionSettings(Settings):
    """Settings of the distance of characteristic functions; see
    `rayd.objectives.characteristic_function`.
    """

    kernel: Literal[Kernel, "linear"] = "gaussian"
    """Whose spectrum frequencies are drawn from; `linear` compares means instead, as DM does,
    without any frequency.
    """
    scale: Annotated[Length, DRAWN] = "median"
    """Length of the kernel in units of the features, or the median distance of real ones, found for
    each observer.
    """
    frequencies: Annotated[int, DRAWN] = Field(default=1024, ge=1)
    """How many are drawn for each observer."""
    smoothness: Annotated[float, Only(kernel="matern")] = Field(default=1.5, ge=0.25)
    """`matern`: its nu; below 1/4 single frequencies are beyond all bounds."""
    mixture: Annotated[float, Only(kernel="rational-quadratic")] = Field(default=1.0, gt=0)
    """`rational-quadratic`: its exponent a."""
    normalize: bool = False
    """Whether features are divided by their Euclidean norm."""
    head_amplitude_weight: float = Field(default=0.8, ge=0, le=1)
    """Weight of the amplitude (diversity) in head classes; the phase (realism) has the rest, and
    tail classes the converse.
    """
    split: Split = "median"
    """Which classes are head: those of at least the median size, the larger half, more or less with
    the logarithm of the size, or all of them alike (`uniform`).
    """
    factor: float = Field(default=2.0, gt=0)
    """Of amplitude and phase; with 2 and a weight of 1/2 the distance is the squared maximum mean
    discrepancy.
    """
    root: bool = False
    """Whether the square root is taken, frequency by frequency."""
    over_classes: OverClasses = "mean"
    """How the values of classes become one."""

    @model_validator(mode="after")
    def _something(self) -> CharacteristicFunctionSettings:
        nothing = (1,) if self.split == "uniform" else (0, 1)
        if self.kernel == "linear" and self.head_amplitude_weight in nothing:
            raise ValueError(
                f"with 'kernel: linear' and 'split: {self.split}' a 'head_amplitude_weight' of {self.head_amplitude_weight:g} "
                "leaves classes with nothing to match: means are all phase. Take one between 0 and 1"
            )
        return self

    def distance(
        self, tap: LayerRole, weight: float, adversary: FrequencyAdversary | None = None
    ) -> CharacteristicFunctionMatching:
        """The term: feature vectors of a tap, one an image, with this default weight."""
        from rayd.objectives import CharacteristicFunctionMatching

        return CharacteristicFunctionMatching(
            self._need(tap),
            head_amplitude_weight=self.head_amplitude_weight,
            split=self.split,
            factor=self.factor,
            root=self.root,
            over_classes=self.over_classes,
            adversary=adversary,
            weight=weight,
        )

    def _need(self, tap: LayerRole) -> StatisticSpec:
        from rayd.objectives import StatisticSpec
        from rayd.statistics import AtFrequencies, Flat, Frequencies, Moments, Normalized

        transform = Normalized(Flat()) if self.normalize else Flat()
        if self.kernel == "linear":
            return StatisticSpec(tap, transform, Moments)
        frequencies = Frequencies(
            self.kernel, self.scale, self.frequencies, self.smoothness, self.mixture
        )
        return StatisticSpec(tap, transform, AtFrequencies(frequencies))
