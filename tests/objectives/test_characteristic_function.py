"""The spectral distance is the maximum mean discrepancy, splits into amplitude and phase, and has
gradients everywhere.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rayd.networks import LayerRole, Observation
from rayd.objectives import CharacteristicFunctionDistance, Context, StatisticSpec, squared_mean_gap
from rayd.objectives.characteristic_function_distance import (
    amplitude_part,
    characteristic_function_gaps,
    mean_gaps,
    phase_part,
)
from rayd.statistics import (
    AtFrequencies,
    CharacteristicFunction,
    Covariance,
    Flat,
    Frequencies,
    Moments,
)
from tests.draws import normal, seeded

KERNELS = [
    Frequencies("gaussian", 1.5, 64),
    Frequencies("laplace", 3.0, 64),
    Frequencies("isotropic-laplace", 1.7, 64),
    Frequencies("matern", 1.2, 64),
    Frequencies("rational-quadratic", 1.3, 64),
]
BY_KERNEL = pytest.mark.parametrize("spec", KERNELS, ids=lambda spec: spec.kernel)
LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
DIMENSION = 4
CLASSES = 3


def phi(
    features: Tensor, frequencies: Tensor, labels: Tensor | None = None, classes: int = 1
) -> CharacteristicFunction:
    labels = torch.zeros(len(features), dtype=torch.long) if labels is None else labels
    return CharacteristicFunction.of(features.unsqueeze(1), labels, classes, frequencies)


def halves(classes: int = 1) -> Tensor:
    return torch.full((classes,), 0.5, dtype=torch.float64)


def distance(x: Tensor, y: Tensor, frequencies: Tensor) -> Tensor:
    """SDD^2 of two samples of one class."""
    return characteristic_function_gaps(phi(x, frequencies), phi(y, frequencies), halves()).mean()


def squared_discrepancy(x: Tensor, y: Tensor, kernel: Any) -> Tensor:
    """The biased squared maximum mean discrepancy, pair by pair; `kernel` of differences (n, m,
    d).
    """

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return kernel(a.unsqueeze(1) - b.unsqueeze(0)).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


SAMPLES = normal(7, DIMENSION), 0.6 + 1.3 * normal(5, DIMENSION, seed=1)


@BY_KERNEL
def test_at_fixed_frequencies_it_is_the_discrepancy_with_their_kernel(spec):
    frequencies = spec.draw(DIMENSION, seeded())
    x, y = SAMPLES
    expected = squared_discrepancy(
        x, y, lambda difference: (difference @ frequencies.T).cos().mean(-1)
    )
    assert float(expected) > 0.01
    assert float(distance(x, y, frequencies)) == pytest.approx(float(expected), abs=1e-10)


@BY_KERNEL
def test_with_many_frequencies_it_meets_the_closed_form(spec):
    """Every frequency contributes a number in [0, 4]: Hoeffding bounds the error, and here it fails
    once in a million.
    """
    number = 20_000
    many = Frequencies(spec.kernel, spec.scale, number)
    expected = squared_discrepancy(*SAMPLES, spec.closed_form)
    bound = 4 * math.sqrt(math.log(2 / 1e-6) / (2 * number))
    error = float(distance(*SAMPLES, many.draw(DIMENSION, seeded())) - expected)
    assert abs(error) <= bound
    gaps = characteristic_function_gaps(
        *(phi(x, many.draw(DIMENSION, seeded())) for x in SAMPLES), halves()
    )
    assert 0 <= float(gaps.min()) <= float(gaps.max()) <= 4
    # and the bound is generous: the error is a few standard errors of these very contributions
    assert abs(error) < 4 * float(gaps.std()) / math.sqrt(number)


@BY_KERNEL
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_samples_give_zero(spec, root, dtype):
    features = SAMPLES[0].to(dtype)
    frequencies = spec.draw(DIMENSION, seeded()).to(dtype)
    real = phi(features, frequencies)
    leaf = features.clone().requires_grad_()
    for share in (0.0, 0.3, 1.0):
        gaps = characteristic_function_gaps(
            real, phi(leaf, frequencies), share * 2 * halves(), root=root
        )
        assert float(gaps.detach().abs().max()) == 0
        assert float(torch.autograd.grad(gaps.sum(), leaf)[0].abs().max()) == 0
    # in any order, and any number of times over
    again = phi(features.flip(0).repeat(3, 1), frequencies)
    assert float(characteristic_function_gaps(real, again, halves(), root=root).max()) < (
        1e-5 if dtype == torch.float32 else 1e-10
    )


@BY_KERNEL
def test_amplitude_and_phase_are_the_squared_difference(spec):
    frequencies = spec.draw(DIMENSION, seeded())
    real, synthetic = (phi(x, frequencies, LABELS[: len(x)], CLASSES) for x in SAMPLES)
    amplitudes = amplitude_part(real, synthetic)
    phases = phase_part(real, synthetic)
    a, b = (torch.complex(side.real, side.imaginary) for side in (real, synthetic))
    torch.testing.assert_close(amplitudes, (a.abs() - b.abs()).square(), rtol=0, atol=1e-14)
    torch.testing.assert_close(amplitudes + phases, (a - b).abs().square(), rtol=0, atol=1e-14)
    printed = 2 * (a.abs() * b.abs() - a.real * b.real - a.imag * b.imag)
    torch.testing.assert_close(phases, printed, rtol=0, atol=1e-14)
    turned = 2 * a.abs() * b.abs() * (1 - (a.angle() - b.angle()).cos())
    torch.testing.assert_close(phases, turned, rtol=0, atol=1e-14)
    for part in (amplitudes, phases):
        assert 0 <= float(part.min()) < 0.1 < float(part.max())


def pair(
    first: complex, second: complex, dtype: torch.dtype = torch.float64
) -> list[CharacteristicFunction]:
    """Two characteristic functions of one class with given values at one frequency."""

    def of(value: complex) -> CharacteristicFunction:
        numbers = (torch.tensor([[part]], dtype=dtype) for part in (value.real, value.imag))
        return CharacteristicFunction(
            torch.ones(1, dtype=dtype), *numbers, torch.zeros(1, 1, dtype=dtype)
        )

    return [of(first), of(second)]


def test_small_angles_do_not_drown_in_rounding():
    """As printed, the phase of these two is rounding error in float32; it is 2 (1 - cos 1e-5) =
    1e-10.
    """
    angle = 1e-5
    assert float(
        phase_part(*pair(1, complex(math.cos(angle), math.sin(angle)), torch.float32))
    ) == pytest.approx(1e-10, rel=1e-3)


@pytest.mark.parametrize(("turned", "expected"), [(1, 0), (1j, 2), (-1j, 2), (-1, 4)])
def test_the_phase_where_one_can_see_it(turned, expected):
    assert float(phase_part(*pair(0.6 + 0.8j, (0.6 + 0.8j) * turned))) == pytest.approx(
        expected, abs=1e-15
    )
    assert float(amplitude_part(*pair(0.6 + 0.8j, 0.5 * turned))) == pytest.approx(0.25)


TINY = [
    (1e-30 + 0j, 1e-25j),
    (1e-25 + 0j, 1e-20 + 1e-20j),
    (1e-38 + 0j, 0.5 + 0.1j),
    (1e-19 + 0j, 1e-19 + 1e-19j),
]
"""Pairs whose squares or products vanish in float32."""


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("values", [(0j, 0.3 + 0.4j), (0.3 + 0.4j, 0j), (0j, 0j), *TINY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_a_characteristic_function_vanishes(share, root, values, dtype):
    real, synthetic = pair(*values, dtype)
    leaves = [synthetic.cosine.requires_grad_(), synthetic.sine.requires_grad_()]
    value = characteristic_function_gaps(real, synthetic, share * 2 * halves(), root=root).sum()
    assert torch.isfinite(value)
    for gradient in torch.autograd.grad(value, leaves, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


def test_a_sample_whose_waves_cancel_has_gradients():
    """Two features half a wave apart: the characteristic function is zero at that frequency."""
    frequencies = torch.tensor([[math.pi]], dtype=torch.float64)
    features = torch.tensor([[0.0], [1.0]], dtype=torch.float64).requires_grad_()
    for share, root in itertools.product((0.0, 0.5, 1.0), (False, True)):
        gaps = characteristic_function_gaps(
            phi(SAMPLES[0][:, :1], frequencies),
            phi(features, frequencies),
            share * 2 * halves(),
            root=root,
        )
        assert torch.isfinite(torch.autograd.grad(gaps.sum(), features)[0]).all()


@BY_KERNEL
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_gradcheck(spec, root, share):
    frequencies = spec.draw(DIMENSION, seeded())[:9]
    real = phi(SAMPLES[0], frequencies)
    leaf = SAMPLES[1].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: characteristic_function_gaps(
            real, phi(x, frequencies), share * 2 * halves(), root=root
        ).mean(),
        leaf,
    )


def test_long_lengths_recover_the_difference_of_means():
    """s^2 SDD^2 at frequencies of length s: first of these very frequencies, then, with many, of
    the means; all of it phase.
    """
    x, y = SAMPLES
    gap = x.mean(0) - y.mean(0)
    unit = Frequencies(number=200_000).draw(DIMENSION, seeded())
    for length, tolerance in ((1e2, 1e-2), (1e4, 1e-5)):
        found = length**2 * distance(x, y, unit[:50] / length)
        assert float(found) == pytest.approx(
            float((unit[:50] @ gap).square().mean()), rel=tolerance
        )
    real, synthetic = (phi(features, unit / 1e4) for features in (x, y))
    assert 1e8 * float(distance(x, y, unit / 1e4)) == pytest.approx(
        float(gap.square().sum()), rel=0.02
    )
    assert 1e8 * float(phase_part(real, synthetic).mean()) == pytest.approx(
        float(gap.square().sum()), rel=0.02
    )
    assert 1e8 * float(amplitude_part(real, synthetic).mean()) < 1e-6


def test_the_square_root_is_inside_the_mean():
    frequencies = KERNELS[0].draw(DIMENSION, seeded())
    real, synthetic = (phi(x, frequencies) for x in SAMPLES)
    gaps = characteristic_function_gaps(real, synthetic, halves(), factor=1.0, root=True)
    size = torch.complex(real.real - synthetic.real, real.imaginary - synthetic.imaginary).abs()
    torch.testing.assert_close(gaps, size / math.sqrt(2), rtol=0, atol=1e-6)
    doubled = characteristic_function_gaps(real, synthetic, halves(), root=True)
    torch.testing.assert_close(doubled, size, rtol=0, atol=1e-6)


# The term

FEATURES = StatisticSpec(LayerRole.FEATURES, Flat(), AtFrequencies(Frequencies(number=32)))
MEANS = StatisticSpec(LayerRole.FEATURES, Flat(), Moments)


def look(features: Tensor) -> Observation:
    return Observation(features, {LayerRole.FEATURES: (features,)}, features)


def measured(need: StatisticSpec, features: Tensor, labels: Tensor, classes: int = CLASSES) -> Any:
    statistics = need.empty(classes, [(DIMENSION,)], seeded())
    need.update(statistics, look(features), labels)
    return {need: statistics}


REAL = normal(9, DIMENSION, seed=3)
OURS = normal(6, DIMENSION, seed=4)
OUR_LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def slow(
    real: CharacteristicFunction, weights: list[float], labels: Tensor, root: bool, factor: float
) -> list[float]:
    """Class by class and frequency by frequency, as printed."""
    values = []
    for c, weight in enumerate(weights):
        total = 0.0
        for t in real.frequencies:
            a, b = (
                sum(complex(torch.exp(1j * (x @ t))) for x in features) / len(features)
                for features in (REAL[c == LABELS], OURS[c == labels])
            )
            phase = 2 * (abs(a) * abs(b) - a.real * b.real - a.imag * b.imag)
            value = factor * (weight * (abs(a) - abs(b)) ** 2 + (1 - weight) * phase)
            total += math.sqrt(value + 1e-12) - 1e-6 if root else value
        values.append(total / len(real.frequencies))
    return values


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize(("over_classes", "factor"), [("mean", 2.0), ("sum", 1.0)])
def test_the_term_is_the_papers_formula(root, over_classes, factor):
    """Of 3, 2 and 4 real images: class 2 and class 0 are head by the median."""
    real = measured(FEATURES, REAL, LABELS)
    options = {
        "head_amplitude_weight": 0.8,
        "split": "median",
        "factor": factor,
        "root": root,
        "over_classes": over_classes,
    }
    value = CharacteristicFunctionDistance(FEATURES, **options)(
        real, look(OURS), OUR_LABELS, Context()
    )
    expected = sum(slow(real[FEATURES][0], [0.8, 0.2, 0.8], OUR_LABELS, root, factor))
    assert float(value) == pytest.approx(expected / (3 if over_classes == "mean" else 1), rel=1e-9)


def test_by_default_it_is_the_squared_spectral_distance_on_average_over_classes():
    real = measured(FEATURES, REAL, LABELS)
    frequencies = real[FEATURES][0].frequencies
    expected = (
        sum(distance(REAL[c == LABELS], OURS[c == OUR_LABELS], frequencies) for c in range(CLASSES))
        / CLASSES
    )
    value = CharacteristicFunctionDistance(FEATURES)(real, look(OURS), OUR_LABELS, Context())
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("need", [FEATURES, MEANS], ids=["gaussian", "linear"])
@pytest.mark.parametrize("over_classes", ["mean", "sum"])
def test_classes_that_one_side_lacks_do_not_count(need, over_classes):
    """A fourth class without real images, class 2 without synthetic ones."""
    kept = LABELS < 2
    real = measured(need, REAL, LABELS, classes=4)
    whole = measured(need, REAL[kept], LABELS[kept], classes=2)
    ours = torch.cat([OURS, OURS[:1]])
    labels = torch.cat([OUR_LABELS, torch.tensor([3])])
    rows = labels != 2
    term = CharacteristicFunctionDistance(need, over_classes=over_classes)
    value = term(real, look(ours[rows]), labels[rows], Context())
    torch.testing.assert_close(
        value, term(whole, look(OURS[OUR_LABELS < 2]), OUR_LABELS[OUR_LABELS < 2], Context())
    )
    alone = term(real, look(ours[-1:].requires_grad_()), labels[-1:], Context())
    assert float(alone.detach()) == 0


def test_sizes_of_classes_may_come_from_elsewhere():
    """A sampled real side has as many images of every class."""
    real = measured(FEATURES, REAL, LABELS)
    term = CharacteristicFunctionDistance(FEATURES, head_amplitude_weight=0.9, split="median")
    told = term(real, look(OURS), OUR_LABELS, Context(class_counts=torch.tensor([5, 50, 500])))
    expected = sum(slow(real[FEATURES][0], [0.1, 0.9, 0.9], OUR_LABELS, False, 2.0)) / 3
    assert float(told) == pytest.approx(expected, rel=1e-9)
    assert float(told) != pytest.approx(
        float(term(real, look(OURS), OUR_LABELS, Context())), rel=1e-3
    )


@pytest.mark.parametrize("root", [False, True])
def test_the_linear_kernel_is_distribution_matching(root):
    real = measured(MEANS, REAL, LABELS)
    term = CharacteristicFunctionDistance(MEANS, over_classes="sum", root=root)
    value = term(real, look(OURS), OUR_LABELS, Context())
    gaps = torch.stack(
        [REAL[c == LABELS].mean(0) - OURS[c == OUR_LABELS].mean(0) for c in range(3)]
    )
    torch.testing.assert_close(
        value, gaps.norm(dim=1).sum() if root else gaps.square().sum(), rtol=0, atol=1e-5
    )
    if not root:
        (synthetic,) = MEANS.of(look(OURS), OUR_LABELS, real[MEANS])
        torch.testing.assert_close(value, squared_mean_gap(real[MEANS][0], synthetic))


def test_the_linear_kernel_is_the_limit_of_long_lengths_for_every_weight():
    weights = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    frequencies = Frequencies(scale=1e4, number=200_000).draw(DIMENSION, seeded())
    waves = [phi(REAL, frequencies, LABELS, 3), phi(OURS, frequencies, OUR_LABELS, 3)]
    moments = [Moments.of(x.unsqueeze(1), y, 3) for x, y in ((REAL, LABELS), (OURS, OUR_LABELS))]
    limit = 1e8 * characteristic_function_gaps(*waves, weights).mean(1)
    torch.testing.assert_close(limit, mean_gaps(*moments, weights).squeeze(1), rtol=0.03, atol=0)


@pytest.mark.parametrize("need", [FEATURES, MEANS], ids=["gaussian", "linear"])
@pytest.mark.parametrize("root", [False, True])
def test_the_terms_gradients(need, root):
    real = measured(need, REAL, LABELS)
    term = CharacteristicFunctionDistance(
        need, head_amplitude_weight=0.8, split="continuous", root=root
    )
    leaf = OURS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term(real, look(x), OUR_LABELS, Context()), leaf)


def test_layers_add_up():
    need = StatisticSpec(LayerRole.CONV_INPUTS, Flat(), AtFrequencies(Frequencies(number=8)))
    maps = tuple(
        normal(9, *shape, seed=place) for place, shape in enumerate(((1, 2, 2), (2, 3, 1)))
    )
    seen = Observation(maps[0], {LayerRole.CONV_INPUTS: maps}, maps[0])
    real = need.empty(3, [(1, 2, 2), (2, 3, 1)], seeded())
    need.update(
        real,
        Observation(maps[0], {LayerRole.CONV_INPUTS: tuple(layer + 1 for layer in maps)}, maps[0]),
        LABELS,
    )
    total = CharacteristicFunctionDistance(need)({need: real}, seen, LABELS, Context())
    single = [
        characteristic_function_gaps(theirs, ours, halves(3)).mean()
        for theirs, ours in zip(real, need.of(seen, LABELS, real), strict=True)
    ]
    torch.testing.assert_close(total, sum(single))


def operations(number: int, real_images: int, synthetic_images: int = 60) -> int:
    """Floating point operations of the term and its gradient."""
    need = StatisticSpec(LayerRole.FEATURES, Flat(), AtFrequencies(Frequencies(number=number)))
    real = measured(need, normal(real_images, DIMENSION), torch.arange(real_images) % CLASSES)
    features = normal(synthetic_images, DIMENSION, seed=1).requires_grad_()
    counter = FlopCounterMode(display=False)
    with counter:
        CharacteristicFunctionDistance(need)(
            real, look(features), torch.arange(synthetic_images) % CLASSES, Context()
        ).backward()
    return int(counter.get_total_flops())


def test_a_step_costs_what_frequencies_and_synthetic_images_cost():
    one = operations(500, 30)
    assert one > 500 * 60 * DIMENSION
    assert operations(5000, 30) == 10 * one
    assert operations(500, 3000) == one
    assert operations(500, 30, 600) == 10 * one


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"head_amplitude_weight": 1.2}, r"must be in \[0, 1\]. Got 1.2"),
        ({"split": "size"}, "must be one of .* Got 'size'"),
        (
            {"spec": StatisticSpec(LayerRole.FEATURES, Flat(), Covariance)},
            "Got 'features.flat.Covariance'",
        ),
    ],
)
def test_arguments_out_of_range(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        CharacteristicFunctionDistance(**{"spec": FEATURES, **arguments})


@pytest.mark.parametrize("spec", [KERNELS[0], KERNELS[3]], ids=lambda spec: spec.kernel)
def test_descent_finds_the_distribution_not_only_its_mean(spec):
    """Two modes at -2 and 2: free features end there, where matching means leaves them anywhere
    with mean zero.
    """
    real = torch.cat([normal(300, 1) * 0.1 - 2, normal(300, 1, seed=1) * 0.1 + 2])
    labels = torch.zeros(600, dtype=torch.long)
    zeros = torch.zeros(8, dtype=torch.long)
    need = StatisticSpec(LayerRole.FEATURES, Flat(), AtFrequencies(spec))
    statistics = need.empty(1, [(1,)], seeded())
    need.update(statistics, look(real), labels)
    features = (0.3 * normal(8, 1, seed=2)).requires_grad_()
    optimizer = torch.optim.Adam([features], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        CharacteristicFunctionDistance(need)(
            {need: statistics}, look(features), zeros, Context()
        ).backward()
        optimizer.step()
    found = features.detach().flatten().sort().values
    assert found[:4].tolist() == pytest.approx([-2] * 4, abs=0.3)
    assert found[4:].tolist() == pytest.approx([2] * 4, abs=0.3)
