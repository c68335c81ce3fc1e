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
        """Published accuracy of the recipe as it stands, by its own students; None without one."""
        return own_result(self.paper)


def headlines(
    method: str | None = None, data: str | None = None, measured: bool = False
) -> list[Headline]:
    """The built-in recipes at a glance, in the order of `names`; their methods are not built.

    Args:
        method: of which method; absent: of all.
        data: of which data; absent: of all.
        measured: those alone that have a result of ours.

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
    """The whole recipe: method's defaults, bases, file, overrides.

    Where overrides change the method, the data or the budget, the result is another cell of the
    table: it loses the recipe's numbers, and is named by what it is.

    Args:
        name_or_path: a built-in recipe or a YAML file.
        overrides: settings laid over it, nested or by dotted key.

    Raises:
        ConfigError: the recipe, a base, a key, the method or a value does not exist or does not
            fit.
    """
    parts = layers(name_or_path)
    tree = combined(parts)
    overrides = nested(overrides) if overrides is not None else None
    own_file = is_file(name_or_path) or overrides
    where = f"recipe '{tree['name']}'" if own_file else parts[-1].where
    try:
        recipe = assemble(tree, overrides, where, parts[-1].settings)
    except ConfigError:
        # the mistake may be in a file below this one
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
    """A name as built-in recipes have it, from method, data and budget: `dm-flowers-ipc10`."""
    data = data_title(recipe.data.name)
    tail = f"-lt{recipe.data.imbalance:g}" if recipe.data.imbalance > 1 else ""
    return re.sub(r"[^\w.-]+", "-", f"{recipe.method}-{data}{tail}-ipc{recipe.ipc}")


def restore(
    tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "the recipe"
) -> Recipe:
    """A recipe that a run wrote down, perhaps one of another version.

    Args:
        tree: the settings; those that this version does not have, or that have no effect in it, are
            dropped.
        overrides: as in `assemble`.
        where: as in `assemble`.

    Raises:
        ConfigError: as in `assemble`.
    """
    # nothing of it is the last layer, which alone is refused where it has no effect
    return assemble(without_unknown(Recipe, tree), overrides, where, own={})


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
            sets what has no effect.
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
    # the method comes second: its checks shall not stumble over settings that have no effect
    for reasons in (_without_effect, lambda recipe: methods.build(recipe).unused):
        found = {key: why for key, why in reasons(recipe).items() if lookup(tree, key) is not None}
        if not found:
            continue
        tree = without(tree, found)
        kept = _read(tree, where)
        before = recipe.model_dump(mode="json")
        after = kept.model_dump(mode="json")
        for key, reason in found.items():
            # a file may say what holds anyway, as a run's config.yaml says everything
            counts = overrides is not None or lookup(before, key) != lookup(after, key)
            if counts and lookup(last, key) is not None:
                raise ConfigError(f"Setting '{key}' has no effect in {where}: {reason}")
        recipe = kept
    return recipe


def _read(tree: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that a tree stands for, with all settings of its objective."""
    recipe = validate(Recipe, tree, where)
    method = methods.get(recipe.method)
    objective = method.read(recipe.objective).model_dump(mode="json")
    terms = _resolved_terms(recipe, method.configured(recipe))
    return recipe.model_copy(update={"objective": objective, "terms": terms})


def _without_effect(recipe: Recipe) -> dict[str, str]:
    """Settings that have no effect beside others, by dotted key, each with the reason."""
    method = methods.get(recipe.method)
    objective: Settings = method.read(recipe.objective)
    found = recipe.without_effect() | objective.without_effect("objective.")
    for term in method.configured(recipe):
        found |= term.without_effect(f"terms.{term.name}.")
    return found


def ineffective(recipe: Recipe) -> set[str]:
    """Settings of a resolved recipe that have no effect in it, or a part of it, by dotted key.

    As overrides they would be refused.

    >>> "synthetic.rank" in ineffective(resolve("digits"))
    True
    """
    return {*_without_effect(recipe), *methods.build(recipe).unused}


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
