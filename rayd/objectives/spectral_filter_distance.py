"""Correlations of features through a spectral filter, matched layer by layer.

Bo, Liu and Wang, "Understanding Dataset Distillation via Spectral Filtering" (UniDD, ICLR 2026):
one objective, f(X^T X) g(X^T Y) compared between real and synthetic features, once with g = 1 and
once with g the signal itself,

    loss = sum_l  w || f(C_l) - f'(C'_l) ||_F  +  v || g(C_l) S_l - g'(C'_l) S'_l ||_2

    l      inputs of convolutions, shortcuts left out; a vector is the d channels at one position of one image
    C_l    covariance of the vectors over all images and positions, "FFC" (d, d): biased, of all classes together
    S_l    signal, "FLC" (d, m): mean over images and positions of x y^T with the one-hot label y (`class`, m classes), or of x
           (`mean`, m = 1)
    C', S' the same of the synthetic images, averaged with those of earlier blocks where `updating`
    (see
           `rayd.objectives.running`)
    f, g   the filters of this step, of the matrices and of the signal, the same for all layers (see
           `rayd.objectives.filters`); f', g' those of the synthetic side. Most often all four are one
    w, v   weights, 1

Norms are not squared, the second one too is over all entries, and all layers have the same weight.
The filter determines the method: all-pass compares only the signals (DM); low-pass for the matrices
with all-pass for the signals is DC; a ridge is FRePo and KIP, and with a schedule CFM.

For MTT, the two sides have different filters (Eq. 10). Weights W of a linear regression on S, by P
gradient steps of size a from W_0, are (I - a C')^P W_0 + a sum_{i<P} (I - a C')^i S', and an
expert's, by Q steps of size b, the same of the real side. What multiplies W_0 is compared as
matrices, with f' = `GradientStep`(a, P) and f = `GradientStep`(b, Q), and the rest as signals, with
`GradientSum` of the same arguments.

**Paper and released code differ.**

- The paper's signal is by class, which is the default; the code's default is the global mean
  (`mean`). Labels by a teacher (the code's `mix`) are not implemented.
- The paper's theory is about uncentred correlations; CFM, in paper and code, uses the covariance.
- A signal by class depends on the class's frequency. Synthetic sets are balanced while real ones
  may not be, and a block may lack classes, so each class is given here the frequency that it has
  among the real images; for balanced data this has no effect.
- The code's real side is the mean of the covariances within batches, which lacks the part between
  them. Here it is the covariance of the whole set, independent of batches.

**Precision.** Synthetic statistics are in the precision of the features. If a filter depends on
details that float32 cannot distinguish from rounding (a ridge below about 1e-5 of the largest
eigenvalue), the affected layers are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rayd.config.choices import Signal
from rayd.derived import derived, on_host
from rayd.errors import RunError
from rayd.networks import LayerRole, Observation
from rayd.objectives.factors import Factors, Filtered, Filters, through
from rayd.objectives.filters import Filter
from rayd.objectives.running import RunningMeans
from rayd.objectives.specification import StatisticSpec
from rayd.objectives.terms import Context, RealStatistics
from rayd.statistics import Channels, Covariance, LabelCorrelation, Pooled
from rayd.transfer import upload

ROUNDING = 100 * torch.finfo(torch.float32).eps
"""Size of details, relative to the largest eigenvalue, that float32 resolves to a hundredth.
"""


def distances(real: Tensor, synthetic: Tensor) -> Tensor:
    """Sum over layers of the Euclidean distance of all entries of matrices (k, ., .), with gradient
    zero where they are equal.
    """
    apart: Tensor = torch.linalg.vector_norm(synthetic - real, dim=(1, 2))
    return apart.sum()


class SpectralFilterDistance:
    """Distances of filtered correlations, and of the signal through them, over all layers of
    a role.
    """

    def __init__(
        self,
        filters: Callable[[Context], Filters],
        *,
        real_filters: Callable[[Context], Filters] | None = None,
        signal: Signal = "class",
        filter_weight: float = 1.0,
        signal_weight: float = 1.0,
        updating: bool = False,
        tap: LayerRole = LayerRole.CONV_PATH,
    ):
        """Configure the distance.

        Args:
            filters: filters of a call, a function of the context's `progress`, `block` and
                `blocks`.
            real_filters: filters of the real side, if they differ from the synthetic side's.
            signal: signal by class or its mean.
            filter_weight: weight w of the distance of the filtered matrices.
            signal_weight: weight v of the distance of the signals.
            updating: whether statistics are averaged over blocks; needs a method with sequential
                blocks.
            tap: role of the layers.

        Raises:
            ValueError: a weight is negative, or both are 0.
        """
        if min(filter_weight, signal_weight) < 0 or filter_weight + signal_weight == 0:
            raise ValueError(
                "The 'filter_weight' and 'signal_weight' of SpectralFilterDistance must not be negative, nor both 0. "
                f"Got {filter_weight} and {signal_weight} instead."
            )
        self.filters = filters
        """Those of a call."""
        self._real_filters = real_filters or filters
        self._weights = (filter_weight, signal_weight)
        self._updating = updating
        self.matrices = StatisticSpec(tap, Channels(), Pooled(Covariance))
        """The correlations of features with features, which are filtered."""
        self._signals = (
            StatisticSpec(tap, Channels(), LabelCorrelation)
            if signal == "class" and signal_weight > 0
            else None
        )
        self.specs = (self.matrices,) if self._signals is None else (self.matrices, self._signals)
        self._derived: WeakKeyDictionary[Covariance, Factors] = WeakKeyDictionary()

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Weighted sum of the distances of all layers; labels are class indices (N,).

        Raises:
            RunError: the features are no longer finite.
            ConfigError: the filter's gradient steps diverge.
        """
        groups = self._factors(real).groups
        filters = self.filters(context)
        real_filters = self._real_filters(context)
        seen = self._in_precision(real, seen, (*filters, *real_filters))
        matrices, signals = self._synthetic(real, seen, labels, context.class_counts)
        running = RunningMeans(context) if self._updating else None
        mean = _as_it_is if running is None else running
        rows = None if running is None else self._times_held(running, labels, context.class_counts)
        stacked = []
        with_signals = []
        for group in groups:
            stacked.append(
                mean(
                    f"matrix {group.dimension}",
                    torch.stack([matrices[place] for place in group.places]),
                )
            )
            signal = mean(
                f"signal {group.dimension}",
                torch.stack([signals[place] for place in group.places]),
            )
            with_signals.append(signal if rows is None else signal * rows.to(signal))
        parts = []
        for group, ours in zip(groups, _filtered(filters, stacked, with_signals), strict=True):
            theirs = group.through(real_filters, ours.matrices.dtype)
            gaps = zip(self._weights, theirs, ours, strict=True)
            parts += [weight * distances(one, other) for weight, one, other in gaps if weight > 0]
        return torch.stack([part.to(seen.logits.dtype) for part in parts]).sum()

    def _synthetic(
        self, real: RealStatistics, seen: Observation, labels: Tensor, class_counts: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Covariances (d, d) and signals (m, d), one per layer."""
        covariances = cast(
            tuple[Covariance, ...], self.matrices.of(seen, labels, real[self.matrices])
        )
        matrices = [one.covariance[0] for one in covariances]
        if self._signals is None:
            return matrices, [one.mean for one in covariances]
        by_class = cast(
            tuple[LabelCorrelation, ...], self._signals.of(seen, labels, real[self._signals])
        )
        if class_counts is None:
            return matrices, [one.correlation for one in by_class]
        counts = class_counts
        precision = by_class[0].total.dtype
        known = f"frequency among {tuple(counts.tolist())} {precision}"
        scales = derived(labels, known, lambda: _as_frequent(labels, counts).to(precision))
        scales = derived(labels, f"{known} there", lambda: upload(scales, labels.device))
        return matrices, [one.correlation * scales.unsqueeze(-1) for one in by_class]

    def _times_held(
        self, mean: RunningMeans, labels: Tensor, class_counts: Tensor | None
    ) -> Tensor | None:
        """Factors of the rows of averaged signals (m, 1): number of blocks divided by that of
        blocks with the class; None if all are 1.

        A row belongs to one class, at its frequency among the real images, so its mean is taken
        over the blocks with this class; in the other blocks it is zero.
        """
        if self._signals is None or class_counts is None:
            return None
        present = on_host(labels).bincount(minlength=len(class_counts)) > 0
        held = (mean("holds", present.double()) * mean.count).round()
        if bool((held == mean.count).all()):
            # every block has every class, as with blocks of one image of each
            return None
        factors = mean.count / held.clamp(min=1)
        if labels.device.type == "mps":
            factors = factors.float()  # it has no float64
        return upload(factors, labels.device).unsqueeze(-1)

    def precise(self, real: RealStatistics, seen: Observation, context: Context) -> Observation:
        """The same, in float64 if a filter depends on details below the rounding of float32."""
        filters = (*self.filters(context), *self._real_filters(context))
        return self._in_precision(real, seen, filters)

    def _in_precision(
        self, real: RealStatistics, seen: Observation, filters: Iterable[Filter]
    ) -> Observation:
        detail = min(one.detail for one in filters)
        layers = list(seen.layers[self.matrices.layer_role])
        if layers[0].device.type == "mps":
            return seen  # it has no float64
        for group in self._factors(real).groups:
            if detail < ROUNDING * group.size:
                for place in group.places:
                    layers[place] = layers[place].double()
        return replace(seen, layers={**seen.layers, self.matrices.layer_role: tuple(layers)})

    def _factors(self, real: RealStatistics) -> Factors:
        """The factors of these statistics, cached during their lifetime."""
        matrices = cast(tuple[Covariance, ...], real[self.matrices])
        signals = (
            None
            if self._signals is None
            else cast(tuple[LabelCorrelation, ...], real[self._signals])
        )
        factors = self._derived.get(matrices[0])
        if factors is None or not factors.sources.are((*matrices, *(signals or ()))):
            factors = self._derived[matrices[0]] = Factors(matrices, signals)
        return factors


def _filtered(filters: Filters, matrices: list[Tensor], signals: list[Tensor]) -> list[Filtered]:
    try:
        return through(filters, matrices, signals)
    except ValueError as error:
        raise RunError(
            "The features of the synthetic images are no longer finite; lower synthesis.learning_rate, or "
            "terms.spectral_filter.filter.alpha if the filter takes gradient steps."
        ) from error


def _as_frequent(labels: Tensor, class_counts: Tensor) -> Tensor:
    """Factors (m,) of the classes' signals that give each class its frequency among the real
    images.
    """
    numbers = on_host(labels)
    ours = numbers.bincount(minlength=len(class_counts)).double() / len(numbers)
    theirs = class_counts.to(ours) / class_counts.sum()
    return torch.where(ours > 0, theirs / ours.clamp(min=1e-12), 0.0)


def _as_it_is(name: str, current: Tensor) -> Tensor:
    return current
