"""Spectra of feature correlations of real and synthetic images, and responses of filters.

A spectrum is the eigenvalues of a layer's covariance (FFC), largest first: low frequencies, common
to all images, on the left, and detail, high frequencies, on the right. A small set lacks the
latter; a filter with a high response there amplifies it. For the mathematics see
`rayd.objectives.filters`.
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
"""Size of a layer's subplot, in pixels."""
LEFT = 58
RIGHT = 48
TOP = 42
BOTTOM = 44
"""Margins of a subplot around its axes, in pixels."""
HEADING = 58
"""Height of title and legend, in pixels."""
DECADES = 8
"""Powers of ten shown below the largest eigenvalue; anything smaller is rounding error."""
REAL, SYNTHETIC, RESPONSE = "#1f4e9c", "#d9730d", "#3a8f4d"


@dataclass(frozen=True)
class LayerSpectrum:
    """Eigenvalues of real and synthetic features of a layer, without negative ones."""

    name: str
    """Module whose input the features are."""
    real: Tensor
    """Descending (d,), float64."""
    synthetic: Tensor
    """Descending (d,), float64."""


def spectra(
    names: Sequence[str], real: Sequence[Covariance], synthetic: Sequence[Covariance]
) -> tuple[LayerSpectrum, ...]:
    """Compute spectra of the covariances of all classes together, layer by layer.

    Args:
        names: names of the layers (`FeatureExtractor.layers`).
        real: covariances of real images, one per layer, pooled or by class.
        synthetic: covariances of synthetic images.
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
    """Draw spectra, one subplot per layer, with the response of a filter to the real eigenvalues.

    Args:
        layers: spectra to draw; at least one.
        function: the filter; the absolute value of its response is drawn, relative to the largest
            in the layer.
        title: heading of the chart.
        columns: maximum number of subplots in a row.

    Raises:
        ValueError: there is no layer, or no column.
    """
    if not layers or columns < 1:
        raise ValueError(
            "A chart needs layers and columns. "
            f"Got {len(layers)} layers and {columns} columns instead."
        )
    across = min(columns, len(layers))
    size = (across * WIDTH, HEADING + ceil(len(layers) / across) * HEIGHT)
    sheet = Sheet(*size)
    pen = sheet.pen
    pen.text(14, 10, title or "Eigenvalues of feature correlations", size=16)
    legend = [("real", REAL), ("synthetic", SYNTHETIC)]
    if function:
        legend.append(("filter", RESPONSE))
    for index, (label, colour) in enumerate(legend):
        pen.line([(14 + 110 * index, 43), (38 + 110 * index, 43)], colour, 3)
        pen.text(44 + 110 * index, 36, label, size=12)
    for index, layer in enumerate(layers):
        row, column = divmod(index, across)
        _subplot(pen, column * WIDTH, HEADING + row * HEIGHT, layer, function)
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


def _subplot(pen: Pen, x: float, y: float, layer: LayerSpectrum, function: Filter | None) -> None:
    """Draw one layer with its upper left corner at (x, y)."""
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
        points = [(across(index), up(share)) for index, share in enumerate(response.tolist())]
        _curve(pen, points, RESPONSE, dashed=True)
        pen.line([(right, top), (right, bottom)], RESPONSE)
        for share in (0.0, 0.5, 1.0):
            pen.text(right + 6, up(share), f"{share:g}", colour=RESPONSE, anchor="lm")
        pen.text(right + 42, top - 24, "f / max f", colour=RESPONSE, anchor="ra")
    for eigenvalues, colour in ((layer.real, REAL), (layer.synthetic, SYNTHETIC)):
        points = []
        for index, value in enumerate(eigenvalues.tolist()):
            share = (log10(value) - low) / (high - low) if value > 0 else 0.0
            points.append((across(index), up(share)))
        _curve(pen, points, colour)


def _decades(eigenvalues: Tensor) -> tuple[int, int]:
    """Powers of ten that enclose the eigenvalues, except for zeros and rounding errors."""
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
    """Resample a polyline with at most `step` pixels between points, for regular dashes."""
    found = [points[0]]
    for (x, y), (u, v) in pairwise(points):
        parts = max(1, ceil(max(abs(u - x), abs(v - y)) / step))
        for part in range(1, parts + 1):
            found.append((x + (u - x) * part / parts, y + (v - y) * part / parts))
    return found
