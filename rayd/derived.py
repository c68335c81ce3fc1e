"""What is derived of a tensor, kept as long as the tensor lives unchanged; and what the host knows
of tensors on a device.

Which classes a block of images has, how many images each, and in which order, follow from its class
indices, which stay the same for a whole synthesis. Asking the device for them in every step, or for
every layer, would make the host wait for all queued work each time. So they are asked for once, or
not at all where the indices came from the host.
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
"""Version of a tensor, and what was derived of it by name. Tensors are keys by identity."""


def derived(tensor: Tensor, name: str, make: Callable[[], T]) -> T:
    """A value that follows from a tensor: made at the first call, and again after the tensor was
    changed in place.

    Args:
        tensor: what it follows from; it is not kept alive, so the value must not refer to it.
        name: of the value, with all that it depends on besides.
        make: computes the value.
    """
    values = _values(tensor)
    if name not in values:
        values[name] = make()
    value: T = values[name]
    return value


def _values(tensor: Tensor) -> dict[str, Any]:
    if tensor in _kept:
        version, values = _kept[tensor]
        if version == tensor._version:
            return values
    fresh: dict[str, Any] = {}
    _kept[tensor] = tensor._version, fresh
    return fresh


def on_host(tensor: Tensor) -> Tensor:
    """A tensor's numbers on the CPU; they are not to be written to. The first call may wait for the
    device.
    """
    return (
        tensor
        if tensor.device.type == "cpu"
        else derived(tensor, "on host", lambda: tensor.detach().cpu())
    )


def known_on_host(tensor: Tensor, numbers: Tensor) -> Tensor:
    """A tensor, of which `on_host` is to know the numbers: those that it was copied from, on the
    CPU.
    """
    if tensor.device.type != "cpu":
        _values(tensor)["on host"] = numbers
    return tensor


def uploaded(numbers: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device, of which `on_host` knows the numbers."""
    return known_on_host(upload(numbers, device), numbers)


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a tensor, of which `on_host` knows the numbers if it knows those of the
    tensor.
    """
    part = tensor[rows]
    known = tensor.device.type != "cpu" and "on host" in _values(tensor)
    return known_on_host(part, _values(tensor)["on host"][rows]) if known else part


def present_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes among class indices (N,), ascending (K,), and which of these each index is
    (N,).
    """

    def find() -> tuple[Tensor, Tensor]:
        present, which = torch.unique(on_host(labels), return_inverse=True)
        return uploaded(present, labels.device), uploaded(which, labels.device)

    return derived(labels, "present classes", find)


def class_sizes(labels: Tensor, classes: int) -> Tensor:
    """How many of some class indices (N,) each class has, int64 (classes,)."""

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
    """Where images go so that each class has a row of its own, of as many places as the largest
    class has images.
    """

    order: Tensor
    """The images, class by class (N,)."""
    rows: Tensor
    """Class of each, in this order (N,)."""
    places: Tensor
    """Place in the row of the class, in this order (N,)."""
    width: int
    """Images of the largest class."""


def class_grid(labels: Tensor, classes: int) -> Grid:
    """The grid of class indices (N,)."""

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
