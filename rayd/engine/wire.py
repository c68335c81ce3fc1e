"""Serialisation between processes: torch tensors are sent as numpy arrays.

Ray passes numpy arrays to readers without a copy and read-only, so that writing into shared memory
is an error rather than silent corruption, and transfers them several times faster than torch
tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class Packed:
    """A tensor as an array; with `bfloat16`, which numpy lacks, the array holds its bits."""

    array: npt.NDArray[Any]
    bfloat16: bool


def pack(value: Any) -> Any:
    """Replace every tensor in nested dicts, lists, tuples and named tuples by a `Packed` array."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        if plain.dtype == torch.bfloat16:
            return Packed(plain.view(torch.int16).numpy(), True)
        return Packed(plain.numpy(), False)
    return _with_parts(value, pack)


def unpack(value: Any) -> Any:
    """The inverse of `pack`. Tensors are writable copies; plain arrays stay unchanged."""
    if isinstance(value, Packed):
        tensor = torch.tensor(np.asarray(value.array))
        return tensor.view(torch.bfloat16) if value.bfloat16 else tensor
    return _with_parts(value, unpack)


def to_host(value: Any, copy: bool = False) -> Any:
    """Move the tensors in nested dicts, lists, tuples and named tuples to the host, detached.

    Args:
        value: the nested value.
        copy: also copy tensors that are on the host already.
    """
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu()
        return plain.clone() if copy and plain.data_ptr() == value.data_ptr() else plain
    return _with_parts(value, partial(to_host, copy=copy))


def size(value: Any) -> int:
    """Bytes of the arrays in a packed value."""
    if isinstance(value, Packed):
        return int(value.array.nbytes)
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if type(value) is dict:
        return sum(map(size, value.values()))
    return sum(map(size, value)) if type(value) in (tuple, list) or _named(value) else 0


def only_tensors(value: Any) -> bool:
    """Whether a packed value consists of arrays only, so that `size` is its total size."""
    if isinstance(value, Packed) or type(value) is np.ndarray or value is None:
        return True
    if type(value) is dict:
        return all(map(only_tensors, value.values()))
    return (type(value) in (tuple, list) or _named(value)) and all(map(only_tensors, value))


def _with_parts(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change each part of a dict, list, tuple or named tuple; any other value is returned as it is."""
    # exact types, as subclasses may hold more than their items
    if type(value) is dict:
        return {key: change(part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(change, value))
    if _named(value):
        return type(value)(*map(change, value))
    return value


def _named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")
