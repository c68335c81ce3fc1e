"""Completion of the command line by a shell: recipes, spaces, data and settings.

`rayd --install-completion` sets it up. Functions here are called by the shell at every Tab: they
are quick, import no torch, and print nothing; what cannot be read completes to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rayd.errors import RaydError

Completed = list[tuple[str, str]]
"""Words with descriptions."""

RESULTS = ("paper", "measured", "base", "name")
"""Keys of recipe files that no command line sets."""


@dataclass(frozen=True)
class Setting:
    """A setting, as far as a shell shows it."""

    choices: tuple[str, ...]
    """Values, where these are few."""
    default: str | None
    """Its value where nothing is said; None if there is none, or it is long."""
    help: str
    """First sentence of its description."""


def recipes(incomplete: str) -> Completed:
    """Names of recipes."""
    from rayd import recipes as known

    return _matching(known.names(), incomplete)


def spaces(incomplete: str) -> Completed:
    """Names of search spaces."""
    import tuning

    return _matching(tuning.names(), incomplete)


def data(incomplete: str) -> Completed:
    """Names of known data, those found first."""
    from rayd.data.sources import known_sources

    known = sorted(known_sources(), key=lambda source: source.found is None)
    return [
        (source.name, "" if source.found is not None else "not here")
        for source in known
        if source.name.startswith(incomplete)
    ]


def overrides(incomplete: str, before: Iterable[str] = (), recipe: str | None = None) -> Completed:
    """Settings `key.sub=value`: the key, then its value.

    Args:
        incomplete: what is typed of the word.
        before: words before it; bash takes `=` for a word of its own.
        recipe: the recipe, whose method has settings of its own.
    """
    words = list(before)
    if incomplete == "=" and words:
        return _values(words[-1], "", recipe)
    if len(words) >= 2 and words[-1] == "=":
        return _values(words[-2], incomplete, recipe)
    key, equals, value = incomplete.partition("=")
    if equals:
        return [(f"{key}={word}", told) for word, told in _values(key, value, recipe)]
    found = {name: one for name, one in settings(recipe).items() if name.startswith(key)}
    if len(found) > 1:
        return [(f"{name}=", one.help) for name, one in found.items()]
    completed = [
        (f"{name}={word}", told) for name in found for word, told in _values(name, "", recipe)
    ]
    # a shell ends the only word that it finds with a space, after which no value can be typed
    return completed if len(completed) > 1 else [*((f"{name}=", "") for name in found), *completed]


def _values(key: str, incomplete: str, recipe: str | None) -> Completed:
    """Values of a setting."""
    if key in ("data", "data.name"):
        return data(incomplete)
    setting = settings(recipe).get(key)
    if setting is None:
        return []
    if setting.choices:
        return _matching(setting.choices, incomplete)
    if setting.default is None or incomplete:
        return []
    return [(setting.default, "default")]


def settings(recipe: str | None = None) -> dict[str, Setting]:
    """All settings that a command line may name, by dotted key.

    >>> settings()["synthesis.optimizer"].choices[:2]
    ('sgd', 'adam')
    """
    from rayd.recipes.schema import schema

    tree = schema()
    found = dict(_walk(tree["properties"], tree["$defs"], ""))
    method = None
    with suppress(RaydError):
        if recipe is not None:
            from rayd import recipes as known

            method = known.resolve(recipe).method
    for case in tree["allOf"]:
        if case["if"]["properties"]["method"]["const"] == method:
            found |= dict(_walk(case["then"]["properties"], tree["$defs"], ""))
    return dict(sorted(found.items()))


def _walk(
    properties: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Setting]]:
    """Settings below an object of a JSON schema."""
    for name, schema in properties.items():
        key = f"{prefix}{name}"
        if key in RESULTS:
            continue
        variants = list(_variants(schema, definitions))
        inner = [variant["properties"] for variant in variants if "properties" in variant]
        for below in inner:
            yield from _walk(below, definitions, f"{key}.")
        if len(inner) < len(variants) or not variants:
            yield key, _setting(schema, variants)


def _variants(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Any]:
    """Alternatives of a value: references are resolved, and unions and lists expanded."""
    if "$ref" in schema:
        yield from _variants(definitions[schema["$ref"].rpartition("/")[2]], definitions)
        return
    several = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    for variant in several:
        yield from _variants(variant, definitions)
    if not several or "properties" in schema:
        yield schema


def _setting(schema: Mapping[str, Any], variants: Iterable[Mapping[str, Any]]) -> Setting:
    choices: list[Any] = []
    for variant in variants:
        choices += variant.get("enum", [variant["const"]] if "const" in variant else [])
        choices += [True, False] if variant.get("type") == "boolean" else []
    text = None if "default" not in schema else json.dumps(schema["default"])
    told = " ".join(str(schema.get("description", "")).split())
    return Setting(
        choices=tuple(dict.fromkeys(_word(choice) for choice in choices)),
        default=text.strip('"') if text is not None and len(text) < 30 else None,
        help=told.partition(". ")[0].rstrip("."),
    )


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _matching(names: Iterable[str], incomplete: str) -> Completed:
    return [(name, "") for name in names if name.startswith(incomplete)]
