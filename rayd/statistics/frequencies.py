"""Frequencies at which characteristic functions are compared: spectral samplers of shift-invariant
kernels.

Bochner (1933), used for sampling by Rahimi and Recht, "Random Features for Large-Scale Kernel
Machines" (NeurIPS 2007): a kernel k(x, y) = kappa(x - y) with kappa(0) = 1 is the Fourier transform
of a probability measure, its spectrum,

    kappa(delta) = E_t cos<t, delta>          t, delta (d,)

so that frequencies t drawn from the spectrum represent the kernel. With the length s (`scale`), in
units of the features:

    kernel               kappa(delta)                               t
    gaussian             exp(-|delta|^2 / 2 s^2)                    z / s
    laplace              exp(-|delta|_1 / s)                        every coordinate Cauchy / s
    isotropic-laplace    exp(-|delta|_2 / s)                        z / s / |z'|
    matern               2^(1-v)/G(v) u^v K_v(u), u = sqrt(2v) |delta| / s      z / s / sqrt(g_v / v)
    rational-quadratic   (1 + |delta|^2 / 2 a s^2)^-a               z / s sqrt(g_a / a)

    z   standard normal (d,), z' a standard normal number       G    gamma function, K_v modified Bessel function
    g_b gamma variate of shape b and rate 1, one a frequency    v, a `smoothness`, `mixture`

The isotropic Laplace kernel is Matern's with v = 1/2, the Gaussian one its limit. In all of them s
only divides: frequencies of length s are those of length 1 divided by s, with the same draws.

**Length.** If features are far apart in units of s, characteristic functions and their gradients
vanish; features of norm 1 are at most 2 apart, and s = 1 is NCFM's choice. For features without
normalisation, `scale: median` takes the median distance of pairs of real ones (Gretton et al., JMLR
2012), in the norm of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from rayd.config.choices import Kernel, Scale
from rayd.errors import DataError
from rayd.transfer import upload

PAIRED = 512
"""Maximum number of feature vectors for the median over pairs: evenly spaced ones of those given.
"""


@dataclass(frozen=True)
class Frequencies:
    """Frequencies to draw: a kernel, whose spectrum they are drawn from, its length, and their
    number.
    """

    kernel: Kernel = "gaussian"
    """Kernel whose spectrum is sampled."""
    scale: Scale = 1.0
    """Length of the kernel, above 0, or `median`."""
    number: int = 4096
    """Number of frequencies, M."""
    smoothness: float = 1.5
    """Matern's v; has no effect on other kernels."""
    mixture: float = 1.0
    """The a of the rational quadratic kernel; has no effect on other kernels."""

    def __post_init__(self) -> None:
        if self.kernel not in get_args(Kernel):
            raise ValueError(
                f"The 'kernel' of Frequencies must be one of {get_args(Kernel)}. Got '{self.kernel}' instead."
            )
        if self.number < 1:
            raise ValueError(
                f"The 'number' of Frequencies must be at least 1. Got {self.number} instead."
            )
        if isinstance(self.scale, str) and self.scale != "median":
            raise ValueError(
                f"The 'scale' of Frequencies must be a length or 'median'. Got '{self.scale}' instead."
            )
        numbers = {"smoothness": self.smoothness, "mixture": self.mixture}
        numbers |= {} if isinstance(self.scale, str) else {"scale": self.scale}
        for name, value in numbers.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"The '{name}' of Frequencies must be finite and above 0. Got {value} instead."
                )

    @property
    def key(self) -> str:
        """A stable name of everything that the draws depend on, for files and cache keys.

        >>> Frequencies("matern", 0.5, 64).key, Frequencies(scale="median").key
        ('matern1.5-0.5-64', 'gaussian-median-4096')
        """
        own = {"matern": f"{self.smoothness!r}", "rational-quadratic": f"{self.mixture!r}"}.get(
            self.kernel, ""
        )
        scale = self.scale if isinstance(self.scale, str) else f"{float(self.scale)!r}"
        return f"{self.kernel}{own}-{scale}-{self.number}"

    def resolved(self, features: Tensor) -> Frequencies:
        """Replace a length of `median` by the median distance of feature vectors (n, d); a numeric
        length is kept.

        Raises:
            DataError: there are fewer than two vectors, or more than half of the pairs coincide.
        """
        if self.scale != "median":
            return self
        length = median_distance(features, 1.0 if self.kernel == "laplace" else 2.0)
        if not length > 0:
            raise DataError(
                "The 'scale' of frequencies cannot be the median distance of features that are mostly equal. "
                "Give it as a number."
            )
        return replace(self, scale=length)

    def draw(self, dimension: int, generator: torch.Generator) -> Tensor:
        """Draw frequencies for feature vectors of dimension d, float64 (M, d).

        Raises:
            ValueError: the length is not resolved.
        """
        return _SPECTRA[self.kernel](self, dimension, generator) / self._length

    def closed_form(self, difference: Tensor) -> Tensor:
        """The kernel kappa (...) that the frequencies represent, at differences of feature vectors
        (..., d).

        Raises:
            ValueError: the length is not resolved, or a Matern kernel has no closed form.
        """
        return _CLOSED_FORMS[self.kernel](self, difference / self._length)

    @property
    def _length(self) -> float:
        if isinstance(self.scale, str):
            raise ValueError(
                "The 'scale' of Frequencies must be a number here: resolve 'median' on features first."
            )
        return self.scale


def evenly_spaced(count: int) -> Tensor:
    """Indices of `PAIRED` evenly spaced items of `count`, or of all of them."""
    some = min(count, PAIRED)
    return torch.arange(some) * count // max(some, 1)


def median_distance(features: Tensor, order: float = 2.0) -> float:
    """Median distance of pairs of feature vectors (n, d), in the norm of an order, in float64.

    If there are more than `PAIRED` vectors, that many are used, evenly spaced.

    Raises:
        DataError: there are fewer than two vectors.
    """
    if len(features) < 2:
        raise DataError(
            f"A median distance needs at least 2 feature vectors. Got {len(features)} instead."
        )
    places = evenly_spaced(len(features))
    chosen = features.detach()[upload(places, features.device)].cpu().double()
    return float(torch.pdist(chosen, order).median())


def _normal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def _gamma(shape: float, rows: int, generator: torch.Generator) -> Tensor:
    """Gamma variates (rows, 1) of a shape and rate 1; `torch.distributions` takes no generator."""
    return torch._standard_gamma(
        torch.full((rows, 1), shape, dtype=torch.float64), generator=generator
    )


def _gaussian(of: Frequencies, dimension: int, generator: torch.Generator) -> Tensor:
    return _normal(of.number, dimension, generator)


def _laplace(of: Frequencies, dimension: int, generator: torch.Generator) -> Tensor:
    return torch.empty(of.number, dimension, dtype=torch.float64).cauchy_(generator=generator)


def _isotropic_laplace(of: Frequencies, dimension: int, generator: torch.Generator) -> Tensor:
    return _normal(of.number, dimension, generator) / _normal(of.number, 1, generator).abs()


def _matern(of: Frequencies, dimension: int, generator: torch.Generator) -> Tensor:
    normal = _normal(of.number, dimension, generator)
    return normal / (_gamma(of.smoothness, of.number, generator) / of.smoothness).sqrt()


def _rational_quadratic(of: Frequencies, dimension: int, generator: torch.Generator) -> Tensor:
    normal = _normal(of.number, dimension, generator)
    return normal * (_gamma(of.mixture, of.number, generator) / of.mixture).sqrt()


_SPECTRA: Mapping[str, Callable[[Frequencies, int, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "laplace": _laplace,
    "isotropic-laplace": _isotropic_laplace,
    "matern": _matern,
    "rational-quadratic": _rational_quadratic,
}
"""Draws of length 1, float64 (M, d)."""


def _matern_form(of: Frequencies, difference: Tensor) -> Tensor:
    """A polynomial times an exponential, for half-integer smoothness p + 1/2."""
    p = int(of.smoothness - 0.5)
    if p != of.smoothness - 0.5:
        raise ValueError(
            f"A Matern kernel has a closed form only for smoothness 0.5, 1.5, ... Got {of.smoothness} instead."
        )
    distance = math.sqrt(2 * of.smoothness) * difference.norm(dim=-1)
    polynomial = torch.zeros_like(distance)
    for i in range(p + 1):
        coefficient = math.factorial(2 * p - i) // (math.factorial(i) * math.factorial(p - i))
        polynomial = polynomial + coefficient * (2 * distance) ** i
    kernel: Tensor = polynomial * (-distance).exp() * (math.factorial(p) / math.factorial(2 * p))
    return kernel


_CLOSED_FORMS: Mapping[str, Callable[[Frequencies, Tensor], Tensor]] = {
    "gaussian": lambda of, difference: (-difference.square().sum(-1) / 2).exp(),
    "laplace": lambda of, difference: (-difference.abs().sum(-1)).exp(),
    "isotropic-laplace": lambda of, difference: (-difference.norm(dim=-1)).exp(),
    "matern": _matern_form,
    "rational-quadratic": lambda of, difference: (
        (1 + difference.square().sum(-1) / (2 * of.mixture)) ** -of.mixture
    ),
}
"""Kernels of length 1."""
