"""Reading of settings from files and command lines; errors name the nearest known key."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayd.config.base import S, Settings, merge
from rayd.errors import ConfigError, alternatives, unknown

log = logging.getLogger(__name__)


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if isinstance(key, yaml.ScalarNode) and name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key '{key.value}' occurs twice",
                    problem_mark=key.start_mark,
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


_QUICK_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


DATA_NAMES = frozenset({"data", "data.name"})
"""Settings that name data, by dotted key."""


_OWN_TERM = re.compile(r"terms\.([\w.]+:\w+)(?:\.(.*))?")
"""Key of a term named by its import path, whose dots do not separate keys."""


def parts_of(key: str) -> list[str]:
    """The names in a dotted key.

    >>> parts_of("synthesis.steps"), parts_of("terms.my_package.terms:Mine.weight")
    (['synthesis', 'steps'], ['terms', 'my_package.terms:Mine', 'weight'])
    """
    own_term = _OWN_TERM.fullmatch(key)
    if own_term is None:
        return key.split(".")
    name, rest = own_term.groups()
    return ["terms", name, *([] if rest is None else rest.split("."))]


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Parse overrides such as `["synthesis.steps=5", "ipc=2"]` into a tree; values are YAML.

    A name or path of data is taken literally, unless it is a mapping or in quotation marks: YAML
    would read `2024` as a number, and drop everything after ` #`. The same applies to a colour such
    as `#ffffff`.

    >>> parse_overrides(["data=my photos #1", "data.background=#ffffff"])
    {'data': {'name': 'my photos #1', 'background': '#ffffff'}}

    Raises:
        ConfigError: an argument is not of the form `key.sub=value`.
    """
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not all(parts_of(key)):
            raise ConfigError(
                f"An override must have the form key.sub=value. Got '{argument}' instead."
            )
        text = text.strip()
        is_name = key in DATA_NAMES and not text.startswith(("{", "'", '"'))
        value = text if is_name or text.startswith("#") else _value(text, argument)
        tree = merge(tree, nested({key: value}))
    return tree


def _value(text: str, argument: str) -> Any:
    """Parse a value as YAML."""
    try:
        value = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The value of override '{argument}' is not valid YAML.") from error
    return as_number(value) if isinstance(value, str) else value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, the inverse of `nested`.

    >>> flat({"synthesis": {"steps": 5}, "ipc": 1})
    {'synthesis.steps': 5, 'ipc': 1}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Expand dotted keys into a nested mapping; later ones take precedence.

    >>> nested({"ipc": 2, "synthesis": {"steps": 5}, "synthesis.clip": True})
    {'ipc': 2, 'synthesis': {'steps': 5, 'clip': True}}

    Raises:
        ConfigError: a key has an empty part.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(
            "Settings must be a mapping, such as {'synthesis.steps': 500}. Got "
            f"{type(settings).__name__} instead."
        )
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str) or not all(parts_of(key)):
            raise ConfigError(f"A setting must have the form key or key.sub. Got '{key}' instead.")
        branch = value
        for part in reversed(parts_of(key)):
            branch = {part: branch}
        tree = merge(tree, branch)
    return tree


def given_resources(workers: int | None, address: str | None) -> dict[str, Any]:
    """Overrides for `--workers` and `--address`; None leaves the recipe's value."""
    given = {"workers": workers, "address": address}
    return {"resources": {key: value for key, value in given.items() if value is not None}}


def as_number(text: str) -> float | str:
    """Convert numbers such as `1e-3`, which YAML 1.1 parses as text.

    >>> as_number("1e-3"), as_number("adam")
    (0.001, 'adam')
    """
    try:
        return float(text)
    except ValueError:
        return text


RENAMED = {"guides": "classifiers", "observers.queue": "observers.model_pool"}
"""Settings renamed since the previous version, by dotted key."""
RENAMED_VALUES = {"observers.model_pool.trained": {"looking": "used"}}
"""Values renamed since the previous version, by dotted key of their setting."""


def _of_objective(term: str, *names: str, prefix: str = "") -> dict[str, str]:
    """Settings of a term that stood in `objective`, with a prefix there."""
    return {f"objective.{prefix}{name}": f"terms.{term}.{name}" for name in names}


_MOMENTS = _of_objective("moments", "momentum", "drop", "patch", "first_layer_weight")
_DENSIFICATION = _of_objective("densification", "temperature", prefix="densification_")
_CHARACTERISTIC_FUNCTION = {
    "terms.spectral": "terms.characteristic_function",
    **_of_objective(
        "characteristic_function",
        *("kernel", "scale", "frequencies", "smoothness", "mixture", "normalize"),
        *("head_amplitude_weight", "split", "factor", "root", "over_classes"),
    ),
}
_SPECTRAL_FILTER = {
    "terms.spectral": "terms.spectral_filter",
    **_of_objective(
        "spectral_filter",
        *("filter", "signal_filter", "filter_weight", "signal_weight", "signal", "layers"),
    ),
}
_REGRESSION = _of_objective("regression", "relative_ridge")
RENAMED_BY_METHOD: Mapping[str, Mapping[str, str]] = {
    "cda": _of_objective("moments", "first_layer_weight"),
    "cfm": {**_SPECTRAL_FILTER, **_of_objective("spectral_filter", "updating")},
    "csdm": _CHARACTERISTIC_FUNCTION,
    "edc": {
        **_MOMENTS,
        **_of_objective("moments", "alpha", "category"),
        **_of_objective("flatness", "decay", "temperature", "direction", prefix="flatness_"),
        **_DENSIFICATION,
    },
    "frepo": _REGRESSION,
    "gvbsm": {**_MOMENTS, **_DENSIFICATION},
    "krr": _REGRESSION,
    "ncfm": {
        **_CHARACTERISTIC_FUNCTION,
        **_of_objective("characteristic_function", "sampling_network", "sampling_rate"),
    },
    "sre2l": _of_objective("moments", "first_layer_weight"),
    "unidd": _SPECTRAL_FILTER,
}
"""Settings that were only renamed for one method. Names in `objective` come after the term's."""


def renamed_of(method: object) -> dict[str, str]:
    """All settings that had another name for a method, by dotted key."""
    own = RENAMED_BY_METHOD.get(method, {}) if isinstance(method, str) else {}
    return {**RENAMED, **own}


def with_new_names(
    tree: Mapping[str, Any], where: str | None = None, method: object = None
) -> dict[str, Any]:
    """Rename settings of the previous version to their current names.

    >>> with_new_names({"guides": {"pool": 2}})
    {'classifiers': {'pool': 2}}
    >>> with_new_names({"method": "csdm", "terms": {"spectral": {"weight": 10}}})
    {'terms': {'characteristic_function': {'weight': 10}}, 'method': 'csdm'}

    Args:
        tree: settings as a nested mapping.
        where: origin of the settings, for a warning about old names; None for no warning.
        method: the method to which the names belong; by default that of the tree.
    """
    for old, new in renamed_of(method if method is not None else tree.get("method")).items():
        if not _holds(tree, old):
            continue
        if where is not None:
            log.warning(
                "Setting '%s' in %s is called '%s' now; the old name will be refused by the next "
                "version.",
                old,
                where,
                new,
            )
        tree = _moved(tree, old, new)
    for key, values in RENAMED_VALUES.items():
        old = lookup(tree, key)
        if not isinstance(old, str) or old not in values:
            continue
        if where is not None:
            log.warning(
                "The value '%s' of '%s' in %s is called '%s' now; the old name will be refused by "
                "the next version.",
                old,
                key,
                where,
                values[old],
            )
        tree = merge(tree, nested({key: values[old]}))
    return dict(tree)


def with_old_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `with_new_names`: cache keys are hashes of settings under their original names.

    >>> with_old_names({"method": "csdm", "terms": {"characteristic_function": {"weight": 10}}})
    {'terms': {'spectral': {'weight': 10}}, 'method': 'csdm'}

    Args:
        tree: settings as a nested mapping, the method among them.
    """
    for key, values in RENAMED_VALUES.items():
        before = {new: old for old, new in values.items()}
        value = lookup(tree, key)
        if isinstance(value, str) and value in before:
            tree = merge(tree, nested({key: before[value]}))
    names = renamed_of(tree.get("method"))
    # the settings of a term before the term itself
    for old, new in reversed(list(names.items())):
        if _holds(tree, new):
            tree = _moved(tree, new, old)
    return dict(tree)


def _moved(tree: Mapping[str, Any], key: str, to: str) -> dict[str, Any]:
    """Move the value at a key of a tree to another key, unless that one has a value already."""
    left = without(tree, [key])
    outer = key.rpartition(".")[0]
    while "." in outer and lookup(left, outer) in ({}, {"weight": None}):
        left = without(left, [outer])
        outer = outer.rpartition(".")[0]
    return merge(nested({to: lookup(tree, key)}), left)


def _holds(tree: Mapping[str, Any], key: str) -> bool:
    outer, _, name = key.rpartition(".")
    parent = lookup(tree, outer) if outer else tree
    return isinstance(parent, Mapping) and name in parent


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """Value at a dotted key, or None."""
    found: Any = tree
    for part in parts_of(key):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def without(tree: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Copy a tree without some dotted keys.

    >>> without({"a": {"b": 1, "c": 2}, "d": 3}, ["a.b", "d"])
    {'a': {'c': 2}}
    """
    left = dict(tree)
    for key in keys:
        first, _, rest = key.partition(".")
        if not rest:
            left.pop(first, None)
        elif isinstance(left.get(first), Mapping):
            left[first] = without(left[first], [rest])
    return left


def read_yaml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Args:
        path: of the file.
        what: it holds, for error messages.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"The {what} '{path}' must be a file.")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise ConfigError(f"Cannot read the {what} '{path}': {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(
            f"'{path}' is not valid YAML: {error.problem or error.context}{line}."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"'{path}' is not valid YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"'{path}' must hold a mapping of settings. Got {type(tree).__name__} instead."
        )
    return tree


def packaged_yaml(path: Path) -> Any:
    """Content of a YAML file of this package.

    Read by libyaml where PyYAML has it, seven times as fast as its own parser, which `read_yaml`
    uses because it is robust against any content of an unknown file.
    """
    return yaml.load(path.read_text(encoding="utf-8"), _QUICK_LOADER)


def validate(
    model: type[S], tree: Mapping[str, Any], where: str = "the settings", prefix: str = ""
) -> S:
    """Validate `tree` as `model`; `prefix` is its key in the recipe, for error messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value is invalid; the message names it, with
            the nearest known key.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise refusal(model, error, where, prefix) from error


def refusal(
    model: type[Settings], error: ValidationError, where: str, prefix: str = ""
) -> ConfigError:
    """The error that `validate` raises: a sentence for each of the first three faults."""
    return ConfigError(" ".join(_sentence(model, e, where, prefix) for e in error.errors()[:3]))


def check_some(model: type[Settings], tree: Mapping[str, Any], where: str) -> None:
    """Check a part of the settings of `model`: others may be missing, and constraints between
    settings may depend on those that are merged over these.

    Raises:
        ConfigError: a key is unknown, or its value cannot fit whatever the others are.
    """
    open_ends = ("missing", "value_error")
    errors = [e for e in _errors(model, tree) if e["loc"] and e["type"] not in open_ends]
    if errors:
        raise ConfigError(" ".join(_sentence(model, e, where, "") for e in errors[:3]))


def without_unknown(model: type[Settings], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Drop keys that `model` does not have, from settings that another version wrote."""
    tree = with_new_names(tree)
    errors = _errors(model, tree)
    return without(tree, [_dotted(e["loc"]) for e in errors if e["type"] == "extra_forbidden"])


def _errors(model: type[Settings], tree: Mapping[str, Any]) -> list[ErrorDetails]:
    """Faults of a tree as settings of `model`."""
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return error.errors()
    return []


def _dotted(location: Iterable[int | str]) -> str:
    return ".".join(map(str, location))


def _sentence(model: type[Settings], error: ErrorDetails, where: str, prefix: str) -> str:
    location = [*([prefix] if prefix else []), *error["loc"]]
    key = _dotted(location)
    if error["type"] == "extra_forbidden":
        inside = _inside_sections(model, key) if len(location) == 1 else []
        if inside:
            return f"Unknown setting '{key}' in {where}; did you mean {alternatives(inside)}?"
        fields = _model_at(model, error["loc"][:-1]).model_fields
        sentence = unknown(
            "setting", key, [_dotted([*location[:-1], name]) for name in fields], where
        )
        own_data = key.startswith(("data", "path"))
        return f"{sentence} Use data=PATH for your own data." if own_data else sentence
    if error["type"] == "missing":
        return f"Setting '{key}' is missing in {where}."
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        message = f"it is a list, as in {key}=[...]"
    if isinstance(error["input"], Mapping) and error["type"] == "value_error":
        place = f"'{key}' of {where}" if key else where
        return f"{message} (in {place})."
    return f"Setting '{key}' in {where} must fit: {message}. Got {error['input']!r} instead."


def _inside_sections(model: type[Settings], name: str) -> list[str]:
    """Dotted keys, quoted, of settings of this name or its plural in the sections of `model`, as
    'synthesis.steps' for `step`; none if `model` itself has the plural.
    """
    spellings = (name, f"{name}s")
    if spellings[1] in model.model_fields:
        return []
    found = []
    for section, field in model.model_fields.items():
        # elements of lists and mappings have longer keys
        settings = _settings_in(field.annotation)
        if settings is None or get_origin(field.annotation) in (tuple, dict):
            continue
        for spelling in spellings:
            if spelling in settings.model_fields:
                found.append(f"'{section}.{spelling}'")
    return found


def _model_at(model: type[Settings], location: Iterable[int | str]) -> type[Settings]:
    """Settings class at a path of keys (through optionals, tuples and mappings)."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _settings_in(field.annotation) or model
    return model


def _settings_in(annotation: object) -> type[Settings] | None:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    for inner in get_args(annotation):
        found = _settings_in(inner)
        if found is not None:
            return found
    return None
