"""Draws of many batches as a few tensors, so that files of them are compact.

What is drawn for a batch of n images is a mapping of tensors: those with one row an image, (n,
...), and those of the batch as a whole, such as a box or a share. For an epoch of B batches with N
images in all they become

- `<what>.images.<name>` (N, ...): rows of all batches in order,
- `<what>.batches.<name>` (B, ...): one entry a batch,

and for E epochs each gets one dimension more. Integers are kept in the smallest signed type that
holds them and come back as int64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""What is drawn for one batch."""

SMALL = (torch.int8, torch.int16, torch.int32)
"""Types for integers, smallest first."""


def pack(what: str, states: Sequence[State], sizes: Sequence[int]) -> dict[str, Tensor]:
    """The draws of one epoch.

    Args:
        what: kind of the draws, the first part of the tensors' names.
        states: one for each batch, all with the same names.
        sizes: images of each batch.
    """
    packed = {}
    for name in states[0]:
        tensors = [state[name] for state in states]
        by_image = all(
            tensor.ndim and len(tensor) == size for tensor, size in zip(tensors, sizes, strict=True)
        )
        packed[f"{what}.{'images' if by_image else 'batches'}.{name}"] = (
            torch.cat(tensors) if by_image else torch.stack(tensors)
        )
    return packed


def unpack(what: str, packed: State, sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """The inverse of `pack`: one mapping for each batch, an empty one if nothing of this kind was
    packed.
    """
    states: list[dict[str, Tensor]] = [{} for _ in sizes]
    for key, tensor in packed.items():
        kind, _, rest = key.partition(".")
        if kind == what:
            layout, _, name = rest.partition(".")
            parts = torch.split(tensor, list(sizes)) if layout == "images" else tensor
            for state, part in zip(states, parts, strict=True):
                state[name] = part
    return states


def stack(epochs: Sequence[State]) -> dict[str, Tensor]:
    """Several epochs of the same draws, integers made small."""
    return {name: narrow(torch.stack([epoch[name] for epoch in epochs])) for name in epochs[0]}


def unstack(stacked: State, index: int) -> dict[str, Tensor]:
    """One of the epochs, integers as int64 again."""
    return {
        name: tensor[index].long() if tensor.dtype in SMALL else tensor[index]
        for name, tensor in stacked.items()
    }


def narrow(tensor: Tensor) -> Tensor:
    """Signed integers in the smallest type that holds them; other tensors as they are.

    >>> narrow(torch.tensor([0, 127])).dtype, narrow(torch.tensor([0, 128])).dtype, narrow(torch.tensor([0.5])).dtype
    (torch.int8, torch.int16, torch.float32)
    """
    if tensor.dtype not in (*SMALL, torch.int64) or not tensor.numel():
        return tensor
    least, most = (int(bound) for bound in tensor.aminmax())
    fitting = (
        small
        for small in SMALL
        if torch.iinfo(small).min <= least and most <= torch.iinfo(small).max
    )
    return tensor.to(next(fitting, torch.int64))
