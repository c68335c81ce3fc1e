"""Class centralization and covariance matching against the formulas of the paper, image by
image.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rayd.networks import LayerRole, Observation
from rayd.objectives import (
    Centralization,
    ClassAware,
    Context,
    CovarianceMatching,
    RealStatistics,
    StatisticSpec,
)
from rayd.objectives.relations import dispersion
from rayd.statistics import Channels, Flat, LocalCovariance, Moments
from tests.draws import normal

CLASSES = 3
LABELS = torch.tensor([0, 2, 0, 2, 2, 0])
"""Class 1 has no image."""
FEATURES = StatisticSpec(LayerRole.FEATURES, Flat(), Moments)
COVARIANCE = StatisticSpec(LayerRole.LAST_MAP, Channels(), LocalCovariance)


def seen(features: Tensor | None = None, maps: Tensor | None = None) -> Observation:
    count = len(LABELS)
    features = normal(count, 5) if features is None else features
    maps = normal(count, 4, 3, 2) if maps is None else maps
    return Observation(
        normal(count, CLASSES),
        {LayerRole.FEATURES: (features,), LayerRole.LAST_MAP: (maps,)},
        normal(count, 1, 4, 4),
    )


def measured(maps: Tensor, labels: Tensor) -> RealStatistics:
    empty = COVARIANCE.empty(CLASSES, [tuple(maps.shape[1:])])
    for some, their in zip(maps.split(7), labels.split(7), strict=True):
        COVARIANCE.update(empty, Observation(some, {LayerRole.LAST_MAP: (some,)}, some), their)
    return {COVARIANCE: empty}


def slow_centralization(features: Tensor, form: str, alpha: float, beta: float) -> float:
    total = 0.0
    for c in set(LABELS.tolist()):
        mine = features[c == LABELS]
        for one in mine:
            distance = float(((one - mine.mean(0)) ** 2).sum())
            total += distance if form == "squared" else max(0.0, math.exp(alpha * distance) - beta)
    return total


@pytest.mark.parametrize(
    ("form", "alpha", "beta"),
    [("squared", 1.0, 0.0), ("exponential", 0.1, 0.7), ("exponential", 0.2, 2.0)],
)
def test_centralization_is_the_papers(form, alpha, beta):
    features = normal(len(LABELS), 5)
    term = Centralization(form=form, alpha=alpha, beta=beta)
    value = term({}, seen(features), LABELS, Context())
    assert float(value) == pytest.approx(slow_centralization(features, form, alpha, beta), rel=1e-5)


def test_centralization_has_a_gradient():
    def value(features: Tensor, form: str) -> Tensor:
        distances = dispersion(features, LABELS, CLASSES)
        return (
            distances.sum()
            if form == "squared"
            else ((0.3 * distances).exp() - 1.5).clamp(min=0).sum()
        )

    for form in ("squared", "exponential"):
        features = normal(len(LABELS), 5).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, form=form: value(x, form), features)


def test_a_threshold_of_at_most_one_changes_no_gradient():
    """exp(alpha x) is at least 1, so that the printed threshold is only felt above it."""
    gradients = []
    for beta in (0.0, 0.5, 1.0, 2.0):
        features = normal(len(LABELS), 5).float().requires_grad_()
        Centralization(form="exponential", alpha=0.1, beta=beta)(
            {}, seen(features), LABELS, Context()
        ).backward()
        gradients.append(features.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert not torch.allclose(gradients[0], gradients[3])


def test_centres_may_be_those_of_the_real_images():
    real_features = normal(20, 5, seed=1).float()
    real_labels = torch.arange(20) % CLASSES
    real = {FEATURES: FEATURES.empty(CLASSES, [(5,)])}
    FEATURES.update(
        real[FEATURES],
        Observation(real_features, {LayerRole.FEATURES: (real_features,)}, real_features),
        real_labels,
    )
    features = normal(len(LABELS), 5).float()
    value = Centralization(centre="real")(real, seen(features), LABELS, Context())
    centres = torch.stack([real_features[real_labels == c].mean(0) for c in range(CLASSES)])
    assert float(value) == pytest.approx(
        float((features - centres[LABELS]).square().sum()), rel=1e-5
    )
    assert Centralization().specs == ()
    assert Centralization(centre="real").specs == (
        StatisticSpec(LayerRole.FEATURES, Flat(), Moments),
    )


def slow_covariance(maps: Tensor) -> Tensor:
    """Sigma of the paper: one (d, d) product an image, of its descriptors around the mean map."""
    centred = maps.flatten(2) - maps.flatten(2).mean(0, keepdim=True)
    return torch.stack([one @ one.T for one in centred]).mean(0)


def test_covariance_matching_is_the_papers():
    real_maps = normal(40, 4, 3, 2, seed=1) + 3
    real_labels = torch.arange(40) % CLASSES
    real = measured(real_maps, real_labels)
    ours = normal(len(LABELS), 4, 3, 2)
    for c in range(CLASSES):
        direct = slow_covariance(real_maps[real_labels == c])
        torch.testing.assert_close(real[COVARIANCE][0].covariance[c], direct, rtol=0, atol=1e-9)
    expected = sum(
        float(
            (slow_covariance(ours[c == LABELS]) - slow_covariance(real_maps[real_labels == c]))
            .square()
            .sum()
        )
        for c in set(LABELS.tolist())
    )
    value = CovarianceMatching()(real, seen(maps=ours), LABELS, Context())
    assert float(value) == pytest.approx(expected, rel=1e-12)


def test_covariance_matching_has_a_gradient():
    real = measured(normal(30, 2, 2, 2, seed=1), torch.arange(30) % CLASSES)
    term = CovarianceMatching()
    maps = normal(len(LABELS), 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term(real, seen(maps=x), LABELS, Context()), maps)


def test_equal_images_have_nothing_to_match():
    maps = normal(len(LABELS), 4, 3, 2)
    assert float(
        CovarianceMatching()(measured(maps, LABELS), seen(maps=maps), LABELS, Context())
    ) == pytest.approx(0, abs=1e-18)


def test_observers_have_a_say_as_far_as_they_know():
    heard = seen()
    each = torch.nn.functional.cross_entropy(heard.logits, LABELS, reduction="none")
    expected = sum(float(each[c == LABELS].mean()) for c in set(LABELS.tolist()))
    values = [
        float(ClassAware()({}, heard, LABELS, Context(accuracy=accuracy)))
        for accuracy in (0.0, 0.25, 1.0)
    ]
    assert values == pytest.approx([0.0, 0.25 * expected, expected])
