"""Charts of a sweep: which settings matter, and how the validation accuracy goes with each of
them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil, log10

from PIL import Image

from rayd.drawing import FAINT, INK, Pen, Sheet
from tuning.space import ResolvedSpace
from tuning.table import Row, finished

TRIAL, OWN, BEST = "#1f4e9c", "#3a8f4d", "#d9730d"
WIDTH = 330
HEIGHT = 240
HEADING = 58
COLUMNS = 3
"""Of a panel, of what stands above all of them, and how many stand beside each other."""
LEFT = 50
RIGHT = 16
TOP = 26
BOTTOM = 40
"""Margins of a panel around its axes."""
BAR = 26
"""Height of a bar and the space around it."""


def importance(shares: Mapping[str, float], trials: int) -> Image.Image:
    """A bar for each setting."""
    sheet = Sheet(640, HEADING + BAR * max(1, len(shares)) + 20)
    pen = sheet.pen
    pen.text(14, 10, "Which settings matter", size=16)
    pen.text(
        14,
        34,
        f"share in what a random forest can tell of the validation accuracy of {trials} trials",
        size=11,
    )
    if not shares:
        pen.text(14, HEADING, "too few finished trials")
    for place, (key, share) in enumerate(shares.items()):
        y = HEADING + BAR * place
        pen.text(270, y + BAR / 2, key, anchor="rm")
        pen.box(280, y + 5, 280 + 1 + 300 * share, y + BAR - 5, TRIAL)
        pen.text(288 + 300 * share, y + BAR / 2, f"{share:.2f}", anchor="lm")
    return sheet.picture()


def slices(ground: ResolvedSpace, trials: Sequence[Row], best: Row | None) -> Image.Image:
    """A panel for each setting: its value across, the validation accuracy up, a dot for each trial
    that came to its end.
    """
    keys = list(ground.space.domains)
    done = finished(trials)
    columns = min(COLUMNS, len(keys))
    sheet = Sheet(WIDTH * columns, HEADING + HEIGHT * ceil(len(keys) / columns))
    pen = sheet.pen
    pen.text(14, 10, f"{ground.space.name}: validation accuracy of {len(done)} trials", size=16)
    for place, (word, colour) in enumerate(
        (("trial", TRIAL), ("the recipe's own settings", OWN), ("best", BEST))
    ):
        pen.dot(20 + 90 * place + (90 if place == 2 else 0), 44, colour)
        pen.text(28 + 90 * place + (90 if place == 2 else 0), 37, word)
    for place, key in enumerate(keys):
        row, column = divmod(place, columns)
        _panel(pen, WIDTH * column, HEADING + HEIGHT * row, ground, key, done, best)
    return sheet.picture()


def _panel(
    pen: Pen,
    x: float,
    y: float,
    ground: ResolvedSpace,
    key: str,
    trials: Sequence[Row],
    best: Row | None,
) -> None:
    left = x + LEFT
    right = x + WIDTH - RIGHT
    top = y + TOP
    bottom = y + HEIGHT - BOTTOM
    pen.text(left, y + 6, key, size=12)
    there = [row for row in trials if key in row.settings]
    accuracies = [row.validation_accuracy or 0.0 for row in trials] or [0.0, 1.0]
    low = min(accuracies)
    high = max(accuracies)
    room = max(high - low, 0.01) * 0.08
    low = low - room
    high = high + room
    for part in range(5):
        level = low + (high - low) * part / 4
        height = bottom - (bottom - top) * part / 4
        pen.line([(left, height), (right, height)], FAINT)
        pen.text(left - 5, height, f"{level:.3f}", size=10, anchor="rm")
    pen.line([(left, top), (left, bottom), (right, bottom)], INK)
    numeric = all(domain.numeric for domain in ground.space.domains[key])
    logarithmic = numeric and ground.space.domains[key][0].kind == "loguniform"
    kinds = [] if numeric else sorted({json.dumps(row.settings[key]) for row in there})
    numbers = [float(row.settings[key]) for row in there] if numeric else []
    numbers += (
        [float(end) for domain in ground.space.domains[key] for end in domain.values]
        if numeric
        else []
    )
    ends = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)

    def share(row: Row) -> float:
        if not numeric:
            return (kinds.index(json.dumps(row.settings[key])) + 0.5) / len(kinds)
        value = float(row.settings[key])
        ends_ = ends
        if logarithmic and min(value, *ends) > 0:
            value = log10(value)
            ends_ = (log10(ends[0]), log10(ends[1]))
        return (value - ends_[0]) / max(ends_[1] - ends_[0], 1e-12)

    if numeric:
        for end, anchor in ((0, "la"), (1, "ra")):
            pen.text((left, right)[end], bottom + 6, f"{ends[end]:.4g}", size=10, anchor=anchor)
        pen.text(
            (left + right) / 2,
            bottom + 6,
            "logarithmic" if logarithmic else "",
            size=10,
            anchor="ma",
        )
    for place, kind in enumerate(kinds):
        words = kind.strip('"')
        across = left + (right - left) * (place + 0.5) / len(kinds)
        most = max(4, 40 // len(kinds))
        pen.text(
            across,
            bottom + 6 + 12 * (place % 2),
            words if len(words) <= most else f"{words[: most - 1]}…",
            10,
            anchor="ma",
        )
    for row in there:
        colour = BEST if best is not None and row.trial == best.trial else OWN if row.own else TRIAL
        up = ((row.validation_accuracy or 0.0) - low) / (high - low)
        pen.dot(
            left + (right - left) * share(row),
            bottom - (bottom - top) * up,
            colour,
            4 if colour != TRIAL else 3,
        )
