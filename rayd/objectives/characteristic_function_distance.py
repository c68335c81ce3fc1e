"""Distance of characteristic functions, split into amplitude and phase.

NCFM (Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective",
CVPR 2025) and CSDM, for long-tailed data. With phi_c the characteristic functions of the features
of class c, of real images (r) and synthetic ones (s), at M frequencies t drawn from the spectrum of
a kernel k (`rayd.statistics.frequencies`):

    phi = R + i I = A exp(i theta)         A = sqrt(R^2 + I^2)
    amplitude   (A_r - A_s)^2                                                      how the features spread: diversity
    phase       2 (A_r A_s - R_r R_s - I_r I_s) = 2 A_r A_s (1 - cos(theta_r - theta_s))      where they are: realism
    loss_c = mean_t f [a_c amplitude + (1 - a_c) phase]         f = 2 (`factor`), or with a square root inside the mean

    a_c  amplitude weight of class c in [0, 1], (C,)            amplitude, phase  (C, M)

As amplitude + phase = |phi_r - phi_s|^2, a weight of 1/2 with f = 2 gives the squared spectral
distance. By Bochner's theorem, its average over t is the squared maximum mean discrepancy of both
samples with kernel k (the biased estimate, over all pairs):

    SDD^2 = E_t |phi_r(t) - phi_s(t)|^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

and at given frequencies it is exactly that with the kernel mean_j cos<t_j, x - y>. The cost is
linear in the number of samples, not of their pairs.

**Square root** (NCFM). It is inside the mean over frequencies; with f = 1 and a = 1/2, each
frequency contributes |phi_r - phi_s| / sqrt(2). Here it is sqrt(z + e) - sqrt(e) with e = 1e-12, so
that equal samples give zero, with gradient zero.

**Weights of frequencies.** With an adversary (`rayd.objectives.frequency_network`) the mean over t
is weighted by a network that takes a step of gradient ascent in every call.

**Linear kernel.** <x, y> is not shift-invariant and has no spectrum. It is the limit of long
lengths s: amplitudes agree to higher order, and s^2 phase -> ||mean_r - mean_s||^2 on average. With
moments in place of characteristic functions, a class contributes loss_c = f (1 - a_c) ||mean_r -
mean_s||^2, which is DM's loss for a = 1/2, or its square root.

**Paper and released code differ.** NCFM's code clamps the phase at 1e-12, as A_r A_s - R_r R_s -
I_r I_s cancels to noise around zero; here the phase is computed from the cross product R_r I_s -
I_r R_s where the angle is acute, so it neither cancels nor becomes negative. The gradient of an
amplitude is zero where a characteristic function vanishes. NCFM takes one optimizer step per class,
for which a sum over classes is the equivalent; CSDM's formula is a mean.
"""

from __future__ import annotations

import math
from typing import cast, get_args

import torch
from torch import Tensor

from rayd.config.choices import OverClasses, Split
from rayd.derived import derived
from rayd.networks import Observation
from rayd.objectives.frequency_network import FrequencyAdversary
from rayd.objectives.head_and_tail import amplitude_weights, check
from rayd.objectives.specification import StatisticSpec
from rayd.objectives.terms import Context, RealStatistics
from rayd.statistics import CharacteristicFunction, Moments
from rayd.transfer import upload

ROOT_EPSILON = 1e-12
"""Offset inside the square root, in units of |phi|^2."""

_Kind = CharacteristicFunction | Moments


def amplitude(phi: CharacteristicFunction) -> Tensor:
    """Absolute values of a characteristic function (C, M), with gradient zero at zero."""
    squares = phi.real.square() + phi.imaginary.square()
    # not `> 0`, which is false for NaN: diverged values would be read as zero
    present = squares != 0
    return torch.where(present, squares, 1.0).sqrt() * present


def amplitude_part(real: CharacteristicFunction, synthetic: CharacteristicFunction) -> Tensor:
    """Squared difference of amplitudes (C, M)."""
    return (amplitude(real) - amplitude(synthetic)).square()


def phase_part(real: CharacteristicFunction, synthetic: CharacteristicFunction) -> Tensor:
    """The phase term (C, M), which is |phi_r - phi_s|^2 without the amplitudes' part and at least
    0: 2 A_r A_s (1 - cos of the angle between them).

    For an acute angle 1 - cos is sin^2 / (1 + cos), which does not cancel.
    """
    aligned = real.real * synthetic.real + real.imaginary * synthetic.imaginary
    # the cross product in terms of differences: if they are small, so is its rounding error
    across = real.real * (synthetic.imaginary - real.imaginary) - real.imaginary * (
        synthetic.real - real.real
    )
    product = amplitude(real) * amplitude(synthetic)
    # below this, squares in the gradient underflow, and the contribution is negligible
    acute = aligned > math.sqrt(torch.finfo(aligned.dtype).tiny)
    return 2 * torch.where(
        acute, across.square() / torch.where(acute, product + aligned, 1.0), product - aligned
    )


def characteristic_function_gaps(
    real: CharacteristicFunction,
    synthetic: CharacteristicFunction,
    amplitude_weight: Tensor,
    *,
    factor: float = 2.0,
    root: bool = False,
) -> Tensor:
    """Contributions of classes and frequencies (C, M): their mean over frequencies is the distance
    of a class.

    Args:
        real: characteristic function of the real features.
        synthetic: that of the synthetic features, at the same frequencies.
        amplitude_weight: weights a of the amplitudes (C,); phases have weight 1 - a.
        factor: factor of amplitude and phase.
        root: whether to take the square root.
    """
    weight = amplitude_weight.to(synthetic.cosine).unsqueeze(1)
    gaps = factor * (
        weight * amplitude_part(real, synthetic) + (1 - weight) * phase_part(real, synthetic)
    )
    return _root(gaps) if root else gaps


def mean_gaps(
    real: Moments,
    synthetic: Moments,
    amplitude_weight: Tensor,
    *,
    factor: float = 2.0,
    root: bool = False,
) -> Tensor:
    """Contributions for the linear kernel (C, 1): distances of means, which are pure phase."""
    squares = (real.mean - synthetic.mean).square().sum(1, keepdim=True)
    gaps = factor * (1 - amplitude_weight.to(squares)).unsqueeze(1) * squares
    return _root(gaps) if root else gaps


class CharacteristicFunctionDistance:
    """Distance of the characteristic functions of classes, with amplitudes and phases weighted by
    the size of the class.
    """

    def __init__(
        self,
        spec: StatisticSpec,
        *,
        head_amplitude_weight: float = 0.5,
        split: Split = "uniform",
        factor: float = 2.0,
        root: bool = False,
        over_classes: OverClasses = "mean",
        adversary: FrequencyAdversary | None = None,
    ):
        """Compare one statistic.

        Args:
            spec: a characteristic function, or moments for the linear kernel.
            head_amplitude_weight: weight a of amplitudes in head classes, where phases have 1 - a;
                in tail classes the weights are swapped.
            split: which classes are head classes; see `rayd.objectives.head_and_tail`.
            factor: factor of amplitude and phase.
            root: whether to take the square root, frequency by frequency.
            over_classes: mean or sum over the classes of which both sides have samples.
            adversary: weights frequencies against the synthesis; None weights all equally.

        Raises:
            ValueError: an argument is out of its range.
        """
        if spec.kind.statistic not in (CharacteristicFunction, Moments):
            raise ValueError(
                "The statistic of CharacteristicFunctionDistance must be a CharacteristicFunction, "
                f"or Moments for the linear kernel. Got '{spec.key}' instead."
            )
        if adversary is not None and spec.kind.statistic is Moments:
            raise ValueError(
                "The 'adversary' of CharacteristicFunctionDistance needs frequencies to weight. Got Moments instead."
            )
        check(head_amplitude_weight, split)
        if not factor > 0:
            raise ValueError(
                f"The 'factor' of CharacteristicFunctionDistance must be above 0. Got {factor} instead."
            )
        if over_classes not in get_args(OverClasses):
            raise ValueError(
                "The 'over_classes' of CharacteristicFunctionDistance must be one of "
                f"{get_args(OverClasses)}. Got '{over_classes}' instead."
            )
        self.specs = (spec,)
        """The statistic."""
        self._head_weight = head_amplitude_weight
        self._split = split
        self._factor = factor
        self._root = root
        self._over_classes = over_classes
        self._adversary = adversary

    def __call__(
        self, real: RealStatistics, seen: Observation, labels: Tensor, context: Context
    ) -> Tensor:
        """Sum over the layers of the statistic; labels are class indices (N,)."""
        (spec,) = self.specs
        layers = zip(real[spec], spec.of(seen, labels, real[spec]), strict=True)
        values = [
            self._layer(cast(_Kind, a), cast(_Kind, b), context, f"layer{i}.")
            for i, (a, b) in enumerate(layers)
        ]
        return torch.stack(values).sum()

    def _layer(self, real: _Kind, synthetic: _Kind, context: Context, place: str) -> Tensor:
        """The value of one layer, whose index is the prefix of its names in the memory."""
        weights = self._amplitude_weights(real.count, context.class_counts)
        both = ((real.count > 0) & (synthetic.count > 0)).to(weights)
        if isinstance(real, Moments):
            by_class = mean_gaps(
                real, cast(Moments, synthetic), weights, factor=self._factor, root=self._root
            ).squeeze(1)
        else:
            other = cast(CharacteristicFunction, synthetic)
            gaps = characteristic_function_gaps(
                real, other, weights, factor=self._factor, root=self._root
            )
            by_class = self._over_frequencies(gaps, real.frequencies, both, context, place)
        total: Tensor = (by_class * both).sum()
        return total if self._over_classes == "sum" else total / both.sum().clamp(min=1)

    def _amplitude_weights(self, measured: Tensor, class_counts: Tensor | None) -> Tensor:
        """Weights of the amplitudes (C,), by the size of the real classes if known, otherwise by
        the number of measured feature vectors.
        """
        if class_counts is None:
            return amplitude_weights(measured, self._head_weight, self._split)

        def weigh() -> Tensor:
            # computed on the host, where the sizes are
            return upload(
                amplitude_weights(class_counts.to(measured.dtype), self._head_weight, self._split),
                measured.device,
            )

        return derived(measured, f"amplitude weights of {tuple(class_counts.tolist())}", weigh)

    def _over_frequencies(
        self, gaps: Tensor, frequencies: Tensor, both: Tensor, context: Context, place: str
    ) -> Tensor:
        """Mean over the frequencies (C,) of gaps (C, M), weighted by the adversary, if any."""
        if self._adversary is None:
            return gaps.mean(1)
        weights, after = self._adversary.step(
            frequencies.to(gaps),
            (both @ gaps).detach(),
            {
                name.removeprefix(place): kept
                for name, kept in context.memory.items()
                if name.startswith(place)
            },
            lambda: context.generator(f"frequency network {place}"),
        )
        context.memory.update({place + name: tensor for name, tensor in after.items()})
        return gaps @ weights


def _root(values: Tensor) -> Tensor:
    """Square roots that are zero at zero, with a finite gradient."""
    return (values + ROOT_EPSILON).sqrt() - math.sqrt(ROOT_EPSILON)
