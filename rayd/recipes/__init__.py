"""Recipes by name: one YAML file a table, with a cell for each number of the paper's.

A recipe is the method's defaults, what its file stands on (`base`, see `rayd.recipes.tables`), the
file or cell itself, and overrides, laid on each other in this order and validated as one. What a
layer says of a variant that a later one leaves is dropped; what the last one says must count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayd import methods
from rayd.config import (
    MeasuredResult,
    PaperResult,
    Recipe,
    Settings,
    TermSettings,
    idle,
    lookup,
    merge,
    nested,
    validate,
    with_new_names,
    without,
)
from rayd.config.reading import RENAMED_BY_METHOD
from rayd.errors import ConfigError
from rayd.objectives import Term
from rayd.recipes.tables import check_bases, combined, find, is_file, layers, names, read

__all__ = ["Headline", "assemble", "find", "headlines", "is_file", "names", "read", "resolve"]


class Headline(Settings):
    """What a list of recipes shows of one."""

    name: str
    """Name of the recipe."""
    method: str
    """Its method."""
    data: str
    """Name of its data."""
    ipc: int = Recipe.model_fields["ipc"].default
    """Images per class."""
    summary: str = ""
    """What it reproduces, in one line."""
    paper: PaperResult | None = None
    """The published number."""
    measured: tuple[MeasuredResult, ...] = ()
    """Our numbers."""


def headlines() -> list[Headline]:
    """The built-in recipes at a glance, in the order of `names`; their methods are not built."""
    return [_headline(name) for name in names()]


def _headline(name: str) -> Headline:
    tree = combined(layers(name))
    shown = {key: tree[key] for key in Headline.model_fields if key in tree}
    return validate(Headline, {**shown, "data": tree["data"]["name"]}, f"recipe '{name}'")


def resolve(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The whole recipe: method's defaults, bases, file, overrides.

    Where overrides change the method, the data or the budget, the result is another cell of the
    table: it loses the recipe's numbers, and is named by what it is. The terms of a built-in recipe
    as it is are not built: they are known to fit it.

    Args:
        name_or_path: a built-in recipe or a YAML file.
        overrides: settings laid over it, nested or by dotted key.

    Raises:
        ConfigError: the recipe, a base, a key, the method or a value does not exist or does not
            fit.
    """
    parts = layers(name_or_path)
    tree = combined(parts)
    own = with_new_names(parts[-1].settings, method=tree.get("method"))
    overrides = nested(overrides) if overrides is not None else None
    where = f"recipe '{tree['name']}'"
    if not is_file(name_or_path) and not (overrides or {}).keys() - {"resources"}:
        return _by_settings(
            with_new_names(tree), overrides, where if overrides else parts[-1].where, own
        )[0]
    try:
        recipe = assemble(tree, overrides, where, own)
    except ConfigError:
        # the mistake may be in a file below this one
        check_bases(parts)
        raise
    cell = _by_settings(with_new_names(tree), None, where, own)[0]
    changed = [
        key for key in ("method", "data", "ipc") if _of_cell(recipe, key) != _of_cell(cell, key)
    ]
    if not changed:
        return recipe
    update: dict[str, Any] = {"paper": None, "measured": ()}
    if overrides is None or "name" not in overrides:
        update["name"] = _named_by_content(recipe)
        update["summary"] = f"Recipe '{cell.name}' with other settings: {', '.join(changed)}"
    return recipe.model_copy(update=update)


def _of_cell(recipe: Recipe, key: str) -> Any:
    """What stands under a key that decides the cell; how images are read is no part of it."""
    return (
        recipe.data.model_copy(update={"stream": None}) if key == "data" else getattr(recipe, key)
    )


def _named_by_content(recipe: Recipe) -> str:
    """A name as built-in recipes have it, from method, data and budget: `dm-flowers-ipc10`."""
    data = Path(recipe.data.name).stem if "/" in recipe.data.name else recipe.data.name
    tail = f"-lt{recipe.data.imbalance:g}" if recipe.data.imbalance > 1 else ""
    return re.sub(r"[^\w.-]+", "-", f"{recipe.method}-{data}{tail}-ipc{recipe.ipc}")


def assemble(
    tree: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    where: str = "the recipe",
    own: Mapping[str, Any] | None = None,
) -> Recipe:
    """A recipe from a mapping of settings and overrides, over the method's defaults.

    Args:
        tree: the settings.
        overrides: those laid over them, which then are the last layer.
        where: the recipe, for messages.
        own: the part of the tree that is the last layer where there are no overrides; absent: all.

    Raises:
        ConfigError: a key, the method or a value does not exist or does not fit, or the last layer
            sets what changes nothing.
    """
    # settings first: what is wrong with them alone is said without importing what computes the
    # terms
    method = (overrides or {}).get("method", tree.get("method"))
    tree = with_new_names(tree, where, method)
    overrides = None if overrides is None else with_new_names(overrides, where, method)
    own = None if own is None else with_new_names(own, method=method)
    recipe, whole = _by_settings(tree, overrides, where, own)
    unused = methods.build(recipe).unused
    if not any(lookup(whole, key) is not None for key in unused):
        return recipe
    kept, _ = _read(without(whole, unused), where)
    methods.build(kept)
    _refuse(unused, tree if own is None else own, overrides, recipe, kept, where)
    return kept


def _by_settings(
    tree: Mapping[str, Any],
    overrides: Mapping[str, Any] | None,
    where: str,
    own: Mapping[str, Any] | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """A recipe as far as its settings alone decide it, and the mapping that it was read from; no
    term is built.

    Raises:
        ConfigError: a key, the method or a value does not exist or does not fit, or the last layer
            sets what changes nothing.
    """
    merged = merge(tree, overrides or {})
    method = merged.get("method")
    ipc = merged.get("ipc")
    defaults = (
        methods.get(method).defaults_at(ipc if isinstance(ipc, int) else 1)
        if isinstance(method, str)
        else {}
    )
    whole = merge(defaults, merged)
    recipe, unused = _read(whole, where)
    if not unused:
        return recipe, whole
    left = without(whole, unused)
    kept, _ = _read(left, where)
    _refuse(unused, tree if own is None else own, overrides, recipe, kept, where)
    return kept, left


def _read(tree: Mapping[str, Any], where: str) -> tuple[Recipe, dict[str, str]]:
    """The recipe that a tree stands for, and what of it changes nothing beside its other settings,
    with reasons.
    """
    recipe = validate(Recipe, tree, where)
    method = methods.get(recipe.method)
    settings = method.read(recipe.objective)
    terms = method.configured(recipe)
    unused = {**dict(idle(recipe, recipe)), **dict(idle(settings, recipe, "objective."))}
    for term in terms:
        unused |= dict(idle(term, recipe, f"terms.{term.name}."))
    objective = settings.model_dump(mode="json")
    return recipe.model_copy(
        update={"objective": objective, "terms": _resolved_terms(recipe, terms)}
    ), unused


def _resolved_terms(recipe: Recipe, terms: Sequence[Term]) -> dict[str, TermSettings]:
    """What the recipe says of its terms, and the values of the settings that it has anyway.

    Those are the settings that a version before resolved: a recipe's identity holds them.
    """
    values = {"terms": {term.name: term.model_dump(mode="json") for term in terms}}
    given = {name: one.model_dump(exclude_unset=True) for name, one in recipe.terms.items()}
    tree: dict[str, Any] = {"terms": given}
    for old, new in RENAMED_BY_METHOD.get(recipe.method, {}).items():
        if old.startswith("objective."):
            tree = merge(tree, nested({new: lookup(values, new)}))
    return {name: TermSettings(**settings) for name, settings in tree["terms"].items()}


def _refuse(
    unused: Mapping[str, str],
    tree: Mapping[str, Any],
    overrides: Mapping[str, Any] | None,
    recipe: Recipe,
    kept: Recipe,
    where: str,
) -> None:
    """Raise a ConfigError if the last layer says what changes nothing.

    Args:
        unused: such settings, and why they change nothing.
        tree: what the recipe itself says, without its bases.
        overrides: those laid over them; None where the recipe is the last layer.
        recipe: with these settings.
        kept: without them.
        where: the recipe, for the sentence.
    """
    for key, reason in unused.items():
        # a file may say what holds anyway, as a run's config.yaml says everything
        said = (
            lookup(tree, key)
            if overrides is None and lookup(_dump(recipe), key) != lookup(_dump(kept), key)
            else None
        )
        if lookup(overrides or {}, key) is not None or said is not None:
            raise ConfigError(f"Setting '{key}' would change nothing in {where}: {reason}")


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")
