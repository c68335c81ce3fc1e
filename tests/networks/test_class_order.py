"""Other classes and other class orders show in predictions; honest networks, however weak, pass."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from rayd.config import NetworkSettings
from rayd.networks import build
from rayd.networks.class_order import order_fault

SEEDS = range(5)


def names(classes: int) -> list[str]:
    return [f"kind {label}" for label in range(classes)]


def predictions(
    classes: int, per_class: int, accuracy: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Labels, and what a network predicts that is right with a probability and else takes any
    class.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    wrong = torch.rand(len(labels), generator=generator) >= accuracy
    others = torch.randint(1, max(classes, 2), (len(labels),), generator=generator)
    return labels, torch.where(wrong, (labels + others) % classes, labels)


def swapped(predicted: Tensor, first: int, second: int) -> Tensor:
    return torch.where(
        predicted == first, second, torch.where(predicted == second, first, predicted)
    )


def fault(labels: Tensor, predicted: Tensor, classes: int) -> str | None:
    logits = torch.rand(len(labels), classes, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(labels)), predicted] += 2
    return order_fault(logits, labels, names(classes))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("classes", "per_class", "accuracy"),
    [
        (100, 10, 0.3),
        (100, 5, 0.3),
        (10, 100, 0.3),
        (10, 10, 0.6),
        (10, 10, 0.9),
        (2, 50, 0.8),
        (100, 1, 0.9),
        (10, 1, 0.9),
    ],
)
def test_honest_networks_pass(classes: int, per_class: int, accuracy: float, seed: int) -> None:
    assert fault(*predictions(classes, per_class, accuracy, seed), classes) is None


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("classes", "per_class"), [(100, 4), (100, 10), (10, 100)])
def test_honest_networks_that_err_among_like_classes_pass(
    classes: int, per_class: int, seed: int
) -> None:
    labels, right = predictions(classes, per_class, 0.15, seed)
    neighbours = labels // 5 * 5 + torch.randint(
        5, labels.shape, generator=torch.Generator().manual_seed(seed)
    )
    assert fault(labels, torch.where(right == labels, labels, neighbours), classes) is None


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("classes", "per_class"), [(10, 20), (10, 100), (2, 50), (100, 10), (1000, 10)]
)
def test_two_swapped_classes_are_caught_and_named(classes: int, per_class: int, seed: int) -> None:
    labels, predicted = predictions(classes, per_class, 0.9, seed)
    sentence = fault(labels, swapped(predicted, 0, 1), classes)
    assert sentence is not None
    assert "another class order" in sentence
    assert "takes 'kind 0' for 'kind 1'" in sentence or "takes 'kind 1' for 'kind 0'" in sentence


def test_the_sentence_says_how_often_the_network_is_right_in_both_orders() -> None:
    labels = torch.arange(10).repeat_interleave(10)
    predicted = torch.where(torch.arange(100) % 10 == 0, (labels + 2) % 10, labels)
    assert fault(labels, swapped(predicted, 3, 5), 10) == (
        "The network was trained on other classes or in another class order: it is right on 73.0% of the images, and "
        "on 90.0% if its outputs are reordered; it takes 'kind 5' for 'kind 3'."
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("classes", "per_class", "accuracy"), [(100, 20, 0.3), (10, 20, 0.6), (10, 1, 1.0)]
)
def test_names_sorted_in_another_way_are_caught(
    classes: int, per_class: int, accuracy: float, seed: int
) -> None:
    labels, predicted = predictions(classes, per_class, accuracy, seed)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    sentence = fault(labels, order[predicted], classes)
    assert sentence is not None
    assert (
        "another class order" in sentence or accuracy == 1.0
    )  # one image of a class may as well be a guess


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("classes", "per_class"), [(2, 100), (10, 10), (10, 100), (100, 10), (100, 1)]
)
def test_random_classifiers_do_not_know_the_classes(
    classes: int, per_class: int, seed: int
) -> None:
    labels, _ = predictions(classes, per_class, 1.0)
    predicted = torch.randint(
        classes, (len(labels),), generator=torch.Generator().manual_seed(seed)
    )
    sentence = fault(labels, predicted, classes)
    assert sentence is not None
    assert "does not know these classes" in sentence


@pytest.mark.parametrize("seed", range(10))
def test_luck_with_few_images_is_no_knowledge(seed: int) -> None:
    labels, _ = predictions(2, 10, 1.0)
    assert (
        fault(labels, torch.randint(2, (20,), generator=torch.Generator().manual_seed(seed)), 2)
        is not None
    )


@pytest.mark.parametrize("name", ["mlp", "convnet"])
@pytest.mark.parametrize("seed", SEEDS)
def test_untrained_networks_do_not_know_the_digits(name: str, seed: int) -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:300, None] / 16, dtype=torch.float32)
    network = build(NetworkSettings(name=name, width=16), (1, 8, 8), 10, seed=seed)
    with torch.no_grad():
        sentence = order_fault(
            network(images - images.mean()), torch.tensor(digits.target[:300]), names(10)
        )
    assert sentence is not None
    assert "does not know these classes" in sentence


def test_a_network_that_always_says_the_same_does_not_know_the_classes() -> None:
    labels, _ = predictions(10, 20, 1.0)
    assert fault(labels, torch.full_like(labels, 4), 10) == (
        "The network does not know these classes: it is right on 10.0% of the images, where guessing gives 10.0%, "
        "and on 10.0% if its outputs are reordered, where guessing gives 10.0%."
    )


def test_values_that_are_not_finite_are_a_fault() -> None:
    logits = torch.eye(4)
    assert order_fault(logits, torch.arange(4), names(4)) is None
    logits[2, 1] = torch.nan
    assert "not finite" in str(order_fault(logits, torch.arange(4), names(4)))


def test_a_class_that_is_taken_for_its_twin_is_no_fault() -> None:
    labels, predicted = predictions(10, 20, 0.9)
    assert fault(labels, torch.where(labels == 3, 5, predicted), 10) is None


def test_a_chain_of_twins_is_no_fault() -> None:
    labels, predicted = predictions(100, 10, 0.9)
    chained = torch.where(
        (labels == 3) | (labels == 4), labels + 1, torch.where(labels == 5, labels, predicted)
    )
    assert fault(labels, chained, 100) is None


def test_twins_that_cannot_be_told_apart_are_no_fault() -> None:
    labels, predicted = predictions(100, 10, 0.9)
    indistinct = torch.where(torch.arange(1000) % 10 < 6, 5 - labels, labels)
    assert (
        fault(labels, torch.where((labels == 2) | (labels == 3), indistinct, predicted), 100)
        is None
    )


def test_badly_learned_classes_are_not_swapped_ones() -> None:
    labels, predicted = predictions(100, 40, 0.9)
    image = torch.arange(len(labels)) % 40
    bad = torch.where(image < 12, 1 - labels, torch.where(image < 14, labels, 2 + image))
    assert fault(labels, torch.where(labels < 2, bad, predicted), 100) is None


def test_a_network_that_hardly_beats_guessing_does_not_know_the_classes() -> None:
    assert "does not know these classes" in str(fault(*predictions(10, 200, 0.16), 10))


def test_classes_without_images_are_no_fault() -> None:
    labels, predicted = predictions(20, 20, 0.9)
    seen = labels < 12
    assert fault(labels[seen], predicted[seen], 20) is None


def test_one_class_is_always_known() -> None:
    labels = torch.zeros(3, dtype=torch.long)
    assert order_fault(torch.randn(3, 1), labels, ["all"]) is None
    assert fault(labels, labels, 4) is None


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    fault(*predictions(10, 10, 0.5), 10)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("logits", "labels", "sentence"),
    [
        (
            torch.zeros(3, 4),
            torch.zeros(2, dtype=torch.long),
            r"Logits must be \(N, 4\) with N = 2 > 0 labels. Got \(3, 4\)",
        ),
        (torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), r"Got \(2, 5\)"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), r"N = 0 > 0 labels"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), r"Labels must lie in 0\.\.3. Got 0\.\.4"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    logits: Tensor, labels: Tensor, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        order_fault(logits, labels, names(4))
