"""Frequencies stand for the kernels that they are named for and depend on their generator alone."""

from __future__ import annotations

import math

import pytest
import scipy.special
import torch
from torch import Tensor

from rayd.errors import DataError
from rayd.statistics.frequencies import PAIRED, Frequencies, median_distance
from tests.draws import normal, seeded

SPECS = [
    Frequencies("gaussian", 1.3),
    Frequencies("laplace", 2.0),
    Frequencies("isotropic-laplace", 0.7),
    Frequencies("matern", 1.7, smoothness=0.5),
    Frequencies("matern", 0.8, smoothness=1.5),
    Frequencies("matern", 1.1, smoothness=2.5),
    Frequencies("rational-quadratic", 0.9, mixture=0.5),
    Frequencies("rational-quadratic", 1.4, mixture=3.0),
]


def many(spec: Frequencies, number: int, **changes: float) -> Frequencies:
    values = {
        "kernel": spec.kernel,
        "scale": spec.scale,
        "smoothness": spec.smoothness,
        "mixture": spec.mixture,
    }
    return Frequencies(**{**values, "number": number, **changes})


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
def test_frequencies_stand_for_their_kernel(spec):
    """Means of cosines, each in [-1, 1]: within 4.5 standard errors of the closed form, at
    differences near and far.
    """
    number = 40_000
    difference = torch.cat(
        [scale * normal(5, 3, seed=place) for place, scale in enumerate((0.1, 0.7, 2.0))]
    )
    cosine = (many(spec, number).draw(3, seeded()) @ difference.T).cos()
    error = cosine.mean(0) - spec.closed_form(difference)
    assert (error.abs() < 4.5 * cosine.std(0) / math.sqrt(number) + 1e-12).all()
    assert spec.closed_form(difference).max() - spec.closed_form(difference).min() > 0.3


def test_kernels_where_one_can_see_it():
    apart = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    expected = {
        Frequencies("gaussian", 5.0): math.exp(-0.5),
        Frequencies("laplace", 7.0): math.exp(-1),
        Frequencies("isotropic-laplace", 5.0): math.exp(-1),
        Frequencies("matern", 5.0, smoothness=0.5): math.exp(-1),
        Frequencies("matern", 5.0, smoothness=1.5): (1 + math.sqrt(3)) * math.exp(-math.sqrt(3)),
        Frequencies("matern", 5.0, smoothness=2.5): (1 + math.sqrt(5) + 5 / 3)
        * math.exp(-math.sqrt(5)),
        Frequencies("rational-quadratic", 5.0, mixture=2.0): (1 + 1 / 4) ** -2,
    }
    for spec, value in expected.items():
        assert float(spec.closed_form(apart)) == pytest.approx(value, rel=1e-12)
        assert float(spec.closed_form(torch.zeros(1, 2))) == 1


def bessel_form(smoothness: float, distance: Tensor) -> Tensor:
    u = math.sqrt(2 * smoothness) * distance.numpy()
    kernel = (
        2 ** (1 - smoothness)
        / scipy.special.gamma(smoothness)
        * u**smoothness
        * scipy.special.kv(smoothness, u)
    )
    return torch.from_numpy(kernel)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 3.5])
def test_materns_elementary_form_is_that_of_bessel_functions(smoothness):
    distance = torch.tensor([0.3, 1.0, 2.7], dtype=torch.float64)
    found = Frequencies("matern", smoothness=smoothness).closed_form(distance.unsqueeze(1))
    torch.testing.assert_close(found, bessel_form(smoothness, distance), rtol=1e-12, atol=0)


def test_matern_of_any_smoothness_is_drawn():
    spec = Frequencies("matern", smoothness=0.8, number=40_000)
    apart = torch.tensor([0.0, 1.2], dtype=torch.float64)
    cosine = (spec.draw(2, seeded()) @ apart).cos()
    assert float(cosine.mean()) == pytest.approx(float(bessel_form(0.8, apart[1:])), abs=0.02)
    with pytest.raises(ValueError, match=r"only for smoothness 0.5, 1.5, ... Got 0.8"):
        spec.closed_form(torch.ones(1, 2))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.key)
def test_a_length_only_divides(spec):
    unit = many(spec, 7, scale=1.0).draw(4, seeded(3))
    torch.testing.assert_close(many(spec, 7, scale=2.5).draw(4, seeded(3)), unit / 2.5)
    assert unit.shape == (7, 4)
    assert unit.dtype == torch.float64
    assert torch.equal(unit, many(spec, 7, scale=1.0).draw(4, seeded(3)))
    assert not torch.equal(unit, many(spec, 7, scale=1.0).draw(4, seeded(4)))
    assert len(torch.unique(unit, dim=0)) == 7


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_the_median_distance_is_that_of_all_pairs(order):
    features = normal(20, 3)
    pairs = sorted(float((a - b).norm(order)) for i, a in enumerate(features) for b in features[:i])
    assert median_distance(features, order) == pytest.approx(
        pairs[(len(pairs) - 1) // 2], rel=1e-12
    )


@pytest.mark.parametrize(
    ("kernel", "order"), [("laplace", 1.0), ("gaussian", 2.0), ("matern", 2.0)]
)
def test_a_median_length_is_resolved_in_the_norm_of_the_kernel(kernel, order):
    features = 100 * normal(30, 5).float()
    spec = Frequencies(kernel, "median", 11)
    resolved = spec.resolved(features)
    assert resolved == Frequencies(kernel, median_distance(features, order), 11)
    assert resolved.resolved(normal(3, 5)) is resolved
    assert float((resolved.draw(5, seeded()) @ features.double().T).abs().median()) < 10
    with pytest.raises(ValueError, match="resolve 'median' on features first"):
        spec.draw(5, seeded())


def test_the_median_looks_at_some_of_many_spread_over_all():
    features = torch.arange(4.0 * PAIRED).unsqueeze(1)
    assert median_distance(features) == pytest.approx(4 * median_distance(features[:PAIRED]))


def test_a_median_of_nothing_is_refused():
    with pytest.raises(DataError, match=r"at least 2 feature vectors. Got 1"):
        median_distance(torch.ones(1, 3))
    with pytest.raises(DataError, match="mostly equal"):
        Frequencies(scale="median").resolved(torch.ones(4, 3))


def test_keys_tell_what_the_draws_depend_on_and_no_more():
    different = [
        Frequencies(),
        Frequencies(kernel="laplace"),
        Frequencies(kernel="matern"),
        Frequencies(kernel="matern", smoothness=2.5),
        Frequencies(kernel="rational-quadratic"),
        Frequencies(kernel="rational-quadratic", mixture=2.0),
        Frequencies(scale=1.0 + 1e-15),
        Frequencies(scale="median"),
        Frequencies(number=5),
    ]
    assert len({spec.key for spec in different}) == len(different) == len(set(different))
    assert Frequencies(scale=1).key == Frequencies(scale=1.0).key
    assert Frequencies(smoothness=2.5).key == Frequencies().key


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"scale": 0.0}, "'scale' of Frequencies must be finite and above 0. Got 0.0"),
        ({"scale": -1.0}, "'scale' of Frequencies must be finite and above 0. Got -1.0"),
        ({"scale": math.nan}, "'scale' of Frequencies must be finite and above 0. Got nan"),
        ({"scale": "mean"}, "'scale' of Frequencies must be a length or 'median'. Got 'mean'"),
        ({"number": 0}, "'number' of Frequencies must be at least 1. Got 0"),
        ({"smoothness": 0.0}, "'smoothness' of Frequencies must be finite and above 0. Got 0.0"),
        ({"mixture": -2.0}, "'mixture' of Frequencies must be finite and above 0. Got -2.0"),
        ({"kernel": "linear"}, "'kernel' of Frequencies must be one of .* Got 'linear'"),
    ],
)
def test_what_makes_no_frequencies_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Frequencies(**arguments)
