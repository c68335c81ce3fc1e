"""Spectral filters: functions of the eigenvalues of a matrix of feature correlations.

Bo, Liu and Wang, "Understanding Dataset Distillation via Spectral Filtering" (UniDD, ICLR 2026):

    C = Q diag(l_1, ..., l_d) Q^T
    f(C) = Q diag(f(l_1), ..., f(l_d)) Q^T

    C    correlation of features with features, "FFC" (d, d), symmetric and without negative eigenvalues
    l_i  its eigenvalues

    filter          f(l)                                 whose                                      computed by
    AllPass         1                                    DM; DC beside LowPass                      nothing
    LowPass         l                                    DC                                         nothing
    GradientStep    (1 - alpha l)^p                      MTT: p gradient steps                      products, by squaring
    GradientSum     alpha sum_{i<p} (1 - alpha l)^i      what p steps from zero make of a signal    products, by doubling
    Ridge           1 / (l + beta)                       FRePo, KIP, CFM: a ridge regression        Cholesky factor

Large eigenvalues are low frequencies: coarse structure that all images share; small ones are
detail. The smaller beta is, the more weight Ridge gives to detail. As p grows, GradientSum
approaches 1 / l for alpha l < 2, just as gradient descent approaches the least squares solution.

**Few images.** With few feature vectors, C has eigenvalues 0, some of which become negative by
rounding. A ridge above the rounding error compensates for this. With a smaller ridge there is no
Cholesky factor, and the eigendecomposition is used, with negative eigenvalues set to zero. For
finite matrices, filters and their gradients are finite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from rayd.config import FilterSettings


@dataclass(frozen=True)
class Filter(ABC):
    """A function f of eigenvalues. Equal filters give equal results."""

    factorises: ClassVar[bool] = False
    """Whether it needs a factorisation, so that an eigendecomposition is cheaper for several
    filters of the same matrix.
    """

    @abstractmethod
    def response(self, eigenvalues: Tensor) -> Tensor:
        """The value f(l) for eigenvalues l of any shape."""

    @abstractmethod
    def __call__(self, matrices: Tensor) -> Tensor:
        """The value f(C) for symmetric matrices C (..., d, d) without negative eigenvalues;
        differentiable.
        """

    def of_each(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        """The values for several stacks of matrices (..., d, d), each with its own dimension d."""
        return [self(matrices) for matrices in stacks]

    @property
    def limit(self) -> float:
        """The eigenvalue above which gradient steps diverge, which is an error."""
        return inf

    @property
    def detail(self) -> float:
        """The smallest eigenvalue that the filter distinguishes from 0; the rounding error of a
        matrix must be smaller.
        """
        return inf


@dataclass(frozen=True)
class AllPass(Filter):
    """f(l) = 1: the identity.

    >>> AllPass()(torch.eye(2) * 3).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def response(self, eigenvalues: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(eigenvalues)

    def __call__(self, matrices: Tensor) -> Tensor:
        """The identity."""
        return _identity(matrices).expand_as(matrices)


@dataclass(frozen=True)
class LowPass(Filter):
    """f(l) = l: emphasises what many images have in common.

    >>> LowPass()(torch.eye(2) * 3).tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """

    def response(self, eigenvalues: Tensor) -> Tensor:
        """The eigenvalues."""
        return eigenvalues

    def __call__(self, matrices: Tensor) -> Tensor:
        """The matrices themselves."""
        return matrices


@dataclass(frozen=True)
class GradientStep(Filter):
    """f(l) = (1 - step_size l)^power: factor of the initial weights of a linear regression after
    gradient steps.

    >>> GradientStep(step_size=0.5, power=2)(torch.eye(1)).item()
    0.25
    """

    step_size: float
    """Step size of the gradient steps, the alpha."""
    power: int = 1
    """Number of gradient steps, the p."""

    def __post_init__(self) -> None:
        _check_steps(type(self).__name__, self.step_size, self.power)

    def response(self, eigenvalues: Tensor) -> Tensor:
        """(1 - step_size l)^power."""
        return (1 - self.step_size * eigenvalues) ** self.power

    def __call__(self, matrices: Tensor) -> Tensor:
        """(I - step_size C)^power."""
        left: Tensor = torch.linalg.matrix_power(
            _identity(matrices) - self.step_size * matrices, self.power
        )
        return left

    @property
    def limit(self) -> float:
        """2 / step_size."""
        return _limit(self.step_size, self.power)


@dataclass(frozen=True)
class GradientSum(Filter):
    """f(l) = step_size sum_{i < power} (1 - step_size l)^i: weights of a linear regression after
    gradient steps from zero.

    >>> GradientSum(step_size=0.5, power=2)(torch.eye(1)).item()
    0.75
    """

    step_size: float
    """Step size of the gradient steps, the alpha."""
    power: int = 1
    """Number of gradient steps, the p."""

    def __post_init__(self) -> None:
        _check_steps(type(self).__name__, self.step_size, self.power)

    def response(self, eigenvalues: Tensor) -> Tensor:
        """Horner's rule, which is exact at l = 0 too."""
        total = torch.zeros_like(eigenvalues)
        for _ in range(self.power):
            total = self.step_size + (1 - self.step_size * eigenvalues) * total
        return total

    def __call__(self, matrices: Tensor) -> Tensor:
        """The sum over steps, by doubling along the binary digits of their number."""
        if self.power == 0:
            return torch.zeros_like(matrices)
        first = self.step_size * _identity(matrices)
        step = _identity(matrices) - self.step_size * matrices
        total = first.expand_as(matrices)
        power = step
        for digit in format(self.power, "b")[1:]:
            total = total + power @ total
            power = power @ power
            if digit == "1":
                total = first + step @ total
                power = step @ power
        return total

    @property
    def limit(self) -> float:
        """2 / step_size."""
        return _limit(self.step_size, self.power)


@dataclass(frozen=True)
class Ridge(Filter):
    """f(l) = 1 / (l + beta): a ridge regression.

    >>> Ridge(beta=1.0)(torch.eye(2) * 3).diagonal().tolist()
    [0.25, 0.25]
    """

    factorises = True

    beta: float
    """The ridge, in units of the matrix; above 0."""

    def __post_init__(self) -> None:
        if not (isfinite(self.beta) and self.beta > 0):
            raise ValueError(
                f"The 'beta' of Ridge must be a finite number above 0. Got {self.beta} instead."
            )

    def response(self, eigenvalues: Tensor) -> Tensor:
        """1 / (l + beta); negative l are rounding errors of 0."""
        return 1 / (eigenvalues.clamp(min=0) + self.beta)

    def __call__(self, matrices: Tensor) -> Tensor:
        """(C + beta I)^-1."""
        return self.of_each([matrices])[0]

    def of_each(self, stacks: Sequence[Tensor]) -> list[Tensor]:
        """(C + beta I)^-1 of each, with a single synchronisation to check all factors."""
        return list(_Resolvent.apply(self, *stacks))

    @property
    def detail(self) -> float:
        """The ridge itself."""
        return self.beta


class Spectrum(NamedTuple):
    """Eigendecomposition of symmetric matrices, with which any filter costs one product."""

    values: Tensor
    """Ascending (..., d)."""
    vectors: Tensor
    """Eigenvectors as columns, in the same order (..., d, d)."""

    @classmethod
    def of(cls, matrices: Tensor) -> Spectrum:
        """Decompose symmetric matrices (..., d, d), without autograd."""
        with torch.no_grad():
            return cls(*torch.linalg.eigh(_able(matrices)))

    def filtered(self, function: Filter) -> Tensor:
        """The value f(C) of a filter f, (..., d, d)."""
        return (self.vectors * function.response(self.values).unsqueeze(-2)) @ self.vectors.mT


def of_settings(settings: FilterSettings, parameter: float) -> Filter:
    """Build the filter of settings, with the scheduled value of its beta or alpha.

    >>> of_settings(FilterSettings(name="ridge"), 0.5)
    Ridge(beta=0.5)
    """
    match settings.name:
        case "all-pass":
            return AllPass()
        case "low-pass":
            return LowPass()
        case "gradient":
            return GradientStep(parameter, settings.power)
        case "gradient-sum":
            return GradientSum(parameter, settings.power)
        case "ridge":
            return Ridge(parameter)


class _Resolvent(torch.autograd.Function):
    """F = (C + beta I)^-1 of symmetric matrices. With G the gradient of F, that of C is -F G F,
    which needs no further solve.
    """

    @staticmethod
    def forward(ridge: Ridge, *stacks: Tensor) -> tuple[Tensor, ...]:
        able = [_able(matrices) for matrices in stacks]
        inverses = [_by_factors(ridge, matrices) for matrices in able]
        good = [inverse.isfinite().all() for inverse in inverses]
        # a single check for all of them, as the host waits for its result
        if not torch.stack(good).all():
            inverses = [
                inverse if fine else _by_eigenvalues(ridge, matrices)
                for inverse, fine, matrices in zip(inverses, good, able, strict=True)
            ]
        return tuple(
            inverse.to(matrices.device) for inverse, matrices in zip(inverses, stacks, strict=True)
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, gradients, strict=True)
        return None, *(-(inverses @ gradient @ inverses) for inverses, gradient in pairs)


def _by_factors(ridge: Ridge, matrices: Tensor) -> Tensor:
    """(C + beta I)^-1 by Cholesky factors; not finite if there is no factor."""
    identity = _identity(matrices)
    factors, failed = torch.linalg.cholesky_ex(matrices + ridge.beta * identity)
    if matrices.device.type == "cpu":
        return (
            torch.full_like(matrices, torch.nan)
            if failed.any()
            else torch.cholesky_inverse(factors)
        )
    # `cholesky_inverse` waits for the device to check its result
    solved = torch.cholesky_solve(identity.expand_as(matrices), factors)
    return torch.where((failed == 0).all(), solved, torch.nan)


def _by_eigenvalues(ridge: Ridge, matrices: Tensor) -> Tensor:
    """(C + beta I)^-1 for matrices without a Cholesky factor."""
    if not matrices.isfinite().all():
        raise ValueError(
            "A ridge filter needs a matrix of finite numbers. Got NaN or infinity instead."
        )
    return Spectrum.of(matrices).filtered(ridge)


def _able(matrices: Tensor) -> Tensor:
    """Move matrices to a device that can factorise them, as MPS has no solvers."""
    return matrices.cpu() if matrices.device.type == "mps" else matrices


def _identity(matrices: Tensor) -> Tensor:
    return torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)


def _check_steps(name: str, step_size: float, power: int) -> None:
    if not (isfinite(step_size) and step_size >= 0):
        raise ValueError(
            f"The 'step_size' of {name} must be a finite number of at least 0. Got {step_size} instead."
        )
    if power < 0:
        raise ValueError(f"The 'power' of {name} must be at least 0. Got {power} instead.")


def _limit(step_size: float, power: int) -> float:
    return 2 / step_size if step_size > 0 and power > 1 else inf
