"""What this code reached with its recipes: one YAML file a table, entries by the recipe's name.

    *.yaml            accuracies of recipes
    applications      those of applications: continual learning, slimming
    papers            what papers print of the recipes; of studies, it is under `paper` in the spaces of
                      `tuning`

`python -m rayd.results` writes their tables into the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from rayd.config import packaged_yaml

FOLDER = Path(str(resources.files(__name__)))
"""Where the files are."""


@cache
def entries() -> Mapping[str, list[dict[str, Any]]]:
    """All results by recipe, each with the fields of `rayd.config.MeasuredResult`; files in
    alphabetical order, recipes as they stand there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        found |= packaged_yaml(path)
    return found


def of(name: str) -> list[dict[str, Any]]:
    """The results of a built-in recipe; none where it has not been run."""
    return entries().get(name, [])
