"""Matching of feature correlations through a spectral filter: the term of UniDD and CFM.

The formula and its symbols are in `rayd.objectives.spectral_filter_distance`, the filters in
`rayd.objectives.filters`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from rayd.config import FilterScheduleSettings, FilterSettings, When
from rayd.config.choices import LayerRole, Signal
from rayd.objectives.terms import Context, RealStatistics, Term
from rayd.schedules import filter_parameter

if TYPE_CHECKING:
    from torch import Tensor

    from rayd.networks import Observation
    from rayd.objectives.factors import Filters
    from rayd.objectives.filters import Filter
    from rayd.objectives.specification import StatisticSpec
    from rayd.objectives.spectral_filter_distance import SpectralFilterDistance


def filter_now(settings: FilterSettings, context: Context) -> Filter:
    """The filter at a call of the term, with its parameter at this point of the schedule."""
    from rayd.objectives.filters import of_settings

    schedule = settings.schedule
    progress = context.progress if schedule.over == "steps" else context.block / context.blocks
    return of_settings(settings, filter_parameter(schedule, settings.parameter, progress))


def _filters_now(matrix: FilterSettings, signal: FilterSettings, context: Context) -> Filters:
    """Filters of one side at a call of the term."""
    from rayd.objectives.factors import Filters

    return Filters(filter_now(matrix, context), filter_now(signal, context))


_SIGNALLED = When(signal_weight=True)


class SpectralFilterMatching(Term):
    """Distances of filtered correlations of features, and of the signal through the filter."""

    name = "spectral_filter"
    former_name = "spectral"
    splits = True

    weight: float = Field(default=0.1, ge=0)
    """Factor of the term, the paper's eta; 0 switches it off."""
    filter: FilterSettings = FilterSettings(schedule=FilterScheduleSettings(over="steps"))
    """Filter of the correlations of features."""
    signal_filter: Annotated[FilterSettings | None, _SIGNALLED] = None
    """Filter of the signal; by default the same."""
    real_filter: FilterSettings | None = None
    """Filter of the real side, if it differs from that of the synthetic side; by default the same.
    """
    real_signal_filter: Annotated[FilterSettings | None, _SIGNALLED] = None
    """Filter of the signal on the real side; by default `signal_filter` if given, otherwise the
    filter of the real side.
    """
    filter_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance of filtered correlations."""
    signal_weight: float = Field(default=1.0, ge=0)
    """Weight of the distance of filtered signals."""
    signal: Annotated[Signal, _SIGNALLED] = "class"
    """Signal: features by class (paper), or their global mean (the released code's default)."""
    layers: Literal["conv_path", "features"] = "conv_path"
    """Inputs of all convolutions except those of shortcuts, or the input of the classifier."""

    @model_validator(mode="after")
    def _something(self) -> SpectralFilterMatching:
        if self.filter_weight == self.signal_weight == 0:
            raise ValueError(
                "'filter_weight' and 'signal_weight' are both 0: set 'terms.spectral_filter.weight: 0' instead"
            )
        return self

    def filters(self, context: Context) -> Filters:
        """Both filters of the synthetic side at a call of the term."""
        return _filters_now(self.filter, self.signal_filter or self.filter, context)

    def real_filters(self, context: Context) -> Filters:
        """Both filters of the real side at a call of the term."""
        matrix = self.real_filter or self.filter
        signal = self.real_signal_filter or self.signal_filter or matrix
        return _filters_now(matrix, signal, context)

    @property
    def averages_blocks(self) -> bool:
        """Whether synthetic statistics are means over the blocks so far."""
        return False

    @cached_property
    def distance(self) -> SpectralFilterDistance:
        """The distance that these settings define."""
        from rayd.objectives.spectral_filter_distance import SpectralFilterDistance

        return SpectralFilterDistance(
            self.filters,
            real_filters=self.real_filters,
            signal=self.signal,
            filter_weight=self.filter_weight,
            signal_weight=self.signal_weight,
            updating=self.averages_blocks,
            tap=LayerRole(self.layers),
        )

    @property
    def specs(self) -> tuple[StatisticSpec, ...]:
        """Covariances of features, and their correlations with labels if the signal is by class."""
        return self.distance.specs

    def precise(self, real: RealStatistics, seen: Observation, context: Context) -> Observation:
        """The layers, in float64 if the filter depends on details below the rounding of float32."""
        return self.distance.precise(real, seen, context)

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Weighted sum over the layers; labels are class indices (N,)."""
        return self.distance(real, seen, labels, context)


class CurriculumFilterMatching(SpectralFilterMatching):
    """Spectral filter matching with a ridge that decreases from block to block, and means over the
    blocks so far (CFM).
    """

    name = "spectral_filter"

    filter: FilterSettings = FilterSettings(
        schedule=FilterScheduleSettings(name="cosine", over="blocks")
    )
    """Filter of the correlations of features: a ridge that decreases from block to block."""
    updating: bool = True
    """Whether statistics of synthetic images are means over the blocks so far."""

    @property
    def averages_blocks(self) -> bool:
        """As set."""
        return self.updating
