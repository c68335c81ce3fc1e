"""Spectra of feature correlations: which frequencies of the real features a synthetic set has, and
which a filter looks at.

The eigenvalues of a layer's covariance (FFC), largest first: on the left what all images share (low
frequencies), on the right detail (high ones). A set of few images has too little on the right; a
filter that is high there asks for more of it. For the mathematics see `rayd.objectives.filters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rayd.drawing import FAINT, INK, Pen, Sheet
from rayd.objectives.filters import Filter
from rayd.statistics import Covariance

WIDTH = 380
HEIGHT = 270
"""Of the panel of a layer, in pixels."""
LEFT = 58
RIGHT = 48
TOP = 42
BOTTOM = 44
"""Margins of a panel around its axes, in pixels."""
HEADING = 58
"""Height of title and legend, in pixels."""
DECADES = 8
"""Eigenvalues are shown down to this many powers of ten below the largest; rounding is all that
lies further down.
"""
REAL, SYNTHETIC, RESPONSE = "#1f4e9c", "#d9730d", "#3a8f4d"


@dataclass(frozen=True)
class LayerSpectrum:
    """Eigenvalues of both sides of a layer, without negative ones."""

    name: str
    """The module that reads the features."""
    real: Tensor
    """Descending (d,), float64."""
    synthetic: Tensor
    """Descending (d,), float64."""


def spectra(
    names: Sequence[str], real: Sequence[Covariance], synthetic: Sequence[Covariance]
) -> tuple[LayerSpectrum, ...]:
    """Spectra of the covariances of all classes together, layer by layer.

    Args:
        names: of the layers (`FeatureExtractor.layers`).
        real: covariances of real images, one a layer, pooled or by class.
        synthetic: the same of synthetic images.
    """
    layers = zip(names, real, synthetic, strict=True)
    return tuple(
        LayerSpectrum(name, _eigenvalues(theirs), _eigenvalues(ours))
        for name, theirs, ours in layers
    )


def chart(
    layers: Sequence[LayerSpectrum],
    function: Filter | None = None,
    *,
    title: str = "",
    columns: int = 4,
) -> Image.Image:
    """Draw spectra, a panel a layer, with the response of a filter to the real eigenvalues over
    them.

    Args:
        layers: what to draw; at least one layer.
        function: the filter; the size of its response is drawn, relative to the largest in the
            layer.
        title: stands above all.
        columns: panels beside each other, at most.

    Raises:
        ValueError: there is no layer, or no column.
    """
    if not layers or columns < 1:
        raise ValueError(
            f"A chart needs layers and columns. Got {len(layers)} layers and {columns} columns instead."
        )
    across = min(columns, len(layers))
    size = (across * WIDTH, HEADING + ceil(len(layers) / across) * HEIGHT)
    sheet = Sheet(*size)
    pen = sheet.pen
    pen.text(14, 10, title or "Eigenvalues of feature correlations", size=16)
    legend = [
        ("real", REAL),
        ("synthetic", SYNTHETIC),
        *([("filter", RESPONSE)] if function else []),
    ]
    for place, (word, colour) in enumerate(legend):
        pen.line([(14 + 110 * place, 43), (38 + 110 * place, 43)], colour, 3)
        pen.text(44 + 110 * place, 36, word, size=12)
    for place, layer in enumerate(layers):
        row, column = divmod(place, across)
        _panel(pen, column * WIDTH, HEADING + row * HEIGHT, layer, function)
    return sheet.picture()


def save(
    path: Path, layers: Sequence[LayerSpectrum], function: Filter | None = None, *, title: str = ""
) -> None:
    """Draw spectra into a PNG file; see `chart`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chart(layers, function, title=title).save(path, format="PNG")


def _eigenvalues(statistic: Covariance) -> Tensor:
    matrix = statistic.pooled().covariance[0].detach().to("cpu").double()
    ascending: Tensor = torch.linalg.eigvalsh(matrix)
    return ascending.clamp(min=0).flip(0)


def _panel(pen: Pen, x: float, y: float, layer: LayerSpectrum, function: Filter | None) -> None:
    """One layer, its upper left corner at (x, y)."""
    left = x + LEFT
    right = x + WIDTH - RIGHT
    top = y + TOP
    bottom = y + HEIGHT - BOTTOM
    low, high = _decades(torch.cat([layer.real, layer.synthetic]))
    dimension = len(layer.real)

    def across(index: float) -> float:
        return left + (right - left) * (index / max(dimension - 1, 1))

    def up(share: float) -> float:
        return bottom - (bottom - top) * min(max(share, 0.0), 1.0)

    pen.text(left, top - 24, f"{layer.name}  (d = {dimension})", size=12)
    for power in range(low, high + 1, max(1, (high - low) // 4)):
        level = up((power - low) / (high - low))
        pen.line([(left, level), (right, level)], FAINT)
        pen.text(left - 6, level, f"1e{power}", anchor="rm")
    ticks = sorted({0, (dimension - 1) // 2, dimension - 1})
    for tick in ticks:
        pen.line([(across(tick), bottom), (across(tick), bottom + 4)], INK)
        pen.text(across(tick), bottom + 6, str(tick + 1), anchor="ma")
    pen.text(
        (left + right) / 2, bottom + 22, "eigenvalue, by rank: low to high frequency", anchor="ma"
    )
    pen.line([(left, top), (left, bottom), (right, bottom)], INK)
    if function is not None:
        response = function.response(layer.real).abs()
        response = response / response.max().clamp(min=1e-300)
        _curve(
            pen,
            [(across(index), up(share)) for index, share in enumerate(response.tolist())],
            RESPONSE,
            dashed=True,
        )
        pen.line([(right, top), (right, bottom)], RESPONSE)
        for share in (0.0, 0.5, 1.0):
            pen.text(right + 6, up(share), f"{share:g}", colour=RESPONSE, anchor="lm")
        pen.text(right + 42, top - 24, "f / max f", colour=RESPONSE, anchor="ra")
    for side, colour in ((layer.real, REAL), (layer.synthetic, SYNTHETIC)):
        shares = [
            (log10(value) - low) / (high - low) if value > 0 else 0.0 for value in side.tolist()
        ]
        _curve(pen, [(across(index), up(share)) for index, share in enumerate(shares)], colour)


def _decades(eigenvalues: Tensor) -> tuple[int, int]:
    """Powers of ten between which the eigenvalues lie, but for those that are rounding or zero."""
    positive = eigenvalues[eigenvalues > 0]
    if len(positive) == 0:
        return -1, 0
    high = ceil(log10(float(positive.max())))
    least = floor(log10(float(positive.min())))
    return min(high - 1, max(high - DECADES, least)), high


def _curve(pen: Pen, points: list[tuple[float, float]], colour: str, dashed: bool = False) -> None:
    if len(points) == 1:
        pen.dot(*points[0], colour)
    elif not dashed:
        pen.line(points, colour, 2)
    else:
        for number, (start, end) in enumerate(pairwise(_evenly(points))):
            if number % 3 < 2:
                pen.line([start, end], colour, 2)


def _evenly(points: list[tuple[float, float]], step: float = 3.0) -> list[tuple[float, float]]:
    """Points along the same lines, none further than `step` pixels from the next, so that dashes
    are alike.
    """
    found = [points[0]]
    for (x, y), (u, v) in pairwise(points):
        parts = max(1, ceil(max(abs(u - x), abs(v - y)) / step))
        found += [
            (x + (u - x) * part / parts, y + (v - y) * part / parts) for part in range(1, parts + 1)
        ]
    return found
