"""Cache of filtered statistics of the real images, computed once for each filter.

Layers of equal dimension are processed together, as a stack:

    k  layers of dimension d          m  rows of the signal: classes, or one for the mean of all features

Everything is computed in float64 (real statistics are few) and returned in the precision of the
synthetic side. The result of a filter is cached until another one is used. The first filter is
computed by its own algorithm. If a second filter would factorise the same matrices again, more are
likely to follow, so the eigendecomposition is computed and cached; each further filter then costs
one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from rayd.errors import ConfigError
from rayd.objectives.filters import Filter, Spectrum
from rayd.objectives.sources import Sources
from rayd.statistics import Covariance, LabelCorrelation


class Filters(NamedTuple):
    """The filters of a call."""

    matrix: Filter
    """Filter of the correlations of features with features."""
    signal: Filter
    """Filter of the signal; usually the same."""


class Filtered(NamedTuple):
    """One side of the objective, for the layers of one dimension."""

    matrices: Tensor
    """f(FFC), (k, d, d)."""
    signals: Tensor
    """f(FFC) g, with the signal g in rows, (k, m, d)."""


def through(
    filters: Filters, matrices: Sequence[Tensor], signals: Sequence[Tensor]
) -> list[Filtered]:
    """Apply filters to matrices (k, d, d) and signals (k, m, d), computing each filter once;
    differentiable.

    Args:
        filters: filters of the matrices and of the signals.
        matrices: one stack per dimension.
        signals: one stack per dimension.
    """
    filtered = filters.matrix.of_each(matrices)
    applied = filtered if filters.signal == filters.matrix else filters.signal.of_each(matrices)
    return [
        Filtered(one, signal @ function)
        for one, signal, function in zip(filtered, signals, applied, strict=True)
    ]


class Group:
    """The real side of all layers of one dimension, without a reference to the statistics."""

    def __init__(
        self,
        places: tuple[int, ...],
        matrices: Sequence[Covariance],
        signals: Sequence[LabelCorrelation] | None,
    ):
        """Combine pooled covariances, one per layer at these indices, and label correlations;
        without the latter, means are the signal.
        """
        self.places = places
        """Which layers."""
        self._device = matrices[0].mean.device
        home = "cpu" if self._device.type == "mps" else self._device  # MPS has no float64
        # moved first, as a copy would be converted on the source device
        self._matrices = torch.stack([one.covariance[0] for one in matrices]).to(home).double()
        given = (
            [one.mean for one in matrices]
            if signals is None
            else [one.correlation for one in signals]
        )
        self._signals = torch.stack(given).to(home)
        self.size = float(torch.linalg.matrix_norm(self._matrices.detach()).max())
        """An upper bound of the eigenvalues: the largest Frobenius norm."""
        self._last: tuple[Filters, torch.dtype, Filtered] | None = None

    @property
    def dimension(self) -> int:
        """The d."""
        return self._matrices.shape[-1]

    @cached_property
    def _spectrum(self) -> Spectrum:
        return Spectrum.of(self._matrices)

    def through(self, filters: Filters, dtype: torch.dtype) -> Filtered:
        """Apply the filters to matrices and signals; results in `dtype`.

        Raises:
            ConfigError: gradient steps of this size diverge.
        """
        if self._last is None or self._last[:2] != (filters, dtype):
            known = {function: self._filtered(function) for function in dict.fromkeys(filters)}
            signals = self._signals.double() @ known[filters.signal]
            sides = (known[filters.matrix], signals)
            self._last = (
                filters,
                dtype,
                Filtered(*(side.to(dtype).to(self._device) for side in sides)),
            )
        return self._last[2]

    def _filtered(self, function: Filter) -> Tensor:
        self._check(function)
        again = self._last is not None and function.factorises
        return self._spectrum.filtered(function) if again else function(self._matrices)

    def _check(self, function: Filter) -> None:
        if (
            self.size > function.limit
            and (largest := float(self._spectrum.values.max())) > function.limit
        ):
            raise ConfigError(
                f"Gradient steps with 'alpha' of {2 / function.limit:g} diverge: it must be below {2 / largest:.4g}, "
                f"2 over the largest eigenvalue of a layer with {self.dimension} channels."
            )


class Factors:
    """Everything derived from one observer's real statistics, without a reference to them."""

    def __init__(self, matrices: Sequence[Covariance], signals: Sequence[LabelCorrelation] | None):
        """Factors of pooled covariances, one per layer, and of label correlations if these are the
        signal.
        """
        self.sources = Sources((*matrices, *(signals or ())))
        """The covariances and signals that they were computed from."""
        places: dict[int, list[int]] = {}
        for place, statistic in enumerate(matrices):
            places.setdefault(statistic.mean.shape[-1], []).append(place)
        self.groups: list[Group] = []
        """Layers by dimension."""
        for _, some in sorted(places.items()):
            of_group = [matrices[place] for place in some]
            own_signals = None if signals is None else [signals[place] for place in some]
            self.groups.append(Group(tuple(some), of_group, own_signals))
