"""The JSON schema of recipe files, for editors that complete and check YAML.

    rayd recipes --schema > recipe.schema.json

and at the head of a recipe, for editors with the YAML language server:

    # yaml-language-server: $schema=recipe.schema.json
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema
from pydantic_core import to_jsonable_python

from rayd import methods
from rayd.config import DataSettings, Recipe, Settings
from rayd.objectives import Term

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BY_NAME = ("NetworkSettings", "ObserverNetworkSettings", "StudentNetworkSettings")
"""Settings that a bare name may abbreviate."""


def schema() -> dict[str, Any]:
    """JSON schema of a recipe file; settings of objective and terms are those of its method.

    Example:
        >>> schema()["properties"]["ipc"]["minimum"]
        1
    """
    objectives = {name: methods.get(name).settings_type for name in methods.names()}
    terms = {name: _terms_of(name) for name in methods.names()}
    of_terms = [kind for kinds in terms.values() for kind in kinds.values()]
    models: dict[type[Settings], None] = dict.fromkeys([Recipe, *objectives.values(), *of_terms])
    references, shared = models_json_schema([(model, "validation") for model in models])
    definitions = shared["$defs"]
    recipe = dict(definitions.pop(_name_in(references[Recipe, "validation"])))
    recipe.pop("required", None)
    properties = recipe["properties"]
    properties["base"] = {
        "anyOf": [{"type": "string"}, {"type": "object"}],
        "description": "What the recipe stands on: the name of a recipe, a file relative to this "
        "one, or settings.",
    }
    properties["method"]["enum"] = methods.names()
    properties["data"] = {"anyOf": [{"type": "string"}, properties["data"]]}
    recipe["allOf"] = []
    for name, kinds in terms.items():
        own_terms = {term: references[kind, "validation"] for term, kind in kinds.items()}
        then = {
            "objective": references[objectives[name], "validation"],
            "terms": {"properties": own_terms},
        }
        recipe["allOf"].append(
            {
                "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
                "then": {"properties": then},
            }
        )
    for model in models:
        for field in model.model_fields.values():
            if isinstance(field.default, Settings):
                _allow_defaults(definitions, field.default)
    # a weight of null means the method's own
    for kind in set(of_terms):
        properties = definitions[_name_in(references[kind, "validation"])]["properties"]
        properties["weight"] = {"anyOf": [properties["weight"], {"type": "null"}]}
    # a recipe sets a method and data, or has a base that does
    recipe["anyOf"] = [{"required": ["method", "data"]}, {"required": ["base"]}]
    recipe["$schema"] = DIALECT
    recipe["title"] = "A recipe of rayd"
    recipe["$defs"] = definitions
    relaxed: dict[str, Any] = _relaxed(recipe)
    return relaxed


def _allow_defaults(definitions: dict[str, Any], settings: Settings) -> None:
    """Allow the values of these settings, and of nested ones, where they have no effect.

    A model may contain settings with defaults that differ from their own, as UniDD's filter does.
    """
    for condition in definitions.get(type(settings).__name__, {}).get("allOf", []):
        for name, value in condition["then"]["properties"].items():
            allowed = value.get("enum") or [value["const"]]
            given = to_jsonable_python(getattr(settings, name))
            if given not in allowed:
                value.pop("const", None)
                value["enum"] = [*allowed, given]
    for _, inner in settings:
        if isinstance(inner, Settings):
            _allow_defaults(definitions, inner)


def _terms_of(method: str) -> dict[str, type[Term]]:
    """Classes of the terms that a recipe of a method may have, by name."""
    recipe = Recipe(method=method, data=DataSettings(name="digits"))
    own = {term.name: type(term) for term in methods.get(method).objective(recipe)}
    return {**Term.registry, **own}


def _name_in(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _relaxed(schema: Any) -> Any:
    """A schema that also allows what recipes may abbreviate: a network by its name, and a list of
    networks with a single element by that element.
    """
    if isinstance(schema, list):
        return [_relaxed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and _name_in(schema) in BY_NAME:
        return {"anyOf": [schema, {"type": "string"}]}
    relaxed = {key: _relaxed(value) for key, value in schema.items()}
    items = schema.get("items")
    if isinstance(items, dict) and "$ref" in items and _name_in(items) in BY_NAME:
        kept = {key: relaxed.pop(key) for key in ("description", "title") if key in relaxed}
        relaxed.pop("default", None)
        return {"anyOf": [relaxed, relaxed["items"]], **kept}
    return relaxed
