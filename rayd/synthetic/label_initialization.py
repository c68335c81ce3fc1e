"""Initial values of learned labels: logits (n, classes), whose softmax is the label.

Labels that teachers make for students are in `rayd.training.teacher_labels`.

Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching"
(DATM, ICLR 2024): logits are initialised with the mean of those experts that classify the image
correctly; images that no expert classifies correctly are excluded.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional


def agreed_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean logits (n, classes) of the correct experts; also whether any is correct, boolean (n,).

    Args:
        logits: logits of every expert (experts, n, classes).
        labels: class indices (n,).

    Images that no expert classifies correctly have logits 0.
    """
    right = (logits.argmax(2) == labels).to(logits.dtype)
    total = torch.einsum("en,enc->nc", right, logits)
    return total / right.sum(0).clamp(min=1)[:, None], right.any(0)


def class_logits(labels: Tensor, classes: int, share: float = 0.9) -> Tensor:
    """Logits (n, classes) whose softmax is `share` for the label, and equal for all other classes.

    >>> class_logits(torch.tensor([1]), 3).softmax(1)
    tensor([[0.0500, 0.9000, 0.0500]])
    """
    gap = math.log(share / (1 - share) * (classes - 1))
    return gap * functional.one_hot(labels, classes).float()


def random_logits(count: int, classes: int, draws: Generator) -> Tensor:
    """Standard normal logits (count, classes), as LS-MTT does not specify its random labels."""
    return torch.randn(count, classes, generator=draws)
