"""Steps uphill: of images whose loss is to be flat around them, and of weights that are to differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def moved_uphill(
    tensors: Sequence[Tensor], gradients: Sequence[Tensor], radius: float
) -> Iterator[None]:
    """Move tensors along their gradients, all together by a distance, until the block ends."""
    # copies, as subtracting what was added would not give the same bits back
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
    """Move weights, in place, by steps of equal length along the gradient of the cross-entropy.

    Args:
        network: in evaluation mode; buffers stay as they are.
        images: network input (N, C, H, W).
        labels: class indices (N,), or rows of probabilities.
        steps: how many.
        length: of all steps together.
    """
    weights = [one for one in network.parameters() if one.is_floating_point()]
    # observers are frozen; only here their weights have a gradient
    for weight in weights:
        weight.requires_grad_()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(images), labels)
        # weights that the loss does not reach, such as those of an unused head, get zeros
        slope = torch.autograd.grad(loss, weights, materialize_grads=True)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in slope]))
        pace = length / steps / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        with torch.no_grad():
            for weight, gradient in zip(weights, slope, strict=True):
                weight.add_(pace * gradient)
    for weight in weights:
        weight.requires_grad_(False)
