"""Recipes by name: one YAML file per cell of a paper's table, with the paper's number and ours.

A recipe is the method's defaults, the file, and overrides, laid on each other in this order and
validated as one. What a layer says of a variant that a later one leaves is dropped; what the last
one says must count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

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
    read_yaml,
    validate,
    with_new_names,
    without,
)
from rayd.config.reading import RENAMED_BY_METHOD
from rayd.errors import ConfigError, nearest
from rayd.objectives import Term

_FOLDER = Path(str(resources.files(__name__)))
_QUICK_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Seven times as fast as the other, which PyYAML has everywhere and which survives whatever a
stranger's file may hold.
"""


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


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """The file of a built-in recipe, or the file itself.

    Raises:
        ConfigError: there is neither.
    """
    text = str(name_or_path)
    if Path(text).is_dir() and not (_FOLDER / f"{text}.yaml").is_file():
        raise ConfigError(
            f"'{text}' is a directory and no recipe; own images are distilled with 'rayd distill digits data={text}', "
            "and a run that was interrupted is continued with --resume."
        )
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(text)
    path = _FOLDER / f"{text}.yaml"
    if not path.is_file():
        near = [f"'{name}'" for name in nearest(text, names(), count=3)]
        hint = (
            f"; did you mean {' or '.join([', '.join(near[:-1]), near[-1]] if near[1:] else near)}?"
            if near
            else "."
        )
        raise ConfigError(
            f"Unknown recipe '{text}'{hint} 'rayd recipes' lists all of them; a file must end in .yaml."
        )
    return path


def headlines() -> list[Headline]:
    """The built-in recipes at a glance, in the order of `names`; their methods are not built."""
    return [_headline(name) for name in names()]


def _headline(name: str) -> Headline:
    tree = yaml.load(find(name).read_text(encoding="utf-8"), _QUICK_LOADER)
    shown = {key: tree[key] for key in Headline.model_fields if key in tree}
    return validate(
        Headline, {**shown, "name": name, "data": tree["data"]["name"]}, f"recipe '{name}'"
    )


def resolve(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The whole recipe: method's defaults, file, overrides.

    Where overrides change the method, the data or the budget, the result is another cell of the
    table: it loses the recipe's numbers, and is named by what it is. The terms of a built-in recipe
    as it is are not built: they are known to fit it.

    Args:
        name_or_path: a built-in recipe or a YAML file.
        overrides: settings laid over it, nested or by dotted key.

    Raises:
        ConfigError: the recipe, a key, the method or a value does not exist or does not fit.
    """
    path = find(name_or_path)
    overrides = nested(overrides) if overrides is not None else None
    tree = merge({"name": path.stem}, read_yaml(path))
    where = f"recipe '{tree['name']}'"
    if path.parent == _FOLDER and not (overrides or {}).keys() - {"resources"}:
        return _by_settings(with_new_names(tree), overrides, where)[0]
    recipe = assemble(tree, overrides, where)
    cell = _by_settings(with_new_names(tree), None, where)[0]
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
    tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, where: str = "the recipe"
) -> Recipe:
    """A recipe from a mapping of settings and overrides, over the method's defaults.

    Raises:
        ConfigError: a key, the method or a value does not exist or does not fit, or the last layer
            sets what changes nothing.
    """
    # settings first: what is wrong with them alone is said without importing what computes the
    # terms
    method = (overrides or {}).get("method", tree.get("method"))
    tree = with_new_names(tree, where, method)
    overrides = None if overrides is None else with_new_names(overrides, where, method)
    recipe, whole = _by_settings(tree, overrides, where)
    unused = methods.build(recipe).unused
    if not any(lookup(whole, key) is not None for key in unused):
        return recipe
    kept, _ = _read(without(whole, unused), where)
    methods.build(kept)
    _refuse(unused, tree, overrides, recipe, kept, where)
    return kept


def _by_settings(
    tree: Mapping[str, Any], overrides: Mapping[str, Any] | None, where: str
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
    _refuse(unused, tree, overrides, recipe, kept, where)
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
        tree: the recipe's own settings.
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
