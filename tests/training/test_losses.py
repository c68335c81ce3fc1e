"""Losses against sums over images and classes, written out."""

import math

import pytest
import torch
from torch import Tensor

from rayd.config import EvaluationSettings
from rayd.training.losses import Target, cross_entropy, kl, loss_of, mse

N = 5
C = 4
DRAW = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (3 * torch.randn(N, C, generator=DRAW, dtype=torch.float64) for _ in range(2))
LABELS = torch.tensor([0, 3, 1, 1, 2])
SOFT = torch.randn(N, C, generator=DRAW, dtype=torch.float64).softmax(1)
PARTNERS = torch.tensor([2, 0, 1, 4, 3])
KEPT = 0.7


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def by_hand(labels: list[list[float]]) -> float:
    """Mean cross-entropy of the student with rows of probabilities."""
    rows = zip(STUDENT.tolist(), labels, strict=True)
    return (
        -sum(
            share * math.log(p)
            for row, label in rows
            for share, p in zip(label, softmax(row), strict=True)
        )
        / N
    )


def one_hot(labels: Tensor) -> list[list[float]]:
    return torch.nn.functional.one_hot(labels, C).double().tolist()


@pytest.mark.parametrize(
    ("labels", "rows"), [(LABELS, one_hot(LABELS)), (SOFT, SOFT.tolist())], ids=["hard", "soft"]
)
def test_cross_entropy_shares_mixed_images_between_both_labels(labels, rows):
    assert cross_entropy(STUDENT, Target(labels)).item() == pytest.approx(by_hand(rows))
    mixed = [
        [KEPT * a + (1 - KEPT) * b for a, b in zip(rows[i], rows[partner], strict=True)]
        for i, partner in enumerate(PARTNERS.tolist())
    ]
    assert cross_entropy(STUDENT, Target(labels, PARTNERS, KEPT)).item() == pytest.approx(
        by_hand(mixed)
    )


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_kl_is_the_mean_over_the_batch_and_not_times_the_squared_temperature(temperature):
    total = 0.0
    for said, meant in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        q = softmax(said, temperature)
        p = softmax(meant, temperature)
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    assert kl(STUDENT, TEACHER, temperature).item() == pytest.approx(total / N)


def test_mse_is_the_mean_over_all_elements():
    assert mse(STUDENT, TEACHER).item() == pytest.approx(
        ((STUDENT - TEACHER) ** 2).sum().item() / (N * C)
    )


@pytest.mark.parametrize("labels", [LABELS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("name", ["kl", "mse"])
def test_the_hard_part_takes_each_image_s_own_hard_label_though_it_is_mixed(name, labels):
    settings = EvaluationSettings(loss=name, temperature=4.0, hard_weight=0.25)
    hard = labels.argmax(1) if labels.is_floating_point() else labels
    soft = kl(STUDENT, TEACHER, 4.0) if name == "kl" else mse(STUDENT, TEACHER)
    got = loss_of(settings)(STUDENT, Target(labels, PARTNERS, KEPT, TEACHER))
    assert got.item() == pytest.approx(soft.item() + 0.25 * by_hand(one_hot(hard)))
    assert (
        loss_of(EvaluationSettings(loss=name, temperature=4.0))(
            STUDENT, Target(labels, logits=TEACHER)
        )
        == soft
    )


@pytest.mark.parametrize("name", ["kl", "mse", "cross-entropy"])
def test_gradients(name):
    loss = loss_of(EvaluationSettings(loss=name, hard_weight=0.5))
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logits: loss(logits, Target(LABELS, PARTNERS, KEPT, TEACHER)), student
    )


@pytest.mark.parametrize("name", ["kl", "mse"])
def test_half_precision_logits_are_compared_in_float32(name):
    coarse = STUDENT.bfloat16()
    for weight in (0.0, 0.5):
        loss = loss_of(EvaluationSettings(loss=name, hard_weight=weight))
        target = Target(LABELS, logits=TEACHER.float())
        assert torch.equal(loss(coarse, target), loss(coarse.float(), target))
