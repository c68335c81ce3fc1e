"""The distance of gradients against slow loops, and a gradient step as a filter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rayd import networks
from rayd.config import NetworkSettings
from rayd.data import ImageShape
from rayd.networks import Observation
from rayd.objectives import Batch, Context, GradientMatching
from rayd.objectives.filters import GradientStep, GradientSum
from rayd.objectives.gradients import gradient_distance

SHAPES = [(4, 3, 2, 2), (4,), (5, 4), (5,), (2, 3, 3)]


def gradients(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in SHAPES]


def slow(real: list[Tensor], synthetic: list[Tensor]) -> float:
    total = 0.0
    for one, other in zip(real, synthetic, strict=True):
        for row, ours in zip(one, other, strict=True) if one.ndim > 1 else ():
            cosine = (row * ours).sum() / (
                row.square().sum().sqrt() * ours.square().sum().sqrt() + 1e-6
            )
            total += 1 - float(cosine)
    return total


def test_the_distance_is_that_of_the_rows_of_matrices_and_convolutions():
    real = gradients(0)
    synthetic = gradients(1)
    value = gradient_distance(real, synthetic)
    assert float(value) == pytest.approx(slow(real, synthetic), rel=1e-12)
    without = [[one for one in side if one.ndim > 1] for side in (real, synthetic)]
    assert float(gradient_distance(*without)) == float(value)


def test_length_does_not_count_and_direction_does():
    real = gradients(0)
    assert float(gradient_distance(real, [3 * one for one in real])) == pytest.approx(0, abs=1e-5)
    rows = sum(len(one) for one in real if one.ndim > 1)
    assert float(gradient_distance(real, [-one for one in real])) == pytest.approx(
        2 * rows, abs=1e-5
    )
    assert float(gradient_distance(real, [torch.zeros_like(one) for one in real])) == rows


def test_gradcheck():
    real = gradients(0)
    synthetic = [one.requires_grad_() for one in gradients(1)]
    assert torch.autograd.gradcheck(lambda *given: gradient_distance(real, given), synthetic)


def test_gradients_of_other_parameters_are_refused():
    with pytest.raises(ValueError, match="must be of the same parameters"):
        gradient_distance(gradients(0), gradients(1)[:-1])
    with pytest.raises(ValueError, match="must be of the same parameters"):
        gradient_distance([torch.ones(2, 3)], [torch.ones(3, 2)])
    with pytest.raises(ValueError, match="At least one parameter must have rows"):
        gradient_distance([torch.ones(2)], [torch.ones(2)])


def test_images_can_be_moved_along_it():
    """The second derivative of a network: gradients on synthetic images come nearer to those on
    real ones.
    """
    draw = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 3))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=draw)
    labels = torch.arange(6) % 3

    def of(images: Tensor, create: bool) -> tuple[Tensor, ...]:
        loss = functional.cross_entropy(network(images), labels[: len(images)])
        return torch.autograd.grad(loss, tuple(network.parameters()), create_graph=create)

    real = of(torch.randn(6, 1, 4, 4, generator=draw), False)
    images = torch.randn(3, 1, 4, 4, generator=draw).requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = gradient_distance(real, of(images, True))
        values.append(float(value.detach()))
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("steps", [1, 4])
def test_gradient_steps_of_a_linear_classifier_on_fixed_features_are_filters(steps):
    """Weights after steps of autograd's gradients against filters of the features' correlations."""
    draw = torch.Generator().manual_seed(0)
    features, targets = (torch.randn(20, d, generator=draw, dtype=torch.float64) for d in (5, 3))
    classifier = nn.Linear(5, 3, bias=False).double()
    start = classifier.weight.detach().T.clone()
    for _ in range(steps):
        loss = 0.5 * (classifier(features) - targets).square().sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, classifier.weight)
        classifier.weight.data -= 0.1 * gradient
    matrix = features.T @ features / 20
    signal = features.T @ targets / 20
    expected = GradientStep(0.1, steps)(matrix) @ start + GradientSum(0.1, steps)(matrix) @ signal
    torch.testing.assert_close(classifier.weight.detach().T, expected, rtol=1e-10, atol=1e-12)


def labelled(count: int, seed: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.arange(
        count
    ) % 3


def looking() -> tuple[nn.Module, Batch]:
    """A frozen network, and twelve real images of three classes."""
    network = networks.build(
        NetworkSettings(name="convnet", width=4, depth=2), ImageShape(1, 8, 8), 3, seed=0
    )
    images, labels = labelled(12, 1)
    return network.requires_grad_(False), Batch(
        images, labels, lambda: Observation(torch.zeros(12, 3), {}, images)
    )


def matched(images: Tensor, labels: Tensor) -> Tensor:
    network, batch = looking()
    return GradientMatching()(
        {}, Observation(network(images), {}, images), labels, Context(network=network, batch=batch)
    )


def test_the_term_is_the_sum_over_classes_of_distances_of_whole_gradients():
    """Against a plain loop with `backward`, every parameter of the network unfrozen."""
    images, labels = labelled(6, 2)
    network, batch = looking()
    network.requires_grad_(True)
    total = torch.zeros(())
    for label in range(3):
        sides = []
        for some, them in ((batch.images, batch.labels), (images, labels)):
            network.zero_grad()
            nn.functional.cross_entropy(
                network(some[them == label]), them[them == label]
            ).backward()
            sides.append([parameter.grad.clone() for parameter in network.parameters()])
        total = total + gradient_distance(*sides)
    torch.testing.assert_close(matched(images, labels), total)
    assert any(parameter.ndim == 1 for parameter in network.parameters())


def test_the_term_leaves_the_network_alone_and_moves_the_images():
    images, labels = labelled(6, 2)
    images.requires_grad_()
    network, batch = looking()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    value = GradientMatching()(
        {}, Observation(network(images), {}, images), labels, Context(network=network, batch=batch)
    )
    (gradient,) = torch.autograd.grad(value, images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in network.parameters()
    )


def test_descent_brings_gradients_together_and_real_images_are_the_optimum():
    _, batch = looking()
    assert float(matched(batch.images, batch.labels).detach()) == pytest.approx(0, abs=1e-2)
    images, labels = labelled(6, 2)
    images.requires_grad_()
    optimizer = torch.optim.SGD([images], lr=0.5, momentum=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = matched(images, labels)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_without_a_real_batch_the_term_says_what_is_missing():
    images, labels = labelled(6, 2)
    with pytest.raises(RuntimeError, match="'needs_batch'"):
        GradientMatching()({}, Observation(torch.zeros(6, 3), {}, images), labels, Context())


def test_bfloat16_gradients_are_compared_in_float32():
    real = gradients(0)
    near = [one + 0.05 * other for one, other in zip(real, gradients(1), strict=True)]
    coarse = [[gradient.bfloat16() for gradient in side] for side in (real, near)]
    assert float(gradient_distance(*coarse)) == pytest.approx(
        slow([g.float() for g in coarse[0]], [g.float() for g in coarse[1]]), rel=1e-3
    )
