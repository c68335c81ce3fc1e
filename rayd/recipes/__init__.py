"""Recipes by name: one YAML file per cell of a paper's table, with the paper's number and ours.

A recipe is the method's defaults, the file, and overrides, laid on each other in this order and validated as one. What a layer
says of a variant that a later one leaves is dropped; what the last one says must count.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rayd import methods
from rayd.config import Recipe, idle, lookup, merge, read_yaml, validate, without
from rayd.errors import ConfigError, unknown

_FOLDER = Path(str(resources.files(__name__)))


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """The file of a built-in recipe, or the file itself.

    Raises:
        ConfigError: there is neither.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(text)
    path = _FOLDER / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("recipe", text, names()) + " A file must end in .yaml.")
    return path


def resolve(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The whole recipe: method's defaults, file, overrides.

    Raises:
        ConfigError: the recipe, a key, the method or a value does not exist or does not fit.
    """
    path = find(name_or_path)
    tree = merge({"name": path.stem}, read_yaml(path))
    recipe = assemble(tree, overrides, f"recipe '{tree['name']}'")
    cell = assemble(tree)
    if (recipe.data, recipe.ipc, recipe.method) != (cell.data, cell.ipc, cell.method):
        # the numbers belong to another cell of the table
        return recipe.model_copy(update={"paper": None, "measured": ()})
    return recipe


def assemble(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "the recipe") -> Recipe:
    """A recipe from a mapping of settings and overrides, over the method's defaults.

    Raises:
        ConfigError: a key, the method or a value does not exist or does not fit, or the last layer sets what changes nothing.
    """
    merged = merge(tree, overrides or {})
    method = merged.get("method")
    ipc = merged.get("ipc")
    defaults = methods.get(method).defaults_at(ipc if isinstance(ipc, int) else 1) if isinstance(method, str) else {}
    whole = merge(defaults, merged)
    recipe, unused = _read(whole, where)
    kept, _ = _read(without(whole, unused), where) if unused else (recipe, unused)
    for key, reason in unused.items():
        # a file may say what holds anyway, as a run's config.yaml says everything
        said = lookup(tree, key) if overrides is None and lookup(_dump(recipe), key) != lookup(_dump(kept), key) else None
        if lookup(overrides or {}, key) is not None or said is not None:
            raise ConfigError(f"Setting '{key}' would change nothing in {where}: {reason}")
    return kept


def _read(tree: Mapping[str, Any], where: str) -> tuple[Recipe, dict[str, str]]:
    """The recipe that a tree stands for, and what of it changes nothing, with reasons."""
    recipe = validate(Recipe, tree, where)
    method = methods.build(recipe)
    unused = {**dict(idle(recipe, recipe)), **dict(idle(method.settings, recipe, "objective.")), **method.unused}
    return recipe.model_copy(update={"objective": method.settings.model_dump(mode="json")}), unused


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")
