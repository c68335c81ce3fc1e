"""Avoid importing torch's compiler where nothing is compiled.

Creating an optimizer, inferring a shape on the meta device, or importing torchvision imports
`torch._dynamo`, which takes two seconds, only to exclude some functions from compilation. That is
negligible for a run, but not for a plan, which takes a few seconds.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"
UTILITIES = f"{NAME}.utils"
MARK = "__dynamo_disable"
"""Attribute of functions in which `torch._compile` caches their uncompiled versions."""


@contextmanager
def uncompiled() -> Iterator[None]:
    """Replace the compiler's module by a stub, which imports it if it is really needed."""
    if NAME in sys.modules:
        yield
        return
    stub = _Stub()
    sys.modules[NAME] = stub
    sys.modules[UTILITIES] = stub.utils
    try:
        yield
    finally:
        stub.remove()


class _Stub(ModuleType):
    """Stub of `torch._dynamo`."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._disabled: list[Any] = []
        self.utils = _UtilitiesStub(self)

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """The function itself, as nothing is compiled."""
        self._disabled.append(function)
        return function

    def graph_break(self) -> None:
        """No effect, as always outside of compiled code."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__wrapped__"):
            # `inspect` reads these attributes of all modules, which need not import the compiler
            raise AttributeError(name)
        self.remove()
        return getattr(importlib.import_module(NAME), name)

    def remove(self) -> None:
        """Remove the stub, and clear what `torch._compile` cached from it."""
        for function in self._disabled:
            vars(function).pop(MARK, None)
        self._disabled.clear()
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME], sys.modules[UTILITIES]
            vars(torch).pop("_dynamo", None)


class _UtilitiesStub(ModuleType):
    """Stub of `torch._dynamo.utils`, from which torchvision imports one function."""

    def __init__(self, parent: _Stub) -> None:
        super().__init__(UTILITIES)
        self._parent = parent

    def is_compile_supported(self, *args: Any) -> Any:
        """The function of the same name, imported on the first call."""
        return self.__getattr__("is_compile_supported")(*args)

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__path__", "__wrapped__"):
            raise AttributeError(name)
        self._parent.remove()
        return getattr(importlib.import_module(UTILITIES), name)
