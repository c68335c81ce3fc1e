"""Domains: the values that a search tries for a setting."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from rayd.config import Settings
from rayd.config.reading import as_number

Point = dict[str, Any]
"""Settings of a trial by dotted key, in the order of the space, without inactive ones."""
Kind = Literal["uniform", "loguniform", "integer", "choice", "grid"]
KINDS: tuple[Kind, ...] = ("uniform", "loguniform", "integer", "choice", "grid")


def _with_numbers(values: Any) -> Any:
    """Convert values such as `1e-3`, which YAML reads as text, to numbers."""
    if not isinstance(values, list | tuple):
        return values
    return [as_number(value) if isinstance(value, str) else value for value in values]


Values = Annotated[tuple[Any, ...], BeforeValidator(_with_numbers)]
"""Values of a choice or a grid."""


class Domain(Settings):
    """Values of a setting, of exactly one kind."""

    uniform: tuple[float, float] | None = None
    """Lower and upper bound, uniform."""
    loguniform: tuple[float, float] | None = None
    """Positive lower and upper bound, uniform in the logarithm."""
    integer: tuple[int, int] | None = None
    """First and last integer, both included."""
    choice: Values | None = None
    """Values to choose from."""
    grid: Values | None = None
    """Values that are all combined with every draw of the other settings."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Condition: required value, or list of possible values, of other settings by dotted key."""

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a domain is exactly one of {', '.join(KINDS)}; "
                f"this one is {' and '.join(given) or 'none'}"
            )
        values: tuple[Any, ...] = getattr(self, given[0])
        if not values:
            raise ValueError(f"'{given[0]}' must name at least one value")
        if given[0] in ("choice", "grid"):
            return self
        low, high = values
        if not low < high:
            raise ValueError(
                f"'{given[0]}' must rise from its first number to its second: "
                f"{low:g} is not below {high:g}"
            )
        elif given[0] == "loguniform" and low <= 0:
            raise ValueError(f"'loguniform' needs numbers above 0: {low:g} has no logarithm")
        return self

    @property
    def kind(self) -> Kind:
        """Kind of the values."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """Both bounds, or all values."""
        return cast("tuple[Any, ...]", getattr(self, self.kind))

    @property
    def numeric(self) -> bool:
        """Whether the domain is a range of numbers."""
        return self.kind in ("uniform", "loguniform", "integer")

    @property
    def probes(self) -> tuple[Any, ...]:
        """Representative values for validation: both bounds and one between, or all values."""
        if self.kind not in ("uniform", "loguniform"):
            return self.values
        low, high = self.values
        return low, low + (high - low) * 0.318, high

    def holds(self, value: Any) -> bool:
        """Whether the domain contains a value."""
        if self.numeric:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = self.kind != "integer" or float(value if number else 0).is_integer()
            return number and whole and self.values[0] <= value <= self.values[1]
        return value in self.values

    def clamped(self, value: Any) -> Any:
        """Nearest value in a range; values of a choice are unchanged."""
        if not self.numeric:
            return value
        nearest = min(max(value, self.values[0]), self.values[1])
        return round(nearest) if self.kind == "integer" else float(nearest)


def listed(values: Any) -> list[Any]:
    """Wrap a single value in a list."""
    return list(values) if isinstance(values, list | tuple) else [values]


def among(value: Any, values: Any) -> bool:
    """Whether a value equals that of a condition, or is one of its values."""
    return value in listed(values)
