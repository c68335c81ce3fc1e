"""Division of a synthetic set into blocks that are optimised separately."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def blocks(
    labels: Tensor, size: int | Literal["classes"] | None, order: Literal["turn", "class"] = "turn"
) -> list[Tensor]:
    """Indices of the images of each block.

    In order `turn`, the first image of every class comes before the second of any, as in SRe2L's
    batches of one image per class; in `class`, all images of a class come before those of the next.

    Args:
        labels: class indices (n,).
        size: maximum number of images per block; `classes` for the number of classes; None for a
            single block in the set's own order.
        order: order in which blocks are filled.

    >>> labels = torch.tensor([0, 0, 1, 1, 2, 2])
    >>> [[block.tolist() for block in blocks(labels, 3, order)] for order in ("turn", "class")]
    [[[0, 2, 4], [1, 3, 5]], [[0, 1, 2], [3, 4, 5]]]
    """
    if size == "classes":
        size = int((torch.bincount(labels) > 0).sum())
    if size is None or size >= len(labels):
        return [torch.arange(len(labels))]
    by_class = labels.argsort(stable=True)
    if order == "class":
        return list(torch.split(by_class, size))
    counts = torch.bincount(labels)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    return list(torch.split(by_class[rank.argsort(stable=True)], size))
