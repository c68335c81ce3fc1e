"""Small tensors on their way to a device, together.

A copy to a GPU costs some ten microseconds however small it is, and one from ordinary (pageable)
memory also makes the host wait. Parameters of an augmentation, indices of a batch or the weights of
a new network are many small tensors: they are packed into one buffer and copied at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes: every tensor starts at a multiple of it in the buffer, as a view in another type must."""
STAGED = 2**16
"""Bytes up to which the CUDA driver takes a copy of ordinary memory at once; a larger buffer is
pinned first.
"""


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the CPU on a device, by one copy that the host does not wait for.

    Args:
        tensors: of any types and shapes, on the CPU.
        device: where they go; for the CPU they come back as they are.

    Returns:
        Tensors of the same values, types and shapes, contiguous. They share one buffer, which lives
        as long as any of them.
    """
    if device.type == "cpu" or not tensors:
        return list(tensors)
    buffer, starts = pack(tensors)
    if device.type == "cuda" and buffer.nbytes > STAGED:
        buffer = buffer.pin_memory()
    there = buffer.to(device, non_blocking=True)
    return [_unpacked(there, start, tensor) for start, tensor in zip(starts, tensors, strict=True)]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for the work that is queued there, as a plain copy to a
    GPU does.

    The tensor may be changed or freed as soon as this returns. One that is on a device already is
    moved as usual.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    source = tensor if tensor.nbytes <= STAGED or tensor.is_pinned() else tensor.pin_memory()
    return source.to(device, non_blocking=True)


def pack(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Tensors of the CPU as one buffer of bytes, and where in it each begins."""
    padded = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
    *starts, end = [0, *accumulate(padded)]
    buffer = torch.empty(end, dtype=torch.uint8)
    for start, tensor in zip(starts, tensors, strict=True):
        _unpacked(buffer, start, tensor).copy_(tensor.detach())
    return buffer, starts


def _unpacked(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of a buffer that holds a tensor of this type and shape."""
    return buffer[start : start + like.nbytes].view(like.dtype).view(like.shape)
