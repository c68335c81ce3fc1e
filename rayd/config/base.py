"""Base class of settings, conditions of settings, and merging of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, to_jsonable_python

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    # pydantic names its metaclass nowhere public
    ModelMetaclass = type(BaseModel)

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


class When:
    """Condition under which a setting has an effect: values of another setting of the same model.

    An annotation of the setting, as in `rank: Annotated[int, When(kind="lowrank")] = 8`. A tuple
    lists several values, None means that the other setting is absent, and True also matches any
    number above 0.
    """

    def __init__(self, **condition: Any):
        # exactly one keyword: the other setting, and its values
        ((self.key, values),) = condition.items()
        self.values: tuple[Any, ...] = values if isinstance(values, tuple) else (values,)

    def violation(self, settings: Settings, prefix: str) -> str | None:
        """Reason why a setting in the model under `prefix` has no effect; None if it has one."""
        actual = getattr(settings, self.key)
        if actual in self.values or (self.values == (True,) and actual):
            return None
        key = prefix + self.key
        wanted = " or ".join(f"'{key}: {_shown(value)}'" for value in self.values)
        if self.values == (True,) and not isinstance(actual, bool):
            wanted = f"'{key} above 0'"
        return f"it belongs to {wanted}. Got '{key}: {_shown(actual)}' instead."

    def json_schema(self, name: str, default: Any) -> dict[str, Any]:
        """JSON schema of the condition: only the default is valid if it does not hold."""
        off = {"enum": [0, False]} if self.values == (True,) else {"not": {"enum": self.values}}
        # editors show the message
        message = f"It belongs to another value of '{self.key}'."
        value = {"const": default, "errorMessage": message}
        schema = {
            "if": {"properties": {self.key: off}, "required": [self.key]},
            "then": {"properties": {name: value}},
        }
        return cast(dict[str, Any], to_jsonable_python(schema))


class _OneSentence(ModelMetaclass):
    """Metaclass whose classes, called from Python, reject settings like recipes do."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        try:
            return super().__call__(*args, **settings)
        except ValidationError as error:
            from rayd.config.reading import refusal

            raise refusal(cast(type[Settings], self), error, f"'{self.__name__}'") from None


class Settings(BaseModel, metaclass=_OneSentence):
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
        """Merge nested settings over the default of the outer class, not of their own class.

        Booleans given for numbers become text, which is refused: YAML reads `ipc=on` as true, and
        Python would treat that as 1.
        """
        if not isinstance(tree, Mapping):
            return tree
        merged = dict(tree)
        for name, field in cls.model_fields.items():
            given = merged.get(name)
            if isinstance(given, bool) and name in cls._number_fields():
                merged[name] = _shown(given)
            elif isinstance(field.default, Settings) and isinstance(given, Mapping):
                merged[name] = merge(field.default.model_dump(exclude_unset=True), given)
        return merged

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        conditions = [
            mark.json_schema(name, cls.model_fields[name].default)
            for name, mark in cls._conditions()
        ]
        if conditions:
            handler.resolve_ref_schema(schema)["allOf"] = conditions
        return schema

    @classmethod
    @cache
    def _number_fields(cls) -> frozenset[str]:
        """The settings that hold a number, or perhaps None, and nothing else."""
        numbers = {int, float}
        types = {
            name: set(get_args(field.annotation) or (field.annotation,)) - {NoneType}
            for name, field in cls.model_fields.items()
        }
        return frozenset(name for name, kinds in types.items() if kinds and kinds <= numbers)

    @classmethod
    def _conditions(cls) -> Iterator[tuple[str, When]]:
        """The settings that have an effect under a condition only."""
        for name, field in cls.model_fields.items():
            yield from ((name, mark) for mark in field.metadata if isinstance(mark, When))

    def without_effect(self, prefix: str = "") -> dict[str, str]:
        """Settings that have no effect given the others: the reason by dotted key.

        Args:
            prefix: key of these settings in the recipe, with a trailing dot.
        """
        reasons = ((name, mark.violation(self, prefix)) for name, mark in self._conditions())
        found = {prefix + name: reason for name, reason in reasons if reason is not None}
        for name, value in self:
            if isinstance(value, Settings) and prefix + name not in found:
                found |= value.without_effect(f"{prefix}{name}.")
        return found


def _shown(value: Any) -> str:
    """A value as in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `under`, recursively; other values in `over` replace those in `under`.

    A mapping over a list of networks applies to each of them, and a name or path over `data` sets
    `data.name`.
    """
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if key == "data" and isinstance(value, str | Path):
            value = {"name": str(value)}
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        elif isinstance(below, str) and isinstance(value, Mapping) and key == "networks":
            merged[key] = merge({"name": below}, value)
        elif isinstance(below, list | tuple) and isinstance(value, Mapping) and key == "networks":
            merged[key] = []
            for network in below:
                named = {"name": network} if isinstance(network, str) else network
                merged[key].append(merge(named, value))
        else:
            merged[key] = value
    return merged


def listed(value: object) -> object:
    """Wrap a single element in a list, and drop duplicates."""
    if isinstance(value, str | dict):
        return [value]
    if not isinstance(value, list | tuple):
        return value
    return [element for index, element in enumerate(value) if element not in value[:index]]


Listed = BeforeValidator(listed)
"""Accepts a single element in place of a tuple."""
