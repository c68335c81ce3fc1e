"""Recipes by name: one YAML file per table, with a cell for each number of the paper.

A recipe consists of layers that are merged in this order and validated as a whole: the method's
defaults, the bases of its file (`base`, see `rayd.recipes.tables`), the file or cell itself, and
overrides. Settings of a variant that a later layer replaces are dropped; every setting of the last
layer must have an effect.
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
    PaperResults,
    Recipe,
    Settings,
    TermSettings,
    lookup,
    merge,
    nested,
    own_result,
    validate,
    with_new_names,
    with_protocol,
    without,
    without_unknown,
)
from rayd.config.reading import RENAMED_BY_METHOD
from rayd.errors import ConfigError, unknown
from rayd.names import data_title
from rayd.objectives import Term
from rayd.recipes.tables import (
    about,
    cell_of,
    check_bases,
    combined,
    families,
    find,
    is_file,
    layers,
    names,
    read,
)

__all__ = [
    "Headline",
    "about",
    "assemble",
    "families",
    "find",
    "headlines",
    "ineffective",
    "is_file",
    "names",
    "read",
    "resolve",
    "restore",
]


class Headline(Settings):
    """Properties of a recipe that lists show."""

    name: str
    """Name of the recipe."""
    method: str
    """Its method."""
    data: str
    """Name of its data."""
    ipc: int = Recipe.model_fields["ipc"].default
    """Images per class."""
    summary: str = ""
    """The result that it reproduces, in one line."""
    paper: PaperResults = ()
    """Published results, the recipe's own network first."""
    measured: tuple[MeasuredResult, ...] = ()
    """Our numbers."""

    @property
    def published(self) -> PaperResult | None:
        """Published accuracy of the unmodified recipe, by its own students; None without one."""
        return own_result(self.paper)


def headlines(
    method: str | None = None, data: str | None = None, measured: bool = False
) -> list[Headline]:
    """Overview of the built-in recipes, in the order of `names`, without building their methods.

    Args:
        method: select recipes of a method; None for all.
        data: select recipes of a data set; None for all.
        measured: select only recipes with a result of ours.

    Raises:
        ConfigError: there is no such method, or no recipe of such data.
    """
    found = [_headline(name) for name in names()]
    for key, wanted in (("method", method), ("data", data)):
        known = {getattr(headline, key) for headline in found}
        if wanted is not None and wanted not in known:
            raise ConfigError(unknown(key, wanted, known, "the recipes"))
    return [
        headline
        for headline in found
        if method in (None, headline.method)
        and data in (None, headline.data)
        and (headline.measured or not measured)
    ]


def _headline(name: str) -> Headline:
    tree = combined(layers(name))
    shown = {key: tree[key] for key in Headline.model_fields if key in tree}
    return validate(Headline, {**shown, "data": tree["data"]["name"]}, f"recipe '{name}'")


def resolve(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Assemble a whole recipe from the method's defaults, bases, file and overrides.

    If overrides change the method, the data or the budget, the result is a different cell of the
    table: it loses the recipe's numbers and is named after its settings.

    Args:
        name_or_path: a built-in recipe or a YAML file.
        overrides: settings laid over it, nested or by dotted key.

    Raises:
        ConfigError: the recipe, a base, a key or the method does not exist, or a value is
            invalid.
    """
    parts = layers(name_or_path)
    tree = combined(parts)
    overrides = nested(overrides) if overrides is not None else None
    own_file = is_file(name_or_path) or overrides
    where = f"recipe '{tree['name']}'" if own_file else parts[-1].where
    try:
        recipe = assemble(tree, overrides, where, parts[-1].settings)
    except ConfigError:
        # the mistake may be in one of its bases
        check_bases(parts)
        raise
    before = cell_of(tree)
    after = cell_of(merge(tree, overrides or {}))
    changed = [key for key in before if before[key] != after[key]]
    if not changed:
        return recipe
    update: dict[str, Any] = {"paper": (), "measured": ()}
    if overrides is None or "name" not in overrides:
        update["name"] = _named_by_content(recipe)
        update["summary"] = f"Recipe '{tree['name']}' with other settings: {', '.join(changed)}"
    return recipe.model_copy(update=update)


def _named_by_content(recipe: Recipe) -> str:
    """A name like those of built-in recipes, from method, data and budget: `dm-flowers-ipc10`."""
    data = data_title(recipe.data.name)
    tail = f"-lt{recipe.data.imbalance:g}" if recipe.data.imbalance > 1 else ""
    return re.sub(r"[^\w.-]+", "-", f"{recipe.method}-{data}{tail}-ipc{recipe.ipc}")


def restore(
    tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "the recipe"
) -> Recipe:
    """Restore a recipe stored by a run, possibly of a different version.

    Args:
        tree: the settings; those that do not exist or have no effect in this version are dropped.
        overrides: as in `assemble`.
        where: as in `assemble`.

    Raises:
        ConfigError: as in `assemble`.
    """
    # none of it is the last layer, the only one in which settings without effect are refused
    return assemble(without_unknown(Recipe, tree), overrides, where, own={})


def assemble(
    tree: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    where: str = "the recipe",
    own: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build a recipe from a mapping of settings and overrides, on top of the method's defaults.

    Args:
        tree: the settings.
        overrides: settings that override them, which are then the last layer.
        where: the recipe, for messages.
        own: the part of the tree that is the last layer if there are no overrides; None for all.

    Raises:
        ConfigError: a key or the method does not exist, a value is invalid, or a setting of the
            last layer has no effect.
    """
    method = (overrides or {}).get("method", tree.get("method"))
    tree = with_new_names(tree, where, method)
    last = tree if own is None else with_new_names(own, method=method)
    if overrides is not None:
        last = with_new_names(overrides, where, method)
        tree = merge(tree, with_protocol(last, tree))
    if isinstance(method, str):
        ipc = tree.get("ipc")
        tree = merge(methods.get(method).defaults_at(ipc if isinstance(ipc, int) else 1), tree)

    recipe = _read(tree, where)
    # the method comes second, so that its checks do not fail on settings without effect
    for reasons in (_without_effect, lambda recipe: methods.build(recipe).unused):
        found = {key: why for key, why in reasons(recipe).items() if lookup(tree, key) is not None}
        if not found:
            continue
        tree = without(tree, found)
        kept = _read(tree, where)
        before = recipe.model_dump(mode="json")
        after = kept.model_dump(mode="json")
        for key, reason in found.items():
            # a file may repeat values that apply anyway, as a run's config.yaml contains all
            # settings
            counts = overrides is not None or lookup(before, key) != lookup(after, key)
            if counts and lookup(last, key) is not None:
                raise ConfigError(f"Setting '{key}' has no effect in {where}: {reason}")
        recipe = kept
    return recipe


def _read(tree: Mapping[str, Any], where: str) -> Recipe:
    """Build the recipe of a tree, with all settings of its objective."""
    recipe = validate(Recipe, tree, where)
    method = methods.get(recipe.method)
    objective = method.read(recipe.objective).model_dump(mode="json")
    terms = _resolved_terms(recipe, method.configured(recipe))
    return recipe.model_copy(update={"objective": objective, "terms": terms})


def _without_effect(recipe: Recipe) -> dict[str, str]:
    """Settings that have no effect in combination with others: reasons by dotted key."""
    method = methods.get(recipe.method)
    objective: Settings = method.read(recipe.objective)
    found = recipe.without_effect() | objective.without_effect("objective.")
    for term in method.configured(recipe):
        found |= term.without_effect(f"terms.{term.name}.")
    return found


def ineffective(recipe: Recipe) -> set[str]:
    """Settings, or sections, of a resolved recipe that have no effect in it, by dotted key.

    As overrides they would be refused.

    >>> "synthetic.rank" in ineffective(resolve("digits"))
    True
    """
    return {*_without_effect(recipe), *methods.build(recipe).unused}


def _resolved_terms(recipe: Recipe, terms: Sequence[Term]) -> dict[str, TermSettings]:
    """The recipe's settings of its terms, and the values that they have by default.

    These are the settings that an earlier version resolved, which are part of a recipe's identity.
    """
    values = {"terms": {term.name: term.model_dump(mode="json") for term in terms}}
    given = {name: one.model_dump(exclude_unset=True) for name, one in recipe.terms.items()}
    tree: dict[str, Any] = {"terms": given}
    for old, new in RENAMED_BY_METHOD.get(recipe.method, {}).items():
        if old.startswith("objective."):
            tree = merge(tree, nested({new: lookup(values, new)}))
    return {name: TermSettings(**settings) for name, settings in tree["terms"].items()}
