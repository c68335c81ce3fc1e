"""What all settings have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

S = TypeVar("S", bound="Settings")

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
"""Arithmetic of a forward or backward pass: `float32`; `tf32`, convolutions of float32 numbers with
the 10-bit mantissas that GPUs from Ampere on multiply fast (elsewhere the same as `float32`);
`bfloat16`, with float32 master weights where a network is trained; or `auto`, the fastest of them
that the hardware computes natively and the method allows, see `rayd.engine.arithmetic`.
"""


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values do not change once made."""

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
        """Settings inside settings are laid over the outer ones' default for them, not over their
        own class's.
        """
        if not isinstance(tree, Mapping):
            return tree
        laid = dict(tree)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Settings) and isinstance(laid.get(name), Mapping):
                laid[name] = _laid(field.default.model_dump(exclude_unset=True), laid[name])
        return laid


POSITIVE = object()
"""Stands for all numbers above 0 among the values that `Only` names."""


@dataclass(frozen=True, init=False)
class Only:
    """Marks a setting that counts under some values of others alone: `Annotated[float,
    Only(kernel="matern")]`.

    The others stand beside it, or in the recipe (`Only(real="sampled")`); one of them is enough
    where there are several. A tuple names several values, None an absent one, POSITIVE any above 0.
    """

    wanted: Mapping[str, tuple[Any, ...]]

    def __init__(self, **wanted: Any):
        object.__setattr__(
            self,
            "wanted",
            {key: one if isinstance(one, tuple) else (one,) for key, one in wanted.items()},
        )

    def missed(self, beside: Settings, whole: Settings, prefix: str) -> str | None:
        """Why a setting that stands under `prefix` changes nothing; None where it counts."""
        reasons = []
        for name, values in self.wanted.items():
            near = name in type(beside).model_fields
            value = getattr(beside if near else whole, name)
            key = f"{prefix}{name}" if near else name
            if value in values or (POSITIVE in values and value is not None and value > 0):
                return None
            wanted = "' or '".join(
                f"{key} above 0" if one is POSITIVE else f"{key}: {_shown(one)}" for one in values
            )
            reasons.append((f"'{wanted}'", f"'{key}: {_shown(value)}'"))
        return f"it belongs to {' or '.join(r[0] for r in reasons)}. Got {' and '.join(r[1] for r in reasons)} instead."


def idle(settings: Settings, whole: Settings, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings, by dotted key, that change nothing beside the others, and for each the reason.

    Args:
        settings: those to look at, at every depth.
        whole: the recipe that they are part of.
        prefix: the key under which they stand there, with a dot at its end.
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
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _laid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One tree over another, at every depth."""
    both = {
        name: _laid(under[name], over[name])
        for name in under.keys() & over.keys()
        if isinstance(under[name], Mapping) and isinstance(over[name], Mapping)
    }
    return {**under, **over, **both}


def listed(value: object) -> object:
    """One element stands for a tuple of one; what is named twice counts once."""
    if isinstance(value, str | dict):
        return [value]
    if not isinstance(value, list | tuple):
        return value
    return [element for index, element in enumerate(value) if element not in value[:index]]


Listed = BeforeValidator(listed)
"""Lets one element stand for a tuple of one."""
