"""Results of this code with its recipes: one YAML file per table, with entries by recipe name.

    *.yaml            accuracies of recipes
    applications      results of applications: continual learning, slimming
    studies           results of studies: search spaces of `tuning` that are tried exhaustively
    papers            published results of the recipes; those of studies are under `paper` in the
                      search spaces of `tuning`

`python -m rayd.results` writes their tables into the documentation.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from rayd.config import Settings, packaged_yaml, validate

Kind = TypeVar("Kind", bound=Settings)

FOLDER = Path(str(resources.files(__name__)))
"""Folder of the files."""
_SETTING = re.compile(r"[a-z_.]+=.+")
_IGNORED = (
    "seed",
    "observers.seed",
    "experts.seed",
    "evaluation.baselines",
    "evaluation.comparisons",
)
"""Settings that differ between the distillations of a command, or that do not affect the accuracy
of the distilled set.
"""


@cache
def entries() -> Mapping[str, list[dict[str, Any]]]:
    """All results by recipe, each with the fields of `rayd.config.MeasuredResult`; files are in
    alphabetical order, recipes in the order of the file.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        found |= packaged_yaml(path)
    return found


def read_all(folder: Path, kind: type[Kind]) -> dict[str, Kind]:
    """The results in the YAML files of a folder, by file name, in alphabetical order.

    Raises:
        ConfigError: a file does not match its kind.
    """
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        found[path.stem] = validate(kind, packaged_yaml(path), f"the results in '{path.name}'")
    return found


def of(name: str) -> list[dict[str, Any]]:
    """The results of a built-in recipe; none where it has not been run."""
    return entries().get(name, [])


def settings(command: str) -> list[str]:
    """The settings in a command of `rayd`, without seeds and comparisons."""
    found = []
    for word in shlex.split(command):
        setting = word.rstrip(";")
        if _SETTING.fullmatch(setting) and setting.partition("=")[0] not in _IGNORED:
            found.append(setting)
    return found
