"""Spectra of layers, and what a chart shows of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from rayd import spectrum
from rayd.objectives.filters import AllPass, Filter, GradientStep, LowPass, Ridge
from rayd.spectrum import HEADING, HEIGHT, REAL, RESPONSE, SYNTHETIC, WIDTH, LayerSpectrum
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


def painted(image: Image.Image, colour: str, group: int = 0) -> np.ndarray:
    """Where between the axes of a panel a colour stands, (rows, columns); edges of lines are mixed
    with white.
    """
    left = group * WIDTH + spectrum.LEFT + 3
    top = HEADING + spectrum.TOP - 2
    inside = image.crop(
        (
            left,
            top,
            (group + 1) * WIDTH - spectrum.RIGHT - 3,
            HEADING + HEIGHT - spectrum.BOTTOM - 2,
        )
    )
    return np.abs(np.asarray(inside, dtype=int) - ImageColor.getrgb(colour)).sum(2) < 90


def test_spectra_are_eigenvalues_of_all_classes_together():
    real = covariance([1.0, 5.0, 0.1])
    few = covariance([1.0, 5.0, 0.1], count=2)
    (layer,) = spectrum.spectra(["conv"], [real], [few])
    assert layer.name == "conv"
    expected = torch.linalg.eigvalsh(real.pooled().covariance[0]).flip(0)
    torch.testing.assert_close(layer.real, expected)
    assert layer.real.tolist() == pytest.approx([25, 1, 0.01], rel=0.1)
    assert layer.synthetic[1:].tolist() == pytest.approx([0, 0], abs=1e-12)
    assert (layer.synthetic >= 0).all()
    with pytest.raises(ValueError, match="zip"):
        spectrum.spectra(["a", "b"], [real], [few])


def test_a_chart_has_a_panel_a_layer_and_all_three_curves():
    real = covariance([3.0, 1.0, 0.3, 0.1])
    few = covariance([3.0, 1.0, 0.3, 0.1], count=3)
    layers = spectrum.spectra([f"conv {place}" for place in range(5)], [real] * 5, [few] * 5)
    image = spectrum.chart(layers, Ridge(0.1), columns=3)
    assert image.size == (3 * WIDTH, HEADING + 2 * HEIGHT)
    for group in range(3):
        assert all(
            painted(image, colour, group).any(1).sum() > 20
            for colour in (REAL, SYNTHETIC, RESPONSE)
        )
    without = spectrum.chart(layers[:1])
    assert painted(without, REAL).any()
    assert not painted(without, RESPONSE).any()


@pytest.mark.parametrize(
    ("function", "rises"),
    [(Ridge(0.1), True), (LowPass(), False), (GradientStep(0.1, 3), True)],
    ids=["ridge", "low", "gradient"],
)
def test_the_response_is_high_where_the_filter_is(function: Filter, rises: bool):
    """Eigenvalues fall from left to right in a line; the upper half of the filter's curve stands on
    the right side of them.
    """
    values = torch.logspace(1, -3, 30, dtype=torch.float64)
    image = spectrum.chart([LayerSpectrum("conv", values, values)], function)
    curve = painted(image, RESPONSE)
    high = np.flatnonzero(curve[: len(curve) // 2].any(0)).mean() / curve.shape[1]
    assert (high > 0.5) == rises
    assert abs(high - 0.5) > 0.03
    fall = painted(image, SYNTHETIC)
    middles = [
        np.flatnonzero(fall[:, column]).mean()
        for column in range(20, fall.shape[1] - 20, 20)
        if fall[:, column].any()
    ]
    assert len(middles) > 5
    np.testing.assert_allclose(np.diff(middles), np.diff(middles).mean(), atol=2.5)


@pytest.mark.parametrize("values", [[0.0, 0.0], [4.0], [1.0, 1.0], [1e-30, 0.0], [1e12, 1e-12]])
@pytest.mark.parametrize("function", [AllPass(), Ridge(1e-6), LowPass()], ids=str)
def test_spectra_that_are_zero_or_alone_or_far_apart_can_be_drawn(values, function):
    eigenvalues = torch.tensor(values, dtype=torch.float64)
    image = spectrum.chart(
        [LayerSpectrum("conv", eigenvalues, torch.zeros_like(eigenvalues))], function
    )
    assert image.size == (WIDTH, HEADING + HEIGHT)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="Got 0 layers and 4 columns"):
        spectrum.chart([])


def test_a_chart_becomes_a_png(tmp_path: Path):
    path = tmp_path / "spectra" / "block-0.png"
    layer = spectrum.spectra(["conv"], [covariance([1.0, 0.1])], [covariance([1.0, 0.1], 5)])
    spectrum.save(path, layer, Ridge(0.1), title="one block")
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (WIDTH, HEADING + HEIGHT))
