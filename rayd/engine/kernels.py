"""Properties of counted operations that determine their time.

An operation is the text that `rayd.engine.counting` writes: name, arguments and results, with
shapes, strides and types in place of tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from rayd.engine.counting import Operation

REPLAYED_FLOPS = 4e8
"""Approximate floating-point operations of a timed call, to which batches are reduced."""
REPLAYED_BYTES = 2**25
"""The same in bytes."""
FRESH_BYTES = 2**25
"""Bytes from which a tensor gets newly mapped memory: glibc maps it separately, and the system
clears it page by page on the first write, which takes longer than most kernels.
"""
PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Kernel:
    """Properties of an operation, parsed from its text."""

    flops: float
    """Floating-point operations; 0 for operations that are bound by memory."""
    bytes: float
    """Bytes of tensors read and written."""
    kind: tuple[Any, ...]
    """Properties that must be equal for operations to share a rate."""
    sizes: tuple[float, ...]
    """Binary logarithms of sizes that must be close for operations to share a rate."""
    family: str
    """`convolutions`, `matrix products`, `memory`, or `calls` where nothing is computed."""
    fresh: float = 0.0
    """Bytes that are written to fresh memory."""

    @property
    def work(self) -> float:
        """Floating-point operations, or bytes."""
        return self.flops or self.bytes

    @property
    def name(self) -> str:
        """Name of its measured rate."""
        return json.dumps([*self.kind, [round(size) for size in self.sizes]], separators=(",", ":"))


@lru_cache(maxsize=100_000)
def kernel(operation: Operation) -> Kernel:
    """Parse an operation."""
    name, args, kwargs, made = json.loads(operation)
    short = name.split(".")[1]
    read = tensors_of([args, kwargs])
    written = tensors_of(made)
    if not written and short != "_local_scalar_dense" and not short.startswith("_fused"):
        return Kernel(0.0, 0.0, (short,), (), "calls")
    size = float(sum(map(_bytes, [*read, *written])))
    fresh = 0.0
    # in-place operations write to memory that is mapped already
    if not short.endswith("_"):
        fresh = float(sum(each for each in map(_bytes, written) if each > FRESH_BYTES))
    types = sorted({each[3] for each in read})
    if short in ("convolution", "convolution_backward"):
        return _convolution(short, args, made, types, size, fresh)
    if short in PRODUCTS:
        left, right = [each for each in read if len(each[1]) > 1][-2:]
        rows = math.prod(left[1][:-1])
        inner = left[1][-1]
        columns = right[1][-1]
        kind = (short, *types, _order(left), _order(right))
        return Kernel(
            flops=2.0 * rows * inner * columns,
            bytes=size,
            kind=kind,
            sizes=tuple(math.log2(max(1, each)) for each in (rows, inner, columns)),
            family="matrix products",
            fresh=fresh,
        )
    return Kernel(
        flops=0.0,
        bytes=size,
        kind=(short, *types, *sorted({_order(each) for each in read}), *_options([args, kwargs])),
        sizes=(math.log2(max(1.0, size)),),
        family="memory",
        fresh=fresh,
    )


def _convolution(
    short: str,
    args: Sequence[Any],
    made: Sequence[Any],
    types: Sequence[str],
    size: float,
    fresh: float,
) -> Kernel:
    backward = short == "convolution_backward"
    inputs, weight = (args[1], args[2]) if backward else (args[0], args[1])
    outputs = args[0] if backward else made[0]
    stride = args[4 if backward else 3]
    transposed = args[7 if backward else 6]
    # for a backward pass, the options show which gradients (images, weights) are computed
    groups, mask = (args[9], args[10][:2]) if backward else (args[8], [True])
    shape = outputs[1]
    filters = weight[1]
    grid = inputs[1] if transposed else shape
    flops = 2.0 * grid[0] * math.prod(grid[2:]) * math.prod(filters) * sum(mask)
    batch = max(1, min(shape[0], fewer(shape[0], flops, size)))
    lengths = (filters[0] / groups, filters[1], groups, math.prod(shape[2:]), batch)
    return Kernel(
        flops=flops,
        bytes=size,
        kind=(short, *types, _order(inputs), *filters[2:], *stride, transposed, groups > 1, *mask),
        sizes=tuple(math.log2(max(1, each)) for each in lengths),
        family="convolutions",
        fresh=fresh,
    )


def fewer(batch: int, flops: float, size: float) -> int:
    """Size to which a batch is reduced for timing."""
    share = max(flops / REPLAYED_FLOPS, size / REPLAYED_BYTES, 1.0)
    return max(1, round(batch / share))


def tensors_of(value: Any) -> list[Any]:
    """All tensors among arguments."""
    if is_tensor(value):
        return [value]
    tensors = []
    for each in _children(value):
        tensors.extend(tensors_of(each))
    return tensors


def _options(value: Any) -> list[Any]:
    """Small integers and strings among arguments, and the dimensions of tensors.

    They may determine the kernel: the dimensions of a sum, for example.
    """
    if is_tensor(value):
        return [len(value[1])]
    if isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 16):
        return [value]
    options = []
    for each in _children(value):
        options.extend(_options(each))
    return options


def is_tensor(value: Any) -> bool:
    """Whether an argument is a tensor: ["T", shape, strides, type]."""
    return isinstance(value, list) and len(value) == 4 and value[0] == "T"


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _bytes(tensor: Any) -> int:
    _, shape, strides, dtype = tensor
    # expanded dimensions have stride 0, so they are read from the processor's cache
    real: int = math.prod(
        length for length, stride in zip(shape, strides, strict=True) if stride != 0
    )
    return real * dtype_of(dtype).itemsize


def _order(tensor: Any) -> str:
    """Memory layout of a tensor: `first` is contiguous, `last` has channels last."""
    _, shape, strides, _ = tensor
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return "last" if len(shape) == 4 and strides[1] == 1 else "other"
        expected *= length
    return "first"


def dtype_of(name: str) -> torch.dtype:
    """The type that an operation's text names, such as `float32`."""
    found: torch.dtype = getattr(torch, name)
    return found
