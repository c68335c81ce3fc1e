"""Dataset distillation: a small synthetic set that trains networks almost as well as the data.

run = rayd.distill("digits", out="runs/digits2", ipc=2)
distilled = rayd.load("runs/digits2")
report = rayd.evaluate(distilled, networks=["mlp"], seeds=3)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.errors import ConfigError, RaydError, errors_for_python
from rayd.version import __version__

if TYPE_CHECKING:
    from rayd import methods, networks, recipes, schedules, statistics, synthetic, terms
    from rayd.config import Recipe
    from rayd.distilled import Distilled
    from rayd.engine.distill import Run
    from rayd.evaluation.report import Report

__all__ = [
    "Distilled",
    "RaydError",
    "Recipe",
    "Report",
    "Run",
    "__version__",
    "distill",
    "evaluate",
    "load",
    "methods",
    "networks",
    "recipes",
    "schedules",
    "statistics",
    "synthetic",
    "terms",
]


_MODULES = frozenset(
    {"methods", "networks", "recipes", "schedules", "statistics", "synthetic", "terms"}
)
_LATER = {
    "Distilled": "rayd.distilled",
    "Recipe": "rayd.config",
    "Report": "rayd.evaluation.report",
    "Run": "rayd.engine.distill",
}


def __getattr__(name: str) -> Any:
    """Import slow modules on first use."""
    if name in _MODULES:
        return import_module(f"rayd.{name}")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'rayd' has no attribute '{name}'")


def distill(
    name: str | Path | None = None,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool | str | Path = False,
    overwrite: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Distil a data set according to a recipe, evaluate the result, and write both to `out`.

    Args:
        name: a built-in recipe or a YAML file.
        out: the run's directory, or its URL (`s3://`, `gs://`); `data_root` and `cache` may be
            URLs, too. By default `runs/<name of the recipe>`.
        workers: number of Ray actors; 0 runs in this process, without Ray; by default the recipe's.
        address: Ray cluster to join; by default a private one on this machine.
        data_root: folder of named data, before `$RAYD_DATA` and `~/.cache/rayd/data`.
        cache: store of finished work shared by runs; by default `$RAYD_CACHE`, else
            `~/.cache/rayd/store`.
        resume: continue the run in `out`. A directory in place of `name` and `out`, as in
            `rayd.distill(resume="runs/a")`, continues its run with its own recipe and settings.
        overwrite: replace the run in `out`.
        quiet: show no progress.
        overrides: settings of the recipe, such as `ipc=5`, `data="path/to/images"`,
            `synthesis={"steps": 500}` or `**{"synthesis.steps": 500}`.

    Returns:
        The run: its directory, its recipe, the distilled set and the report.

    Raises:
        RaydError: any error that the user can fix, in one sentence.
    """
    from rayd.config import given_resources, merge, nested
    from rayd.engine.distill import distill as run
    from rayd.engine.progress import Progress
    from rayd.engine.rundir import RunDirectory
    from rayd.recipes import resolve

    with errors_for_python():
        settings = merge(given_resources(workers, address), nested(overrides))
        if isinstance(resume, str | Path):
            if name is not None or out is not None:
                raise ConfigError(
                    "resume=DIRECTORY takes recipe and directory from there: "
                    "leave the recipe's name and out away."
                )
            out = resume
            resume = True
        if name is not None:
            recipe = resolve(name, settings)
        elif resume and out is not None:
            recipe = RunDirectory(Path(out)).recipe(settings)
        else:
            raise ConfigError(
                "Name a recipe, such as rayd.distill('digits'), "
                "or a run to continue with resume=DIRECTORY."
            )
        return run(
            recipe,
            Path(out if out is not None else Path("runs") / recipe.name),
            data_root=_path(data_root),
            cache=_path(cache),
            resume=resume,
            overwrite=overwrite,
            progress=Progress(quiet),
        )


def load(path: str | Path) -> Distilled:
    """Load the distilled set of a run directory: a torch `Dataset` with images, labels and card.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    from rayd.distilled import load as read

    with errors_for_python():
        return read(path)


def evaluate(
    distilled: Distilled | str | Path,
    *,
    networks: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Report:
    """Train students on a distilled set and on its baselines, and test them on the real test split.

    Args:
        distilled: the set, or its directory.
        networks: one or more architectures of the students; by default those of its recipe
            (`distilled.card["config"]`).
        seeds: students per architecture; by default as in its recipe.
        workers: number of Ray actors; 0 runs in this process, without Ray; by default the recipe's.
        address: Ray cluster to join.
        data_root: folder of named data that is searched first.
        cache: store of finished work shared by runs.
        quiet: show no progress.
        overrides: settings that override the set's recipe, such as `evaluation={"epochs": 300}` or
            `**{"evaluation.epochs": 300}`.

    Raises:
        RaydError: any error that the user can fix, in one sentence.
    """
    from rayd.config import given_resources, merge, nested
    from rayd.distilled import Distilled as Set
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.progress import Progress

    several = [networks] if isinstance(networks, str | Mapping) else list(networks or ())
    settings: dict[str, Any] = {} if networks is None else {"networks": several}
    settings |= {} if seeds is None else {"seeds": seeds}
    with errors_for_python():
        tree = merge(given_resources(workers, address), nested(overrides))
        tree = merge(tree, {"evaluation": settings})
        chosen = distilled if isinstance(distilled, Set) else load(distilled)
        return evaluate_distilled(chosen, tree, _path(data_root), _path(cache), Progress(quiet))


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
