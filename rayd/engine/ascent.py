"""Gradient ascent of images, for sharpness-aware minimisation, and of observers' weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved_uphill(
    tensors: Sequence[Tensor], gradients: Sequence[Tensor], radius: float
) -> Iterator[None]:
    """Context in which tensors are moved along their gradients, by a total distance."""
    # copies, as subtracting the step would not restore the same bits
    before = [tensor.detach().clone() for tensor in tensors]
    lengths = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    length = torch.linalg.vector_norm(torch.stack(lengths))
    # a gradient of zero moves nothing
    pace = radius / length.clamp(min=torch.finfo(length.dtype).tiny)
    try:
        with torch.no_grad():
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.add_(pace * gradient)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def climb(network: nn.Module, images: Tensor, labels: Tensor, steps: int, length: float) -> None:
    """Move weights, in place, by steps of equal length up the gradient of the cross-entropy.

    Args:
        network: in evaluation mode; buffers are not changed.
        images: network input (N, C, H, W).
        labels: class indices (N,), or rows of probabilities.
        steps: number of steps.
        length: total length of the steps, in the Euclidean norm of all weights.
    """
    weights = [one for one in network.parameters() if one.is_floating_point()]
    # observers are frozen otherwise; their weights need a gradient only here
    for weight in weights:
        weight.requires_grad_()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(images), labels)
        # weights that do not affect the loss, such as those of an unused head, get zeros
        slope = torch.autograd.grad(loss, weights, materialize_grads=True)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in slope]))
        pace = length / steps / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        with torch.no_grad():
            for weight, gradient in zip(weights, slope, strict=True):
                weight.add_(pace * gradient)
    for weight in weights:
        weight.requires_grad_(False)
