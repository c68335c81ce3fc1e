"""The JSON schema of recipe files, for editors that complete and check YAML.

    rayd recipes --schema > recipe.schema.json

and at the head of a recipe, for editors with the YAML language server:

    # yaml-language-server: $schema=recipe.schema.json
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from rayd import methods
from rayd.config import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
BY_NAME = ("NetworkSettings", "ObserverNetworkSettings")
"""Settings for which a bare name may stand."""


def schema() -> dict[str, Any]:
    """JSON schema of a recipe file; the objective's settings are those of its method.

    Example:
        >>> schema()["properties"]["ipc"]["minimum"]
        1
    """
    kinds = {name: methods.get(name).settings_type for name in methods.names()}
    models = [(model, "validation") for model in dict.fromkeys([Recipe, *kinds.values()])]
    references, shared = models_json_schema(models)  # type: ignore[arg-type]
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
    recipe["allOf"] = [
        {
            "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
            "then": {"properties": {"objective": references[model, "validation"]}},
        }
        for name, model in kinds.items()
    ]
    # a recipe names a method and data, or stands on one that does
    recipe["anyOf"] = [{"required": ["method", "data"]}, {"required": ["base"]}]
    recipe["$schema"] = DIALECT
    recipe["title"] = "A recipe of rayd"
    recipe["$defs"] = definitions
    relaxed: dict[str, Any] = _relaxed(recipe)
    return relaxed


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
