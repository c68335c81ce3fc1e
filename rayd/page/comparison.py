"""Several runs as one HTML page: settings that differ first, then accuracies and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayd import remote
from rayd.config import Recipe, flat
from rayd.distilled import Distilled, load
from rayd.engine.rundir import RunDirectory
from rayd.evaluation.compare import Comparison, compare, distinct
from rayd.evaluation.matrix import words_of
from rayd.evaluation.report import Report
from rayd.evaluation.run_report import report_of
from rayd.evaluation.variants import DISTILLED
from rayd.page import charts
from rayd.page.page import Picture, environment
from rayd.page.page import write as write_page
from rayd.page.run import gather, optional, series
from rayd.pictures import contact_sheet
from rayd.recipes import restore
from rayd.recipes.difference import RESULTS

FILE = "compare.html"
"""Default name of the page."""


@dataclass(frozen=True)
class ComparedRun:
    """A run on the page."""

    name: str
    """Its directory, without the common part of all paths."""
    recipe: Recipe | None
    """The recipe; None if neither the directory nor the card contains it."""
    distilled: Distilled | None
    """Its set."""
    report: Report
    """Its accuracies."""
    grid: Picture | None
    """Its images."""
    series: Mapping[str, charts.Points]
    """Logged values of its synthesis."""
    seconds: float | None
    """Total time of its stages; None if unknown."""


def write(directories: Sequence[str | Path], to: str | Path) -> Path:
    """Write a page that compares finished runs.

    Args:
        directories: of runs, or of distilled sets with a report.
        to: file to be written.

    Returns:
        The file.

    Raises:
        RaydError: a directory holds no report, or the page cannot be written.
    """
    return write_page(Path(to), render([remote.local(path) for path in directories]))


def render(directories: Sequence[Path]) -> str:
    """The page as HTML."""
    directories = distinct(directories)
    comparison = compare(directories)
    names = dict(zip(map(str, directories), _short(directories), strict=True))
    runs = [_read(path, names[str(path)]) for path in directories]
    class_names = _shared_classes(runs)
    few = 0 < len(class_names) <= charts.MOST_CLASSES
    per_class = _by_class(runs) if few else {}
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            runs=runs,
            settings=_settings(runs),
            comparison=comparison,
            names=names,
            accuracies=charts.accuracies(_bars(comparison, names)),
            classes=charts.classes(per_class, class_names) if per_class else None,
            curves=charts.curves(_curves(runs), "step"),
        )
    )


def _read(directory: Path, name: str) -> ComparedRun:
    """Read everything that the page shows of a run."""
    distilled = optional(load, directory)
    report = report_of(directory, skip_damaged=True)
    # compare() has refused directories without one
    assert report is not None
    is_run = RunDirectory(directory).holds_run()
    recipe: Recipe | None = None
    if is_run:
        recipe = RunDirectory(directory).recipe()
    elif distilled is not None and "config" in distilled.card:
        recipe = optional(restore, distilled.card["config"])
    stages = gather(directory).stages if is_run else ()
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    return ComparedRun(
        name=name,
        recipe=recipe,
        distilled=distilled,
        report=report,
        grid=None if distilled is None else Picture.of(contact_sheet(distilled)),
        series=series(directory) if is_run else {},
        seconds=sum(known) if known else None,
    )


def _short(directories: Sequence[Path]) -> list[str]:
    """Names of the runs: their paths without the folders that all of them have in common."""
    parts = [path.resolve().parts for path in directories]
    shared = 0
    while all(len(part) > shared + 1 for part in parts):
        if len({part[shared] for part in parts}) > 1:
            break
        shared += 1
    return ["/".join(part[shared:]) for part in parts]


def _settings(runs: Sequence[ComparedRun]) -> dict[str, list[Any]]:
    """Settings in which runs differ, by dotted key: the value of each run."""
    trees = []
    for run in runs:
        tree: dict[str, Any] = {}
        if run.recipe is not None:
            left_out = RESULTS - {"name"}
            tree = flat(run.recipe.model_dump(mode="json", exclude=set(left_out)))
        trees.append(tree)
    keys = dict.fromkeys(key for tree in trees for key in tree)
    rows = {}
    for key in keys:
        values = [tree.get(key) for tree in trees]
        if any(value != values[0] for value in values):
            rows[key] = values
    return rows


def _bars(comparison: Comparison, names: Mapping[str, str]) -> list[charts.Bar]:
    """Accuracies of each group of runs, the distilled set's first.

    Args:
        comparison: the groups.
        names: of the runs, by directory.
    """
    networks = {group.network for group in comparison.groups}
    bars = []
    for group in comparison.groups:
        first = names[group.directories[0]]
        others = len(group.directories) - 1
        where = f"{first} and {others} more" if others else first
        with_network = f", {group.network}" if len(networks) > 1 else ""
        for words, spread in group.accuracies.items():
            std = spread.std if spread.std is not None else spread.students
            label = f"{where}: {words}{with_network}"
            if group.is_on_validation:
                label = f"{label}, on the validation split"
            bars.append(charts.Bar(label, spread.mean, std, words.startswith(DISTILLED)))
    return bars


def _shared_classes(runs: Sequence[ComparedRun]) -> tuple[str, ...]:
    """Names of the classes where all runs have the same ones; else empty."""
    found = {run.distilled.class_names for run in runs if run.distilled is not None}
    return found.pop() if len(found) == 1 else ()


def _by_class(runs: Sequence[ComparedRun]) -> dict[str, Sequence[float | None]]:
    """Accuracies by class of each run's distilled set, with its first network."""
    found: dict[str, Sequence[float | None]] = {}
    for run in runs:
        results = run.report.results
        for result in results:
            if result.set == DISTILLED and run.name not in found:
                found[run.name] = result.per_class
    for result in runs[0].report.results:
        words = words_of(result, runs[0].report.results)
        if result.set == "whole" and words not in found:
            found[words] = result.per_class
    return found


def _curves(runs: Sequence[ComparedRun]) -> dict[str, dict[str, charts.Points]]:
    """Values that several runs logged: by quantity and run."""
    quantities: dict[str, dict[str, charts.Points]] = {}
    for run in runs:
        for name, points in run.series.items():
            quantities.setdefault(name, {})[run.name] = points
    return quantities
