"""Means and variances of layers' inputs, matched over all images and class by class.

The matching term of SRe2L (Yin, Xing and Shen, NeurIPS 2023: a = 1, inputs of batch
normalisations), of G-VBSM (Shao et al., CVPR 2024: inputs of convolutions too, smoothed) and of EDC
(Shao et al., NeurIPS 2024: soft category-aware matching):

    loss = sum_l w_l [ a D(all X, all T) + (1 - a) sum_c p(c) D(X_c, T_c) ]
    D(X, T) = || mean_l(X) - mean_l(T) ||_2 + v || var_l(X) - var_l(T) ||_2

    l    layers of the roles under a transform: inputs of normalisations or convolutions by channel,
         or by patch
    X    synthetic images, X_c those of class c; the sum over c runs over the classes that X holds
    p(c) share of class c in the real images of these classes (EDC, Eq. 5): 1 / K for K of equal size
    T    real images; statistics of all of them are merged from those of the classes, the part
         between classes included
    w_l  1, but for the first layer of a role         a  alpha, a share in [0, 1]
    v    1, but for DWA (Du et al., NeurIPS 2024)

Norms are not squared, variances are biased. Statistics of X may be smoothed over steps (G-VBSM):
with m in [0, 1)

    s <- m s + (1 - m) stat      value s, gradient of stat      s = 0 at first, without correction for that

separately for each observer and block of images. With m = 0 they are the plain statistics. Layers
may also be dropped: a layer is left out of a step with a given probability, under all transforms at
once, and its smoothed statistics are not updated.

**Variance of a class** (`category`). A map's variance has a part inside images and a part between
them.

- `class`: all of it on both sides, as the papers define it.
- `instance`: the part inside images on both sides. The released code of EDC keeps the average over
  a class's images of the variance inside each as the class's statistic; this compares it with the
  same quantity of X.
- `batch`: what the code actually computes. There is one comparison instead of one per class, of the
  statistics of *all* of X (whose variance includes the part between images) with the average over
  the images of X of their classes' mean and inside variance.

Paper and code agree that the smoothed statistics enter with weight (1 - m) on the current one, and
that the first hooked layer has ten times the weight. The released code hooks the first convolution
before the first normalisation, so in G-VBSM and EDC the factor of ten applies to the input of the
first convolution (both views), in SRe2L to that of the first normalisation; it drops convolutions
only. It takes the targets of normalisations from their running statistics; here, they are measured
over the whole training set like all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from rayd.config.choices import Category
from rayd.networks import LayerRole, Observation
from rayd.objectives.batch_parts import OtherParts
from rayd.objectives.specification import StatisticSpec
from rayd.objectives.targets import Target, Targets
from rayd.objectives.terms import Context, RealStatistics
from rayd.statistics import Moments, SampleMoments
from rayd.statistics.base import membership
from rayd.transfer import upload


class MomentDistance:
    """Distances of means and variances of layers' inputs, over all images and over classes.

    All layers are compared at once, in a table of D columns (the features of all layers) and K rows
    (the classes among the images), so that the number of operations of a step does not grow with the
    depth of the network; see `rayd.objectives.targets`.
    """

    def __init__(
        self,
        specs: Sequence[StatisticSpec],
        *,
        alpha: float = 1.0,
        category: Category = "class",
        momentum: float = 0.0,
        first_layer_weight: Mapping[LayerRole, float] | None = None,
        drop: Mapping[LayerRole, float] | None = None,
        variance_weight: float = 1.0,
    ):
        """Match the moments given by `specs`.

        Args:
            specs: statistics, all of them `Moments`.
            alpha: share of the comparison over all images; the comparison by class has the rest. A
                comparison without a share is not computed.
            category: variance that represents a class.
            momentum: momentum of the smoothing over steps; 0 for none.
            first_layer_weight: factor of the first layer of a role, under all transforms; 1 for
                roles that are not named.
            drop: probability with which a layer of a role is left out of a call; 0 for roles that
                are not named.
            variance_weight: factor of the distances of variances.

        Raises:
            ValueError: an argument is out of its range.
        """
        self.specs = tuple(specs)
        """The statistics."""
        self._alpha = alpha
        self._category = category
        self._momentum = momentum
        self._first = dict(first_layer_weight or {})
        self._drop = dict(drop or {})
        self._variance_weight = variance_weight
        self._derived: WeakKeyDictionary[Moments, Targets] = WeakKeyDictionary()
        for label, value in {
            "alpha": alpha,
            **{f"drop[{role}]": share for role, share in self._drop.items()},
        }.items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"The '{label}' of MomentDistance must be in [0, 1]. Got {value} instead."
                )
        if not 0 <= momentum < 1:
            raise ValueError(
                f"The 'momentum' of MomentDistance must be in [0, 1). Got {momentum} instead."
            )
        for spec in self.specs:
            if spec.kind.statistic is not Moments:
                raise ValueError(
                    f"The 'specs' of MomentDistance must be Moments. Got '{spec.key}' instead."
                )

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Weighted sum of the distances of all layers; labels are class indices (N,)."""
        layers = [
            _Layer(spec, place, maps, seen.others)
            for spec in self.specs
            for place, maps in enumerate(seen.layers[spec.layer_role])
        ]
        kept = self._kept(layers, context)
        if not any(kept):
            return seen.logits.new_zeros(())
        targets = self._targets(
            [cast(Moments, statistic) for spec in self.specs for statistic in real[spec]]
        )
        kept_layers = list(compress(layers, kept))
        samples = _side_by_side(kept_layers)
        columns, layer_of, weights = self._plan(targets, kept, kept_layers, samples.mean)
        table = _Table(
            columns=columns,
            width=sum(targets.widths),
            layers=layer_of,
            weights=weights,
            momentum=self._momentum,
            memory=context.memory,
            variance_weight=self._variance_weight,
        )
        return self._distance(targets, samples, labels, table)

    def _plan(
        self, targets: Targets, kept: Sequence[bool], kept_layers: Sequence[_Layer], like: Tensor
    ) -> tuple[Tensor | slice, Tensor, Tensor]:
        """Columns, one-hot layers and weights of the layers that are compared.

        If no layer is dropped, they are the same in every step, and cached with the targets.
        """
        if all(kept) and targets.plan is not None and targets.plan[1].dtype == like.dtype:
            return slice(None), *targets.plan
        columns = (
            slice(None) if all(kept) else upload(_columns(targets.widths, list(kept)), like.device)
        )
        layer_of = _layer_of(list(compress(targets.widths, kept)), like)
        weights = upload(
            torch.tensor([self._layer_weight(layer) for layer in kept_layers], dtype=like.dtype),
            like.device,
        )
        if all(kept):
            targets.plan = layer_of, weights
        return columns, layer_of, weights

    def _distance(
        self, targets: Targets, samples: SampleMoments, labels: Tensor, table: _Table
    ) -> Tensor:
        """The loss: comparisons over all images and class by class, weighted."""
        parts = []
        over_all = [(self._alpha, targets.everything)] if self._alpha > 0 else []
        if self._alpha < 1:
            classes = targets.classes(labels)
            if self._category == "batch":
                over_all.append((1 - self._alpha, classes.average))
            else:
                ours = Moments.of_samples(samples, classes.rows, len(classes.each.share))
                variance = ours.within_variance if self._category == "instance" else ours.variance
                parts.append(
                    (1 - self._alpha)
                    * table.distance(classes.each, *table.smoothed("class", ours.mean, variance))
                )
        if over_all:
            one_row = Moments.of_samples(samples, torch.zeros_like(labels), 1)
            smoothed = table.smoothed("all", one_row.mean, one_row.variance)
            parts += [share * table.distance(target, *smoothed) for share, target in over_all]
        return torch.stack(parts).sum()

    def _layer_weight(self, layer: _Layer) -> float:
        return self._first.get(layer.spec.layer_role, 1.0) if layer.place == 0 else 1.0

    def _kept(self, layers: Sequence[_Layer], context: Context) -> list[bool]:
        """Select the layers of this call, by one draw for each layer of a role."""
        named = sorted(
            {
                (layer.spec.layer_role, layer.place)
                for layer in layers
                if self._drop.get(layer.spec.layer_role, 0) > 0
            }
        )
        if not named:
            return [True] * len(layers)
        draws = torch.rand(len(named), generator=context.generator("statistic drop")).tolist()
        dropped = {
            place for place, draw in zip(named, draws, strict=True) if draw < self._drop[place[0]]
        }
        return [(layer.spec.layer_role, layer.place) not in dropped for layer in layers]

    def _targets(self, statistics: list[Moments]) -> Targets:
        """The targets of these statistics, cached during their lifetime."""
        targets = self._derived.get(statistics[0])
        if targets is None or not targets.sources.are(statistics):
            targets = self._derived[statistics[0]] = Targets(
                statistics, inside=self._category != "class"
            )
        return targets


class _Layer(NamedTuple):
    """One layer under one transform."""

    spec: StatisticSpec
    place: int
    maps: Tensor
    others: OtherParts | None

    @property
    def moments(self) -> SampleMoments:
        """Moments of every image of the batch."""
        own = self.spec.transform.moments(self.maps)
        return own if self.others is None else self.others.samples(self.spec, self.place, own)


@dataclass(frozen=True)
class _Table:
    """The table of one call: its columns, and how rows are smoothed and compared."""

    columns: Tensor | slice
    """Indices of the compared layers' columns among those of all layers."""
    width: int
    """Number of columns of all layers."""
    layers: Tensor
    """One-hot rows of the compared layer to which a column belongs (D, L)."""
    weights: Tensor
    """Weights of the layers (L,)."""
    momentum: float
    memory: dict[str, Tensor]
    variance_weight: float
    """Factor of the distances of variances."""

    def smoothed(self, rows: str, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Both statistics (K, D), smoothed over steps."""
        return self._smoothed(f"{rows} mean", mean), self._smoothed(f"{rows} variance", variance)

    def _smoothed(self, name: str, value: Tensor) -> Tensor:
        """The smoothed value, with the gradient of the current one."""
        if self.momentum == 0:
            return value
        current = value.detach()
        kept = self.memory.get(name)
        after = (
            current.new_zeros(len(current), self.width)
            if kept is None
            else kept.to(current, copy=True)
        )
        now = self.momentum * after[:, self.columns] + (1 - self.momentum) * current
        after[:, self.columns] = now
        self.memory[name] = after
        return value - current + now

    def distance(self, target: Target, mean: Tensor, variance: Tensor) -> Tensor:
        """Weighted sum of the distances of both statistics over layers and rows."""
        means = _root((mean - target.mean[:, self.columns]).square() @ self.layers)
        variances = _root((variance - target.variance[:, self.columns]).square() @ self.layers)
        if self.variance_weight != 1:
            variances = self.variance_weight * variances
        return target.share @ (means + variances) @ self.weights


def _side_by_side(layers: Sequence[_Layer]) -> SampleMoments:
    """Mean and variance of every sample, with the columns of all layers concatenated.

    Variances replace sums of squares, with a size of 1, as the number of vectors per sample differs
    between layers.
    """
    parts = [layer.moments for layer in layers]
    means = torch.cat([part.mean for part in parts], 1)
    return SampleMoments(means, torch.cat([part.m2 / part.size for part in parts], 1), 1)


def _layer_of(widths: list[int], like: Tensor) -> Tensor:
    """One-hot rows (D, L) of the layer to which each column belongs."""
    index = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
    return membership(upload(index, like.device), len(widths), like.dtype)


def _columns(widths: list[int], kept: list[bool]) -> Tensor:
    """Indices of the columns of the layers that are kept."""
    return torch.tensor(kept).repeat_interleave(torch.tensor(widths)).nonzero().squeeze(1)


def _root(squares: Tensor) -> Tensor:
    """Square roots, with gradient zero at zero, as norms have."""
    # not `> 0`, which is false for NaN: a diverged distance would be read as a perfect one
    apart = squares != 0
    return torch.where(apart, squares, 1.0).sqrt() * apart
