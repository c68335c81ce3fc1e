"""Charts of a sweep: importance of settings, and validation accuracy against each of them.

`optuna.visualization` is not used, as it draws through pyplot, whose style and backend are up to
the user, and marks neither the recipe's own settings nor the best ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from PIL import Image

from rayd.drawing import as_image, new_figure, styled
from tuning.domain import Domain
from tuning.settings import Space
from tuning.table import FEWEST, Row, finished

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRIAL = "#3d6fd1"
OWN = "#3a8f4d"
BEST = "#d9730d"
"""Colours of trials, of the recipe's own settings and of the best."""
WIDTH = 330
HEIGHT = 240
HEADING = 58
COLUMNS = 3
"""Size of a subplot, height of the heading, and number of subplots in a row."""
BAR = 26
"""Height of a bar with its margin."""
LONGEST = 12
"""Maximum characters of the name of a choice."""


def importance(shares: Mapping[str, float], trials: int) -> Image.Image:
    """Draw a bar chart of the importance of each setting."""
    with styled():
        figure = new_figure(640, 2 * HEADING + BAR * max(1, len(shares)))
        axes = figure.subplots()
        axes.set_title(f"Importance for the validation accuracy of {trials} trials (fANOVA)")
        if not shares:
            axes.set_axis_off()
            needed = f"needs {FEWEST} finished trials whose settings and accuracies differ"
            axes.text(0.5, 0.5, needed, ha="center")
            return as_image(figure)
        draw_importance(axes, shares, TRIAL)
        return as_image(figure)


def draw_importance(axes: Axes, shares: Mapping[str, float], colour: str) -> None:
    """Draw bars of the importance of each setting into a subplot."""
    bars = axes.barh(list(shares), list(shares.values()), color=colour)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_xlim(0, 1.1)
    axes.invert_yaxis()
    axes.grid(visible=False)


def slices(space: Space, trials: Sequence[Row], best: Row | None) -> Figure:
    """Draw the validation accuracy of finished trials against each setting, one subplot each."""
    with styled():
        return draw_slices(space, trials, best)


def draw_slices(space: Space, trials: Sequence[Row], best: Row | None) -> Figure:
    """Like `slices`, in the style of the caller."""
    done = finished(trials)
    # conditional settings may not have been drawn by any trial
    drawn = set().union(*(row.settings for row in done))
    keys = [key for key in space.domains if key in drawn] or list(space.domains)
    across = min(COLUMNS, len(keys))
    down = ceil(len(keys) / across)
    figure = new_figure(WIDTH * across, HEADING + HEIGHT * down)
    figure.suptitle(f"{space.name}: validation accuracy of {len(done)} trials")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    for key, axes in zip(keys, grid.flat, strict=False):
        _slice(axes, space, key, done, best)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    # a single subplot is too narrow for all legend entries in one row
    ncols = 3 if across > 1 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False)
    return figure


def _slice(axes: Axes, space: Space, key: str, trials: Sequence[Row], best: Row | None) -> None:
    axes.set_title(key)
    shown = [row for row in trials if key in row.settings]
    positions = _positions(axes, space.domains[key], [row.settings[key] for row in shown])
    looks = {"trial": TRIAL, "the recipe's own settings": OWN, "best": BEST}
    for label, colour in looks.items():
        points = [
            (position, row.validation_accuracy or 0.0)
            for row, position in zip(shown, positions, strict=True)
            if _role(row, best) == label
        ]
        values = [value for value, _ in points]
        accuracies = [accuracy for _, accuracy in points]
        axes.scatter(values, accuracies, s=20, color=colour, label=label, zorder=2)


def _role(row: Row, best: Row | None) -> str:
    """The legend's entry for a trial."""
    if row == best:
        return "best"
    return "the recipe's own settings" if row.own else "trial"


def _positions(axes: Axes, domains: Sequence[Domain], values: Sequence[Any]) -> list[Any]:
    """Set up the horizontal axis of a setting, and return the positions of values on it.

    Values that are not numbers are categories, in alphabetical order.
    """
    if all(domain.numeric for domain in domains):
        if domains[0].kind == "loguniform":
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        return list(values)
    texts = [json.dumps(value) for value in values]
    kinds = sorted(set(texts))
    names = [kind.strip('"') for kind in kinds]
    short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    axes.set_xticks(range(len(kinds)), short, rotation=30 if len(kinds) > 3 else 0)
    axes.margins(x=0.2)
    return [kinds.index(text) for text in texts]
