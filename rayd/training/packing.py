"""Packing of the draws of many batches into a few tensors, for compact files.

The draws of a batch of n images are a mapping of tensors: some with one row per image, (n, ...),
others for the batch as a whole, such as a box or a share. For an epoch of B batches with N images
in total they become

- `<what>.images.<name>` (N, ...): rows of all batches in order,
- `<what>.batches.<name>` (B, ...): one entry per batch,

and for E epochs each gets another leading dimension. Integers are stored in the smallest signed
type that holds them and restored as int64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

StateDict = Mapping[str, Tensor]
"""Draws of one batch, or of one epoch, by name."""

SMALL = (torch.int8, torch.int16, torch.int32)
"""Integer types, smallest first."""


def pack(what: str, states: Sequence[StateDict], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Pack the draws of one epoch.

    Args:
        what: kind of the draws, the first part of the tensors' names.
        states: draws of each batch, all with the same names.
        sizes: number of images of each batch.
    """
    packed = {}
    for name in states[0]:
        tensors = [state[name] for state in states]
        # shapes can be ambiguous (a box of 4 numbers in batches of 4 images), but then both layouts
        # restore the same tensors
        by_image = all(
            tensor.ndim and len(tensor) == size for tensor, size in zip(tensors, sizes, strict=True)
        )
        if by_image:
            packed[f"{what}.images.{name}"] = torch.cat(tensors)
        else:
            packed[f"{what}.batches.{name}"] = torch.stack(tensors)
    return packed


def unpack(what: str, packed: StateDict, sizes: Sequence[int]) -> list[dict[str, Tensor]]:
    """Inverse of `pack`: one mapping per batch, empty if nothing of this kind was packed."""
    states: list[dict[str, Tensor]] = [{} for _ in sizes]
    for key, tensor in packed.items():
        kind, _, rest = key.partition(".")
        if kind == what:
            layout, _, name = rest.partition(".")
            parts = torch.split(tensor, list(sizes)) if layout == "images" else tensor
            for state, part in zip(states, parts, strict=True):
                state[name] = part
    return states


def stack(epochs: Sequence[StateDict]) -> dict[str, Tensor]:
    """Stack the draws of several epochs, with narrowed integers."""
    stacked = {}
    for name in epochs[0]:
        stacked[name] = narrow(torch.stack([epoch[name] for epoch in epochs]))
    return stacked


def unstack(stacked: StateDict, index: int) -> dict[str, Tensor]:
    """Draws of one of the epochs, integers as int64."""
    return {
        name: tensor[index].long() if tensor.dtype in SMALL else tensor[index]
        for name, tensor in stacked.items()
    }


def narrow(tensor: Tensor) -> Tensor:
    """Convert integers to the smallest signed type that holds them; other tensors are unchanged.

    >>> narrow(torch.tensor([0, 127])).dtype, narrow(torch.tensor([0, 128])).dtype
    (torch.int8, torch.int16)
    >>> narrow(torch.tensor([0.5])).dtype
    torch.float32
    """
    if tensor.dtype not in (*SMALL, torch.int64) or not tensor.numel():
        return tensor
    least, most = (int(bound) for bound in tensor.aminmax())
    for small in SMALL:
        if torch.iinfo(small).min <= least and most <= torch.iinfo(small).max:
            return tensor.to(small)
    return tensor.to(torch.int64)
