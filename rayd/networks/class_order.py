"""Check that a network's outputs correspond to the data's classes, by its predictions on real
images.

A checkpoint records how many classes its network has, but seldom which, and a network trained in
another class order (names sorted differently, two classes swapped) silently trains students on
wrong labels. Its predictions reveal it:

    right      = share of images whose predicted class is correct
    reordered  = the same under the best one-to-one relabelling of the outputs (an assignment
                 problem on the confusion matrix)

The relabelling is fitted to the images it is evaluated on, so `reordered` exceeds `right` for any
network that makes errors, and more so with few images per class. Chance level is therefore measured
on shuffled labels: `reordered_guess` with relabelling, `guess` without it. Two quantities correct
for this:

    optimism   = (reordered_guess - guess) * (1 - right), as only errors can be gained
    skill      = (accuracy - guess) / (1 - guess), 0 at chance and 1 without errors

A network is considered to have

- another class order, if `reordered` has more skill than `REORDERED_SKILL` and either exceeds
  `right` by more than `MARGIN` and the optimism, or, for a few classes among many, in a cycle of
  the relabelling (a swap is a cycle of two) at least half of the images are predicted according to
  the relabelling, and significantly more than correctly;
- else unknown classes, if the skill of `right` is below `SKILL`, or `right` is within chance for so
  few images.

For example, 30% accuracy on 100 classes passes with 10 images of each, and two swapped classes of
10 are found at 90% accuracy. With fewer than about 100 images only a good network passes. A class
whose images are all predicted as another one is not reported; but a weak network that confuses most
images of two classes with each other is reported as having them swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayd.seeding import generator

MARGIN = 0.1
"""Minimum gain of a relabelling beyond its optimism, as a share of all images.

Correct networks with 30% accuracy on 10 classes that err within groups of five gain up to 0.1; at
60% they gain nothing.
"""
REORDERED_SKILL = 0.15
"""Minimum skill of a relabelled network that knows classes; random ones reach 0.13 on digits."""
SKILL = 0.1
"""Minimum skill of a network that knows the classes; random networks reach 0.06 on digits."""
DEVIATIONS = 3.0
"""Number of standard deviations that counts as significant."""
SHUFFLES = 5
"""Number of label shuffles for measuring chance level."""

Confusion = NDArray[np.int64]
"""Count of images of each class (rows) by predicted class (columns)."""


def order_fault(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> str | None:
    """Describe a mismatch of a network's classes; None if they match the data's, in order.

    Args:
        logits: the network's output for real images, (N, C).
        labels: classes of the images, (N,), indices into `class_names`.
        class_names: the C names in label order.

    Returns:
        A sentence, naming two classes if the order is wrong; or None.

    Raises:
        ValueError: there are no images, or shapes and labels are inconsistent.
    """
    classes = len(class_names)
    if len(logits) == 0 or logits.shape != (len(labels), classes):
        raise ValueError(
            f"Logits must be (N, {classes}) with N = {len(labels)} > 0 labels. "
            f"Got {tuple(logits.shape)} instead."
        )
    if not logits.isfinite().all():
        return "The network does not know these classes: it predicts values that are not finite."
    labels = labels.cpu()
    predicted = logits.argmax(1).cpu()
    confusion = _confusion(labels, predicted, classes)
    images = len(labels)
    order = _best_order(confusion)
    right = confusion.trace() / images
    reordered = _hits(confusion, order) / images
    guess = float(confusion.sum(0) @ confusion.sum(1)) / images**2
    reordered_guess = _reordered_guess(labels, predicted, classes)

    optimism = (reordered_guess - guess) * (1 - right)
    moved = reordered - right > MARGIN + optimism
    moved = moved or any(_clearly_moved(confusion, order, cycle) for cycle in _cycles(order))
    if moved and reordered - reordered_guess > REORDERED_SKILL * (1 - reordered_guess):
        gains = confusion[np.arange(classes), order] - confusion.diagonal()
        label = int(np.argmax(gains))
        return (
            "The network was trained on other classes or in another class order: "
            f"it is right on {right:.1%} of the images, "
            f"and on {reordered:.1%} if its outputs are reordered; "
            f"it takes '{class_names[label]}' for '{class_names[order[label]]}'."
        )
    noise = DEVIATIONS * sqrt(guess * (1 - guess) / images)
    if right - guess < max(SKILL * (1 - guess), noise):
        return (
            f"The network does not know these classes: it is right on {right:.1%} of the images, "
            f"where guessing gives {guess:.1%}, and on {reordered:.1%} if its outputs are "
            f"reordered, where guessing gives {reordered_guess:.1%}."
        )
    return None


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> Confusion:
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"Labels must lie in 0..{classes - 1}. Got {labels.min()}..{labels.max()} instead."
        )
    counts: Confusion = (
        torch.bincount(labels * classes + predicted, minlength=classes**2)
        .reshape(classes, classes)
        .numpy()
    )
    return counts


def _best_order(confusion: Confusion) -> NDArray[np.intp]:
    """Output assigned to each class by the best one-to-one relabelling."""
    from scipy.optimize import linear_sum_assignment

    order: NDArray[np.intp] = linear_sum_assignment(confusion, maximize=True)[1]
    return order


def _hits(confusion: Confusion, order: NDArray[np.intp]) -> int:
    return int(confusion[np.arange(len(order)), order].sum())


def _reordered_guess(labels: Tensor, predicted: Tensor, classes: int) -> float:
    """Accuracy of the best relabelling when predictions are independent of the images."""
    stream = generator(0, "class order")
    hits = []
    for _ in range(SHUFFLES):
        shuffled = labels[torch.randperm(len(labels), generator=stream)]
        confusion = _confusion(shuffled, predicted, classes)
        hits.append(_hits(confusion, _best_order(confusion)))
    return float(np.mean(hits)) / len(labels)


def _cycles(order: NDArray[np.intp]) -> Iterator[list[int]]:
    """Yield the cycles of the classes that a relabelling moves."""
    left = {own for own, output in enumerate(order) if own != output}
    while left:
        cycle = [left.pop()]
        while (following := int(order[cycle[-1]])) in left:
            left.remove(following)
            cycle.append(following)
        yield cycle


def _clearly_moved(confusion: Confusion, order: NDArray[np.intp], cycle: list[int]) -> bool:
    """Whether most images of a cycle follow the relabelling, significantly more than do not."""
    moved = int(confusion[cycle, order[cycle]].sum())
    stayed = int(confusion[cycle, cycle].sum())
    significant = moved - stayed > DEVIATIONS * sqrt(moved + stayed)
    return 2 * moved >= confusion[cycle].sum() and significant
