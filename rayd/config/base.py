"""Base class of settings, and markers for settings with conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

S = TypeVar("S", bound="Settings")

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
"""Arithmetic of forward and backward passes.

- `float32`.
- `tf32`: convolutions of float32 numbers with 10-bit mantissas, fast on GPUs from Ampere on; the
  same as `float32` on other hardware.
- `bfloat16`: with float32 master weights when a network is trained.
- `auto`: the fastest that the hardware supports natively and the method allows, see
  `rayd.engine.arithmetic`.
"""


class Settings(BaseModel):
    """Base class of settings: unknown keys are rejected, instances are immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, tree: Any) -> Any:
        """Merge nested settings over the default of the outer class, not of their own class."""
        if not isinstance(tree, Mapping):
            return tree
        merged = dict(tree)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Settings) and isinstance(merged.get(name), Mapping):
                merged[name] = _laid(field.default.model_dump(exclude_unset=True), merged[name])
        return merged


POSITIVE = object()
"""Represents all numbers above 0 among the values of `Only`."""


@dataclass(frozen=True, init=False)
class Only:
    """Marks a setting that has an effect only under some values of other settings.

    For example `Annotated[float, Only(kernel="matern")]`. The other settings are in the same model
    or in the recipe (`Only(real="sampled")`); if there are several, one match is enough. A tuple
    lists several values, None stands for an absent one, POSITIVE for any above 0.
    """

    wanted: Mapping[str, tuple[Any, ...]]

    def __init__(self, **wanted: Any):
        values = {
            key: value if isinstance(value, tuple) else (value,) for key, value in wanted.items()
        }
        object.__setattr__(self, "wanted", values)

    def missed(self, siblings: Settings, whole: Settings, prefix: str) -> str | None:
        """Why a setting in the model under `prefix` has no effect; None if it has."""
        expected = []
        given = []
        for name, values in self.wanted.items():
            near = name in type(siblings).model_fields
            actual = getattr(siblings if near else whole, name)
            key = f"{prefix}{name}" if near else name
            if actual in values or (POSITIVE in values and actual is not None and actual > 0):
                return None
            conditions = [
                f"{key} above 0" if value is POSITIVE else f"{key}: {_shown(value)}"
                for value in values
            ]
            expected.append("'" + "' or '".join(conditions) + "'")
            given.append(f"'{key}: {_shown(actual)}'")
        return f"it belongs to {' or '.join(expected)}. Got {' and '.join(given)} instead."


def idle(settings: Settings, whole: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of settings that have no effect, each with the reason.

    Args:
        settings: settings to check, recursively.
        whole: the recipe that contains them.
        prefix: their key in the recipe, with a trailing dot.
    """
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        marks = (mark for mark in field.metadata if isinstance(mark, Only))
        reason = next(
            (why for mark in marks if (why := mark.missed(settings, whole, prefix)) is not None),
            None,
        )
        if reason is not None:
            yield prefix + name, reason
        elif isinstance(value, Settings):
            yield from idle(value, whole, f"{prefix}{name}.")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _laid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge one tree over another, recursively."""
    both = {
        name: _laid(under[name], over[name])
        for name in under.keys() & over.keys()
        if isinstance(under[name], Mapping) and isinstance(over[name], Mapping)
    }
    return {**under, **over, **both}


def listed(value: object) -> object:
    """Wrap a single element in a list, and drop duplicates."""
    if isinstance(value, str | dict):
        return [value]
    if not isinstance(value, list | tuple):
        return value
    return [element for index, element in enumerate(value) if element not in value[:index]]


Listed = BeforeValidator(listed)
"""Accepts a single element in place of a tuple."""
