"""Needs, and the terms that look at logits and images, against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayd import methods
from rayd.errors import ConfigError
from rayd.networks import LayerRole, Observation
from rayd.objectives import (
    Calibration,
    Centralization,
    CharacteristicFunctionMatching,
    Context,
    CovarianceMatching,
    CrossEntropy,
    Densification,
    Flatness,
    MeanMatching,
    MomentMatching,
    SpectralFilterMatching,
    StatisticSpec,
    Term,
)
from rayd.objectives.densification import flattening, spectra
from rayd.objectives.flatness import softened_divergence
from rayd.recipes import assemble
from rayd.statistics import (
    AtFrequencies,
    ByClass,
    Channels,
    Covariance,
    Flat,
    Frequencies,
    LabelCorrelation,
    Moments,
    Normalized,
    Patches,
    Pooled,
    Statistic,
    Transform,
)
from rayd.statistics.frequencies import median_distance
from tests.draws import normal

LABELS = torch.tensor([0, 2, 1, 2, 0, 2])
FLAT = Flat()


def seen(logits: Tensor, images: Tensor | None = None) -> Observation:
    return Observation(logits, {}, normal(len(logits), 1, 4, 4) if images is None else images)


def test_calibration_sums_what_each_class_alone_would_give():
    """The gradient of an image is that of the mean over its class, whatever the number of classes
    and however unequal they are.
    """
    logits = normal(6, 3).requires_grad_()
    value = Calibration()({}, seen(logits), LABELS, Context())
    parts = []
    for label in range(3):
        own = torch.eq(LABELS, label)
        parts.append(functional.cross_entropy(logits[own], LABELS[own]))
    torch.testing.assert_close(value, sum(parts))
    balanced = torch.arange(6) % 3
    (ours,) = torch.autograd.grad(Calibration()({}, seen(logits), balanced, Context()), logits)
    (mean,) = torch.autograd.grad(CrossEntropy()({}, seen(logits), balanced, Context()), logits)
    torch.testing.assert_close(ours, 3 * mean)


def test_need_names_its_patches():
    keys = {
        need.key
        for need in (
            StatisticSpec(LayerRole.CONV_INPUTS, Patches(patch), Moments) for patch in (2, 4, 16)
        )
    }
    assert keys == {
        "conv_inputs.patches2.Moments",
        "conv_inputs.patches4.Moments",
        "conv_inputs.patches16.Moments",
    }
    assert StatisticSpec(LayerRole.FEATURES, Flat(), Moments).key == "features.flat.Moments"


def test_need_names_that_it_is_pooled():
    keys = {
        StatisticSpec(LayerRole.CONV_PATH, Channels(), statistic).key
        for statistic in (Covariance, Pooled(Covariance))
    }
    assert keys == {"conv_path.channels.Covariance", "conv_path.channels.pooled.Covariance"}


@pytest.mark.parametrize("statistic", [Moments, Covariance, LabelCorrelation])
def test_pooled_statistics_are_those_of_all_classes_together(statistic):
    """Measured and sampled, in a size that does not grow with the classes."""
    shapes: list[tuple[int, ...]] = [(2, 4, 4), (3, 5, 2)]
    maps = tuple(normal(6, *shape) for shape in shapes)
    heard = Observation(normal(6, 3), {LayerRole.CONV_INPUTS: maps}, maps[0])
    by_class, pooled = (
        StatisticSpec(LayerRole.CONV_INPUTS, Channels(), kind)
        for kind in (statistic, Pooled(statistic))
    )
    kept = by_class.empty(3, shapes)
    measured = pooled.empty(1000, shapes)
    for rows in (slice(0, 2), slice(2, 6)):
        part = Observation(
            heard.logits[rows],
            {LayerRole.CONV_INPUTS: tuple(m[rows] for m in maps)},
            heard.images[rows],
        )
        by_class.update(kept, part, LABELS[rows])
        pooled.update(measured, part, LABELS[rows])
    for whole, one, sampled in zip(
        kept, measured, pooled.of(heard, LABELS, pooled.empty(1000, shapes)), strict=True
    ):
        if isinstance(whole, LabelCorrelation):
            torch.testing.assert_close(one.correlation, whole.correlation.sum(0, keepdim=True))
        else:
            for name, tensor in whole.pooled().state().items():
                torch.testing.assert_close(one.state()[name], tensor)
        for name, tensor in one.state().items():
            assert len(tensor) == 1 if tensor.ndim else statistic is LabelCorrelation
            torch.testing.assert_close(sampled.state()[name], tensor)


@pytest.mark.parametrize("statistic", [Moments, Covariance])
@pytest.mark.parametrize("transform", [Flat(), Channels(), Patches(3)], ids=lambda one: one.key)
def test_measured_and_sampled_statistics_agree(statistic, transform):
    need = StatisticSpec(LayerRole.CONV_INPUTS, transform, statistic)
    shapes: list[tuple[int, ...]] = [(2, 4, 4), (1, 5, 2)]
    maps = tuple(normal(6, *shape) for shape in shapes)
    heard = Observation(normal(6, 3), {LayerRole.CONV_INPUTS: maps}, maps[0])
    measured = need.empty(3, shapes)
    need.update(measured, heard, LABELS)
    for mine, theirs in zip(need.of(heard, LABELS, need.empty(3, shapes)), measured, strict=True):
        for name, tensor in mine.state().items():
            torch.testing.assert_close(tensor, theirs.state()[name])


def test_a_tap_that_hears_nothing_has_no_statistics():
    need = StatisticSpec(LayerRole.BN_INPUTS, Channels(), Moments)
    heard = Observation(normal(6, 3), {LayerRole.BN_INPUTS: ()}, normal(6, 1, 4, 4))
    assert need.empty(3, []) == need.of(heard, LABELS, ()) == ()
    need.update((), heard, LABELS)


def test_low_precision_maps_become_float32_statistics():
    need = StatisticSpec(LayerRole.CONV_INPUTS, Channels(), Covariance)
    maps = normal(6, 2, 4, 4).bfloat16()
    (covariance,) = need.of(
        Observation(normal(6, 3), {LayerRole.CONV_INPUTS: (maps,)}, maps),
        LABELS,
        need.empty(3, [(2, 4, 4)]),
    )
    assert covariance.mean.dtype == torch.float32


SHAPES: list[tuple[int, ...]] = [(2, 4, 4), (1, 5, 2)]


def heard(count: int = 6, seed: int = 0) -> Observation:
    maps = tuple(normal(count, *shape, seed=seed + place) for place, shape in enumerate(SHAPES))
    return Observation(normal(count, 3), {LayerRole.CONV_INPUTS: maps}, maps[0])


def waves(
    frequencies: Frequencies | None = None,
    normalize: bool = False,
    transform: Transform = FLAT,
) -> StatisticSpec:
    return StatisticSpec(
        LayerRole.CONV_INPUTS,
        Normalized(transform) if normalize else transform,
        AtFrequencies(frequencies or Frequencies(number=7)),
    )


def drawn(
    need: StatisticSpec, seed: int = 0, first: Observation | None = None
) -> tuple[Statistic, ...]:
    lengths = need.resolved([first]) if first is not None else None
    return need.empty(3, SHAPES, torch.Generator().manual_seed(seed), lengths)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("transform", [Flat(), Channels()], ids=lambda one: one.key)
def test_measured_and_sampled_characteristic_functions_agree(normalize, transform):
    need = waves(normalize=normalize, transform=transform)
    seen_now = heard()
    measured = drawn(need)
    need.update(measured, seen_now, LABELS)
    for layer, (mine, theirs) in enumerate(
        zip(need.of(seen_now, LABELS, drawn(need)), measured, strict=True)
    ):
        for name, tensor in mine.state().items():
            torch.testing.assert_close(tensor, theirs.state()[name])
        maps = seen_now.layers[LayerRole.CONV_INPUTS][layer]
        rows = (
            maps.flatten(1).unsqueeze(1) if transform == Flat() else maps.flatten(2).transpose(1, 2)
        )
        rows = rows / rows.norm(dim=-1, keepdim=True) if normalize else rows
        angle = rows @ mine.state()["frequencies"].T
        for c in range(3):
            torch.testing.assert_close(
                mine.state()["cosine"][c], angle[c == LABELS].cos().sum((0, 1))
            )


def test_a_dead_feature_has_a_bounded_gradient_where_features_are_normalized():
    maps = torch.zeros(2, 4, 1, 1, requires_grad=True)
    need = waves(normalize=True)
    features = need.transform.vectors(maps)
    features.sum().backward()
    assert maps.grad is not None
    assert float(maps.grad.abs().max()) < 1e7


def test_frequencies_come_from_the_generator_layer_after_layer():
    first, again, other = (drawn(waves(), seed) for seed in (1, 1, 2))
    for layer, size in enumerate((32, 10)):
        frequencies = first[layer].state()["frequencies"]
        assert frequencies.shape == (7, size)
        assert torch.equal(frequencies, again[layer].state()["frequencies"])
        assert not torch.equal(frequencies, other[layer].state()["frequencies"])
    assert not torch.equal(first[0].state()["frequencies"][:, :10], first[1].state()["frequencies"])


@pytest.mark.parametrize("normalize", [False, True])
def test_a_median_length_is_that_of_the_first_look_layer_by_layer(normalize):
    need = waves(Frequencies(scale="median", number=7), normalize)
    unit = waves()
    first = heard(20, seed=5)
    cut = [
        Observation(first.logits, {LayerRole.CONV_INPUTS: maps}, first.images)
        for maps in zip(
            *(torch.split(layer, 7) for layer in first.layers[LayerRole.CONV_INPUTS]), strict=True
        )
    ]
    assert need.resolved(cut) == need.resolved([first])
    for layer, (mine, theirs) in enumerate(zip(drawn(need, first=first), drawn(unit), strict=True)):
        rows = first.layers[LayerRole.CONV_INPUTS][layer].flatten(1)
        rows = rows / rows.norm(dim=1, keepdim=True) if normalize else rows
        expected = theirs.state()["frequencies"] / median_distance(rows)
        torch.testing.assert_close(mine.state()["frequencies"], expected)
    assert (
        need.data_dependent,
        unit.data_dependent,
        StatisticSpec(LayerRole.FEATURES, Flat(), Moments).data_dependent,
    ) == (True, False, False)
    assert (need.draws, StatisticSpec(LayerRole.FEATURES, Flat(), Moments).draws) == (True, False)
    with pytest.raises(ValueError, match="must be given a generator, and be resolved"):
        drawn(need)
    with pytest.raises(ValueError, match="must be given a generator"):
        unit.empty(3, SHAPES)


def test_normalised_features_are_on_the_sphere_for_any_statistic():
    need = StatisticSpec(LayerRole.CONV_INPUTS, Normalized(Flat()), Moments)
    seen_now = heard()
    for moments in need.of(seen_now, LABELS, need.empty(3, SHAPES)):
        assert isinstance(moments, Moments)
        torch.testing.assert_close(
            (moments.variance + moments.mean.square()).sum(1), torch.ones(3, dtype=torch.float64)
        )


def test_a_need_names_its_frequencies_and_its_normalisation():
    needs = [
        StatisticSpec(LayerRole.CONV_INPUTS, Flat(), Moments),
        StatisticSpec(LayerRole.CONV_INPUTS, Normalized(Flat()), Moments),
        waves(),
        waves(normalize=True),
        waves(Frequencies(number=8)),
        waves(Frequencies("laplace", number=7)),
    ]
    assert len({need.key for need in needs}) == len(set(needs)) == len(needs)
    assert (
        waves(normalize=True).key
        == "conv_inputs.flat.normalized.CharacteristicFunction.gaussian-1.0-7"
    )


def test_a_class_alone_stands_for_a_statistic_by_class():
    """They are one key of a mapping."""
    one = StatisticSpec(LayerRole.FEATURES, Flat(), Moments)
    other = StatisticSpec(LayerRole.FEATURES, Flat(), ByClass(Moments))
    assert one == other
    assert {one: 1}[other] == 1


def test_pooled_characteristic_functions_are_those_of_all_classes_together():
    """A kind in a kind, in a size that does not grow with the classes."""
    frequencies = Frequencies(number=7)
    need = StatisticSpec(LayerRole.CONV_INPUTS, Flat(), Pooled(AtFrequencies(frequencies)))
    assert need.key == "conv_inputs.flat.pooled.CharacteristicFunction.gaussian-1.0-7"
    seen_now = heard()
    measured = drawn(need)
    need.update(measured, seen_now, LABELS)
    for pooled, empty, maps in zip(
        measured, drawn(waves()), seen_now.layers[LayerRole.CONV_INPUTS], strict=True
    ):
        by_class = empty.update(maps, LABELS, Flat()).state()
        assert torch.equal(pooled.state()["frequencies"], by_class["frequencies"])
        for name in ("count", "cosine", "sine"):
            torch.testing.assert_close(pooled.state()[name], by_class[name].sum(0, keepdim=True))


class Absolute(Transform):
    """A transform that a method might bring along."""

    @property
    def key(self) -> str:
        return "absolute"

    def size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return Flat().size(shape)

    def vectors(self, features: Tensor) -> Tensor:
        return Flat().vectors(features).abs()


@pytest.mark.parametrize("statistic", [Moments, Covariance, LabelCorrelation])
def test_a_new_transform_is_a_new_class(statistic):
    """Every statistic takes it, and it is known by its name."""
    need = StatisticSpec(LayerRole.CONV_INPUTS, Absolute(), statistic)
    assert need.key == f"conv_inputs.absolute.{statistic.__name__}"
    assert Transform.registry["Absolute"] is Absolute
    seen_now = heard()
    measured = need.empty(3, SHAPES)
    need.update(measured, seen_now, LABELS)
    found = need.of(seen_now, LABELS, need.empty(3, SHAPES))
    layers = seen_now.layers[LayerRole.CONV_INPUTS]
    for sampled, exact, maps in zip(found, measured, layers, strict=True):
        for name, tensor in (
            statistic.of(maps.abs().flatten(1).unsqueeze(1), LABELS, 3).state().items()
        ):
            torch.testing.assert_close(sampled.state()[name], tensor)
            torch.testing.assert_close(exact.state()[name], tensor)


def test_cross_entropy_is_the_mean_over_images():
    logits = normal(6, 3).requires_grad_()
    expected = (
        -sum(
            math.log(row.softmax(0)[label])
            for row, label in zip(logits.detach(), LABELS, strict=True)
        )
        / 6
    )
    term = CrossEntropy()
    assert float(term({}, seen(logits.detach()), LABELS, Context())) == pytest.approx(
        expected, rel=1e-12
    )
    assert torch.autograd.gradcheck(lambda x: term({}, seen(x), LABELS, Context()), logits)


def divergence(p: Tensor, q: Tensor, temperature: float) -> float:
    p = (p / temperature).softmax(0)
    q = (q / temperature).softmax(0)
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


@pytest.mark.parametrize("direction", ["current", "average"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_flatness_is_the_mean_divergence_from_the_average(direction, temperature):
    now = 3 * normal(6, 5)
    average = 3 * normal(6, 5, seed=1)
    rows = zip(now, average, strict=True)
    expected = (
        sum(
            divergence(*(pair if direction == "current" else pair[::-1]), temperature)
            for pair in rows
        )
        / 6
    )
    term = Flatness(temperature=temperature, direction=direction)
    context = Context(average_logits=lambda: average)
    assert float(term({}, seen(now), LABELS, context)) == pytest.approx(expected, rel=1e-12)
    assert float(term({}, seen(average), LABELS, context)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("direction", ["current", "average"])
def test_flatness_gradients(direction):
    now, average = (3 * normal(4, 3, seed=seed) for seed in (0, 1))
    term = Flatness(direction=direction)
    context = Context(average_logits=lambda: average.requires_grad_())
    now.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: term({}, seen(x), LABELS[:4], context), now)
    assert torch.autograd.gradcheck(
        lambda x, y: softened_divergence(x, y, 2.0, direction), (now, average)
    )
    assert torch.autograd.grad(
        term({}, seen(now), LABELS[:4], context), average, allow_unused=True
    ) == (None,)


def test_flatness_without_an_average_says_what_is_missing():
    with pytest.raises(RuntimeError, match="must have an 'averaging' decay"):
        Flatness()({}, seen(normal(6, 3)), LABELS, Context())


def test_flatness_of_statistics_is_the_distance_of_means_and_variances():
    shapes = {LayerRole.BN_INPUTS: [(3, 4, 4)], LayerRole.CONV_INPUTS: [(2, 6, 5), (3, 2, 2)]}

    def observed(seed: int) -> Observation:
        layers = {
            role: tuple(normal(5, *shape, seed=seed + i) for i, shape in enumerate(some))
            for role, some in shapes.items()
        }
        return Observation(normal(5, 3, seed=seed), layers, normal(5, 1, 2, 2))

    now, average = observed(0), observed(10)
    term = Flatness(compare="statistics", patch=2)
    expected = 0.0
    for role, some in shapes.items():
        for place in range(len(some)):
            ours, theirs = (one.layers[role][place] for one in (now, average))
            for reduced in [lambda x: x.mean((0, 2, 3)), lambda x: x.var((0, 2, 3), correction=0)]:
                expected += float((reduced(ours) - reduced(theirs)).norm())
            if role is LayerRole.CONV_INPUTS:
                pairs = [moments_of_patches(maps, 2) for maps in (ours, theirs)]
                for mine, other in zip(*pairs, strict=True):
                    expected += float((mine - other).norm())
    context = Context(average_observation=lambda: average)
    assert float(term({}, now, LABELS[:5], context)) == pytest.approx(expected, rel=1e-9)
    same = Context(average_observation=lambda: now)
    assert float(term({}, now, LABELS[:5], same)) == 0
    assert term.layer_roles == shapes.keys()
    assert Flatness().layer_roles == frozenset()


def moments_of_patches(maps: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Means and variances of the pixels at all patches, over images, channels and pixels; the map is
    resized where patches do not divide it.
    """
    height, width = (-(-size // side) * side for size in maps.shape[2:])
    if (height, width) != tuple(maps.shape[2:]):
        maps = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear")
    means, variances = [], []
    for i in range(0, height, side):
        for j in range(0, width, side):
            patch = maps[:, :, i : i + side, j : j + side]
            means.append(patch.mean())
            variances.append(patch.var(correction=0))
    return torch.stack(means), torch.stack(variances)


def slow_densification(images: Tensor, labels: Tensor, temperature: float) -> float:
    total = 0.0
    for label in set(labels.tolist()):
        flat = functional.adaptive_avg_pool2d(images[labels == label], 32).flatten(1)
        eigenvalues = torch.linalg.eigvals(flat @ flat.T).real
        total += divergence(eigenvalues / temperature, eigenvalues, 1.0)
    return total


@pytest.mark.parametrize("side", [4, 32, 48])
def test_densification_is_the_released_formula(side):
    """Three classes, of two, one and three images; the one alone adds nothing."""
    images = 0.3 * normal(6, 1, side, side) * 4 / side
    value = Densification()({}, seen(normal(6, 3), images), LABELS, Context())
    assert float(value) == pytest.approx(slow_densification(images, LABELS, 4.0), rel=1e-9)
    alone = Densification()({}, seen(normal(1, 3), images[2:3]), LABELS[2:3], Context())
    assert float(alone) == 0


def test_classes_of_one_size_are_solved_together():
    labels = torch.tensor([3, 0, 1, 0, 3, 1, 1, 5, 5])
    assert [tuple(found.shape) for found in spectra(normal(9, 1, 4, 4), labels)] == [(3, 2), (1, 3)]


def test_eigenvalues_are_differentiated_exactly():
    """Distinct eigenvalues of two classes of three images; small numbers, as images pooled up
    repeat their pixels.
    """
    images = (0.1 * normal(6, 1, 2, 3)).requires_grad_()
    labels = torch.arange(6) % 2

    def values(x: Tensor) -> Tensor:
        (found,) = spectra(x, labels)
        return found

    assert values(images).diff(dim=1).min() > 1e-2
    assert torch.autograd.gradcheck(values, images)


def test_the_softened_spectrum_is_a_target_without_gradient():
    eigenvalues = normal(3, 4).requires_grad_()
    target = (eigenvalues.detach() / 4).softmax(1)
    (gradient,) = torch.autograd.grad(flattening(eigenvalues, 4.0), eigenvalues)
    torch.testing.assert_close(gradient, eigenvalues.softmax(1) - target)

    def frozen(x: Tensor) -> Tensor:
        return (target * (target.log() - x.log_softmax(1))).sum()

    assert torch.autograd.gradcheck(frozen, eigenvalues)
    torch.testing.assert_close(torch.autograd.grad(frozen(eigenvalues), eigenvalues)[0], gradient)


def test_equal_eigenvalues_are_no_trouble():
    images = torch.zeros(6, 1, 4, 4).requires_grad_()
    value = Densification()({}, seen(normal(6, 3), images), LABELS, Context())
    assert float(value.detach()) == 0
    assert torch.isfinite(torch.autograd.grad(value, images)[0]).all()


def test_densification_spreads_images_that_are_alike():
    images = (0.05 + 0.001 * normal(4, 1, 8, 8)).requires_grad_()
    labels = torch.zeros(4, dtype=torch.long)
    optimizer = torch.optim.Adam([images], lr=0.002)
    found = []
    for _ in range(100):
        optimizer.zero_grad()
        value = Densification()({}, seen(normal(4, 3), images), labels, Context())
        found.append(float(value.detach()))
        value.backward()
        optimizer.step()
    assert found[-1] < 0.05 * found[0]


@pytest.mark.parametrize(
    ("term", "real", "expected"),
    [
        (MeanMatching(), True, 2 * 5 * 0.25),
        (CovarianceMatching(), False, None),
        (Centralization(), False, None),
        (MomentMatching(drop=0.0, momentum=0.0), True, None),
        (CharacteristicFunctionMatching(scale=1.0, frequencies=16), True, None),
        (SpectralFilterMatching(layers="features"), True, None),
    ],
    ids=lambda value: value.name if isinstance(value, Term) else "",
)
def test_a_term_is_used_alone(term, real, expected):
    """Without an engine: statistics of the layers that it names, and a call."""
    layers = {
        LayerRole.FEATURES: (normal(6, 5),),
        LayerRole.LAST_MAP: (normal(6, 3, 4, 4),),
        LayerRole.BN_INPUTS: (normal(6, 3, 4, 4),),
        LayerRole.CONV_INPUTS: (normal(6, 3, 4, 4),),
    }
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    reality = Observation(normal(6, 2), layers, normal(6, 1, 4, 4))
    statistics = {}
    for spec in term.specs:
        shapes = [tuple(one.shape[1:]) for one in layers[spec.layer_role]]
        empty = spec.empty(2, shapes, torch.Generator().manual_seed(0))
        spec.update(empty, reality, labels)
        statistics[spec] = empty
    moved = {role: (maps[0] + 0.5,) for role, maps in layers.items()}
    synthetic = Observation(reality.logits, moved, reality.images)
    value = float(term(statistics, synthetic, labels, Context()))
    assert value > 0 or not real
    if expected is not None:
        assert value == pytest.approx(expected)
    if real:
        assert float(term(statistics, reality, labels, Context())) == pytest.approx(0, abs=1e-6)


def test_a_term_refuses_settings_that_do_not_exist_or_fit_and_does_not_change():
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        Flatness(temprature=1.0)
    with pytest.raises(ConfigError, match="greater than 0"):
        Flatness(temperature=0.0)
    with pytest.raises(ValueError, match="frozen"):
        Flatness().temperature = 1.0
    assert Flatness(decay=0.5).averaging == 0.5
    assert Flatness(decay=0.5) == Flatness(decay=0.5) != Flatness()


def test_a_new_term_registers_itself():
    """What a package brings along: a class with a name, settings and the mathematics."""

    class Brightness(Term):
        name = "brightness"
        for_any_method = True
        level: float = 0.5

        def __call__(self, real, seen, labels, context):
            return (seen.images.mean() - self.level).square()

    try:
        tree = {
            "method": "dm",
            "data": {"name": "digits"},
            "terms": {"brightness": {"level": 0.25}},
        }
        (_, added) = methods.build(assemble(tree)).terms
        assert added == Brightness(level=0.25)
        images = torch.ones(2, 1, 4, 4)
        assert float(added({}, seen(normal(2, 3), images), LABELS[:2], Context())) == 0.5625
    finally:
        del Term.registry["brightness"]
