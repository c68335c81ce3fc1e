"""Augmentation of a batch with separate draws for each class.

Siamese augmentation (Zhao and Bilen, ICML 2021) draws an operation and its parameters for every
class; the real and synthetic images of a class share them. Here, a batch of all classes is
augmented at once: images are grouped by operation on the CPU, where labels are known, and each
group is augmented together, with the parameters of each image's class. The number of device
operations does not grow with the number of classes, and the host never synchronises with the
device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayd.data.augmentation.dsa import Operation
from rayd.data.augmentation.rows import at_rows
from rayd.transfer import send

Rows = slice | Tensor
"""Images of a batch: a slice, or indices int64 (n,) on the CPU."""

ALL = slice(None)
"""All images of a batch."""


@dataclass(frozen=True, eq=False)
class _Unchanged:
    """Identity operation."""

    def __call__(self, images: Tensor) -> Tensor:
        return images


@dataclass(frozen=True, eq=False)
class _Part:
    """Images of a batch that share one kind of operation."""

    operation: Operation
    """Operation with parameters per image (n, ...), or shared (1, ...), on the device."""
    indices: Tensor
    """Positions of the images in the batch, int64 (n,), ascending, on the device."""
    positions: npt.NDArray[np.int64]
    """Copy of `indices` on the CPU."""
    classes: npt.NDArray[np.int64]
    """Class of each image (n,), on the CPU."""

    def between(self, start: int, stop: int) -> slice:
        """Slice of this part's entries whose images lie in a range of the batch."""
        first, last = np.searchsorted(self.positions, (start, stop)).tolist()
        return slice(first, last)

    def __call__(self, images: Tensor, own: slice) -> Tensor:
        """Apply to the images of a slice of this part's entries."""
        classes = self.classes[own]
        # images of a single class share a row of parameters, so that sampling grids, for example,
        # are computed only once
        alike = bool((classes == classes[0]).all())
        rows: Any = slice(own.start, own.start + 1) if alike else own
        return at_rows(self.operation, rows)(images)


class ByClass:
    """Operations of each class, applied to a batch of several classes.

    Args:
        drawn: the operations of every class among the labels, with one row of parameters each; the
            number of operations may differ between classes.
        labels: class indices (N,) of the batch, on the CPU.
        device: device of the images.
    """

    def __init__(
        self, drawn: Mapping[int, Sequence[Operation]], labels: Tensor, device: torch.device
    ) -> None:
        self._drawn = drawn
        self._labels = labels
        present, position = np.unique(labels.numpy(), return_inverse=True)
        # classes may have drawn alternatives of different length; shorter ones are padded
        stages = zip_longest(*(drawn[label] for label in present.tolist()), fillvalue=_Unchanged())
        self._stages = _to_device([_parts(operations, position) for operations in stages], device)

    def __call__(self, images: Tensor, rows: Rows = ALL) -> Tensor:
        """Augment the images (n, C, H, W) at the given rows of the batch; differentiable."""
        if isinstance(rows, Tensor):
            return ByClass(self._drawn, self._labels[rows], images.device)(images)
        start, stop, _ = rows.indices(len(self._labels))
        for parts in self._stages:
            images = _apply(parts, images, start, stop)
        return images


def _apply(parts: Sequence[_Part], images: Tensor, start: int, stop: int) -> Tensor:
    """Apply each image's operation, for the images within a range of the batch."""
    ranges = [part.between(start, stop) for part in parts]
    chosen = [(part, own) for part, own in zip(parts, ranges, strict=True) if own.start < own.stop]
    if len(chosen) == 1:
        part, own = chosen[0]
        return part(images, own)
    augmented = torch.empty_like(images, requires_grad=False)
    for part, own in chosen:
        indices = part.indices[own] - start
        augmented.index_copy_(0, indices, part(images.index_select(0, indices), own))
    return augmented


def _parts(operations: Sequence[Operation], position: npt.NDArray[np.int64]) -> list[_Part]:
    """Group images by operation.

    Args:
        operations: one operation per class.
        position: index into `operations` of each image's class (N,).
    """
    kinds: dict[Any, list[int]] = {}
    for index, operation in enumerate(operations):
        kinds.setdefault(_kind(operation), []).append(index)
    parts = []
    for classes in kinds.values():
        positions = np.flatnonzero(np.isin(position, classes))
        own = position[positions]
        rows = torch.from_numpy(np.searchsorted(classes, own))
        stacked = _stacked([operations[index] for index in classes])
        indices = torch.from_numpy(positions)
        parts.append(_Part(at_rows(stacked, rows), indices, positions, own))
    return parts


def _kind(operation: Operation) -> tuple[Any, ...]:
    """Key shared by operations that can be batched: the type and all parameters except tensors."""
    values = _values(operation).values()
    return type(operation), *(value for value in values if not isinstance(value, Tensor))


def _stacked(operations: Sequence[Operation]) -> Operation:
    """Stack operations of one kind into one, with a row of parameters per operation."""
    tensors = [_tensors(operation) for operation in operations]
    stacked = {}
    for name in tensors[0]:
        stacked[name] = torch.cat([drawn[name] for drawn in tensors])
    return _with(operations[0], stacked)


def _to_device(stages: list[list[_Part]], device: torch.device) -> list[list[_Part]]:
    """Move all parameters and indices to the device in a single copy."""
    parts = [part for stage in stages for part in stage]
    named = [{"": part.indices, **_tensors(part.operation)} for part in parts]
    sent = iter(send([tensor for tensors in named for tensor in tensors.values()], device))
    moved = []
    for part, tensors in zip(parts, named, strict=True):
        on_device = {name: next(sent) for name in tensors}
        indices = on_device.pop("")
        moved.append(replace(part, operation=_with(part.operation, on_device), indices=indices))
    ordered = iter(moved)
    regrouped = []
    for stage in stages:
        regrouped.append(list(islice(ordered, len(stage))))
    return regrouped


def _values(operation: Operation) -> dict[str, Any]:
    drawn: Any = operation
    return {field.name: getattr(drawn, field.name) for field in fields(drawn)}


def _tensors(operation: Operation) -> dict[str, Tensor]:
    return {name: value for name, value in _values(operation).items() if isinstance(value, Tensor)}


def _with(operation: Operation, tensors: Mapping[str, Tensor]) -> Operation:
    drawn: Any = operation
    changed: Operation = replace(drawn, **tensors)
    return changed
