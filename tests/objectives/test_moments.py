"""Moment matching against slow loops, its smoothing, its drops, and problems with known answers."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayd.networks import FeatureExtractor, LayerRole, Observation
from rayd.objectives import Context, MomentDistance, RealStatistics, StatisticSpec
from rayd.objectives.targets import Targets
from rayd.statistics import Channels, Covariance, Moments, Patches

CLASSES = 4
BN = StatisticSpec(LayerRole.BN_INPUTS, Channels(), Moments)
CONV = StatisticSpec(LayerRole.CONV_INPUTS, Channels(), Moments)
PATCHES = StatisticSpec(LayerRole.CONV_INPUTS, Patches(2), Moments)
NEEDS = (BN, CONV, PATCHES)
SHAPES = {LayerRole.BN_INPUTS: [(3, 4, 4)], LayerRole.CONV_INPUTS: [(2, 4, 4), (3, 5, 3)]}
LABELS = torch.tensor([0, 2, 2, 0, 2])
CATEGORIES = ("class", "instance", "batch")


def observation(
    seed: int, count: int, shapes: dict[LayerRole, list[tuple[int, ...]]] = SHAPES
) -> Observation:
    draw = torch.Generator().manual_seed(seed)
    taps = {
        tap: tuple(
            torch.randn(count, *shape, generator=draw, dtype=torch.float64) + 1 for shape in layers
        )
        for tap, layers in shapes.items()
    }
    return Observation(
        torch.zeros(count, CLASSES, dtype=torch.float64), taps, torch.zeros(count, 1, 4, 4)
    )


def real_side(needs: Sequence[StatisticSpec] = NEEDS) -> tuple[RealStatistics, Observation, Tensor]:
    """Statistics of forty real images of classes 0 to 2, the maps that they are of, and the
    labels.
    """
    seen = observation(0, 40)
    labels = torch.arange(40) % 3
    empty = {need: need.empty(CLASSES, SHAPES[need.layer_role]) for need in needs}
    for need in needs:
        need.update(empty[need], seen, labels)
    return empty, seen, labels


def with_leaves(seen: Observation) -> tuple[Observation, list[Tensor]]:
    taps = {
        tap: tuple(maps.clone().requires_grad_() for maps in layers)
        for tap, layers in seen.layers.items()
    }
    return Observation(seen.logits, taps, seen.images), [
        maps for layers in taps.values() for maps in layers
    ]


def moments_of(maps: Tensor, need: StatisticSpec, inside: bool = False) -> tuple[Tensor, Tensor]:
    rows = need.transform.vectors(maps)
    if inside:
        return rows.mean((0, 1)), rows.var(1, unbiased=False).mean(0)
    return rows.mean((0, 1)), rows.var((0, 1), unbiased=False)


def apart(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> Tensor:
    return (ours[0] - theirs[0]).norm() + (ours[1] - theirs[1]).norm()


def reference(
    seen: Observation, labels: Tensor, alpha: float, category: str, weights: dict[LayerRole, float]
) -> Tensor:
    """The formula at the head of the module, one layer, one class, one image after another."""
    _, real, known = real_side()
    total = torch.zeros((), dtype=torch.float64)
    for need in NEEDS:
        for place, (ours, theirs) in enumerate(
            zip(seen.layers[need.layer_role], real.layers[need.layer_role], strict=True)
        ):
            value = alpha * apart(moments_of(ours, need), moments_of(theirs, need))
            classes = sorted(set(labels.tolist()))
            if category == "batch":
                targets = [
                    moments_of(theirs[known == label], need, inside=True) for label in labels
                ]
                target = tuple(torch.stack(part).mean(0) for part in zip(*targets, strict=True))
                value = value + (1 - alpha) * apart(moments_of(ours, need), target)
            else:
                inside = category == "instance"
                for c in classes:
                    mine, target = (
                        moments_of(maps[of == c], need, inside)
                        for maps, of in ((ours, labels), (theirs, known))
                    )
                    share = known.tolist().count(c) / sum(known.tolist().count(k) for k in classes)
                    value = value + (1 - alpha) * share * apart(mine, target)
            total = total + (weights.get(need.layer_role, 1.0) if place == 0 else 1.0) * value
    return total


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "weights", [{}, {LayerRole.CONV_INPUTS: 10.0}, {LayerRole.BN_INPUTS: 10.0}]
)
def test_value_and_gradient_are_those_of_the_formula(category, alpha, weights):
    real, _, _ = real_side()
    term = MomentDistance(NEEDS, alpha=alpha, category=category, first_layer_weight=weights)
    seen, leaves = with_leaves(observation(1, len(LABELS)))
    value = term(real, seen, LABELS, Context())
    expected = reference(seen, LABELS, alpha, category, weights)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_classes_are_weighed_by_their_share_of_the_real_images():
    maps = torch.tensor([3.0, -3.0]).double().expand(1, 1, 1, 2)
    seen = Observation(torch.zeros(2, 2), {LayerRole.BN_INPUTS: (maps.expand(2, 1, 1, 2),)}, maps)
    counts = torch.tensor([30.0, 10.0]).double()
    means = torch.tensor([[1.0], [7.0]]).double()
    spread = 9 * counts.unsqueeze(1)
    real = {BN: (Moments(counts, means, spread, spread),)}
    value = MomentDistance([BN], alpha=0.0)(real, seen, torch.tensor([0, 1]), Context())
    torch.testing.assert_close(value, torch.tensor(0.75 * 1 + 0.25 * 7).double())


@pytest.mark.parametrize(
    ("category", "alpha"), [("class", 0.5), ("instance", 0.5), ("batch", 0.5), ("class", 1.0)]
)
def test_gradcheck(category, alpha):
    real, _, _ = real_side()
    term = MomentDistance(NEEDS, alpha=alpha, category=category)
    seen, leaves = with_leaves(observation(1, len(LABELS)))

    def value(*maps: Tensor) -> Tensor:
        taps = {LayerRole.BN_INPUTS: maps[:1], LayerRole.CONV_INPUTS: maps[1:]}
        return term(real, Observation(seen.logits, taps, seen.images), LABELS, Context())

    assert torch.autograd.gradcheck(value, leaves)


@pytest.mark.parametrize("category", ["class", "instance"])
def test_the_real_images_themselves_are_at_no_distance_and_without_pull(category):
    real, images, labels = real_side()
    seen, leaves = with_leaves(images)
    value = MomentDistance(NEEDS, alpha=0.5, category=category)(real, seen, labels, Context())
    assert float(value.detach()) < 1e-12
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(value, leaves))


def test_an_exact_match_has_gradient_zero():
    maps = torch.tensor(
        [[[[-1.0, 1.0]]], [[[-1.0, 1.0]]]], requires_grad=True
    )  # mean 0, variance 1, exactly
    real = Moments(*(torch.tensor(x) for x in ([4.0], [[0.0]], [[4.0]], [[4.0]])))
    seen = Observation(torch.zeros(2, 1), {LayerRole.BN_INPUTS: (maps,)}, maps)
    value = MomentDistance([BN])({BN: (real,)}, seen, torch.zeros(2, dtype=torch.long), Context())
    assert float(value.detach()) == 0
    assert torch.equal(torch.autograd.grad(value, maps)[0], torch.zeros_like(maps))


def test_classes_without_real_images_are_left_out():
    real, _, _ = real_side()
    seen = observation(1, 3)
    some = Observation(
        seen.logits[:2],
        {tap: tuple(m[:2] for m in maps) for tap, maps in seen.layers.items()},
        seen.images,
    )
    term = MomentDistance(NEEDS, alpha=0.0)
    value = term(real, seen, torch.tensor([0, 1, 3]), Context())
    torch.testing.assert_close(value, term(real, some, torch.tensor([0, 1]), Context()))
    batch = MomentDistance(NEEDS, alpha=0.0, category="batch")(
        real, seen, torch.tensor([0, 1, 3]), Context()
    )
    assert torch.isfinite(batch)


def test_the_order_of_images_does_not_matter():
    real, _, _ = real_side()
    seen = observation(1, len(LABELS))
    order = torch.tensor([3, 1, 4, 0, 2])
    taps = {tap: tuple(maps[order] for maps in layers) for tap, layers in seen.layers.items()}
    term = MomentDistance(NEEDS, alpha=0.5)
    shuffled = term(real, Observation(seen.logits, taps, seen.images), LABELS[order], Context())
    torch.testing.assert_close(shuffled, term(real, seen, LABELS, Context()))


def smoothed_reference(statistics: list[list[Tensor]], momentum: float) -> list[Tensor]:
    """s <- m s + (1 - m) stat over the steps, from zero, for each of several statistics."""
    values = [torch.zeros_like(first) for first in statistics[0]]
    for step in statistics:
        values = [
            momentum * old + (1 - momentum) * new.detach()
            for old, new in zip(values, step, strict=True)
        ]
    return values


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_smoothed_statistics_keep_the_gradient_of_the_current_one(alpha):
    """Three steps of different images: value at the smoothed statistics, gradient by the chain rule
    through the last.
    """
    real, images, known = real_side((CONV,))
    term = MomentDistance((CONV,), alpha=alpha, momentum=0.8)
    context = Context()
    steps = [observation(seed, len(LABELS)) for seed in (1, 2, 3)]
    history = []
    for one in steps:
        seen, leaves = with_leaves(one)
        value = term(real, seen, LABELS, context)
        parts = []
        targets = []
        weights = []
        for ours, theirs in zip(
            seen.layers[LayerRole.CONV_INPUTS], images.layers[LayerRole.CONV_INPUTS], strict=True
        ):
            parts += moments_of(ours, CONV)
            targets += moments_of(theirs, CONV)
            weights += [alpha, alpha]
            for c in (0, 2):
                parts += moments_of(ours[c == LABELS], CONV)
                targets += moments_of(theirs[known == c], CONV)
                weights += [(1 - alpha) * {0: 14, 2: 13}[c] / 27] * 2
        history.append(parts)
        smoothed = smoothed_reference(history, 0.8)
        norms = [(s - t).norm() for s, t in zip(smoothed, targets, strict=True)]
        torch.testing.assert_close(
            value, sum(w * n for w, n in zip(weights, norms, strict=True)), rtol=1e-12, atol=0
        )
        pull = sum(
            w * ((s - t) / n * part).sum()
            for w, s, t, n, part in zip(weights, smoothed, targets, norms, parts, strict=True)
        )
        mine = torch.autograd.grad(value, [leaves[1], leaves[2]])
        for one_side, other in zip(
            mine, torch.autograd.grad(pull, [leaves[1], leaves[2]]), strict=True
        ):
            torch.testing.assert_close(one_side, other, rtol=1e-9, atol=1e-12)


def test_without_momentum_nothing_is_remembered():
    real, _, _ = real_side()
    context = Context()
    MomentDistance(NEEDS, alpha=0.5)(real, observation(1, len(LABELS)), LABELS, context)
    assert context.memory == {}


def test_memory_holds_rows_of_present_classes_and_is_not_changed_in_place():
    real, _, _ = real_side()
    term = MomentDistance(NEEDS, alpha=0.5, momentum=0.9, drop={LayerRole.CONV_INPUTS: 0.5})
    context = seeded(0)
    seen, _ = with_leaves(observation(1, len(LABELS)))
    term(real, seen, LABELS, context)
    before = dict(context.memory)
    copies = {name: tensor.clone() for name, tensor in before.items()}
    width = sum(statistic.mean.shape[1] for need in NEEDS for statistic in real[need])
    assert {name: tuple(tensor.shape) for name, tensor in before.items()} == {
        "all mean": (1, width),
        "all variance": (1, width),
        "class mean": (2, width),
        "class variance": (2, width),
    }
    assert not any(tensor.requires_grad for tensor in before.values())
    term(real, seen, LABELS, context)
    assert all(torch.equal(before[name], copies[name]) for name in before)
    assert not any(torch.equal(context.memory[name], before[name]) for name in before)


def seeded(seed: int) -> Context:
    return Context(generator=lambda purpose: torch.Generator().manual_seed(seed + len(purpose)))


def test_dropped_layers_add_nothing_in_any_view_and_are_not_remembered():
    """The value splits into that of normalisations, never dropped, and of the convolutions that
    were drawn.
    """
    real, _, _ = real_side()
    seen = observation(1, len(LABELS))

    def value_of(needs: Sequence[StatisticSpec], place: int) -> float:
        chosen = {need: real[need][place : place + 1] for need in needs}
        taps = {need.layer_role: seen.layers[need.layer_role][place : place + 1] for need in needs}
        one = Observation(seen.logits, taps, seen.images)
        return float(MomentDistance(needs, alpha=0.5)(chosen, one, LABELS, Context()))

    of_bn = value_of([BN], 0)
    of_convs = [value_of([CONV, PATCHES], place) for place in range(2)]
    sums = {
        kept: of_bn + sum(value for value, one in zip(of_convs, kept, strict=True) if one)
        for kept in itertools.product([False, True], repeat=2)
    }
    term = MomentDistance(NEEDS, alpha=0.5, drop={LayerRole.CONV_INPUTS: 0.4})
    counts = dict.fromkeys(sums, 0)
    for seed in range(100):
        value = float(term(real, seen, LABELS, seeded(seed)))
        (kept,) = [kept for kept, total in sums.items() if abs(value - total) < 1e-9]
        counts[kept] += 1
        assert value == float(term(real, seen, LABELS, seeded(seed)))
    assert all(count > 0 for count in counts.values())
    assert sum(count * sum(kept) for kept, count in counts.items()) / 200 == pytest.approx(
        0.6, abs=0.1
    )


def test_everything_can_be_dropped():
    real, _, _ = real_side((CONV, PATCHES))
    term = MomentDistance((CONV, PATCHES), momentum=0.8, drop={LayerRole.CONV_INPUTS: 1.0})
    context = seeded(0)
    assert float(term(real, observation(1, len(LABELS)), LABELS, context)) == 0
    assert context.memory == {}


def test_the_memory_of_a_dropped_layer_stays():
    real, _, _ = real_side((CONV,))
    plain = MomentDistance((CONV,), momentum=0.8)
    context = Context()
    plain(real, observation(1, len(LABELS)), LABELS, context)
    before = context.memory["all mean"]
    term = MomentDistance((CONV,), momentum=0.8, drop={LayerRole.CONV_INPUTS: 0.5})
    changes = set()
    for seed in range(20):
        again = Context(memory=dict(context.memory), generator=seeded(seed).generator)
        term(real, observation(2, len(LABELS)), LABELS, again)
        changes.add(tuple((again.memory["all mean"] != before)[0].tolist()))
    assert changes == set(
        itertools.starmap(
            lambda a, b: (a,) * 2 + (b,) * 3, itertools.product([False, True], repeat=2)
        )
    )


@pytest.mark.parametrize(("alpha", "spared"), [(1.0, "classes"), (0.0, "everything")])
def test_what_has_no_share_is_not_computed(monkeypatch, alpha, spared):
    def refuse(*_: object) -> Any:
        raise AssertionError(f"{spared} was asked for")

    monkeypatch.setattr(Targets, spared, property(refuse) if spared == "everything" else refuse)
    real, _, _ = real_side()
    assert (
        float(
            MomentDistance(NEEDS, alpha=alpha)(real, observation(1, len(LABELS)), LABELS, Context())
        )
        > 0
    )


def test_targets_are_derived_once_and_go_with_the_statistics(monkeypatch):
    calls = []
    for name in ("pooled", "rows"):
        original = getattr(Moments, name)

        def counted(
            self: Moments, *arguments: Any, original: Any = original, name: str = name
        ) -> Moments:
            if not self.mean.requires_grad:
                calls.append(name)
            result: Moments = original(self, *arguments)
            return result

        monkeypatch.setattr(Moments, name, counted)
    real, _, _ = real_side()
    calls.clear()
    term = MomentDistance(NEEDS, alpha=0.5)
    for seed in range(3):
        seen, _ = with_leaves(observation(seed, len(LABELS)))
        term(real, seen, LABELS, Context())
    layers = sum(len(real[need]) for need in NEEDS)
    assert sorted(calls) == ["pooled"] * layers + ["rows"] * layers
    other, _, _ = real_side()
    term(other, seen, LABELS, Context())
    assert len(term._derived) == 2
    del real, other
    gc.collect()
    assert len(term._derived) == 0


def test_other_statistics_and_other_blocks_have_other_targets():
    real, _, _ = real_side((CONV,))
    term = MomentDistance((CONV,), alpha=0.5)
    seen = observation(1, len(LABELS))
    shifted = {
        CONV: (real[CONV][0], Moments(**{**real[CONV][1].state(), "mean": real[CONV][1].mean + 1}))
    }
    blocks = [LABELS, LABELS.flip(0), torch.tensor([0, 1, 1, 1, 2])]
    values = [
        float(term(side, seen, block, Context()))
        for side in (real, shifted, real)
        for block in blocks
    ]
    fresh = [
        float(MomentDistance((CONV,), alpha=0.5)(side, seen, block, Context()))
        for side in (real, shifted, real)
        for block in blocks
    ]
    assert values == fresh
    assert len(set(values)) == 6


def test_a_network_may_lack_optional_taps():
    real, _, _ = real_side((CONV, PATCHES))
    seen = observation(1, len(LABELS))
    without = Observation(seen.logits, {**seen.layers, LayerRole.BN_INPUTS: ()}, seen.images)
    term = MomentDistance(NEEDS, alpha=0.5)
    value = term({**real, BN: ()}, without, LABELS, Context())
    torch.testing.assert_close(
        value, MomentDistance((CONV, PATCHES), alpha=0.5)(real, seen, LABELS, Context())
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"alpha": 1.5}, "'alpha' of MomentDistance must be in .0, 1.. Got 1.5"),
        ({"momentum": 1.0}, "'momentum' of MomentDistance must be in .0, 1.. Got 1.0"),
        (
            {"drop": {LayerRole.CONV_INPUTS: -0.1}},
            "'drop.conv_inputs.' of MomentDistance must be in .0, 1.. Got -0.1",
        ),
        (
            {"specs": [StatisticSpec(LayerRole.BN_INPUTS, Channels(), Covariance)]},
            "must be Moments. Got 'bn_inputs.channels.Covariance'",
        ),
    ],
)
def test_arguments_out_of_range(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        MomentDistance(**{"specs": NEEDS, **arguments})


def descend(
    term: MomentDistance, real: RealStatistics, look: Any, start: Tensor, labels: Tensor, steps: int
) -> Tensor:
    images = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([images], lr=0.1, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        term(real, look(images), labels, Context()).backward()
        optimizer.step()
        schedule.step()
    return images.detach()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_descent_finds_the_moments_of_gaussian_classes(alpha):
    """Free features: class moments are reached where classes are compared, moments of all where all
    are.
    """
    draw = torch.Generator().manual_seed(0)
    classes = 3
    channels = 2
    known = torch.arange(classes).repeat(200)
    center = torch.randn(classes, channels, 1, 1, generator=draw)
    scale = torch.rand(classes, channels, 1, 1, generator=draw) + 0.5
    maps = center[known] + scale[known] * torch.randn(600, channels, 3, 3, generator=draw)
    real = BN.empty(classes, [(channels, 3, 3)])
    BN.update(real, Observation(maps, {LayerRole.BN_INPUTS: (maps,)}, maps), known)
    target = tuple(statistic.to(dtype=torch.float32) for statistic in real)
    labels = torch.arange(classes).repeat(4)
    start = torch.randn(12, channels, 3, 3, generator=draw)

    def look(images: Tensor) -> Observation:
        return Observation(images, {LayerRole.BN_INPUTS: (images,)}, images)

    found = descend(MomentDistance([BN], alpha=alpha), {BN: target}, look, start, labels, 400)
    (ours,) = BN.of(look(found), labels, target)
    for mine, theirs, counts in (
        (ours, target[0], alpha < 1),
        (ours.pooled(), target[0].pooled(), alpha > 0),
    ):
        if counts:
            torch.testing.assert_close(mine.mean, theirs.mean, atol=1e-3, rtol=0)
            torch.testing.assert_close(mine.variance, theirs.variance, atol=1e-3, rtol=0)
    if alpha == 1:
        assert (ours.mean - target[0].mean).abs().max() > 0.05  # nothing told it of classes


def test_descent_through_a_network_finds_the_moments():
    """A fixed network with convolutions and normalisations; images are free, moments of all its
    layers are met.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.Softplus(),
        nn.Conv2d(3, 2, 3),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()
    tapped = FeatureExtractor(
        network.requires_grad_(False), {LayerRole.BN_INPUTS, LayerRole.CONV_INPUTS}, (1, 6, 6)
    )
    known = torch.arange(2).repeat(100)
    images = torch.randn(200, 1, 6, 6) * (0.5 + known.reshape(-1, 1, 1, 1)) + known.reshape(
        -1, 1, 1, 1
    )
    needs = (BN, CONV)
    real = {need: need.empty(2, tapped.dimensions(need.layer_role)) for need in needs}
    for need in needs:
        need.update(real[need], tapped(images), known)
    target = {
        need: tuple(statistic.to(dtype=torch.float32) for statistic in real[need]) for need in needs
    }
    labels = torch.arange(2).repeat(6)
    found = descend(
        MomentDistance(needs, alpha=0.5), target, tapped, torch.randn(12, 1, 6, 6), labels, 600
    )
    for need in needs:
        for ours, theirs in zip(
            need.of(tapped(found), labels, target[need]), target[need], strict=True
        ):
            torch.testing.assert_close(ours.mean, theirs.mean, atol=1e-3, rtol=0)
            torch.testing.assert_close(ours.variance, theirs.variance, atol=1e-3, rtol=0)
