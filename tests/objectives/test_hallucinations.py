"""Likeness of images of one basis and the adversary's loss, against loops in float64."""

from math import exp, log

import pytest
import torch
from torch import Tensor

from rayd.config.choices import LayerRole
from rayd.errors import ConfigError
from rayd.methods import build
from rayd.networks import Observation
from rayd.objectives import Context, HallucinatorContrast
from rayd.objectives.hallucinations import adversary_loss, class_contrast, likeness
from tests.conftest import tiny
from tests.draws import normal

BASES = torch.tensor([0, 0, 0, 1, 1, 2])
LABELS = torch.tensor([0, 0, 0, 1, 1, 0])


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def pairs() -> list[tuple[int, int]]:
    return [(i, j) for i in range(6) for j in range(6) if i != j and BASES[i] == BASES[j]]


def contrast(features: Tensor, temperature: float) -> float:
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        shares = {j: exp(cosine(features[i], features[j]) / temperature) for j in others}
        positive = [j for j in others if LABELS[j] == LABELS[i]]
        losses.append(-sum(log(shares[j] / sum(shares.values())) for j in positive) / len(positive))
    return sum(losses) / len(losses)


def test_likeness_is_the_mean_over_pairs_of_one_basis():
    features = normal(6, 4)
    expected = sum((1 + cosine(features[i], features[j])) / 2 for i, j in pairs()) / len(pairs())
    assert float(likeness(features, BASES)) == pytest.approx(expected, rel=1e-12)
    assert float(likeness(features, torch.arange(6))) == 0


def test_contrast_is_the_supervised_one():
    features = normal(6, 4)
    assert float(class_contrast(features, LABELS)) == pytest.approx(contrast(features, 0.07))
    alone = class_contrast(features, torch.arange(6))
    assert float(alone) == 0


def test_adversary_learns_classes_likeness_and_contrast():
    features = normal(6, 4)
    logits = normal(6, 2, seed=1)
    entropy = 0.0
    for row, label in zip(logits, LABELS, strict=True):
        entropy -= float(row.log_softmax(0)[label]) / 6
    unlike = sum((1 - cosine(features[i], features[j])) / 2 for i, j in pairs()) / len(pairs())
    expected = entropy + 0.1 * unlike + 0.1 * contrast(features, 0.07)
    found = adversary_loss(logits, features, LABELS, BASES)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_gradcheck():
    features = normal(6, 4).requires_grad_()
    logits = normal(6, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: likeness(one, BASES), features)
    assert torch.autograd.gradcheck(
        lambda one, other: adversary_loss(one, other, LABELS, BASES), (logits, features)
    )


def test_term_knows_bases_by_the_order_of_images():
    features = normal(6, 4)
    seen = Observation(torch.zeros(6, 2), {LayerRole.FEATURES: (features,)}, features)
    value = HallucinatorContrast(per_basis=3)({}, seen, LABELS, Context())
    expected = likeness(features, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"synthetic": {"kind": "pixels"}},
        {"synthetic": {"hallucinators": 1}},
        {"terms": {"hallucinator_contrast": {"per_basis": 2}}},
    ],
)
def test_images_without_siblings_are_refused(settings):
    with pytest.raises(ConfigError, match="several images of each basis"):
        build(tiny(method="haba", **settings))
    if "terms" not in settings:
        off = {"terms": {"hallucinator_contrast": {"weight": 0}}}
        recipe = tiny(method="haba", **settings, **off)
        assert build(recipe).terms == ()
