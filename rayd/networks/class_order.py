"""Whether a network means the same classes as the data, judged by what it predicts on real images.

A checkpoint says how many classes its network has, seldom which, and a network that was trained in
another class order (names sorted in another way, two classes swapped) trains students on wrong
labels without any sign. Its predictions tell:

    right      = share of the images whose predicted class is their own
    reordered  = the same under the best one-to-one relabelling of the outputs (an assignment
    problem on the confusion matrix)

The relabelling is fitted to the very images it is judged by, so `reordered` is above `right` for
any network that errs, and more so with fewer images of a class. How far guessing alone gets is
therefore measured, on shuffled labels: `reordered_guess` there, and `guess` for the outputs as they
are. Two more quantities correct for it:

    optimism   = (reordered_guess - guess) * (1 - right), since only images that are wrong can be won
    skill      = (accuracy - guess) / (1 - guess), 0 for guessing and 1 for no error

A network is said to have

- another order, if `reordered` has more skill than `REORDERED_SKILL` and either exceeds `right` by
  more than `MARGIN` and the optimism, or, for a few classes among many: in a cycle of the
  relabelling (a swap is a cycle of two) at least half of the images are predicted as the
  relabelling says, and significantly more than as their own class;
- else unknown classes, if the skill of `right` is below `SKILL`, or `right` no more than chance can
  do with so few images.

So 30% right on 100 classes passes with 10 images of each, and two swapped ones of 10 classes are
found at 90% right. With fewer than about 100 images only a good network passes. A class whose
images are all taken for another is no fault; but a weak network that takes most images of two
classes for each other is told that they are swapped, whatever it meant.
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
"""What a relabelling must win beyond its optimism, as a share of all images. Honest networks that
are right on 30% of the images of 10 classes and err within groups of five win up to 0.1; at 60%
they win nothing.
"""
REORDERED_SKILL = 0.15
"""Least skill of a relabelled network that knows classes; random networks reach 0.13 on digits, as
they are not blind.
"""
SKILL = 0.1
"""Least skill of a network that knows the classes; random networks reach 0.06 on digits."""
DEVIATIONS = 3.0
"""Standard deviations that count as significant."""
SHUFFLES = 5
"""Shuffled labels on which guessing is measured."""

Confusion = NDArray[np.int64]
"""Images of each class (rows) by predicted class (columns)."""


def order_fault(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> str | None:
    """What is wrong with the classes of a network, or None if they are those of the data, in the
    same order.

    Args:
        logits: what the network gives for real images, (N, C).
        labels: the classes of the images, (N,), indices into `class_names`.
        class_names: the C names in label order.

    Returns:
        A sentence, which names two classes where the order is wrong.

    Raises:
        ValueError: there are no images, or the shapes or labels do not fit together.
    """
    classes = len(class_names)
    if len(logits) == 0 or logits.shape != (len(labels), classes):
        raise ValueError(
            f"Logits must be (N, {classes}) with N = {len(labels)} > 0 labels. Got {tuple(logits.shape)} instead."
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
    moved = reordered - right > MARGIN + optimism or any(
        _clearly_moved(confusion, order, cycle) for cycle in _cycles(order)
    )
    if moved and reordered - reordered_guess > REORDERED_SKILL * (1 - reordered_guess):
        own = int(np.argmax(confusion[np.arange(classes), order] - confusion.diagonal()))
        return (
            f"The network was trained on other classes or in another class order: it is right on {right:.1%} of the images, "
            f"and on {reordered:.1%} if its outputs are reordered; it takes '{class_names[own]}' for "
            f"'{class_names[order[own]]}'."
        )
    noise = DEVIATIONS * sqrt(guess * (1 - guess) / images)
    if right - guess < max(SKILL * (1 - guess), noise):
        return (
            f"The network does not know these classes: it is right on {right:.1%} of the images, where guessing gives "
            f"{guess:.1%}, and on {reordered:.1%} if its outputs are reordered, where guessing gives {reordered_guess:.1%}."
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
    """The output that stands for each class in the best one-to-one relabelling."""
    from scipy.optimize import linear_sum_assignment

    order: NDArray[np.intp] = linear_sum_assignment(confusion, maximize=True)[1]
    return order


def _hits(confusion: Confusion, order: NDArray[np.intp]) -> int:
    return int(confusion[np.arange(len(order)), order].sum())


def _reordered_guess(labels: Tensor, predicted: Tensor, classes: int) -> float:
    """How often the best relabelling is right if predictions have nothing to do with the images."""
    stream = generator(0, "class order")
    shuffled = [labels[torch.randperm(len(labels), generator=stream)] for _ in range(SHUFFLES)]
    confusions = [_confusion(shuffle, predicted, classes) for shuffle in shuffled]
    return float(
        np.mean([_hits(confusion, _best_order(confusion)) for confusion in confusions])
    ) / len(labels)


def _cycles(order: NDArray[np.intp]) -> Iterator[list[int]]:
    """The classes that a relabelling moves, in groups that it maps to themselves."""
    left = {own for own, output in enumerate(order) if own != output}
    while left:
        cycle = [left.pop()]
        while (following := int(order[cycle[-1]])) in left:
            left.remove(following)
            cycle.append(following)
        yield cycle


def _clearly_moved(confusion: Confusion, order: NDArray[np.intp], cycle: list[int]) -> bool:
    """Whether most images of these classes are predicted as the relabelling says, significantly
    more than as their own.
    """
    moved = int(confusion[cycle, order[cycle]].sum())
    stayed = int(confusion[cycle, cycle].sum())
    return 2 * moved >= confusion[cycle].sum() and moved - stayed > DEVIATIONS * sqrt(
        moved + stayed
    )
