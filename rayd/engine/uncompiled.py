"""Keeps torch from importing its compiler where nothing is compiled.

Making an optimizer, asking torch for the shape of a result, or importing torchvision imports
`torch._dynamo`: two seconds, only to tell it to leave some functions alone. A run needs not mind
that; a plan is expected in a few seconds.
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
"""Where `torch._compile` keeps what it is told about a function."""


@contextmanager
def uncompiled() -> Iterator[None]:
    """Functions that are not to be compiled are called as they are, without the compiler; whatever
    else is asked of it imports it after all.
    """
    if NAME in sys.modules:
        yield
        return
    absent = _Absent()
    sys.modules[NAME] = absent
    sys.modules[UTILITIES] = absent.utils
    try:
        yield
    finally:
        absent.leave()


class _Absent(ModuleType):
    """Stands where the compiler is found."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._told: list[Any] = []
        self.utils = _AbsentUtilities(self)

    def disable(self, function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        """The function itself: nobody compiles it."""
        self._told.append(function)
        return function

    def graph_break(self) -> None:
        """Nothing, as always where nothing is compiled."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__wrapped__"):
            # asked of every module by those who look for the source of something
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(NAME), name)

    def leave(self) -> None:
        """Make way for the compiler: who asks it from now on is told by itself."""
        for function in self._told:
            vars(function).pop(MARK, None)
        self._told.clear()
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME], sys.modules[UTILITIES]
            vars(torch).pop("_dynamo", None)


class _AbsentUtilities(ModuleType):
    """Stands where its utilities are found; torchvision imports one of them."""

    def __init__(self, parent: _Absent) -> None:
        super().__init__(UTILITIES)
        self._parent = parent

    def is_compile_supported(self, *args: Any) -> Any:
        """What the utility itself says, which is imported when it is first called."""
        return self.__getattr__("is_compile_supported")(*args)

    def __getattr__(self, name: str) -> Any:
        if name in ("__file__", "__path__", "__wrapped__"):
            raise AttributeError(name)
        self._parent.leave()
        return getattr(importlib.import_module(UTILITIES), name)
