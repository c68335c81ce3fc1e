"""Where learned labels start: as logits (n, classes), whose softmax is the label.

Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching"
(DATM, ICLR 2024): an image starts with the mean of the logits of those experts that take it for
what it is; images that no expert gets right are not taken.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional


def agreed_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean logits (n, classes) of the experts that are right, and which images any of them is
    right about, boolean (n,).

    Args:
        logits: of every expert (experts, n, classes).
        labels: class indices (n,).

    Images that no expert gets right have logits 0.
    """
    right = (logits.argmax(2) == labels).to(logits.dtype)
    total = torch.einsum("en,enc->nc", right, logits)
    return total / right.sum(0).clamp(min=1)[:, None], right.any(0)


def class_logits(labels: Tensor, classes: int, share: float = 0.9) -> Tensor:
    """Logits (n, classes) whose softmax gives `share` to the class of each image, labels (n,), and
    as much to all others.

    >>> class_logits(torch.tensor([1]), 3).softmax(1)
    tensor([[0.0500, 0.9000, 0.0500]])
    """
    gap = math.log(share / (1 - share) * (classes - 1))
    return gap * functional.one_hot(labels, classes).float()


def random_logits(count: int, classes: int, draws: Generator) -> Tensor:
    """Independent standard normal logits (count, classes): labels "at random", whose distribution
    LS-MTT does not give.
    """
    return torch.randn(count, classes, generator=draws)
