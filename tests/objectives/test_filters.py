"""Filters against explicit eigendecompositions in float64, their gradients, and matrices that are
hard to invert.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayd.config import FilterSettings
from rayd.objectives import filters
from rayd.objectives.filters import (
    AllPass,
    Filter,
    GradientStep,
    GradientSum,
    LowPass,
    Ridge,
    Spectrum,
)

EVERY: list[Filter] = [
    AllPass(),
    LowPass(),
    *(kind(0.3, power) for kind in (GradientStep, GradientSum) for power in (0, 1, 2, 3, 7, 20)),
    Ridge(0.1),
    Ridge(10.0),
]


def features(count: int, dimension: int, *batch: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *batch, count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def correlations(x: Tensor) -> Tensor:
    return x.mT @ x / x.shape[-2]


def by_eigenvalues(function: Filter, matrix: Tensor) -> Tensor:
    """Sum of f(l) q q^T over the eigenpairs, one after another; f from its definition as a power
    series or a quotient.
    """
    values, vectors = torch.linalg.eigh(matrix)
    total = torch.zeros_like(matrix)
    for value, vector in zip(values.clamp(min=0).tolist(), vectors.T, strict=True):
        total += scalar(function, value) * torch.outer(vector, vector)
    return total


def scalar(function: Filter, value: float) -> float:
    match function:
        case AllPass():
            return 1.0
        case LowPass():
            return value
        case GradientStep(step_size, power):
            return (1 - step_size * value) ** power
        case GradientSum(step_size, power):
            return step_size * sum((1 - step_size * value) ** i for i in range(power))
        case Ridge(beta):
            return 1 / (value + beta)
    raise AssertionError(function)


@pytest.mark.parametrize("function", EVERY, ids=str)
@pytest.mark.parametrize("count", [40, 3])
def test_filters_are_functions_of_eigenvalues(function, count):
    """Of full rank and of rank 3, alone and as a stack."""
    stack = correlations(features(count, 6, 2, 2))
    found = function(stack)
    for one, matrix in zip(found.flatten(0, 1), stack.flatten(0, 1), strict=True):
        torch.testing.assert_close(one, by_eigenvalues(function, matrix), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(Spectrum.of(stack).filtered(function), found, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(function(stack[0, 0]), found[0, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", EVERY, ids=str)
def test_responses_are_those_of_the_definition(function):
    values = torch.tensor([0.0, 1e-6, 0.5, 1.0, 5.0], dtype=torch.float64)
    expected = torch.tensor(
        [scalar(function, value) for value in values.tolist()], dtype=torch.float64
    )
    torch.testing.assert_close(function.response(values), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("function", EVERY, ids=str)
@pytest.mark.parametrize("count", [9, 2])
def test_gradcheck(function, count):
    def filtered(x: Tensor) -> Tensor:
        return function(correlations(x))

    x = features(count, 3, 2).requires_grad_()
    if function != AllPass():
        assert torch.autograd.gradcheck(filtered, x)
    if function == Ridge(0.1):
        assert torch.autograd.gradgradcheck(filtered, x)


def test_gradient_descent_is_what_its_filters_say():
    """Ridge, GradientStep and GradientSum by solving and descending on a linear regression of
    labels on features.
    """
    x = features(30, 4)
    y = features(30, 2, seed=1)
    start = features(4, 2, seed=2)
    matrix = correlations(x)
    signal = x.T @ y / 30
    weights = start
    for _ in range(13):
        weights = weights - 0.1 * (x.T @ (x @ weights - y) / 30)
    torch.testing.assert_close(
        GradientStep(0.1, 13)(matrix) @ start + GradientSum(0.1, 13)(matrix) @ signal, weights
    )
    ridge = torch.linalg.lstsq(
        torch.cat([x / 30**0.5, 0.2 * torch.eye(4)]), torch.cat([y / 30**0.5, torch.zeros(4, 2)])
    )
    torch.testing.assert_close(Ridge(0.04)(matrix) @ signal, ridge.solution)
    torch.testing.assert_close(
        GradientSum(0.1, 5000)(matrix), torch.linalg.inv(matrix), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_matrix_of_rank_one_under_a_tiny_ridge_is_no_trouble(dtype, size):
    """One feature vector in 200 dimensions, ridge 1e-6: in float32 the rounding of the matrix is
    larger than the ridge.
    """
    x = (size * features(1, 200)).to(dtype).requires_grad_()
    inverse = Ridge(1e-6)(correlations(x))
    assert inverse.isfinite().all()
    (gradient,) = torch.autograd.grad(inverse.square().sum().sqrt(), x)
    assert gradient.isfinite().all()
    if dtype == torch.float64 and size == 1:
        length = x.detach().square().sum()
        outer = correlations(x.detach()) / length
        expected = (torch.eye(200, dtype=dtype) - outer) / 1e-6 + outer / (length + 1e-6)
        torch.testing.assert_close(inverse, expected, rtol=1e-8, atol=1e-2)


def test_where_cholesky_fails_negative_eigenvalues_are_zeros():
    vectors, _ = torch.linalg.qr(features(3, 3))
    matrix = vectors @ torch.diag(torch.tensor([-1e-3, 0.0, 2.0], dtype=torch.float64)) @ vectors.T
    assert int(torch.linalg.cholesky_ex(matrix + 1e-6 * torch.eye(3)).info) > 0
    expected = (
        vectors
        @ torch.diag(torch.tensor([1e6, 1e6, 1 / (2 + 1e-6)], dtype=torch.float64))
        @ vectors.T
    )
    torch.testing.assert_close(Ridge(1e-6)(matrix), expected, rtol=1e-8, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_one_clear_error(bad):
    matrix = torch.eye(3)
    matrix[1, 0] = matrix[0, 1] = bad
    with pytest.raises(ValueError, match="needs a matrix of finite numbers"):
        Ridge(0.1)(matrix)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Ridge(0.0),
            "The 'beta' of Ridge must be a finite number above 0. Got 0.0 instead.",
        ),
        (lambda: Ridge(float("nan")), "The 'beta' of Ridge"),
        (lambda: Ridge(float("inf")), "The 'beta' of Ridge"),
        (lambda: GradientStep(-0.1, 2), "The 'step_size' of GradientStep"),
        (lambda: GradientSum(float("inf"), 2), "The 'step_size' of GradientSum"),
        (
            lambda: GradientSum(0.1, -1),
            "The 'power' of GradientSum must be at least 0. Got -1 instead.",
        ),
    ],
)
def test_filters_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_only_several_gradient_steps_have_a_limit():
    assert GradientStep(0.5, 2).limit == GradientSum(0.5, 3).limit == 4
    assert {
        one.limit
        for one in (AllPass(), LowPass(), Ridge(0.1), GradientStep(0.5, 1), GradientSum(0.0, 9))
    } == {float("inf")}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "all-pass"}, AllPass()),
        ({"name": "low-pass"}, LowPass()),
        ({"name": "gradient", "power": 3}, GradientStep(0.7, 3)),
        ({"name": "gradient-sum", "power": 4}, GradientSum(0.7, 4)),
        ({"name": "ridge", "beta": 5.0}, Ridge(0.7)),
    ],
)
def test_settings_name_filters(settings, expected):
    assert filters.of_settings(FilterSettings.model_validate(settings), 0.7) == expected
