"""What this code reached with its recipes: one YAML file a table, entries by the recipe's name.

    *.yaml            accuracies of recipes
    applications      those of applications: continual learning, slimming
    studies           those of studies: spaces of `tuning` whose values are all tried
    papers            what papers print of the recipes; of studies, it is under `paper` in the spaces of
                      `tuning`

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
"""Settings that differ between the distillations of a command, or that change no accuracy of the
distilled set.
"""


@cache
def entries() -> Mapping[str, list[dict[str, Any]]]:
    """All results by recipe, each with the fields of `rayd.config.MeasuredResult`; files in
    alphabetical order, recipes as they stand there.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        found |= packaged_yaml(path)
    return found


def read_all(folder: Path, kind: type[Kind]) -> dict[str, Kind]:
    """The results in the YAML files of a folder, by the name of their file, in alphabetical order.

    Raises:
        ConfigError: a file does not fit its kind.
    """
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        found[path.stem] = validate(kind, packaged_yaml(path), f"the results in '{path.name}'")
    return found


def of(name: str) -> list[dict[str, Any]]:
    """The results of a built-in recipe; none where it has not been run."""
    return entries().get(name, [])


def settings(command: str) -> list[str]:
    """The settings that a command of `rayd` gives, besides seeds and what is compared."""
    found = []
    for word in shlex.split(command):
        setting = word.rstrip(";")
        if _SETTING.fullmatch(setting) and setting.partition("=")[0] not in _IGNORED:
            found.append(setting)
    return found
