"""Selection of images for each split from the labels alone, before any image is decoded.

Every draw uses a generator seeded by (split seed, purpose, class name), so the images drawn for a
class do not depend on the other selected classes or on their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rayd.data.images import Labels, Rows
from rayd.errors import DataError
from rayd.seeding import generator


def choose_classes(labels: Labels, chosen: Sequence[int]) -> tuple[Rows, Labels]:
    """Select rows whose label is in `chosen`; also return their positions in `chosen` as labels.

    >>> choose_classes(np.array([0, 2, 1, 2]), [2, 0])
    (array([0, 1, 3]), array([1, 0, 0]))
    """
    position = np.full(max([labels.max(initial=-1), *chosen]) + 1, -1, np.int64)
    position[list(chosen)] = np.arange(len(chosen))
    rows = np.flatnonzero(position[labels] >= 0)
    return rows, position[labels[rows]]


def stratified(
    labels: Labels, fraction: float, class_names: Sequence[str], seed: int, purpose: str
) -> tuple[Rows, Rows]:
    """Set aside the same fraction of every class.

    For a class of n images, round(fraction * n) are set aside: at least one if n >= 2, never all.

    Args:
        labels: class indices (N,).
        fraction: fraction to set aside, in [0, 1).
        class_names: one name per class; part of the key of the draws.
        seed: seed of the draws.
        purpose: name of the split that is set aside, e.g. "validation"; part of the key of the
            draws.

    Returns:
        The rows that are kept, and the rows that are set aside.
    """
    aside = np.zeros(len(labels), bool)
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(labels == label)
        take = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        if fraction > 0 and take > 0:
            aside[rows[_draw(len(rows), take, seed, purpose, name)]] = True
    return np.flatnonzero(~aside), np.flatnonzero(aside)


def uneven(counts: Sequence[int] | npt.NDArray[np.int64]) -> bool:
    """Whether classes are imbalanced: the largest is at least twice as large as the smallest."""
    return bool(max(counts) >= 2 * min(counts))


def long_tailed_counts(largest: int, imbalance: float, classes: int) -> npt.NDArray[np.int64]:
    r"""Images kept per class, int64 (classes,): :math:`n_c = n_{max} f^{-c/(C-1)}`, truncated.

    Class 0 is the largest. LTDD (Zhao et al., 2024) and earlier long-tailed CIFAR sets (Cui et al.,
    CVPR 2019) use the same formula.

    >>> long_tailed_counts(5000, 100, 10).sum()
    np.int64(12406)
    """
    share = imbalance ** (-np.arange(classes) / max(classes - 1, 1))
    # 1e-9 prevents rounding errors from truncating a whole number to the integer below it
    return np.floor(largest * share + 1e-9).astype(np.int64)


def long_tailed(labels: Labels, imbalance: float, class_names: Sequence[str], seed: int) -> Rows:
    """Draw a long-tailed subset without replacement; classes that are small enough stay whole.

    Args:
        labels: class indices (N,).
        imbalance: imbalance factor f, the size of the largest class over that of the smallest.
        class_names: one name per class; part of the key of the draws.
        seed: seed of the draws.

    Raises:
        DataError: a class would keep no image.
    """
    available = np.bincount(labels, minlength=len(class_names))
    counts = np.minimum(
        long_tailed_counts(int(available.max()), imbalance, len(class_names)), available
    )
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        raise DataError(
            f"Setting 'data.imbalance' must leave every class an image; {imbalance:g} leaves none "
            f"for {_listed(empty)} (the largest class has {available.max()})."
        )
    kept = []
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(labels == label)
        kept.append(rows[_draw(len(rows), int(counts[label]), seed, "long tail", name)])
    return np.sort(np.concatenate(kept))


def check_labels(labels: Labels, class_names: Sequence[str], where: str) -> None:
    """Reject labels that do not define a classification problem.

    Raises:
        DataError: there are fewer than two classes, or a class has no image.
    """
    if len(class_names) < 2:
        raise DataError(
            f"A data set must have at least two classes. Got {len(class_names)} in {where} instead."
        )
    counts = np.bincount(labels, minlength=len(class_names))
    missing = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if missing:
        raise DataError(
            f"Every class must have an image in {where}. Got none for {_listed(missing)} instead: "
            "add images, or select other classes with 'data.classes'."
        )


def _draw(available: int, take: int, seed: int, purpose: str, name: str) -> Rows:
    drawn: Rows = torch.randperm(available, generator=generator(seed, purpose, name))[:take].numpy()
    return drawn


def _listed(names: Sequence[str]) -> str:
    quoted = ", ".join(f"'{name}'" for name in names[:5])
    return f"{quoted} and {len(names) - 5} more" if len(names) > 5 else quoted
