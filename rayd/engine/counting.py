"""Counting of the operations of a computation without performing them.

`counted(work)` executes the code of a run under a dispatch mode between autograd and the kernels.
Cheap operations on real values (draws, labels, indices) are performed. The result of an expensive
one is a *placeholder*, a tensor of the right shape without memory, as is everything that is
computed from a placeholder. So counting a step with ImageNet batches takes only the time of its
Python code and a few hundred megabytes, and yields the operations and shapes of the run, including
augmentation, second-order gradients and optimizers. `torch.utils.flop_counter` on meta tensors does
not support control flow that depends on values, as on draws and labels here.

A count maps an operation to the number of its calls. An operation is text, e.g.

    ["aten.mm.default",
     [["T", [64, 128], [128, 1], "float32"], ["T", [128, 10], [10, 1], "float32"]], {},
     [["T", [64, 10], [10, 1], "float32"]]]

so that counts can be added, multiplied and saved as JSON. `rayd.engine.speeds` converts counts to
seconds.
"""

from __future__ import annotations

import bisect
import json
import math
import mmap
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily
from torch.utils._pytree import tree_flatten, tree_map

from rayd.repeats import INSTEAD

SMALL = 2**14
"""Bytes of arguments up to which an operation on real values is performed."""
INDICES = 2**26
"""The same for operations with integer results, on which control flow may depend."""
ADDRESSES = (2**42, 2**39, 2**36, 2**33)
"""Sizes of the address space of placeholders, of which the first that the system grants is used. It
is never backed by memory.
"""
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which Python defines from 3.13 on: the system need not reserve memory for the
addresses, neither now nor when the process forks.
"""
ALIGNMENT = 64
"""Bytes to which addresses of placeholders are aligned, as torch's allocator does."""

_KEEPING = frozenset(
    {
        *(
            "add",
            "sub",
            "mul",
            "div",
            "neg",
            "abs",
            "square",
            "pow",
            "exp",
            "log",
            "sqrt",
            "rsqrt",
            "sin",
            "cos",
            "tanh",
            "addcmul",
        ),
        *("clamp", "clamp_min", "relu", "sigmoid", "gelu", "silu", "hardswish"),
        *("threshold_backward", "gelu_backward", "silu_backward", "hardswish_backward"),
    }
)
"""Elementwise operations whose result has the type of their arguments."""

Operation = str
"""A call as JSON text: name, arguments, keyword arguments, tensors made; tensors are ["T", shape,
strides, type].
"""


class _Call:
    """Cached properties of equal calls."""

    __slots__ = ("is_inferred", "operation", "spec")

    def __init__(self) -> None:
        self.operation = ""
        """Its text; empty before the first call."""
        self.spec: Any = None
        """Shapes, strides and types of its results; None where they depend on values."""
        self.is_inferred = False
        """Whether the spec is known."""


_known_calls: dict[tuple[Any, ...], _Call] = {}
"""Calls of this process by function and signature of their arguments."""
_repeats: dict[tuple[Any, ...], tuple[Counter[_Call], Any]] = {}
"""Calls made by functions that are marked as repeated, and the specs of their results."""
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype})
"""Types of arguments that are part of a signature unchanged."""


@dataclass
class Count:
    """Number of calls of each operation, and the memory of the largest backward pass."""

    calls: dict[Operation, float] = field(default_factory=dict)
    """Number of calls; fractional if work was counted in part."""
    saved_bytes: float = 0.0
    """Bytes that autograd saves for a backward pass, at most."""
    backward: float = 0.0
    """Number of calls that autograd makes in backward passes, without Python code."""

    @property
    def number(self) -> float:
        """Total number of calls."""
        return sum(self.calls.values())

    def __add__(self, other: Count) -> Count:
        calls = dict(self.calls)
        for operation, number in other.calls.items():
            calls[operation] = calls.get(operation, 0.0) + number
        # not a sum: one backward pass frees what it saved before the next one begins
        saved = max(self.saved_bytes, other.saved_bytes)
        return Count(calls, saved, self.backward + other.backward)

    def __mul__(self, factor: float) -> Count:
        return Count(
            {operation: number * factor for operation, number in self.calls.items()},
            self.saved_bytes,
            self.backward * factor,
        )

    def __sub__(self, other: Count) -> Count:
        """Subtract a count that is part of this one."""
        calls = {}
        for operation, number in self.calls.items():
            left = number - other.calls.get(operation, 0.0)
            if left > 0:
                calls[operation] = left
        return Count(calls, self.saved_bytes, max(0.0, self.backward - other.backward))

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping."""
        return {
            "calls": self.calls,
            "saved_bytes": self.saved_bytes,
            "backward": self.backward,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Count:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the content is not that of a count.
        """
        calls = {str(operation): float(number) for operation, number in content["calls"].items()}
        return cls(calls, float(content["saved_bytes"]), float(content["backward"]))


def counted(work: Callable[[], object]) -> Count:
    """Count the operations of a call. Its results are meaningless."""
    with Counting() as counting:
        work()
    return counting.count()


class Counting(TorchDispatchMode):
    """A dispatch mode in which operations are counted instead of performed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: Counter[_Call] = Counter()
        self._backward = 0
        self._space = _space()
        # bytes by address: tensors that share memory are counted once
        self._saved: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled here, and torch's check for that takes longer than the counting
        return False

    def __enter__(self) -> Counting:
        self._instead = INSTEAD.set(self._repeat)
        self._hooks.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.__exit__(*error)
        INSTEAD.reset(self._instead)

    def count(self) -> Count:
        """The count so far."""
        calls: dict[Operation, float] = {}
        for call, number in self._calls.items():
            calls[call.operation] = calls.get(call.operation, 0.0) + number
        return Count(calls, float(sum(self._saved.values())), float(self._backward))

    def take(self) -> Count:
        """The count since the last `take`."""
        count = self.count()
        self._calls.clear()
        self._saved.clear()
        self._backward = 0
        return count

    def _keep(self, tensor: Tensor) -> Tensor:
        address, size = self._space.region(tensor)
        self._saved[address] = size
        return tensor

    def _repeat(self, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The result of a function that is marked as repeated.

        The function is called once for each signature of its arguments; after that, its operations
        are counted without calling it.
        """
        tensors: list[Tensor] = []
        key = (work, _signature(args, tensors))
        if torch.is_grad_enabled() or not any(map(self._space.holds, tensors)):
            return work(*args)
        if key not in _repeats:
            before = self._calls
            self._calls = Counter()
            result = work(*args)
            _repeats[key] = (
                self._calls,
                tree_map(lambda each: _spec_of(each) if isinstance(each, Tensor) else each, result),
            )
            self._calls = before
        calls, spec = _repeats[key]
        self._calls.update(calls)
        # operations that create placeholders are not counted
        with _pop_mode_temporarily():
            return self._placeholders(spec)

    def _placeholders(self, spec: Any) -> Any:
        """A result with placeholders as tensors."""
        if _is_spec(spec):
            return self._space.placeholder(*spec)
        if isinstance(spec, tuple) and all(map(_is_spec, spec)):
            return tuple([self._space.placeholder(*each) for each in spec])
        return tree_map(
            lambda each: self._space.placeholder(*each) if _is_spec(each) else each,
            spec,
            is_leaf=_is_spec,
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors: list[Tensor] = []
        key = (
            func,
            _signature(args, tensors),
            *((name, _signature(kwargs[name], tensors)) for name in kwargs),
        )
        # a signature takes long to hash, so all other dictionaries use `_Call` as key
        call = _known_calls.get(key)
        if call is None:
            call = _known_calls[key] = _Call()
        self._calls[call] += 1
        self._backward += _is_by_autograd()
        result = self._result(func, args, kwargs, tensors, call)
        if not call.operation:
            call.operation = _described(func, args, kwargs, result)
        return result

    def _result(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
        call: _Call,
    ) -> Any:
        """The result of a call: real if cheap or relevant for control flow, else a placeholder."""
        # a number that Python code requests, most often for a branch
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._value(args[0])
        if func.is_view or (not tensors and not _is_float(kwargs.get("dtype"))):
            return func(*args, **kwargs)
        placeholder = any(map(self._space.holds, tensors))
        size = sum(each.nbytes for each in tensors)
        if not placeholder and tensors and size <= SMALL:
            try:
                return func(*args, **kwargs)
            except RuntimeError:
                # e.g. a matrix of zeros that cannot be inverted
                return self._skipped(func, args, kwargs, call)
        if (
            not placeholder
            and size <= INDICES
            and self._makes_indices(func, args, kwargs, tensors, call)
        ):
            return func(*args, **kwargs)
        return self._skipped(func, args, kwargs, call)

    def _makes_indices(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
        call: _Call,
    ) -> bool:
        """Whether a call maps integers to integers, which may determine shapes and control flow."""
        if any(each.is_floating_point() for each in tensors):
            return False
        spec = self._spec(func, args, kwargs, call)
        return spec is None or not any(
            _is_float(each[2]) or each[2] is torch.uint8 for each in _specs_in(spec)
        )

    def _value(self, tensor: Tensor) -> Any:
        """A number for control flow; for a placeholder, an arbitrary finite one."""
        if self._space.holds(tensor):
            if tensor.dtype is torch.bool:
                return True
            return 0.5 if tensor.is_floating_point() else 0
        value = torch.ops.aten._local_scalar_dense.default(tensor)
        return value if math.isfinite(value) else 0.5

    def _skipped(self, func: Any, args: Any, kwargs: Any, call: _Call) -> Any:
        """The result of a call that is not performed."""
        if func._schema.is_mutable:
            return _written(func, args, kwargs)
        spec = self._spec(func, args, kwargs, call)
        if spec is None:
            # result shapes depend on values: performed, on zeros if arguments are placeholders
            return func(*args, **kwargs)
        return self._placeholders(spec)

    def _spec(self, func: Any, args: Any, kwargs: Any, call: _Call) -> Any:
        """Shapes, strides and types of a result; None where they depend on values."""
        if not call.is_inferred:
            call.spec = _elementwise_spec(func, args, kwargs) or _meta_spec(func, args, kwargs)
            call.is_inferred = True
        return call.spec


def _elementwise_spec(func: Any, args: Any, kwargs: Any) -> Any:
    """The spec of elementwise arithmetic: that of its full-size arguments; None for other calls.

    A shortcut for the most frequent calls, as the meta kernels are slow.
    """
    if torch.Tag.pointwise not in func.tags or func.namespace != "aten" or kwargs:
        return None
    if func._schema.name.partition("::")[2] not in _KEEPING:
        return None
    tensors = [each for each in args if isinstance(each, Tensor)]
    types = {each.dtype for each in tensors}
    if len(types) != 1 or not tensors[0].is_floating_point():
        return None
    shapes = [each.shape for each in tensors]
    shape = tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    full = {_spec_of(each) for each in tensors if tuple(each.shape) == shape}
    if len(full) != 1:
        return None
    (spec,) = full
    # an expanded argument says nothing about the layout of the result
    return None if 0 in spec[1] else spec


def _meta_spec(func: Any, args: Any, kwargs: Any) -> Any:
    """The spec by torch's meta kernel; None where there is none."""
    try:
        found = func(
            *tree_map(_on_meta, args),
            **tree_map(_on_meta, dict(kwargs) | _meta_device(func, kwargs)),
        )
    except (RuntimeError, NotImplementedError, TypeError, IndexError, ValueError):
        return None
    return tree_map(lambda each: _spec_of(each) if isinstance(each, Tensor) else each, found)


class _AddressSpace:
    """Reserved addresses for placeholders, which take no memory unless they are written to."""

    def __init__(self) -> None:
        for size in ADDRESSES:
            try:
                mapped = mmap.mmap(
                    -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
                )
                break
            except (OSError, ValueError):
                continue
        else:
            mapped = mmap.mmap(-1, ADDRESSES[-1] // 16)
        self._storage = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
        self._first = self._storage.data_ptr()
        self._size = self._storage.nbytes()
        self._starts: list[int] = []
        self._next = 0

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a placeholder."""
        return tensor.layout is torch.strided and tensor.untyped_storage().data_ptr() == self._first

    def placeholder(
        self, shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        """A new placeholder."""
        # elements between the first and the last one, both included
        span = 1
        for length, stride in zip(shape, strides, strict=True):
            span += (length - 1) * stride
        needed = max(1, span) * dtype.itemsize
        if self._next + needed > self._size:
            # start over: sharing addresses with earlier tensors is harmless, as nothing is read
            self._next = 0
            self._starts = []
        start = self._next
        self._starts.append(start)
        self._next = start + -(-needed // ALIGNMENT) * ALIGNMENT
        return torch.empty(0, dtype=dtype).set_(
            self._storage, start // dtype.itemsize, shape, strides
        )

    def region(self, tensor: Tensor) -> tuple[int, int]:
        """Address and size of the memory that a tensor would occupy."""
        if tensor.layout is not torch.strided:
            return id(tensor), 0
        if not self.holds(tensor):
            storage = tensor.untyped_storage()
            return storage.data_ptr(), storage.nbytes()
        offset = tensor.storage_offset() * tensor.element_size()
        index = max(0, bisect.bisect_right(self._starts, offset) - 1)
        start = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self._next
        return self._first + start, end - start


@lru_cache
def _space() -> _AddressSpace:
    """The address space of this process, shared by all counts."""
    return _AddressSpace()


def _is_by_autograd() -> bool:
    """Whether the current call is made by a backward pass instead of Python code."""
    node = torch._C._current_autograd_node()
    # the backward pass of a `torch.autograd.Function` is Python code
    return node is not None and not isinstance(node, torch.autograd.function.BackwardCFunction)


def _is_float(dtype: Any) -> bool:
    return not isinstance(dtype, torch.dtype) or dtype.is_floating_point or dtype.is_complex


def _is_spec(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], torch.dtype)


def _specs_in(spec: Any) -> Iterator[tuple[Any, Any, torch.dtype]]:
    flat, _ = tree_flatten(spec, is_leaf=_is_spec)
    return (each for each in flat if _is_spec(each))


def _spec_of(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _signature(value: Any, tensors: list[Tensor]) -> Any:
    """The part of an argument that determines the shape and cost of a call.

    Tensors of the argument are appended to `tensors`.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        tensors.append(value)
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, tuple | list):
        return tuple([_signature(each, tensors) for each in value])
    if is_dataclass(value):
        content = [_signature(getattr(value, each.name), tensors) for each in fields(value)]
        return (type(value), *content)
    return "generator" if isinstance(value, torch.Generator) else value


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, torch.Generator):
        return None
    return torch.device("meta") if isinstance(value, torch.device) else value


def _meta_device(func: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The device for factory functions, which have no tensor arguments to infer it from."""
    arguments = func._schema.arguments
    takes_device = any(argument.name == "device" for argument in arguments)
    takes_tensors = any("Tensor" in str(argument.type) for argument in arguments)
    if takes_device and not takes_tensors and kwargs.get("device") is None:
        return {"device": torch.device("meta")}
    return {}


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The result of a call that writes to its arguments: the arguments themselves."""
    written = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[index] if index < len(args) else kwargs.get(argument.name))
    count = len(func._schema.returns)
    if count == 0:
        return None
    return written[0] if count == 1 else tuple(written[:count])


def _described(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
) -> Operation:
    """A call as text; views have no results of their own."""
    plain = {
        name: value
        for name, value in kwargs.items()
        if value is not None and name not in ("device", "pin_memory")
    }
    made = []
    if not func.is_view:
        made = [_plain(each) for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
    return json.dumps([str(func), _plain(args), _plain(plain), made], separators=(",", ":"))


def _plain(value: Any) -> Any:
    """An argument as JSON values."""
    if isinstance(value, Tensor):
        return ["T", list(value.shape), list(value.stride()), _name(value.dtype)]
    if isinstance(value, torch.dtype):
        return {"dtype": _name(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _name(value)}
    if isinstance(value, torch.Generator | torch.device | torch.layout):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value if isinstance(value, int | float | bool | str) or value is None else str(value)


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")
