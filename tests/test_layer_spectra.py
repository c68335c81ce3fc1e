"""Spectra of layers, and what a chart shows of them."""

from __future__ import annotations

import matplotlib
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL import ImageColor

from rayd import layer_spectra
from rayd.layer_spectra import HEADING, HEIGHT, REAL, RESPONSE, SYNTHETIC, WIDTH, LayerSpectrum
from rayd.objectives.filters import AllPass, LowPass, Ridge
from rayd.statistics import Covariance


def covariance(scales: list[float], count: int = 2000, seed: int = 0) -> Covariance:
    """Of features whose channels are independent, with these standard deviations, in three
    classes.
    """
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(
        count, 1, len(scales), generator=draw, dtype=torch.float64
    ) * torch.tensor(scales)
    return Covariance.empty(3, len(scales)).update(features, torch.arange(count) % 3)


def drawn(axes: Axes) -> dict[str, Line2D]:
    """Curves of a subplot by label."""
    return {str(line.get_label()): line for line in axes.get_lines()}


def test_spectra_are_eigenvalues_of_all_classes_together():
    real = covariance([1.0, 5.0, 0.1])
    few = covariance([1.0, 5.0, 0.1], count=2)
    (layer,) = layer_spectra.spectra(["conv"], [real], [few])
    assert layer.name == "conv"
    expected = torch.linalg.eigvalsh(real.pooled().covariance[0]).flip(0)
    torch.testing.assert_close(layer.real, expected)
    assert layer.real.tolist() == pytest.approx([25, 1, 0.01], rel=0.1)
    assert layer.synthetic[1:].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert (layer.synthetic >= 0).all()
    with pytest.raises(ValueError, match="zip"):
        layer_spectra.spectra(["a", "b"], [real], [few])


def test_a_layer_of_one_direction_has_one_rank():
    one = layer_spectra.LayerSpectrum("pixels", torch.ones(1), torch.ones(1))
    (axes,) = layer_spectra._figure([one], None, "", columns=1).axes
    assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]


def test_a_chart_has_a_subplot_per_layer_with_all_curves():
    real = covariance([3.0, 1.0, 0.3, 0.1])
    few = covariance([3.0, 1.0, 0.3, 0.1], count=3)
    layers = layer_spectra.spectra([f"conv {place}" for place in range(5)], [real] * 5, [few] * 5)
    function = Ridge(0.1)
    figure = layer_spectra._figure(layers, function, "title", columns=3)
    *subplots, empty = figure.axes[:6]
    filters = figure.axes[6:]
    assert not empty.axison
    assert [axes.get_title() for axes in subplots] == [f"conv {n}  (d = 4)" for n in range(5)]
    for layer, axes, right in zip(layers, subplots, filters, strict=True):
        curves = drawn(axes)
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert list(curves) == ["real", "synthetic"]
        for name, line in curves.items():
            assert line.get_xydata()[:, 0].tolist() == [1, 2, 3, 4]
            assert line.get_ydata() == pytest.approx(getattr(layer, name).tolist())
        (response,) = right.get_lines()
        expected = function.response(layer.real).abs()
        assert response.get_ydata() == pytest.approx((expected / expected.max()).tolist())
    assert len(layer_spectra._figure(layers[:1], None, "", columns=3).axes) == 1
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "title"
    image = layer_spectra.chart(layers, function, columns=3)
    assert image.size == (3 * WIDTH, HEADING + 2 * HEIGHT)
    colours = {colour for _, colour in image.getcolors(2**24)}
    assert {ImageColor.getrgb(name) for name in (REAL, SYNTHETIC, RESPONSE)} <= colours


def test_charts_leave_the_style_of_the_user():
    with matplotlib.rc_context({"axes.grid": False, "lines.linewidth": 9.0}):
        before = dict(matplotlib.rcParams)
        layer_spectra.chart(
            layer_spectra.spectra(["a$b$c"], [covariance([1.0])], [covariance([1.0], 5)])
        )
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("values", [[0.0, 0.0], [4.0], [1.0, 1.0], [1e-30, 0.0], [1e12, 1e-12]])
@pytest.mark.parametrize("function", [AllPass(), Ridge(1e-6), LowPass()], ids=str)
def test_spectra_that_are_zero_or_alone_or_far_apart_can_be_drawn(values, function):
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    image = layer_spectra.chart(
        [LayerSpectrum("conv", eigenvalues, torch.zeros_like(eigenvalues))], function
    )
    assert image.size == (WIDTH, HEADING + HEIGHT)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="Got 0 layers and 4 columns"):
        layer_spectra.chart([])
