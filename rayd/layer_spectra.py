"""Spectra of feature correlations of real and synthetic images, and responses of filters.

A spectrum is the eigenvalues of a layer's covariance (FFC), largest first: low frequencies, common
to all images, on the left, and detail, high frequencies, on the right. A small set lacks the
latter; a filter with a high response there amplifies it. For the mathematics see
`rayd.objectives.filters`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from rayd.drawing import as_image, new_figure, styled
from rayd.objectives.filters import Filter
from rayd.statistics import Covariance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 380
HEIGHT = 270
"""Size of a layer's subplot, in pixels."""
HEADING = 58
"""Height of title and legend, in pixels."""
DECADES = 8
"""Powers of ten shown below the largest eigenvalue; anything smaller is rounding error."""
REAL = "#1f4e9c"
SYNTHETIC = "#d9730d"
RESPONSE = "#3a8f4d"
"""Colours of the spectra of real and synthetic images, and of the filter."""


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
    with styled():
        return as_image(_figure(layers, function, title, columns))


def _figure(
    layers: Sequence[LayerSpectrum], function: Filter | None, title: str, columns: int
) -> Figure:
    if not layers or columns < 1:
        raise ValueError(
            "A chart needs layers and columns. "
            f"Got {len(layers)} layers and {columns} columns instead."
        )
    across = min(columns, len(layers))
    down = ceil(len(layers) / across)
    figure = new_figure(across * WIDTH, HEADING + down * HEIGHT)
    figure.supxlabel("rank of the eigenvalue: low to high frequency", fontsize="medium")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(layers) :]:
        axes.set_axis_off()
    for layer, axes in zip(layers, grid.flat, strict=False):
        lines = _subplot(axes, layer, function)
    # the title is the legend's, as a figure's own would be drawn over it
    figure.legend(
        handles=lines,
        loc="outside upper center",
        ncols=len(lines),
        title=title or "Eigenvalues of feature correlations",
        title_fontsize="large",
        frameon=False,
    )
    return figure


def _eigenvalues(statistic: Covariance) -> Tensor:
    matrix = statistic.pooled().covariance[0].detach().to("cpu").double()
    ascending: Tensor = torch.linalg.eigvalsh(matrix)
    return ascending.clamp(min=0).flip(0)


def _subplot(axes: Axes, layer: LayerSpectrum, function: Filter | None) -> list[Line2D]:
    """Draw one layer; return its lines."""
    dimension = len(layer.real)
    ranks = range(1, dimension + 1)
    # the only eigenvalue of a layer is a dot
    marker = "o" if dimension == 1 else ""
    axes.set_title(f"{layer.name}  (d = {dimension})")
    low, high = _decades(torch.cat([layer.real, layer.synthetic]))
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(10.0**low, 10.0**high)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:.0e}")
    axes.set_xlim(0.5, dimension + 0.5)
    # ranks are whole numbers, also of a layer with three of them
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.plot(ranks, layer.real.tolist(), color=REAL, marker=marker, label="real")
    axes.plot(ranks, layer.synthetic.tolist(), color=SYNTHETIC, marker=marker, label="synthetic")
    lines = list(axes.get_lines())
    if function is not None:
        response = function.response(layer.real).abs()
        response = response / response.max().clamp(min=1e-300)
        right = axes.twinx()
        right.set_ylim(0, 1.02)
        right.grid(visible=False)
        right.spines.right.set_visible(True)
        right.set_ylabel("f / max f", color=RESPONSE)
        right.plot(ranks, response.tolist(), "--", color=RESPONSE, marker=marker, label="filter")
        lines += right.get_lines()
    return lines


def _decades(eigenvalues: Tensor) -> tuple[int, int]:
    """Powers of ten that enclose the eigenvalues, except for zeros and rounding errors."""
    positive = eigenvalues[eigenvalues > 0]
    if len(positive) == 0:
        return -1, 0
    high = ceil(log10(float(positive.max())))
    least = floor(log10(float(positive.min())))
    return min(high - 1, max(high - DECADES, least)), high
