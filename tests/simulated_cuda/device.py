"""A strict stand-in for CUDA on machines without a GPU.

    shim.load(shim.build(folder))       # before torch is imported
    from tests.simulated_cuda import device
    with device.simulated() as record:
        ...                             # any code that chooses "cuda"

A `SimulatedTensor` says that it is on "cuda:0" and keeps its numbers in a tensor on the CPU. A
dispatch mode runs every ATen operation on those inner tensors, after it has checked what CUDA would
refuse:

- all tensors of an operation are on one device. Allowed are CPU scalars (no axes) in point-wise
  operations, CPU indices in advanced indexing of a CUDA tensor, and copies; refused are
  `index_copy_`, `index_add_`, `gather`, `cat`, products, ...;
- random operations on CUDA take CUDA's generators;
- fused optimizers want their step count on the device;
- CUDA tensors have no `numpy()`.

With `strict` a violation raises, as it would on CUDA; otherwise it is recorded and the tensor is
moved, so that one run finds all of them.

It also counts what makes a GPU wait, by the line of rayd that did it: synchronisations (copies to
the host, `item()`, `bool()`, `nonzero`, boolean masks, `unique`, `tolist()`, ...) and copies from
host memory to the device. Of the latter those without `non_blocking=True` are synchronisations,
too: torch waits for the device's queue before it returns. And it counts convolutions that are rounded
to TF32, torch's default.

It does not see kernels that CUDA lacks, memory, speed, non-determinism, or streams.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

DEVICES = 2
STAGED = 2**16
"""Bytes up to which the driver takes a copy of pageable memory at once."""
MEMORY = 80 * 10**9
"""Bytes of each device, all of them free."""
PACKAGES = ("rayd.", "tuning.")
"""Whose lines are named in what is recorded."""

INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
"""Advanced indexing: indices may be on the CPU, and are then copied."""
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default, aten.copy.default}
SCALARS = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill_.Tensor,
    aten.fill.Tensor,
    aten.where.self,
    aten.lerp.Tensor,
    aten.lerp_.Tensor,
    aten.index_fill.int_Tensor,
    aten.index_fill_.int_Tensor,
    aten.masked_scatter.default,
}
"""Operations besides the point-wise ones that take CPU scalars."""
WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::masked_select": "masked_select",
    "aten::bincount": "bincount",
    "aten::repeat_interleave": "repeat_interleave",
    "aten::equal": "equal",
    "aten::_linalg_check_errors": "linalg check",
    "aten::is_nonzero": "bool",
    "aten::linalg_eigh": "eigh",
    "aten::_linalg_eigh": "eigh",
    "aten::linalg_pinv": "pinv",
    "aten::_linalg_svd": "svd",
    "aten::linalg_qr": "qr",
}
"""Operations that wait for the device, because the size of their result or a check depends on
values.
"""


CONVOLUTIONS = {"aten::convolution", "aten::convolution_backward"}


class SimulatedTensor(torch.Tensor):
    """A tensor that lives on a simulated CUDA device."""

    inner: torch.Tensor
    """Its numbers, on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls, inner: torch.Tensor, device: torch.device, requires_grad: bool = False
    ) -> SimulatedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        # its presence has `Module.to` swap parameters as whole objects, the numbers inside included
        return ["inner"], self.device

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, torch.Tensor], device: torch.device, *_: Any
    ) -> SimulatedTensor:
        return SimulatedTensor(inner["inner"], device)

    @property
    def data(self) -> Any:
        """The tensor without graph."""
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Any) -> None:
        if not isinstance(value, SimulatedTensor):
            raise RuntimeError("The data of a CUDA tensor cannot be set to a CPU tensor.")
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    def untyped_storage(self) -> Any:
        """That of the numbers."""
        return self.inner.untyped_storage()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"SimulatedTensor({self.inner!r}, device={self.device})"

    def __deepcopy__(self, memo: Any) -> torch.Tensor:
        made: torch.Tensor = SimulatedTensor(self.inner.clone(), self.device, self.requires_grad)
        return (
            torch.nn.Parameter(made, self.requires_grad)
            if isinstance(self, torch.nn.Parameter)
            else made
        )

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class Record:
    """What was recorded."""

    def __init__(self, strict: bool):
        """Nothing yet. `strict`: violations raise."""
        self.strict = strict
        self.violations: Counter[str] = Counter()
        """Sentences."""
        self.syncs: Counter[tuple[str, str]] = Counter()
        """(kind, lines of rayd)."""
        self.copies: Counter[tuple[str, str]] = Counter()
        """From host memory to the device: (`copy` or `blocking copy`, lines of rayd)."""
        self.slow_copies: Counter[str] = Counter()
        """Large copies that are to be asynchronous and are not, as their memory is pageable; by
        lines of rayd.
        """
        self.rounded: Counter[str] = Counter()
        """Convolutions in TF32, by lines of rayd."""
        self.operations = 0
        """Kernels, about: ATen operations on the device."""
        self.seeded: list[tuple[str, int]] = []
        """(what, device) of every access to a CUDA generator."""

    def counts(self) -> dict[str, int]:
        """Operations, synchronisations and copies to the device so far, and how many of these
        copies are blocking.
        """
        return {
            "operations": self.operations,
            "syncs": sum(self.syncs.values()),
            "copies": sum(self.copies.values()),
            "blocking": sum(
                count for (kind, _), count in self.copies.items() if kind.startswith("blocking")
            ),
        }

    def violate(self, sentence: str) -> None:
        """Record, or with `strict` raise, what CUDA would refuse."""
        described = f"{sentence} [{_lines()}]"
        self.violations[described] += 1
        if self.strict:
            raise RuntimeError(described)

    def copy(self, tensor: torch.Tensor, blocking: bool) -> None:
        """Record a copy from host memory; torch waits for the device in a blocking one."""
        lines = _lines()
        self.copies["blocking copy" if blocking else "copy", lines] += 1
        pageable = tensor.nbytes > STAGED and not getattr(tensor, "simulated_pinned", False)
        if pageable and not blocking:
            self.slow_copies[lines] += 1


_record: Record | None = None
"""Of the simulation that is running."""


def _lines(most: int = 3) -> str:
    """The lines of rayd that led here, innermost first."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < most:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGES):
            found.append(f"{module.replace('.', '/')}.py:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found) or "outside of rayd"


def _run(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation, on the CPU if none of its tensors is simulated, else on the tensors inside."""
    flat, structure = pytree.tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, torch.Tensor)]
    on_device = [one for one in tensors if isinstance(one, SimulatedTensor)]
    wanted = kwargs.get("device")
    wanted = None if wanted is None else torch.device(wanted)
    if not on_device and (wanted is None or wanted.type != "cuda"):
        return operation(*args, **kwargs)

    name = operation._schema.name
    if _record is not None:
        _record.operations += 1
        _check(_record, operation, name, args, kwargs, tensors, on_device, wanted)
    if operation is aten.pin_memory.default:
        return args[0]

    if wanted is not None:
        device = wanted if wanted.type == "cpu" else torch.device("cuda", wanted.index or 0)
    elif operation is aten.copy_.default:
        device = args[0].device
    else:
        device = on_device[0].device
    inner = [one.inner if isinstance(one, SimulatedTensor) else one for one in flat]
    inner_args, inner_kwargs = pytree.tree_unflatten(inner, structure)
    if wanted is not None:
        inner_kwargs["device"] = torch.device("cpu")
    if "non_blocking" in inner_kwargs:
        inner_kwargs["non_blocking"] = False
    if device.type == "cpu" and wanted is not None:
        return operation(*inner_args, **inner_kwargs)
    if torch.Tag.inplace_view in operation.tags:
        # the outer tensor's shape must change, too
        with no_dispatch():
            operation(*args, **kwargs)
    return _wrapped(operation, operation(*inner_args, **inner_kwargs), args, kwargs, device)


def _wrapped(
    operation: Any, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> Any:
    """Results as tensors of the device; what an operation changed in place is the object that it
    was given.
    """
    returns = operation._schema.returns
    arguments = operation._schema.arguments
    outs = list(out) if isinstance(out, tuple | list) and len(returns) != 1 else [out]

    def on_device(value: Any) -> Any:
        plain = isinstance(value, torch.Tensor) and not isinstance(value, SimulatedTensor)
        return SimulatedTensor(value, device) if plain else value

    made = []
    for one, declared in zip(outs, returns, strict=False):
        alias = declared.alias_info
        if alias is None or not alias.is_write:
            made.append(pytree.tree_map(on_device, one))
            continue
        place = next(
            index
            for index, argument in enumerate(arguments)
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and set(argument.alias_info.before_set) & set(alias.before_set)
        )
        made.append(args[place] if place < len(args) else kwargs[arguments[place].name])
    if not returns:
        return None
    return made[0] if len(returns) == 1 else tuple(made)


def _check(
    record: Record,
    operation: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[torch.Tensor],
    on_device: list[SimulatedTensor],
    wanted: torch.device | None,
) -> None:
    """Record what CUDA would refuse, and what it would wait for or copy."""
    on_host = [one for one in tensors if not isinstance(one, SimulatedTensor)]
    places = sorted({str(one.device) for one in on_device})
    if len(places) > 1 and operation not in COPIES:
        record.violate(f"{name}: tensors are on {' and '.join(places)}")
    if on_host and on_device:
        strangers = _strangers(record, operation, name, args, on_host, on_device)
        if strangers:
            shape = tuple(strangers[0].shape)
            record.violate(
                f"{name}: expected all tensors to be on the same device, found one of shape {shape} on another"
            )
    generator = kwargs.get("generator")
    here = bool(on_device) or (wanted is not None and wanted.type == "cuda")
    if generator is not None and generator.device.type != "cuda" and here:
        record.violate(f"{name}: expected a 'cuda' generator, found one of the CPU")

    if name in CONVOLUTIONS and on_device and torch.backends.cudnn.allow_tf32:
        record.rounded[_lines()] += 1
    if name in WAITING and on_device:
        record.syncs[WAITING[name], _lines()] += 1
    if operation in INDEXED and isinstance(args[0], SimulatedTensor):
        indices = [one for one in args[1] if isinstance(one, SimulatedTensor)]
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
            record.syncs["boolean mask", _lines()] += 1
    if operation is aten._to_copy.default and wanted is not None:
        if wanted.type == "cpu" and on_device:
            record.syncs["copy to host", _lines()] += 1
        elif wanted.type == "cuda" and not on_device:
            record.copy(args[0], blocking=not kwargs.get("non_blocking", False))
    if operation is aten.copy_.default and isinstance(args[0], SimulatedTensor) != isinstance(
        args[1], SimulatedTensor
    ):
        if isinstance(args[0], SimulatedTensor):
            record.copy(
                args[1],
                blocking=not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False)),
            )
        else:
            record.syncs["copy to host", _lines()] += 1


def _strangers(
    record: Record,
    operation: Any,
    name: str,
    args: tuple[Any, ...],
    on_host: list[torch.Tensor],
    on_device: list[SimulatedTensor],
) -> list[torch.Tensor]:
    """Tensors on a device where this operation does not take them."""
    if operation in COPIES:
        return []
    if operation in INDEXED:
        if not isinstance(args[0], SimulatedTensor):
            return list(on_device)
        values = args[2] if len(args) > 2 else None
        if (
            isinstance(values, torch.Tensor)
            and not isinstance(values, SimulatedTensor)
            and values.ndim > 0
        ):
            return [values]
        for index in (
            one
            for one in args[1]
            if isinstance(one, torch.Tensor) and not isinstance(one, SimulatedTensor)
        ):
            record.copy(index, blocking=True)
        return []
    if name.startswith("aten::_fused"):
        return on_host
    takes_scalars = (
        name.startswith("aten::_foreach")
        or torch.Tag.pointwise in operation.tags
        or operation in SCALARS
    )
    return [one for one in on_host if one.ndim > 0 or not takes_scalars]


class _Dispatch(TorchDispatchMode):
    """Every operation, those without tensors included."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does below the dispatcher, where a dispatch mode does not see it."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if function in (torch.tensor, torch.as_tensor):
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cuda":
                return function(*args, **kwargs | {"device": "cpu"}).to(device)
        if function is torch.Tensor.pin_memory and isinstance(first, torch.Tensor):
            pinned = first.clone()
            pinned.simulated_pinned = True  # type: ignore[attr-defined]
            return pinned
        if function is torch.Tensor.is_pinned and isinstance(first, torch.Tensor):
            return getattr(first, "simulated_pinned", False)
        if not isinstance(first, SimulatedTensor):
            return function(*args, **kwargs)
        if function is torch.Tensor.new_tensor:
            return torch.tensor(
                *args[1:], **{"dtype": first.dtype, "device": first.device} | kwargs
            )
        if function is torch.Tensor.numpy:
            if _record is not None:
                _record.violate("numpy(): cannot convert a CUDA tensor")
            return first.inner.numpy()
        if function is torch.Tensor.untyped_storage:
            return first.inner.untyped_storage()
        if function is torch.Tensor.data_ptr:
            return first.inner.data_ptr()
        if function is torch.Tensor.tolist:
            if _record is not None:
                _record.syncs["tolist", _lines()] += 1
            return first.detach().inner.tolist()
        return function(*args, **kwargs)


@contextmanager
def simulated(strict: bool = True) -> Iterator[Record]:
    """Have CUDA devices for a while; what code does to them is recorded in what this gives."""
    global _record
    record = Record(strict)
    before = _record
    state = torch.zeros(16, dtype=torch.uint8)
    current = 0

    def index_of(device: Any = None, *_: Any, **__: Any) -> int:
        if device is None or isinstance(device, int):
            return current if device is None else device
        index = torch.device(device).index
        return current if index is None else index

    def exchange_device(index: int) -> int:
        nonlocal current
        before = current
        current = current if index < 0 else index
        return before

    def get_rng_state(device: Any = None) -> torch.Tensor:
        record.seeded.append(("get", index_of(device)))
        return state

    def set_rng_state(_: torch.Tensor, device: Any = None) -> None:
        record.seeded.append(("set", index_of(device)))

    replacements: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: DEVICES,
        "current_device": lambda: current,
        "_exchange_device": exchange_device,
        "_maybe_exchange_device": exchange_device,
        "_get_device_index": index_of,
        "_lazy_init": lambda: None,
        "synchronize": lambda *_: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "get_device_name": lambda *_: "simulated",
        "get_device_capability": lambda *_: (9, 0),
        "get_rng_state": get_rng_state,
        "set_rng_state": set_rng_state,
        "manual_seed": lambda _: record.seeded.append(("seed", current)),
        "manual_seed_all": lambda _: record.seeded.append(("seed", -1)),
    }
    originals = {name: getattr(torch.cuda, name) for name in replacements}
    threads = torch.autograd.is_multithreading_enabled()
    with ExitStack() as stack:
        for name, replacement in replacements.items():
            setattr(torch.cuda, name, replacement)
            stack.callback(setattr, torch.cuda, name, originals[name])
        # constants inside of operations stay on the CPU
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        # backward passes run in the thread whose modes are active
        torch._C._set_multithreading_enabled(False)
        stack.callback(torch._C._set_multithreading_enabled, threads)
        _record = record
        stack.enter_context(_Functions())
        stack.enter_context(_Dispatch())
        try:
            yield record
        finally:
            _record = before
