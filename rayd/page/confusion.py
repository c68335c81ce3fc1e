"""Confusion matrices on the page of a run: the classes that networks mistake test images for.

`confusion.html.j2` draws them, in colours of `layout.html.j2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayd.evaluation.matrix import words_of
from rayd.evaluation.report import SetResult
from rayd.page import charts

MOST_CONFUSED = 20
"""Maximum number of classes for a matrix; for more, the most frequent mistakes are listed."""
SHADE = 0.6
"""Opacity of the darkest cell of a table, on which the page's text can still be read."""
MISTAKE_SHADE = 3
"""Factor by which a mistake is shaded darker than a correct answer of the same share."""
SMALLEST_SHARE = 0.005
"""Smaller shares round to 0.00, and their cells are empty."""


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix."""

    text: str
    """Share of the row's test images; empty where it rounds to 0."""
    shade: str
    """CSS colour; empty for none."""


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix of networks that were trained on a set."""

    title: str
    """Set and network."""
    names: Sequence[str]
    """Classes, the columns."""
    rows: Sequence[tuple[str, Sequence[Cell]]]
    """A row for each class; empty for more than `MOST_CONFUSED`."""
    pairs: Sequence[str]
    """The most frequent mistakes, as sentences."""


def confusions_of(results: Sequence[SetResult], names: Sequence[str]) -> list[Confusion]:
    """The confusion matrices of all results that have one, the distilled set's first.

    Args:
        results: of a report.
        names: of the classes; empty where they are unknown.
    """
    confusions: list[Confusion] = []
    for result in results:
        if not result.confusion or not names:
            continue
        pairs = [
            f"{names[label]} classified as {names[taken_for]}: {share:.3f}"
            for label, taken_for, share in result.confusion[:MOST_CONFUSED]
        ]
        rows = _rows(result, names) if len(names) <= MOST_CONFUSED else []
        title = f"{words_of(result, results)}, {result.network}"
        # of several protocols or epochs, the first counts
        if all(title != other.title for other in confusions):
            confusions.append(Confusion(title, names, rows, pairs))
    return confusions


def _rows(result: SetResult, names: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """A row for each class."""
    shares = {(label, taken_for): share for label, taken_for, share in result.confusion}
    rows = []
    for label, name in enumerate(names):
        cells = []
        for taken_for in range(len(names)):
            is_right = label == taken_for
            share = result.per_class[label] if is_right else shares.get((label, taken_for))
            cells.append(_cell(share or 0.0, is_right))
        rows.append((name, cells))
    return rows


def _cell(share: float, is_right: bool) -> Cell:
    """A share of a row, shaded."""
    if share < SMALLEST_SHARE:
        return Cell("", "")
    red, green, blue = charts.rgb(charts.OURS if is_right else charts.OTHERS)
    # a third of a class mistaken for one other is bad already: as dark as a class that is right
    opacity = SHADE * min(1.0, share if is_right else MISTAKE_SHADE * share)
    return Cell(f"{share:.2f}", f"rgba({red}, {green}, {blue}, {opacity:.2f})")
