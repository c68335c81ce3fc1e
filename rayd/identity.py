"""Digests of Python objects by value: the same in every process that holds the same object.

Parts that a user defines in a script or a notebook have no module whose source could stand for
them. What they compute depends on more than their own source: on the variables that a function
closes over, the arguments of a `functools.partial`, the attributes of an object, and the functions,
classes and constants of the script that they name. All of these enter the digest, so that results
of one are never taken for those of another.

What belongs to an installed package enters by name, with the numbers and functions that it closes
over, what belongs to a module of the user's that can be imported by the source of the module.
"""

from __future__ import annotations

import ast
import dis
import enum
import functools
import hashlib
import inspect
import logging
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from importlib.util import resolve_name
from itertools import accumulate
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

_SIMPLE = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_WRAPPERS = (staticmethod, classmethod, property, functools.cached_property)
_CODE = (FunctionType, *_WRAPPERS)

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
        # the first that fits describes a value
        self._ways: tuple[tuple[Any, Callable[[Any], Iterator[str]]], ...] = (
            (enum.Enum, _enum),
            (logging.Logger, _logger),
            (list | tuple, self._sequence),
            (set | frozenset, _set),
            (Mapping, self._mapping),
            (ModuleType, self._module),
            (functools.partial, self._partial),
            (MethodType, self._bound),
            (FunctionType, self._function),
            (_WRAPPERS, self._wrapper),
            (type, self._class),
            (BuiltinFunctionType, _builtin),
        )

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
        for kinds, describe in self._ways:
            if isinstance(value, kinds):
                yield from describe(value)
                return
        if _is_array(value):
            yield from _array(value)
        elif _is_network(value):
            yield from self._network(value)
        else:
            yield from self._object(value)

    def _sequence(self, value: Sequence[Any]) -> Iterator[str]:
        yield f"{type(value).__name__} of {len(value)}"
        yield from self._own_class(value)
        for item in value:
            yield from self.of(item)

    def _mapping(self, value: Mapping[Any, Any]) -> Iterator[str]:
        yield f"{type(value).__name__} of {len(value)}"
        yield from self._own_class(value)
        yield from self._attributes(value)

    def _own_class(self, value: Any) -> Iterator[str]:
        """The class of a container, if it is the user's, and may have methods of its own."""
        if self._is_own(type(value).__module__):
            yield from self.of(type(value))

    def _module(self, value: ModuleType) -> Iterator[str]:
        yield f"module {value.__name__} {self._of_module(value.__name__)}"

    def _partial(self, value: functools.partial[Any]) -> Iterator[str]:
        yield "partial"
        for part in (value.func, value.args, value.keywords):
            yield from self.of(part)

    def _bound(self, value: MethodType) -> Iterator[str]:
        yield f"method {value.__name__}"
        yield from self.of(value.__self__)
        yield from self.of(value.__func__)

    def _wrapper(self, value: Any) -> Iterator[str]:
        """A static or class method, or a property: the function inside it."""
        yield type(value).__name__
        inside = (getattr(value, name, None) for name in ("__func__", "fget", "func"))
        yield from self.of(next((one for one in inside if one is not None), None))

    def _function(self, function: FunctionType) -> Iterator[str]:
        yield f"function {function.__module__}.{function.__qualname__}"
        is_own = self._is_own(function.__module__ or "")
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        if not is_own:
            for name, cell in cells:
                # a package may close over locks, files and other things without a lasting text
                if isinstance(
                    value := _contents(cell), (*_SIMPLE, FunctionType, functools.partial)
                ):
                    yield f"closes over {name}"
                    yield from self.of(value)
            return
        for part in (function.__defaults__, function.__kwdefaults__):
            yield from self.of(part)
        for name, cell in cells:
            yield f"closes over {name}"
            yield from self.of(_contents(cell))
        if (source := self._of_module(function.__module__)) is not None:
            yield source
            return
        yield from self._code(function)
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield f"global {name}"
                yield from self.of(function.__globals__[name])
        package = function.__globals__.get("__package__") or ""
        for name in sorted(imports(_source(function) or "", package)):
            if self._is_own(name) and (digest := self._module_digest(name)) is not None:
                yield f"imports {name} {digest}"

    def _code(self, function: FunctionType) -> Iterator[str]:
        """The source of a function; of a lambda also its code, as a line may hold several."""
        source = _source(function)
        if source is not None:
            yield source
        if source is None or function.__name__ == "<lambda>":
            for code in _codes(function.__code__):
                yield code.co_code.hex()
                yield repr([*code.co_names, *code.co_varnames])
                yield from map(_constant, code.co_consts)

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
            elif not name.startswith("__") and not derived:
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
        for hooks in (network._forward_pre_hooks, network._forward_hooks):
            for hook in hooks.values():
                yield "hook"
                yield from self.of(hook)
        from torch import nn

        # what every module has: its parts and hooks, described above, and whether it trains
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


def imports(source: str, package: str) -> set[str]:
    """Modules that a source imports, at its head or inside functions.

    Args:
        source: of a module, a class or a function, which may be indented.
        package: that relative imports start from; empty: there are none.

    Returns:
        Absolute names, with the packages that they are in. Of `from a import b`, also `a.b`, which
        may be no module.
    """
    try:
        tree = ast.parse(textwrap.dedent(source))
    except SyntaxError:
        # a lambda's line need not be a statement
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            try:
                origin = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:
                # above the outermost package, or in none
                continue
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    # importing a module imports the packages around it
    return {one for name in found for one in accumulate(name.split("."), "{}.{}".format)}


def _several(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


_SOURCES: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
"""Sources of functions and classes when they were first read, as a file may be edited while its
code is in use.
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


def _constant(value: object) -> str:
    """The text of a constant of a code: numbers, names of keywords, tuples and sets of them."""
    if isinstance(value, CodeType):
        return "code"
    if isinstance(value, frozenset):
        # in an order of its own in every process
        return " ".join(("frozenset", *sorted(map(_constant, value))))
    return repr(value)


def _contents(cell: CellType) -> Any:
    """Content of a closure variable; a text for one that is still empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


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


def _enum(value: enum.Enum) -> Iterator[str]:
    yield f"{type(value).__qualname__} {value.name}"


def _logger(value: logging.Logger) -> Iterator[str]:
    """By its name: it knows all others, and computes nothing."""
    yield f"logger {value.name}"


def _set(value: Set[Any]) -> Iterator[str]:
    yield f"set of {len(value)}"
    yield from sorted(_scrubbed(item) for item in value)


def _builtin(value: BuiltinFunctionType) -> Iterator[str]:
    yield f"builtin {value.__module__}.{value.__qualname__}"


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
