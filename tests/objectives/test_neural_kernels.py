"""Tangent kernels against loops with numerical expectations and against wide networks, and what is
regressed with them.
"""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayd.data import load
from rayd.errors import RunError
from rayd.networks import Observation
from rayd.objectives import Batch, Context, KernelRegression
from rayd.objectives.neural_kernels import (
    conv_kernel,
    fc_kernel,
    kernel_predictions,
    solved_labels,
)
from rayd.objectives.ridge import centred_targets
from tests.conftest import tiny
from tests.draws import normal


def of_relu(p: float, k: float, q: float) -> tuple[float, float]:
    """E[relu(u) relu(v)] and E[relu'(u) relu'(v)] for normal u, v of covariance (p, k; k, q), by an
    integral over the angle: u and v are lengths of projections of a standard normal vector of the plane.
    """
    angle = np.arccos(np.clip(k / np.sqrt(p * q), -1, 1))
    grid = np.linspace(0, 2 * pi, 200_001)
    first = np.cos(grid)
    second = np.cos(grid - angle)
    both = (first > 0) & (second > 0)
    # the squared radius of a standard normal vector of the plane is 2 on average
    covariance = (
        2 * np.sqrt(p * q) * np.trapezoid(np.where(both, first * second, 0), grid) / (2 * pi)
    )
    return float(covariance), float(np.trapezoid(both.astype(float), grid) / (2 * pi))


class Slow:
    """Covariance and tangent kernel of every pair of positions of two images, by loops."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.shape = x.shape[1:]
        self.k = {(i, j): self._inner(x, y, i, j) for i in self.places for j in self.places}
        self.p = {(i, j): self._inner(x, x, i, j) for i in self.places for j in self.places}
        self.q = {(i, j): self._inner(y, y, i, j) for i in self.places for j in self.places}
        self.t = dict.fromkeys(self.k, 0.0)

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(h, w) for h in range(self.shape[0]) for w in range(self.shape[1])]

    def _inner(self, x, y, i, j) -> float:
        return float((x[:, i[0], i[1]] * y[:, j[0], j[1]]).mean())

    def linear(self, window) -> None:
        mean = {name: self._means(getattr(self, name), window) for name in "kpqt"}
        self.k, self.p, self.q = (
            {pair: 2 * value + 0.01 for pair, value in mean[name].items()} for name in "kpq"
        )
        self.t = {pair: 2 * value + self.k[pair] for pair, value in mean["t"].items()}

    def _means(self, values, window):
        return {
            (i, j): sum(
                values.get(((i[0] + a, i[1] + b), (j[0] + a, j[1] + b)), 0.0) for a, b in window
            )
            / len(window)
            for i, j in values
        }

    def relu(self) -> None:
        k, t, p, q = {}, {}, {}, {}
        for i, j in self.k:
            k[i, j], slope = of_relu(self.p[i, i], self.k[i, j], self.q[j, j])
            t[i, j] = self.t[i, j] * slope
            p[i, j], _ = of_relu(self.p[i, i], self.p[i, j], self.p[j, j])
            q[i, j], _ = of_relu(self.q[i, i], self.q[i, j], self.q[j, j])
        self.k, self.t, self.p, self.q = k, t, p, q

    def pool(self) -> None:
        self.shape = (self.shape[0] // 2, self.shape[1] // 2)
        corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
        for name in "kptq":
            before = getattr(self, name)
            after = {}
            for i in self.places:
                for j in self.places:
                    parts = [
                        before[
                            (2 * i[0] + a[0], 2 * i[1] + a[1]), (2 * j[0] + b[0], 2 * j[1] + b[1])
                        ]
                        for a in corners
                        for b in corners
                    ]
                    after[i, j] = sum(parts) / 16
            setattr(self, name, after)

    def flat(self) -> None:
        places = self.places
        self.shape = (1, 1)
        for name in "kptq":
            before = getattr(self, name)
            mean = sum(before[i, i] for i in places) / len(places)
            setattr(self, name, {((0, 0), (0, 0)): mean})


ONE = [(0, 0)]
WINDOW = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_fully_connected_kernel_is_that_of_the_recursion(depth):
    first, second = normal(2, 6), normal(3, 6, seed=1)
    found = fc_kernel(first, second, depth)
    assert found.dtype == torch.float64
    for n in range(2):
        for m in range(3):
            slow = Slow(*(side.numpy()[:, None, None] for side in (first[n], second[m])))
            for _ in range(depth):
                slow.linear(ONE)
                slow.relu()
            slow.linear(ONE)
            assert float(found[n, m]) == pytest.approx(slow.t[(0, 0), (0, 0)], rel=1e-4)


@pytest.mark.parametrize("pool", [True, False])
def test_convolutional_kernel_is_that_of_the_recursion(pool):
    first, second = normal(2, 2, 4, 4), normal(1, 2, 4, 4, seed=1)
    found = conv_kernel(first, second, depth=2, pool=pool)
    for n in range(2):
        slow = Slow(first[n].numpy(), second[0].numpy())
        for _ in range(2):
            slow.linear(WINDOW)
            slow.relu()
            if pool:
                slow.pool()
        slow.flat()
        slow.linear(ONE)
        assert float(found[n, 0]) == pytest.approx(slow.t[(0, 0), (0, 0)], rel=1e-4)


def test_kernel_of_an_image_with_itself_is_exact():
    """Equal directions: half of the variance passes, and half of the tangent kernel."""
    image = normal(1, 8)
    variance = float(image.square().mean())
    hidden = 2 * variance + 0.01
    last = 2 * hidden / 2 + 0.01
    tangent = 2 * (hidden / 2) + last
    assert float(fc_kernel(image, image, 1)) == pytest.approx(tangent, rel=1e-6)
    plain = conv_kernel(image.view(1, 2, 2, 2), image.view(1, 2, 2, 2), 1, pool=False)
    assert bool((plain > 0).all())


def tangents(network: nn.Module, images: Tensor) -> Tensor:
    """Inner products (n, n) of the gradients of the outputs of images, in the parameterisation where
    weights are standard normal and scaled by the root of their variance.
    """
    rows = []
    for image in images:
        gradients = torch.autograd.grad(network(image[None]).sum(), tuple(network.parameters()))
        parts = []
        for gradient, parameter in zip(gradients, network.parameters(), strict=True):
            size = parameter[0].numel() if parameter.ndim > 1 else 1
            parts.append((gradient * ((2 / size) ** 0.5 if parameter.ndim > 1 else 0.1)).flatten())
        rows.append(torch.cat(parts))
    stacked = torch.stack(rows)
    return stacked @ stacked.T


def wide(*layers: nn.Module) -> nn.Module:
    network = nn.Sequential(*layers).double()
    with torch.no_grad():
        for parameter in network.parameters():
            size = parameter[0].numel() if parameter.ndim > 1 else 1
            spread = (2 / size) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(spread * torch.randn_like(parameter))
    return network


def test_wide_networks_have_these_kernels():
    """Gradients of networks of some thousand units, in the parameterisation of the kernel."""
    torch.manual_seed(0)
    vectors = normal(4, 6)
    dense = wide(nn.Linear(6, 4096), nn.ReLU(), nn.Linear(4096, 1))
    torch.testing.assert_close(
        tangents(dense, vectors), fc_kernel(vectors, vectors), rtol=0.1, atol=0.1
    )
    images = normal(3, 2, 4, 4)
    convolution = wide(
        nn.Conv2d(2, 512, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(512, 512, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 1),
    )
    expected = conv_kernel(images, images, depth=2)
    torch.testing.assert_close(tangents(convolution, images), expected, rtol=0.15, atol=0.1)


def test_gradcheck():
    first, second = (normal(2, 1, 4, 4, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda x, y: fc_kernel(x, y, 2), (first, second))
    assert torch.autograd.gradcheck(lambda x, y: conv_kernel(x, y, 1), (first, second))
    assert torch.autograd.gradcheck(lambda x, y: conv_kernel(x, y, 2, False), (first, second))
    assert torch.autograd.gradcheck(lambda x: fc_kernel(x, x, 1), first)
    assert torch.autograd.gradcheck(lambda x: conv_kernel(x, x, 1), first)


def test_predictions_are_those_of_the_formula_and_solved_labels_are_the_best():
    real, ours = normal(30, 6), normal(5, 6, seed=1)
    targets = centred_targets(torch.arange(30) % 3, 3).double()
    among = fc_kernel(ours, ours)
    between = fc_kernel(real, ours)
    own = normal(5, 3, seed=2)
    ridge = 1e-3 * float(among.trace()) / 5
    formula = between @ torch.linalg.inv(among + ridge * torch.eye(5)) @ own
    torch.testing.assert_close(kernel_predictions(between, among, own, 1e-3), formula)
    best = solved_labels(between, among, targets, 1e-3)

    def error(labels: Tensor) -> Tensor:
        return (kernel_predictions(between, among, labels, 1e-3) - targets).square().sum()

    best.requires_grad_()
    (slope,) = torch.autograd.grad(error(best), best)
    assert float(slope.abs().max()) < 1e-8
    for seed in range(3):
        assert error(best + 0.01 * normal(5, 3, seed=seed)) > error(best)


def test_term_is_half_the_squared_distance_of_predictions():
    real, ours = normal(12, 1, 4, 4).float(), normal(6, 1, 4, 4, seed=1).float()
    labels = torch.arange(6) % 3
    batch = Batch(real, torch.arange(12) % 3, lambda: None)
    seen = Observation(torch.zeros(6, 3), {}, ours)
    context = Context(network=nn.Identity(), batch=batch)
    for settings in ({"depth": 2}, {"network": "conv", "depth": 1}):
        term = KernelRegression(relative_ridge=0.01, **settings)
        among = term.kernel(ours, ours)
        ridge = 0.01 * among.trace() / 6
        weights = torch.linalg.inv(among + ridge * torch.eye(6))
        own = functional.one_hot(labels, 3).double() - 1 / 3
        predicted = term.kernel(real, ours) @ weights @ own
        wanted = functional.one_hot(batch.labels, 3).double() - 1 / 3
        expected = 0.5 * (predicted - wanted).square().sum(1).mean()
        value = term({}, seen, labels, context)
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
    soft = torch.eye(3)[labels].requires_grad_()
    same = term({}, seen, soft, context)
    torch.testing.assert_close(same.detach(), value)
    assert torch.autograd.grad(same, soft)[0].abs().sum() > 0


def test_images_that_cannot_be_pooled_or_are_not_finite_end_the_run_with_a_sentence():
    labels = torch.arange(2)
    for ours, settings, words in (
        (torch.zeros(2, 1, 6, 6), {"network": "conv", "depth": 2}, "multiples of 4. Got 6 x 6"),
        (torch.full((2, 1, 4, 4), torch.nan), {}, "finite"),
    ):
        batch = Batch(ours, labels, lambda: None)
        context = Context(network=nn.Identity(), batch=batch)
        with pytest.raises(RunError, match=words):
            KernelRegression(**settings)(
                {}, Observation(torch.zeros(2, 2), {}, ours), labels, context
            )


def test_learned_images_predict_digits_better_than_real_ones():
    """KIP's own judge: the regression's accuracy on test images."""
    data = load(tiny().data)
    real = data.normalization(torch.from_numpy(data.train.images))
    classes = torch.from_numpy(data.train.labels)
    test = data.normalization(torch.from_numpy(data.test.images))
    rows = torch.stack([torch.nonzero(classes == label)[0, 0] for label in range(10)])
    ours = real[rows].double().requires_grad_()
    targets = centred_targets(torch.arange(10), 10).double()
    wanted = centred_targets(classes, 10).double()

    def predicted(images: Tensor) -> Tensor:
        return kernel_predictions(fc_kernel(images, ours), fc_kernel(ours, ours), targets)

    def accuracy() -> float:
        guesses = predicted(test).argmax(1)
        return float((guesses == torch.from_numpy(data.test.labels)).double().mean())

    before = accuracy()
    optimizer = torch.optim.Adam([ours], lr=0.04)
    for _ in range(100):
        optimizer.zero_grad()
        (predicted(real) - wanted).square().sum().backward()
        optimizer.step()
    assert accuracy() > before + 0.1
