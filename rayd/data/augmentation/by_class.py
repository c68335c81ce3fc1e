"""One augmentation for a whole batch in which every class has draws of its own.

Siamese augmentation (Zhao and Bilen, ICML 2021) draws an operation and its parameters for every
class; the real and the synthetic images of a class share them. Here a batch of all classes is
augmented at once: what is to be done is planned on the CPU, where labels are known, and all images
that get the same operation get it together, each with its own class's parameters. The number of
operations on the device does not grow with classes, and the host never waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayd.data.augmentation.dsa import Operation
from rayd.data.augmentation.rows import at_rows
from rayd.transfer import send

Rows = slice | Tensor
"""Which images of a batch: consecutive ones, or indices int64 (n,) on the CPU."""

ALL = slice(None)
"""All images of a batch."""


@dataclass(frozen=True, eq=False)
class _Part:
    """The images of a batch that get one kind of operation."""

    operation: Operation
    """With parameters of every image (n, ...), or of all of them (1, ...), on the device."""
    indices: Tensor
    """Where in the batch the images are, int64 (n,), ascending, on the device."""
    places: npt.NDArray[np.int64]
    """The same on the CPU."""
    classes: npt.NDArray[np.int64]
    """The class of each of them (n,), on the CPU."""

    def between(self, start: int, stop: int) -> slice:
        """Which of the images lie in a range of the batch."""
        first, last = np.searchsorted(self.places, (start, stop)).tolist()
        return slice(first, last)

    def __call__(self, images: Tensor, own: slice) -> Tensor:
        """Apply to the images of some of the entries."""
        classes = self.classes[own]
        # one class has one row of parameters, so that a sampling grid, say, is made once
        alike = bool((classes == classes[0]).all())
        wanted: Any = slice(own.start, own.start + 1) if alike else own
        return at_rows(self.operation, wanted)(images)


class ByClass:
    """Operations of the classes, applied to a batch of them.

    Args:
        drawn: the operations of every class among the labels, with parameters of one row; as many
            for each class.
        labels: class indices (N,) of the batch, on the CPU.
        device: where the images are.
    """

    def __init__(
        self, drawn: Mapping[int, Sequence[Operation]], labels: Tensor, device: torch.device
    ) -> None:
        self._drawn = drawn
        self._labels = labels
        present, position = np.unique(labels.numpy(), return_inverse=True)
        stages = zip(*(drawn[label] for label in present.tolist()), strict=True)
        self._stages = _to_device([_parts(operations, position) for operations in stages], device)

    def __call__(self, images: Tensor, rows: Rows = ALL) -> Tensor:
        """Augment the images (n, C, H, W) at some rows of the batch, differentiably."""
        if isinstance(rows, Tensor):
            return ByClass(self._drawn, self._labels[rows], images.device)(images)
        start, stop, _ = rows.indices(len(self._labels))
        for parts in self._stages:
            images = _apply(parts, images, start, stop)
        return images


def _apply(parts: Sequence[_Part], images: Tensor, start: int, stop: int) -> Tensor:
    """One operation on each of the images that lie in a range of the batch."""
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
    """Images by what is done to them.

    Args:
        operations: of each class.
        position: of the class of each image (N,) among them.
    """
    kinds: dict[Any, list[int]] = {}
    for index, operation in enumerate(operations):
        kinds.setdefault(_kind(operation), []).append(index)
    parts = []
    for classes in kinds.values():
        places = np.flatnonzero(np.isin(position, classes))
        own = position[places]
        rows = torch.from_numpy(np.searchsorted(classes, own))
        stacked = _stacked([operations[index] for index in classes])
        parts.append(_Part(at_rows(stacked, rows), torch.from_numpy(places), places, own))
    return parts


def _kind(operation: Operation) -> tuple[Any, ...]:
    """What must be equal of operations that are applied at once: all but the tensors."""
    return type(operation), *(
        value for value in _values(operation).values() if not isinstance(value, Tensor)
    )


def _stacked(operations: Sequence[Operation]) -> Operation:
    """Operations of one kind as one, with a row of parameters for each."""
    drawn = [_tensors(operation) for operation in operations]
    return _with(
        operations[0], {name: torch.cat([one[name] for one in drawn]) for name in drawn[0]}
    )


def _to_device(stages: list[list[_Part]], device: torch.device) -> list[list[_Part]]:
    """All parameters and indices on the device, by one copy."""
    parts = [part for stage in stages for part in stage]
    named = [{"": part.indices, **_tensors(part.operation)} for part in parts]
    sent = iter(send([tensor for tensors in named for tensor in tensors.values()], device))
    arrived = []
    for part, tensors in zip(parts, named, strict=True):
        there = {name: next(sent) for name in tensors}
        indices = there.pop("")
        arrived.append(replace(part, operation=_with(part.operation, there), indices=indices))
    ordered = iter(arrived)
    return [[next(ordered) for _ in stage] for stage in stages]


def _values(operation: Operation) -> dict[str, Any]:
    drawn: Any = operation
    return {field.name: getattr(drawn, field.name) for field in fields(drawn)}


def _tensors(operation: Operation) -> dict[str, Tensor]:
    return {name: value for name, value in _values(operation).items() if isinstance(value, Tensor)}


def _with(operation: Operation, tensors: Mapping[str, Tensor]) -> Operation:
    drawn: Any = operation
    changed: Operation = replace(drawn, **tensors)
    return changed
