"""Marks functions that are called over and over with tensors of the same shapes.

Their operations, and the shapes of their results, follow from the shapes of their arguments, so
that counting operations (`rayd.engine.counting`) calls them once for each set of shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

Given = ParamSpec("Given")
Made = TypeVar("Made")

INSTEAD: ContextVar[Callable[[Callable[..., Any], tuple[Any, ...]], Any] | None] = ContextVar(
    "INSTEAD", default=None
)
"""What is called with a marked function and its arguments instead of the function, in this
thread.
"""


def repeated(work: Callable[Given, Made]) -> Callable[Given, Made]:
    """Mark a function of positional arguments that is called without autograd.

    Their values must not determine the shape of a result. A function that changes a tensor may
    change its arguments alone.
    """

    @wraps(work)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        instead = INSTEAD.get()
        if instead is None or kwargs:
            return work(*args, **kwargs)
        return cast(Made, instead(work, args))

    return call
