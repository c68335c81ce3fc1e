"""Values derived from tensors, cached while the tensor is unchanged; host copies of device tensors.

The classes of a block of images, their numbers of images and their order follow from the class
indices, which stay the same for a whole synthesis. Reading them from the device in every step, or
for every layer, would make the host wait for all queued work each time. So they are read once, or
not at all if the indices came from the host.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rayd.transfer import upload

T = TypeVar("T")

_kept: MutableMapping[Tensor, tuple[int, dict[str, Any]]] = WeakTensorKeyDictionary()
"""Version and derived values (by name) of each tensor. Tensors are keys by identity."""


def derived(tensor: Tensor, name: str, make: Callable[[], T]) -> T:
    """Cache a value that depends on a tensor; recomputed after the tensor is changed in place.

    Of tensors that are made in `torch.inference_mode` nothing is cached.

    Args:
        tensor: the tensor; it is not kept alive, so the value must not refer to it.
        name: name of the value, including all other inputs.
        make: computes the value.
    """
    values = _values(tensor)
    if name not in values:
        # what inference mode makes is of no use to later calls that compute a gradient
        with torch.inference_mode(False):
            values[name] = make()
    value: T = values[name]
    return value


def _values(tensor: Tensor) -> dict[str, Any]:
    if tensor.is_inference():
        # torch does not count changes of what is made in inference mode: nothing of it is kept
        return {}
    if tensor in _kept:
        version, values = _kept[tensor]
        if version == tensor._version:
            return values
    fresh: dict[str, Any] = {}
    _kept[tensor] = tensor._version, fresh
    return fresh


def on_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to the CPU, read-only and cached; the first call may wait for the device."""
    if tensor.device.type == "cpu":
        return tensor
    return derived(tensor, "on host", lambda: tensor.detach().cpu())


def known_on_host(tensor: Tensor, numbers: Tensor) -> Tensor:
    """Cache the host copy of a device tensor, `numbers` on the CPU, for `on_host`."""
    if tensor.device.type != "cpu":
        _values(tensor)["on host"] = numbers
    return tensor


def uploaded(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device, and cache the original for `on_host`."""
    return known_on_host(upload(numbers, device), numbers)


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """Select rows of a tensor, and of its cached host copy if there is one."""
    part = tensor[rows]
    known = tensor.device.type != "cpu" and "on host" in _values(tensor)
    return known_on_host(part, _values(tensor)["on host"][rows]) if known else part


def index_range(labels: Tensor) -> tuple[int, int]:
    """Smallest and largest of class indices (N,), N above 0."""

    def find() -> tuple[int, int]:
        least, most = on_host(labels).aminmax()
        return int(least), int(most)

    return derived(labels, "range", find)


def present_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct values (K,), ascending, of class indices (N,), and the inverse indices (N,)."""

    def find() -> tuple[Tensor, Tensor]:
        present, which = torch.unique(on_host(labels), return_inverse=True)
        return uploaded(present, labels.device), uploaded(which, labels.device)

    return derived(labels, "present classes", find)


def class_sizes(labels: Tensor, classes: int) -> Tensor:
    """Number of images of each class among class indices (N,), int64 (classes,)."""

    def count() -> Tensor:
        return uploaded(torch.bincount(on_host(labels), minlength=classes), labels.device)

    return derived(labels, f"sizes of {classes} classes", count)


def rows_by_class(labels: Tensor) -> dict[int, Tensor]:
    """Rows (n,) of each class among class indices (N,), classes and rows ascending."""

    def sort() -> dict[int, Tensor]:
        numbers = on_host(labels)
        present, sizes = torch.unique(numbers, return_counts=True)
        rows = uploaded(numbers.argsort(stable=True), labels.device)
        return dict(zip(present.tolist(), torch.split(rows, sizes.tolist()), strict=True))

    return derived(labels, "rows by class", sort)


class Grid(NamedTuple):
    """Layout of images in a matrix with one row per class, padded to the largest class."""

    order: Tensor
    """Indices of the images, class by class (N,)."""
    rows: Tensor
    """Row (class) of each image, in this order (N,)."""
    places: Tensor
    """Column of each image, in this order (N,)."""
    width: int
    """Number of columns, the images of the largest class."""


def class_grid(labels: Tensor, classes: int) -> Grid:
    """Compute the grid of class indices (N,)."""

    def lay_out() -> Grid:
        numbers = on_host(labels)
        order = numbers.argsort(stable=True)
        ordered = numbers[order]
        sizes = torch.bincount(numbers, minlength=classes)
        starts = sizes.cumsum(0) - sizes
        places = torch.arange(len(numbers)) - starts[ordered]
        return Grid(
            order=uploaded(order, labels.device),
            rows=uploaded(ordered, labels.device),
            places=uploaded(places, labels.device),
            width=int(sizes.max()) if len(numbers) else 0,
        )

    return derived(labels, f"grid of {classes} classes", lay_out)
