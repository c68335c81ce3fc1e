"""Transfer of many small tensors to a device in one copy.

A copy to a GPU costs some ten microseconds however small it is, and a copy from pageable memory
also makes the host wait. Parameters of an augmentation, indices of a batch or the weights of a
network are many small tensors: they are packed into one buffer and copied at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 16
"""Alignment in bytes of each tensor in the buffer, as views in another type require."""
STAGED = 2**16
"""Maximum bytes of a copy from pageable memory that CUDA stages; larger buffers are pinned."""


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy CPU tensors to a device in one copy, to a CUDA device an asynchronous one.

    Args:
        tensors: tensors of any types and shapes, on the CPU.
        device: target; for the CPU the tensors themselves are returned.

    Returns:
        Tensors of the same values, types and shapes, contiguous. They share one buffer, which lives
        as long as any of them.
    """
    if device.type == "cpu" or not tensors:
        return list(tensors)
    buffer, starts = pack(tensors)
    # of other devices it is waited for: on MPS an asynchronous copy reads the buffer after it was
    # freed, and gives random numbers
    sent = upload(buffer, device)
    return [_unpacked(sent, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for work queued there, unlike a plain copy.

    The tensor may be freed as soon as this returns, and changed unless it is in pinned memory, from
    where it may still be read. A tensor that is on another device than the CPU is moved as usual.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    source = tensor if tensor.nbytes <= STAGED or tensor.is_pinned() else tensor.pin_memory()
    return source.to(device, non_blocking=True)


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Pack CPU tensors into one buffer of bytes; also return where each begins."""
    padded = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    *starts, end = [0, *accumulate(padded)]
    buffer = torch.empty(end, dtype=torch.uint8)
    for start, tensor in zip(starts, tensors, strict=True):
        _unpacked(buffer, start, tensor).copy_(tensor.detach())
    return buffer, starts


def _unpacked(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """View of the part of a buffer that contains a tensor of this type and shape."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
