"""Recipes as written: tables of cells, users' files, and their bases.

A table is a file with a base that all of its cells share, and cells that contain only what differs:

    about: DM with a pool of observers.
    base: {method: dm, data: cifar10, evaluation: {epochs: 1000}}
    cells:
      dm-cifar10-ipc1: {ipc: 1, synthesis: {steps: 500}}
      dm-cifar10-ipc10: {ipc: 10, synthesis: {steps: 1000}}
      dm-cifar10-ipc50: {base: dm-cifar10-ipc10, ipc: 50}

Settings override those of their `base`: the name of a recipe, a file (relative to the current one),
or a mapping. It may be given at the head of a table, in a cell, where it replaces the table's, in a
user's file, and in a base that is a mapping. In the summary of a cell, `{ipc}` and
`{data.imbalance}` are replaced by settings of the cell, and `{data}` by the title of its data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from rayd import results
from rayd.config import (
    DataSettings,
    Recipe,
    check_some,
    lookup,
    merge,
    packaged_yaml,
    read_yaml,
    with_new_names,
    with_protocol,
)
from rayd.errors import ConfigError, proposal
from rayd.names import expanded
from rayd.results import papers

FOLDER = Path(str(resources.files(__package__)))
"""Folder of the tables."""
_CELL = re.compile(r"^  ([\w.-]+):", re.MULTILINE)
"""A cell's name at the beginning of its lines in a table."""
QUICK = ("digits", "reduced")
"""Tables of recipes that need no GPU."""
TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet-1k": "ImageNet-1k",
    "svhn": "SVHN",
    "tiny-imagenet": "Tiny-ImageNet",
}
"""Titles of data in summaries."""


@dataclass(frozen=True)
class Layer:
    """Settings of one cell, file or mapping."""

    settings: Mapping[str, Any]
    """Its settings, without `base`."""
    where: str
    """The file and the cell, for messages."""
    source: str
    """Name or file of the recipe that contains it."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table, as it is written."""

    table: Path
    """The file."""
    settings: Mapping[str, Any]
    """The cell's own settings, with `base` if it has its own."""
    base: Any
    """The base of the table's cells."""


@cache
def _tables_by_cell() -> Mapping[str, Path]:
    """The table of each cell, in alphabetical order of the cells."""
    found: dict[str, Path] = {}
    for path in FOLDER.glob("*.yaml"):
        # only names are read, as parsing would take longer than anything else that a command does
        # with a single recipe
        _, _, text = path.read_text(encoding="utf-8").partition("\ncells:\n")
        found |= dict.fromkeys(_CELL.findall(text), path)
    return dict(sorted(found.items()))


@cache
def _table(path: Path) -> Mapping[str, Cell]:
    """The cells of a table by name."""
    table = _read(path)
    base = table.get("base", {})
    return {name: Cell(path, settings, base) for name, settings in table["cells"].items()}


@cache
def _read(path: Path) -> Mapping[str, Any]:
    """A table as it is written."""
    return cast("Mapping[str, Any]", packaged_yaml(path))


def families() -> dict[str, list[str]]:
    """Recipes by table, in alphabetical order, with quick ones first."""
    found: dict[str, list[str]] = {}
    for name, path in _tables_by_cell().items():
        found.setdefault(path.stem, []).append(name)
    return dict(sorted(found.items(), key=lambda family: (family[0] not in QUICK, family[0])))


def about(family: str) -> str:
    """Common description of a table's recipes, in one line."""
    return str(_read(FOLDER / f"{family}.yaml").get("about", ""))


def names() -> list[str]:
    """Names of the built-in recipes."""
    return list(_tables_by_cell())


def is_file(name_or_path: str | Path) -> bool:
    """Whether a recipe is given as a file, not by name."""
    text = str(name_or_path)
    return text.endswith((".yaml", ".yml")) or "/" in text


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe: the table that holds a built-in one, or the file itself.

    Raises:
        ConfigError: there is neither.
    """
    text = str(name_or_path)
    directory = expanded(text)
    if directory.is_dir() and text not in _tables_by_cell():
        if (directory / "config.yaml").is_file():
            raise ConfigError(
                f"'{text}' is the directory of a run, not a recipe; its recipe is "
                f"'{directory / 'config.yaml'}', and to continue an interrupted run, use --resume."
            )
        raise ConfigError(
            f"'{text}' is a directory, not a recipe; to distil your own images, use 'rayd distill "
            f"digits data={text}', and to continue an interrupted run, use --resume."
        )
    return expanded(text) if is_file(text) else _cell(text).table


def read(name_or_path: str | Path) -> dict[str, Any]:
    """Settings of a recipe merged over its bases, without defaults.

    Raises:
        ConfigError: the recipe or a base does not exist, or bases are circular.
    """
    return deepcopy(combined(layers(name_or_path)))


def layers(name_or_path: str | Path) -> list[Layer]:
    """Layers of a recipe: its bases, the lowest first, then its own settings.

    Raises:
        ConfigError: the recipe or a base does not exist, or bases are circular.
    """
    find(name_or_path)
    return _layers(str(name_or_path), Path(), "", ())


def combined(parts: Sequence[Layer]) -> dict[str, Any]:
    """Merge the layers of a recipe; unchanged parts are shared with the tables.

    A recipe's name and measured results are not inherited, and papers' results belong to their
    cell: a file that changes the method, the data or the budget drops them. Built-in recipes
    include their stored results (`rayd.results`).
    """
    tree: dict[str, Any] = {}
    for part in parts:
        under = {key: value for key, value in tree.items() if key not in ("name", "measured")}
        tree = merge(under, with_protocol(part.settings, under))
        if not is_file(part.source):
            tree |= {"paper": papers.of(part.source)}
        elif "paper" not in part.settings and cell_of(under) != cell_of(tree):
            tree |= {"paper": []}

    own = parts[-1].source
    if not is_file(own):
        measured = results.of(own)
        summary = _filled(str(tree.get("summary", "")), tree)
        tree |= {"name": own, "summary": summary, **({"measured": measured} if measured else {})}
        return tree

    tree = {"name": Path(own).stem, **tree}
    recipe = next((part.source for part in reversed(parts) if not is_file(part.source)), None)
    above = [part.settings for part in parts if is_file(part.source)]
    if recipe is not None and not any("summary" in settings for settings in above):
        tree["summary"] = f"Recipe '{recipe}' with other settings"
    return tree


def check_bases(parts: Sequence[Layer]) -> None:
    """Refuse keys that are not a setting of any recipe, in files below the last layer.

    Raises:
        ConfigError: names the setting and its file.
    """
    for part in parts[:-1]:
        if is_file(part.source):
            check_some(Recipe, merge({}, part.settings), part.where)


def _layers(
    reference: object, folder: Path, where: str, above: tuple[tuple[str, str], ...]
) -> list[Layer]:
    """Layers given by a value of `base`.

    Args:
        reference: the name of a recipe, a file or a mapping.
        folder: the folder to which files are relative.
        where: source of the reference, for messages; empty for the user's request.
        above: recipes based on it: identifiers with their names in messages.
    """
    if isinstance(reference, Mapping):
        source = above[-1][1] if above else ""
        return _with_base(reference, reference.get("base"), folder, where, source, above)
    if not isinstance(reference, str):
        raise ConfigError(
            f"'base' in {where} must be the name of a recipe, a file or a mapping. "
            f"Got {reference!r} instead."
        )

    if is_file(reference):
        path = folder / expanded(reference)
        identity = (str(path.resolve()), str(path))
        place = f"'{path}'"
    else:
        cell = _cell(reference, where)
        identity = (reference, reference)
        place = f"cell '{reference}' of {cell.table.name}"
    if identity in above:
        circle = [shown for _, shown in above[above.index(identity) :]] + [identity[1]]
        raise ConfigError(f"Recipes are based on each other in a circle: {' on '.join(circle)}.")
    above = (*above, identity)

    if not is_file(reference):
        base = cell.settings.get("base", cell.base)
        return _with_base(cell.settings, base, FOLDER, place, reference, above)
    settings = read_yaml(path)
    if "cells" in settings:
        raise ConfigError(
            f"{place} is a table of several recipes; a recipe of your own is a file of settings "
            "that may begin with 'base:'."
        )
    settings = with_new_names(settings, place)
    if settings.get("base", "") is None:
        raise ConfigError(f"'base' in {place} is empty: name a recipe or a file, or remove it.")
    for word in ("extends", "inherits", "defaults", "parent", "include"):
        if word in settings:
            raise ConfigError(
                f"Unknown setting '{word}' in {place}: the recipe below another one is its 'base', as "
                f"in 'base: {settings[word]}'."
            )
    return _with_base(settings, settings.get("base"), path.parent, place, identity[1], above)


def _with_base(
    settings: Mapping[str, Any],
    base: object,
    folder: Path,
    where: str,
    source: str,
    above: tuple[tuple[str, str], ...],
) -> list[Layer]:
    """Layers of a base, if there is one, followed by the settings themselves."""
    own = {key: value for key, value in settings.items() if key != "base"}
    under = [] if base is None else _layers(base, folder, where, above)
    return [*under, Layer(own, where, source)]


def _cell(name: str, where: str = "") -> Cell:
    """Look up a cell by name.

    Raises:
        ConfigError: there is none; the message names the nearest and the source of the reference.
    """
    if name in _tables_by_cell():
        return _table(_tables_by_cell()[name])[name]
    hint = proposal(name, names())
    place = f" as the base of {where}" if where else ""
    raise ConfigError(
        f"Unknown recipe '{name}'{place}{hint} 'rayd recipes' lists all of them; a file must end "
        "in .yaml."
    )


def cell_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that identify a cell of a paper's table; those for reading images are excluded."""
    data = merge({}, tree).get("data")
    if isinstance(data, Mapping):
        defaults = {key: field.default for key, field in DataSettings.model_fields.items()}
        data = {**defaults, **data, "stream": None}
    ipc = tree.get("ipc", Recipe.model_fields["ipc"].default)
    return {"method": tree.get("method"), "data": data, "ipc": ipc}


def _filled(summary: str, tree: Mapping[str, Any]) -> str:
    """Fill in the settings in braces, such as `{ipc}`, of a summary."""

    def value(found: re.Match[str]) -> str:
        key = found[1]
        if key == "data":
            name = str(lookup(tree, "data.name"))
            return TITLES.get(name, name)
        return str(lookup(tree, key))

    return re.sub(r"\{([a-z_.]+)\}", value, summary)
