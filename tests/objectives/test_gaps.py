"""The discrepancies: known values, known optima, gradients."""

import torch

from rayd.objectives import squared_mean_gap
from rayd.statistics import Moments

LABELS = torch.tensor([0, 0, 1, 1, 2])


def test_squared_mean_gap_is_the_papers_sum():
    real = torch.rand(5, 3, dtype=torch.float64)
    synthetic = torch.rand(5, 3, dtype=torch.float64)
    expected = sum(
        (real[c == LABELS].mean(0) - synthetic[c == LABELS].mean(0)).square().sum()
        for c in range(3)
    )
    value = squared_mean_gap(*(Moments.of(x.unsqueeze(1), LABELS, 3) for x in (real, synthetic)))
    torch.testing.assert_close(value, expected)


def test_a_class_without_samples_does_not_count():
    features = torch.rand(5, 1, 3)
    full = Moments.of(features, LABELS, 3)
    sparse = Moments.of(features[:4], LABELS[:4], 3)
    assert squared_mean_gap(full, sparse) == 0


def test_gradcheck():
    real = Moments.of(torch.rand(5, 1, 3, dtype=torch.float64), LABELS, 3)
    synthetic = torch.rand(5, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: squared_mean_gap(real, Moments.of(x, LABELS, 3)), synthetic
    )


def test_descent_finds_the_class_means_of_gaussians():
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 4, generator=draw)
    labels = torch.arange(3).repeat(500)
    real = Moments.of(
        (centers[labels] + torch.randn(1500, 4, generator=draw)).unsqueeze(1), labels, 3
    )
    synthetic = torch.zeros(3, 1, 4, requires_grad=True)
    for _ in range(60):
        (gradient,) = torch.autograd.grad(
            squared_mean_gap(real, Moments.of(synthetic, torch.arange(3), 3)), synthetic
        )
        synthetic = (synthetic - 0.25 * gradient).detach().requires_grad_()
    torch.testing.assert_close(synthetic.detach().squeeze(1), real.mean, atol=1e-6, rtol=1e-6)
