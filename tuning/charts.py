"""Charts of a sweep: importance of settings, and validation accuracy against each of them."""

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
"""Size of a subplot, height of the heading, and number of subplots in a row."""
LEFT = 50
RIGHT = 16
TOP = 26
BOTTOM = 40
"""Margins of a subplot around its axes."""
BAR = 26
"""Height of a bar with its margin."""


def importance(shares: Mapping[str, float], trials: int) -> Image.Image:
    """Draw a bar chart of the importance of each setting."""
    sheet = Sheet(640, HEADING + BAR * max(1, len(shares)) + 20)
    pen = sheet.pen
    pen.text(14, 10, "Which settings matter", size=16)
    heading = f"importance in a random forest for the validation accuracy of {trials} trials"
    pen.text(14, 34, heading, size=11)
    if not shares:
        pen.text(14, HEADING, "too few finished trials")
    for index, (key, share) in enumerate(shares.items()):
        y = HEADING + BAR * index
        pen.text(270, y + BAR / 2, key, anchor="rm")
        pen.box(280, y + 5, 280 + 1 + 300 * share, y + BAR - 5, TRIAL)
        pen.text(288 + 300 * share, y + BAR / 2, f"{share:.2f}", anchor="lm")
    return sheet.picture()


def slices(resolved: ResolvedSpace, trials: Sequence[Row], best: Row | None) -> Image.Image:
    """Draw the validation accuracy of finished trials against each setting, one subplot each."""
    keys = list(resolved.space.domains)
    done = finished(trials)
    columns = min(COLUMNS, len(keys))
    sheet = Sheet(WIDTH * columns, HEADING + HEIGHT * ceil(len(keys) / columns))
    pen = sheet.pen
    pen.text(14, 10, f"{resolved.space.name}: validation accuracy of {len(done)} trials", size=16)
    legend = (("trial", TRIAL), ("the recipe's own settings", OWN), ("best", BEST))
    for index, (label, colour) in enumerate(legend):
        # the second label is longer than the others
        offset = 90 * index + (90 if index == 2 else 0)
        pen.dot(20 + offset, 44, colour)
        pen.text(28 + offset, 37, label)
    for index, key in enumerate(keys):
        row, column = divmod(index, columns)
        _subplot(pen, WIDTH * column, HEADING + HEIGHT * row, resolved, key, done, best)
    return sheet.picture()


def _subplot(
    pen: Pen,
    x: float,
    y: float,
    resolved: ResolvedSpace,
    key: str,
    trials: Sequence[Row],
    best: Row | None,
) -> None:
    left = x + LEFT
    right = x + WIDTH - RIGHT
    top = y + TOP
    bottom = y + HEIGHT - BOTTOM
    pen.text(left, y + 6, key, size=12)
    shown = [row for row in trials if key in row.settings]
    accuracies = [row.validation_accuracy or 0.0 for row in trials] or [0.0, 1.0]
    low = min(accuracies)
    high = max(accuracies)
    margin = max(high - low, 0.01) * 0.08
    low = low - margin
    high = high + margin
    for part in range(5):
        level = low + (high - low) * part / 4
        height = bottom - (bottom - top) * part / 4
        pen.line([(left, height), (right, height)], FAINT)
        pen.text(left - 5, height, f"{level:.3f}", size=10, anchor="rm")
    pen.line([(left, top), (left, bottom), (right, bottom)], INK)
    domains = resolved.space.domains[key]
    numeric = all(domain.numeric for domain in domains)
    logarithmic = numeric and domains[0].kind == "loguniform"
    kinds: list[str] = []
    numbers: list[float] = []
    if numeric:
        numbers = [float(row.settings[key]) for row in shown]
        for domain in domains:
            numbers += [float(end) for end in domain.values]
    else:
        kinds = sorted({json.dumps(row.settings[key]) for row in shown})
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
        scale = "logarithmic" if logarithmic else ""
        pen.text((left + right) / 2, bottom + 6, scale, size=10, anchor="ma")
    for index, kind in enumerate(kinds):
        label = kind.strip('"')
        across = left + (right - left) * (index + 0.5) / len(kinds)
        longest = max(4, 40 // len(kinds))
        if len(label) > longest:
            label = f"{label[: longest - 1]}…"
        # alternating heights, so that neighbouring labels do not overlap
        pen.text(across, bottom + 6 + 12 * (index % 2), label, 10, anchor="ma")
    for row in shown:
        colour = OWN if row.own else TRIAL
        if best is not None and row.trial == best.trial:
            colour = BEST
        up = ((row.validation_accuracy or 0.0) - low) / (high - low)
        pen.dot(
            left + (right - left) * share(row),
            bottom - (bottom - top) * up,
            colour,
            4 if colour != TRIAL else 3,
        )
