"""What papers report of recipes, in tables as they print them: one YAML file a paper.

A table has a row for each recipe and a column for each network that was tested; `setting: values`
rows of one recipe are its variants:

    - table: UniDD, Table 3
      networks: [resnet18, resnet50]
      cells:
        cfm-tiny-imagenet-ipc50: [54.6 ± 0.2, 54.8 ± 0.2]
    - table: EDC, Table 3
      recipe: edc-config-c
      networks: [resnet18, resnet50]
      settings:
        zeta 1: [34.4, 36.8]

Values stand there as printed, accuracies in percent, with what is to be said of one after a
semicolon; null is an empty cell of the table. A row for several recipes has all their names. With
`metric`, values have the unit that it names; `note` belongs to all values of a table.

The network of a recipe's own students stands in the first column, unless a table marked `others:
true` has only other ones; what is measured for a recipe is compared with its first result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from rayd.config import packaged_yaml

FOLDER = Path(str(resources.files(__name__)))
"""Folder of the files."""
_FILES = ("others", "edc", "iid", "ls-mtt", "unidd", "csdm")
"""Files in the order of a recipe's results: a method's own paper comes before those that quote it,
and IID, which states deviations and ran DM and IDM itself, before LS-MTT and UniDD.
"""


@cache
def entries() -> Mapping[str, list[dict[str, Any]]]:
    """All published results by recipe, each with the fields of `rayd.config.PaperResult`."""
    tables = [table for name in _FILES for table in packaged_yaml(FOLDER / f"{name}.yaml")]
    # those of the recipe as it stands come first, and its own network before others
    tables.sort(key=lambda table: ("metric" in table, "settings" in table, "others" in table))
    found: dict[str, list[dict[str, Any]]] = {}
    for table in tables:
        for recipe, result in _results(table):
            found.setdefault(recipe, []).append(result)
    return found


def of(name: str) -> list[dict[str, Any]]:
    """The published results of a built-in recipe; none where no paper has any."""
    return entries().get(name, [])


def _results(table: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every result of a table, with its recipe."""
    networks = table.get("networks")
    networks = networks if isinstance(networks, list) else [networks]
    rows = [
        (recipe, "", values)
        for recipes, values in table.get("cells", {}).items()
        for recipe in recipes.split()
    ]
    rows += [(table["recipe"], key, values) for key, values in table.get("settings", {}).items()]

    common = {key: table[key] for key in ("metric", "table") if key in table}
    for recipe, setting, values in rows:
        values = values if isinstance(values, list) else [values]
        for network, value in zip(networks, values, strict=True):
            if value is None:
                continue
            number, std, remark = read_value(value, percent="metric" not in table)
            note = "; ".join(part for part in (remark, table.get("note", "")) if part)
            fields = {"network": network, "std": std, "setting": setting, "note": note}
            given = {key: one for key, one in fields.items() if one not in (None, "")}
            yield recipe, {**common, "value": number, **given}


def read_value(printed: str | float, percent: bool = True) -> tuple[float, float | None, str]:
    """Value, deviation and remark of an entry such as `54.6 ± 0.2; on two seeds`.

    Args:
        printed: the entry.
        percent: whether it is in percent; value and deviation are then fractions.

    Raises:
        ValueError: it does not begin with a number.
    """
    numbers, _, remark = str(printed).partition(";")
    value, _, std = numbers.partition("±")
    return _number(value, percent), _number(std, percent) if std else None, remark.strip()


def _number(text: str, percent: bool) -> float:
    """A number as printed, a percentage as a fraction that is rounded to what was printed."""
    number = float(text)
    if not percent:
        return number
    digits = len(text.strip().partition(".")[2])
    return round(number / 100, digits + 2)
