"""Analyses of a distilled set: its features, how networks train on it, and gains by class.

    analysis = rayd.analyses.analyse("runs/digits", "embedding")
    analysis.write(Path("pictures"))

Each analysis is a module with functions that take plain tensors and networks, such as
`rayd.analyses.hessian.largest_eigenvalue`, and `analyse`, which applies them to a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.errors import ConfigError, OutputError, errors_for_python, unknown

if TYPE_CHECKING:
    from rayd.analyses.base import Analysis
    from rayd.engine.progress import Progress

ANALYSES: Mapping[str, str] = {
    "embedding": "features of real and synthetic images in the plane (t-SNE, UMAP)",
    "landscape": "loss around networks trained on the set and on random images",
    "hessian": "largest eigenvalue of the loss's Hessian at their minima",
    "gradients": "cosine of the set's gradient with the whole set's",
    "steps": "accuracy over the steps of the synthesis (callback snapshots)",
    "ipc": "accuracy over images per class, of several runs",
    "spectra": "spectra of real and synthetic features, and the method's filter",
    "images": "images of several runs side by side, by the settings that differ",
    "lowrank": "mappers and bases of a low-rank set",
    "classes": "gain over random images, class by class",
}
"""Description of each analysis, by name."""

_MODULES = {"ipc": "budgets"}


def names() -> list[str]:
    """Names of the analyses."""
    return list(ANALYSES)


def analyse(
    directory: str | Path,
    what: str,
    *,
    others: Sequence[str | Path] = (),
    network: str | Mapping[str, Any] | None = None,
    seed: int = 0,
    images: int | None = None,
    steps: int = 300,
    how: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Analyse a distilled set.

    Args:
        directory: a run directory, a distilled set or an export.
        what: name of the analysis, see `ANALYSES`.
        others: further sets that it is compared with, for `ipc` and `images`.
        network: architecture; by default the first one that the recipe evaluates.
        seed: seed of all draws.
        images: maximum number of real images, the same number of every class; 0 for all. By
            default 300 or 1000, and all for `gradients`.
        steps: optimizer steps of networks that are trained for an analysis.
        how: variant: `tsne`, `umap` or `pca` for `embedding`, `filter` or `features` for
            `spectra`, a baseline for `classes`.
        data_root: folder of named data that is searched first.
        cache: store of finished work that runs share.
        progress: where progress is shown; by default nowhere.

    Returns:
        The picture with its numbers; `write` saves it, `plot` draws it.

    Raises:
        RaydError: the analysis is unknown, or the set lacks what it needs, in one sentence.
    """
    with errors_for_python():
        return run(
            directory,
            what,
            others=others,
            network=network,
            seed=seed,
            images=images,
            steps=steps,
            how=how,
            data_root=data_root,
            cache=cache,
            progress=progress,
        )


def run(
    directory: str | Path,
    what: str,
    *,
    others: Sequence[str | Path] = (),
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Analysis:
    """The same as `analyse`, with messages that refer to command line options."""
    if what not in ANALYSES:
        raise ConfigError(unknown("analysis", what, names()))
    from rayd.analyses.base import Options, Subject
    from rayd.engine.progress import Progress as Shown

    chosen = Options(**options)
    if chosen.steps < 1 or (chosen.images is not None and chosen.images < 0):
        raise ConfigError(
            "An analysis needs at least one step, and a number of images from 0 on. "
            f"Got {chosen.steps} steps and {chosen.images} images."
        )
    common: dict[str, Any] = {
        "options": chosen,
        "data_root": None if data_root is None else Path(data_root),
        "cache": None if cache is None else Path(cache),
        "progress": progress or Shown(quiet=True),
    }
    rest = tuple(Subject.at(other, **common) for other in others)
    subject = Subject.at(directory, others=rest, **common)
    module = import_module(f"rayd.analyses.{_MODULES.get(what, what)}")
    found: Analysis = module.analyse(subject)
    return found


def check_free(folder: Path, what: str, overwrite: bool) -> None:
    """Refuse a folder that already holds the files of an analysis, before computing anything.

    Raises:
        OutputError: one of the files exists and `overwrite` is not given, or the folder is, or lies
            in, a file such as an export.
        ConfigError: the analysis is unknown.
    """
    if what not in ANALYSES:
        raise ConfigError(unknown("analysis", what, names()))
    if is_file := next((path for path in (folder, folder.parent) if path.is_file()), None):
        raise OutputError(f"'{is_file}' is a file: name a folder for the analysis with --out.")
    existing = [path for path in files(folder, what) if path.exists()]
    if existing and not overwrite:
        raise OutputError(
            f"'{existing[0]}' exists already; choose another folder with --out or add --overwrite."
        )


def files(folder: Path, what: str) -> tuple[Path, Path, Path]:
    """Paths of the picture, page and numbers of an analysis in a folder."""
    return folder / f"{what}.png", folder / f"{what}.html", folder / f"{what}.json"


def __getattr__(name: str) -> Any:
    """Import an analysis on first use."""
    if name in ANALYSES or name in _MODULES.values():
        return import_module(f"rayd.analyses.{_MODULES.get(name, name)}")
    raise AttributeError(f"module 'rayd.analyses' has no attribute '{name}'")
