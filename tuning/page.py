"""A sweep as one HTML page: trials, importance of settings, accuracy by setting, Pareto front."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.drawing import new_figure
from rayd.errors import ArtifactError, OutputError
from rayd.evaluation.report import Report
from rayd.page import charts as page_charts
from rayd.page.page import environment
from rayd.page.page import write as write_page
from rayd.page.run import FILE, optional
from tuning import charts, table
from tuning.directory import RESULTS, read_space
from tuning.settings import MODES, Space
from tuning.summaries import Summary
from tuning.summaries import summary as read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORDS = {
    "validation_accuracy": "validation accuracy",
    "storage_bytes": "storage (bytes)",
    "seconds": "time (s)",
}
"""Descriptions of objectives."""


def write(directory: Path, to: Path | None = None) -> Path:
    """Write the page of a sweep.

    Args:
        directory: of the sweep, which has written its results.
        to: file to be written; by default `report.html` in the directory.

    Returns:
        The file.

    Raises:
        RaydError: the directory holds no results of a sweep, or the page cannot be written.
    """
    return write_page(to if to is not None else directory / FILE, render(directory))


def render(directory: Path) -> str:
    """The page of a sweep as HTML."""
    if not (directory / RESULTS).is_file():
        raise OutputError(
            f"'{directory}' holds a sweep without results yet; 'rayd tune' with --resume goes on."
        )
    space = read_space(directory)
    trials = read_trials(directory / RESULTS, space)
    best = table.best(trials)
    kept = _summary(directory, trials, best)
    summary = kept if kept is not None else _untested(space, trials)
    report: Report | None = optional(Report.kept, directory / "best")
    objectives = list(space.objectives)
    front = table.pareto(trials, objectives) if len(objectives) > 1 else []
    done = table.finished(trials)
    shown = sorted(trials, key=lambda row: -(row.validation_accuracy or -1.0))
    return (
        environment("tuning")
        .get_template("page.html.j2")
        .render(
            space=space,
            command=_command(directory, space),
            trials=shown,
            finished=len(done),
            failed=summary.failed,
            stopped=sum(row.status == "stopped" for row in trials),
            best=best,
            summary=summary,
            is_tested=kept is not None,
            keys=list(space.domains),
            short=short_names(space.domains),
            importance=_importance(summary.importance),
            fewest=table.FEWEST,
            slices=_slices(space, trials, best) if done and space.domains else None,
            front=front,
            pareto=_pareto(done, front, objectives) if front else None,
            objectives=[WORDS[name] for name in objectives],
            confirmed=summary.confirmed,
            report=report,
            accuracies=None
            if report is None or not report.results
            else page_charts.accuracies(page_charts.bars_of(report.results)),
        )
    )


def _summary(
    directory: Path, trials: Sequence[table.Row], best: table.Row | None
) -> Summary | None:
    """The summary of a sweep; None if it is missing or of fewer trials.

    It is written after the best settings have been tested, which an interrupted sweep may not have
    reached.
    """
    summary: Summary | None = optional(read_summary, directory)
    if summary is None or summary.trials != len(trials):
        return None
    return summary if summary.best == (None if best is None else best.trial) else None


def _untested(space: Space, trials: Sequence[table.Row]) -> Summary:
    """A summary from the trials only."""
    return Summary(
        space=space.name,
        trials=len(trials),
        finished=len(table.finished(trials)),
        failed=sum(row.status == "failed" for row in trials),
        own_validation_accuracy=table.own_accuracy(trials),
    )


def _command(directory: Path, space: Space) -> str:
    """The command that distils with the best settings."""
    recipe = str(directory / "best.yaml")
    return shlex.join(["rayd", "distill", recipe, "--out", f"runs/{space.name}-best"])


def read_trials(path: Path, space: Space) -> list[table.Row]:
    """The table of trials that a sweep wrote.

    Raises:
        ArtifactError: a column is missing, or a value that should be a number is not.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_row(line, space) for line in csv.DictReader(file)]
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"'{path}' is not a table of trials written by 'rayd tune' ({error}); 'rayd tune' with "
            "--resume rewrites it."
        ) from error


def _row(line: Mapping[str, str], space: Space) -> table.Row:
    """Parse a line of the table."""
    settings = {}
    for key in space.domains:
        if line.get(key):
            settings[key] = _parsed(line[key])
    numbers = {name: _number(line.get(name)) for name in table.NUMBERS}
    return table.Row(
        trial=line["trial"],
        status=line["status"],
        settings=settings,
        own=line["own_settings"] == "True",
        fraction=_number(line["fraction"]) or 0.0,
        **numbers,  # type: ignore[arg-type]
        reason=line["reason"],
        run=line["run"],
    )


def _parsed(cell: str) -> Any:
    """Parse a value of the table; text if it is not a number or another literal."""
    try:
        return json.loads(cell.lower() if cell in ("True", "False") else cell)
    except json.JSONDecodeError:
        return cell


def _number(cell: str | None) -> float | None:
    return float(cell) if cell else None


def _importance(shares: Mapping[str, float]) -> str | None:
    """Chart of the importance of settings; None if there is none."""
    if not shares:
        return None
    with page_charts.page_style():
        figure = new_figure(page_charts.WIDTH, page_charts.MARGIN + page_charts.BAR * len(shares))
        charts.draw_importance(figure.subplots(), shares, page_charts.OURS)
        values = ", ".join(f"{key} {share:.2f}" for key, share in shares.items())
        return page_charts.as_svg(figure, f"Importance of settings: {values}.")


def _slices(space: Space, trials: Sequence[table.Row], best: table.Row | None) -> str:
    """Chart of accuracies against each setting."""
    with page_charts.page_style():
        figure = charts.draw_slices(space, trials, best)
        text = f"Validation accuracy of trials against {', '.join(space.domains)}."
        return page_charts.as_svg(figure, text)


def _pareto(
    trials: Sequence[table.Row], front: Sequence[table.Row], objectives: Sequence[str]
) -> str:
    """Chart of trials by the first two objectives, with the Pareto front as a line."""
    with page_charts.page_style():
        figure: Figure = new_figure(page_charts.WIDTH, 360)
        axes = figure.subplots()
        across = objectives[1]
        up = objectives[0]
        is_on_front = {row.trial for row in front}
        others = [row for row in trials if row.trial not in is_on_front]
        for rows, label, marker, colour in (
            (others, "trials", "x", page_charts.OTHERS),
            (front, "not beaten in all objectives", "o", page_charts.OURS),
        ):
            places = [getattr(row, across) for row in rows]
            heights = [getattr(row, up) for row in rows]
            axes.scatter(places, heights, label=label, marker=marker, color=colour, zorder=2)
        if len(objectives) == 2:
            line = sorted((getattr(row, across), getattr(row, up)) for row in front)
            axes.plot(*zip(*line, strict=True), color=page_charts.OURS, linewidth=1)
        axes.set_xlabel(f"{WORDS[across]}, {_better(across)}")
        axes.set_ylabel(f"{WORDS[up]}, {_better(up)}")
        axes.legend(frameon=False)
        return page_charts.as_svg(figure, f"Trials by {WORDS[up]} and {WORDS[across]}.")


def _better(objective: str) -> str:
    return "higher is better" if MODES[objective] == "max" else "lower is better"  # type: ignore[index]


def short_names(keys: Collection[str]) -> dict[str, str]:
    """The shortest ends of dotted keys that distinguish them.

    >>> short_names(["synthesis.steps", "terms.moments.alpha", "objective.steps"])
    {'synthesis.steps': 'synthesis.steps', 'terms.moments.alpha': 'alpha', 'objective.steps': 'objective.steps'}
    """
    short = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            short[key] = ".".join(parts[-count:])
            if sum(f".{other}".endswith(f".{short[key]}") for other in keys) == 1:
                break
    return short
