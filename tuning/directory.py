"""The directory of a sweep: its configuration, and checks before a sweep is continued."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rayd.artifacts import write_bytes
from rayd.config import read_yaml, validate
from rayd.errors import OutputError
from rayd.locks import LOCK
from tuning.settings import Space
from tuning.space import ResolvedSpace

if TYPE_CHECKING:
    from tuning.trial import SweepPlan

MARK = "# A sweep of rayd: its space and its recipes.\n"
SWEEP = "sweep.yaml"
"""File of the configuration of a sweep."""
RESULTS = "trials.csv"
"""File of the table of trials."""
SUMMARY = "summary.json"
"""File of the results of a finished sweep."""
NAME = "tune"
"""Folder of Ray Tune."""


def prepare_directory(out: Path, plan: SweepPlan, resume: bool) -> bool:
    """Write the configuration of a sweep; return whether there is a sweep to continue."""
    path = out / SWEEP
    space = plan.resolved.space
    requested = {
        "space": space.model_dump(mode="json"),
        "recipes": {
            name: recipe.model_dump(mode="json", exclude={"resources"})
            for name, recipe in plan.resolved.own.items()
        },
        "validation": plan.validation,
    }
    if holds_sweep(out):
        if not resume:
            raise OutputError(
                f"'{out}' holds a sweep already; "
                "add --resume to continue it, or choose another --out."
            )
        before = read_yaml(path, "sweep")
        old_space = before.get("space", {})
        differing = {
            key for key, value in requested["space"].items() if old_space.get(key) != value
        }
        changed = sorted(differing - {"samples"})
        if not changed:
            changed = [
                name for name in ("recipes", "validation") if before.get(name) != requested[name]
            ]
        if changed == ["base"]:
            raise OutputError(
                f"'{out}' holds a sweep of {', '.join(old_space['base'])}, not of "
                f"{', '.join(space.base)}; if these are the same files, resume it from the folder in "
                "which it was begun, or choose another --out."
            )
        if changed:
            raise OutputError(
                f"'{out}' holds another sweep: {', '.join(changed)} differ; choose another --out."
            )
        began = _holds_search(out, plan.resolved)
        if differing:
            _extend(out, space, before["space"]["samples"])
            write_configuration(path, requested)
        return began
    if any(entry.name != LOCK for entry in out.iterdir()):
        raise OutputError(f"'{out}' is not empty and holds no sweep of rayd; choose another --out.")
    write_configuration(path, requested)
    return False


def holds_sweep(out: Path) -> bool:
    """Whether a directory holds a sweep of rayd."""
    return (out / SWEEP).is_file() and (out / SWEEP).read_bytes().startswith(MARK.encode())


def read_space(out: Path) -> Space:
    """The space of a sweep.

    Raises:
        ConfigError: its file is missing or damaged, or has settings of another version of rayd.
    """
    path = out / SWEEP
    return validate(Space, read_yaml(path, "sweep").get("space", {}), f"the space of '{path}'")


def _holds_search(out: Path, resolved: ResolvedSpace) -> bool:
    """Whether a search has begun in the directory of a sweep.

    Ray Tune starts over if it cannot read its own files, and overwrites the results, so they are
    read here first.

    Raises:
        OutputError: they cannot be read, or are missing although there are results.
    """
    # imported here, as the page of a sweep uses this module without Ray
    from ray import tune

    from tuning.search import algorithm

    folder = out / NAME
    if not any(folder.glob("experiment_state-*.json")):
        if (out / RESULTS).exists():
            raise OutputError(
                f"'{out}' holds results of a sweep but not the state of its search "
                f"('{folder.name}/'), without which it cannot be continued; copy that folder too, "
                "or choose another --out."
            )
        return False
    try:
        tune.ExperimentAnalysis(str(folder))
        algorithm(resolved, out).restore_from_dir(str(folder))
    except Exception as error:
        # unpickling may raise anything if classes no longer exist
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutputError(
            f"The sweep in '{out}' cannot be continued, as '{folder.name}/' is damaged or was "
            f"written by another version of rayd or Ray: {reason}. Its results are unchanged; "
            "begin a new sweep with another --out."
        ) from error
    return True


def write_configuration(path: Path, content: Mapping[str, Any]) -> None:
    """Write the configuration of a sweep, with the header that identifies it."""
    write_bytes(path, (MARK + yaml.safe_dump(content, sort_keys=False, width=120)).encode())


def _extend(out: Path, space: Space, before: int) -> None:
    """Prepare a sweep for more samples: rename the best run of fewer samples."""
    if space.samples < before:
        raise OutputError(
            f"'{out}' holds a sweep of {before} samples, which cannot be decreased; "
            f"set --samples {before} or more."
        )
    if space.scheduler.name == "pbt":
        raise OutputError(
            f"'{out}' holds a sweep of {before} samples by 'scheduler: pbt', which moves all of "
            "them together from their beginning, so none can join; "
            f"set --samples {before}, or choose another --out."
        )
    for name in ("best", "confirm"):
        if (out / name).exists():
            (out / name).rename(out / f"{name}-of-{before}")
