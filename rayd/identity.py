"""Digests of Python objects by value: the same in every process that holds the same object.

Parts that a user defines in a script or a notebook have no module whose source could stand for
them. What they compute depends on more than their own source: on the variables that a function
closes over, the arguments of a `functools.partial`, the attributes of an object, and the functions,
classes and constants of the script that they name. All of these enter the digest, so that results
of one are never taken for those of another.

What belongs to an installed package enters by name, what belongs to a module of the user's that
can be imported by the source of the module.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_WRAPPERS = (staticmethod, classmethod)
_CODE = (FunctionType, property, functools.cached_property, *_WRAPPERS)

ModuleDigest = Callable[[str], str | None]
"""Digest of the source of a user's module by its name; None for one without a file."""


def identity(part: Any, module_digest: ModuleDigest, is_own: Callable[[str], bool]) -> str:
    """SHA-256 of what an object computes.

    Args:
        part: a function, class, module of torch, or any other object.
        module_digest: digest of a user's module that has a file.
        is_own: whether the module of a name is a user's, and may change with their work.
    """
    digest = hashlib.sha256()
    for text in _Description(module_digest, is_own).of(part):
        digest.update(text.encode(errors="backslashreplace"))
        digest.update(b"\0")
    return digest.hexdigest()


class _Description:
    """Texts that describe an object, and all that it depends on, each object once."""

    def __init__(self, module_digest: ModuleDigest, is_own: Callable[[str], bool]):
        self._module_digest = module_digest
        self._is_own = is_own
        self._seen: dict[int, int] = {}
        # keeps what is described alive, so that no two objects have the same id
        self._alive: list[Any] = []

    def of(self, value: Any) -> Iterator[str]:
        """Describe a value; one that was described before by its number."""
        if isinstance(value, _SIMPLE):
            yield f"{type(value).__name__} {value!r}"
            return
        if id(value) in self._seen:
            yield f"again {self._seen[id(value)]}"
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        yield from self._described(value)

    def _described(self, value: Any) -> Iterator[str]:
        if isinstance(value, enum.Enum):
            yield f"{type(value).__qualname__} {value.name}"
        elif isinstance(value, list | tuple):
            yield f"{type(value).__name__} of {len(value)}"
            for item in value:
                yield from self.of(item)
        elif isinstance(value, set | frozenset):
            yield f"set of {len(value)}"
            yield from sorted(_scrubbed(item) for item in value)
        elif isinstance(value, Mapping):
            yield f"{type(value).__name__} of {len(value)}"
            yield from self._attributes(value)
        elif isinstance(value, ModuleType):
            yield f"module {value.__name__} {self._of_module(value.__name__)}"
        elif isinstance(value, functools.partial):
            yield "partial"
            for part in (value.func, value.args, value.keywords):
                yield from self.of(part)
        elif isinstance(value, MethodType):
            yield f"method {value.__name__}"
            yield from self.of(value.__self__)
            yield from self.of(value.__func__)
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(value, _WRAPPERS):
            yield type(value).__name__
            yield from self.of(value.__func__)
        elif isinstance(value, property | functools.cached_property):
            yield type(value).__name__
            yield from self.of(getattr(value, "fget", None) or getattr(value, "func", None))
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, BuiltinFunctionType):
            yield f"builtin {value.__module__}.{value.__qualname__}"
        elif _is_array(value):
            yield from _array(value)
        elif _is_network(value):
            yield from self._network(value)
        else:
            yield from self._object(value)

    def _function(self, function: FunctionType) -> Iterator[str]:
        yield f"function {function.__module__}.{function.__qualname__}"
        if not self._is_own(function.__module__ or ""):
            return
        for part in (function.__defaults__, function.__kwdefaults__):
            yield from self.of(part)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            yield f"closes over {name}"
            try:
                yield from self.of(cell.cell_contents)
            except ValueError:
                yield "empty"
        if (source := self._of_module(function.__module__)) is not None:
            yield source
            return
        yield from self._code(function)
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield f"global {name}"
                yield from self.of(function.__globals__[name])

    def _code(self, function: FunctionType) -> Iterator[str]:
        """The source of a function; of a lambda also its code, as a line may hold several."""
        source = _source(function)
        if source is not None:
            yield source
        if source is None or function.__name__ == "<lambda>":
            for code in _codes(function.__code__):
                yield code.co_code.hex()
                yield repr([*code.co_names, *code.co_varnames])
                yield repr([one for one in code.co_consts if isinstance(one, _SIMPLE)])

    def _class(self, kind: type) -> Iterator[str]:
        yield f"class {kind.__module__}.{kind.__qualname__}"
        if not self._is_own(kind.__module__):
            return
        source = self._of_module(kind.__module__)
        if source is not None and "<locals>" not in kind.__qualname__:
            yield source
            return
        yield source or _source(kind) or "without source"
        for base in kind.__bases__:
            yield from self.of(base)
        for name, value in sorted(vars(kind).items()):
            # what pydantic and abc keep in a class is derived of the rest
            derived = name.startswith(("_abc", "__pydantic", "model_"))
            if isinstance(value, _CODE) and not derived:
                yield name
                yield from self.of(value)
            elif not name.startswith("_") and not derived:
                yield f"{name} {_scrubbed(value)}"
        for name, field in sorted(getattr(kind, "model_fields", {}).items()):
            yield f"{name} {_scrubbed(getattr(field, 'default', None))}"

    def _network(self, network: Any) -> Iterator[str]:
        """A module of torch without the values of what is drawn anew for each use."""
        yield from self.of(type(network))
        for name, parameter in network._parameters.items():
            shape = None if parameter is None else (tuple(parameter.shape), str(parameter.dtype))
            yield f"parameter {name} {shape}"
        redrawn = hasattr(network, "reset_parameters")
        for name, buffer in network._buffers.items():
            yield f"buffer {name}"
            if buffer is not None and not redrawn:
                yield from _array(buffer)
        for name, child in network._modules.items():
            yield f"child {name}"
            yield from self.of(child)
        from torch import nn

        # what every module has: its parts, described above, its hooks and whether it trains
        common = vars(nn.Module()).keys()
        own = {name: value for name, value in vars(network).items() if name not in common}
        yield from self._attributes(own)

    def _object(self, value: Any) -> Iterator[str]:
        yield from self.of(type(value))
        state = getattr(value, "__dict__", None)
        slots = [
            name
            for kind in type(value).__mro__
            for name in _several(getattr(kind, "__slots__", ()))
            if hasattr(value, name)
        ]
        if state is None and not slots:
            yield _scrubbed(value)
            return
        yield from self._attributes(
            {**(state or {}), **{one: getattr(value, one) for one in slots}}
        )

    def _attributes(self, attributes: Mapping[Any, Any]) -> Iterator[str]:
        for name, value in sorted(attributes.items(), key=lambda item: _scrubbed(item[0])):
            yield f"attribute {_scrubbed(name)}"
            yield from self.of(value)

    def _of_module(self, name: str) -> str | None:
        """Digest of a user's module that can be imported; None of a script or a notebook."""
        if name == "__main__" or name not in sys.modules or not self._is_own(name):
            return None
        return self._module_digest(name)


def _several(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


_SOURCES: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
"""Sources of functions and classes as they were when first asked for: a file may be edited while
what was read from it is in use.
"""


def _source(part: Any) -> str | None:
    if part not in _SOURCES:
        try:
            _SOURCES[part] = inspect.getsource(part)
        except (OSError, TypeError):
            _SOURCES[part] = None
    return _SOURCES[part]


def _scrubbed(value: Any) -> str:
    """The text of a value without addresses in memory, which differ from process to process."""
    return _ADDRESS.sub("", f"{type(value).__qualname__} {value!r}")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A code and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> set[str]:
    """Names that a code, or one inside it, looks up among the globals; `co_names` has attributes,
    too.
    """
    return {
        str(step.argval)
        for one in _codes(code)
        for step in dis.get_instructions(one)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "shape")


def _array(value: Any) -> Iterator[str]:
    """A tensor or an array, by its numbers."""
    yield f"array {value.dtype} {tuple(value.shape)}"
    if hasattr(value, "detach"):
        import torch

        value = value.detach().cpu().contiguous()
        value = value.reshape(-1).view(torch.uint8) if value.numel() else value
        value = value.numpy()
    yield hashlib.sha256(value.tobytes()).hexdigest()


def _is_network(value: Any) -> bool:
    return hasattr(value, "_parameters") and hasattr(value, "_buffers")
