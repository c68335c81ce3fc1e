"""Spectral matching against explicit eigendecompositions, its averages over blocks, and what it
keeps of the real side.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rayd.config import NetworkSettings
from rayd.errors import ConfigError, RunError
from rayd.networks import FeatureExtractor, LayerRole, Observation, build
from rayd.objectives import Context, RealStatistics, SpectralFilterDistance, StatisticSpec, factors
from rayd.objectives.factors import Factors, Filters
from rayd.objectives.filters import (
    AllPass,
    Filter,
    GradientStep,
    GradientSum,
    LowPass,
    Ridge,
    Spectrum,
)
from rayd.objectives.running import RunningMeans
from rayd.objectives.spectral_filter_distance import distances
from rayd.statistics import Channels, Covariance, LabelCorrelation, Pooled

CLASSES = 3
SHAPES: list[tuple[int, ...]] = [(3, 4, 4), (5, 4, 3), (3, 2, 2), (5, 1, 1)]
LABELS = torch.tensor([0, 2, 2, 0, 2])
FFC = StatisticSpec(LayerRole.CONV_PATH, Channels(), Pooled(Covariance))
FLC = StatisticSpec(LayerRole.CONV_PATH, Channels(), LabelCorrelation)


def observation(seed: int, count: int, dtype: torch.dtype = torch.float64) -> Observation:
    draw = torch.Generator().manual_seed(seed)
    maps = tuple(
        (torch.randn(count, *shape, generator=draw, dtype=torch.float64) + 1).to(dtype)
        for shape in SHAPES
    )
    return Observation(
        torch.zeros(count, CLASSES, dtype=dtype),
        {LayerRole.CONV_PATH: maps},
        torch.zeros(count, 1, 4, 4),
    )


def with_leaves(seen: Observation) -> tuple[Observation, list[Tensor]]:
    maps = tuple(layer.clone().requires_grad_() for layer in seen.layers[LayerRole.CONV_PATH])
    return Observation(seen.logits, {LayerRole.CONV_PATH: maps}, seen.images), list(maps)


def real_side(
    dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[RealStatistics, Observation, Tensor]:
    """Statistics of forty real images, in two batches; the maps that they are of; the labels."""
    seen = observation(seed, 40)
    labels = torch.arange(40) % CLASSES
    empty = {need: need.empty(CLASSES, SHAPES) for need in (FFC, FLC)}
    for rows in (slice(0, 27), slice(27, 40)):
        part = Observation(
            seen.logits[rows],
            {LayerRole.CONV_PATH: tuple(m[rows] for m in seen.layers[LayerRole.CONV_PATH])},
            seen.images,
        )
        for need, statistics in empty.items():
            need.update(statistics, part, labels[rows])
    return (
        {
            need: tuple(one.to(dtype=dtype) for one in statistics)
            for need, statistics in empty.items()
        },
        seen,
        labels,
    )


def fixed(matrix: Filter, signal: Filter | None = None) -> Callable[[Context], Filters]:
    return lambda _: Filters(matrix, signal or matrix)


def by_hand(maps: Tensor, labels: Tensor, signal: str) -> tuple[Tensor, Tensor]:
    """Covariance (d, d) and signal (d, m), one vector after another."""
    vectors = [
        image[:, i, j] for image in maps for i in range(maps.shape[2]) for j in range(maps.shape[3])
    ]
    names = [int(label) for label in labels for _ in range(maps.shape[2] * maps.shape[3])]
    mean = sum(vectors) / len(vectors)
    covariance = sum(torch.outer(x - mean, x - mean) for x in vectors) / len(vectors)
    by_class = torch.eye(CLASSES, dtype=maps.dtype)
    flc = sum(torch.outer(x, by_class[name]) for x, name in zip(vectors, names, strict=True)) / len(
        vectors
    )
    return covariance, flc if signal == "class" else mean.unsqueeze(1)


def eigen(function: Filter, matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(function.response(values)) @ vectors.T


def reference(
    seen: Observation, labels: Tensor, filters: Filters, signal: str, weights: tuple[float, float]
) -> Tensor:
    """The formula at the head of the module, layer by layer, through explicit
    eigendecompositions.
    """
    _, real, known = real_side()
    total = torch.zeros((), dtype=torch.float64)
    for ours, theirs in zip(
        seen.layers[LayerRole.CONV_PATH], real.layers[LayerRole.CONV_PATH], strict=True
    ):
        (mine, my_signal) = by_hand(ours, labels, signal)
        (target, its_signal) = by_hand(theirs, known, signal)
        total = (
            total
            + weights[0] * (eigen(filters.matrix, target) - eigen(filters.matrix, mine)).norm()
        )
        filtered = (
            eigen(filters.signal, target) @ its_signal - eigen(filters.signal, mine) @ my_signal
        )
        total = total + weights[1] * filtered.norm()
    return total


@pytest.mark.parametrize("signal", ["class", "mean"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 2.0), (0.5, 0.0)])
@pytest.mark.parametrize(
    "filters",
    [
        Filters(Ridge(0.1), Ridge(0.1)),
        Filters(Ridge(1e-4), Ridge(1e-4)),
        Filters(LowPass(), AllPass()),
        Filters(GradientStep(0.3, 5), GradientSum(0.3, 5)),
        Filters(LowPass(), Ridge(1.0)),
    ],
    ids=str,
)
def test_value_and_gradient_are_those_of_the_formula(filters, weights, signal):
    real, _, _ = real_side()
    term = SpectralFilterDistance(
        lambda _: filters, signal=signal, filter_weight=weights[0], signal_weight=weights[1]
    )
    seen, leaves = with_leaves(observation(1, len(LABELS)))
    value = term(real, seen, LABELS, Context())
    expected = reference(seen, LABELS, filters, signal, weights)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=0)
    ours, theirs = (
        torch.autograd.grad(loss, leaves[:3], allow_unused=True) for loss in (value, expected)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


def test_all_pass_compares_signals_alone():
    """Distribution matching: no distance of matrices, plain distances of class means in all
    layers.
    """
    real, theirs, known = real_side()
    seen = observation(1, len(LABELS))
    value = SpectralFilterDistance(fixed(AllPass()))(real, seen, LABELS, Context())
    layers = zip(seen.layers[LayerRole.CONV_PATH], theirs.layers[LayerRole.CONV_PATH], strict=True)
    expected = sum(
        (by_hand(a, LABELS, "class")[1] - by_hand(b, known, "class")[1]).norm() for a, b in layers
    )
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "filters", [Filters(Ridge(0.1), Ridge(0.1)), Filters(GradientStep(0.3, 3), LowPass())], ids=str
)
@pytest.mark.parametrize("signal", ["class", "mean"])
def test_gradcheck(filters, signal):
    real, _, _ = real_side()
    term = SpectralFilterDistance(lambda _: filters, signal=signal)
    seen, leaves = with_leaves(observation(1, len(LABELS)))

    def value(*maps: Tensor) -> Tensor:
        return term(
            real,
            Observation(seen.logits, {LayerRole.CONV_PATH: maps}, seen.images),
            LABELS,
            Context(),
        )

    assert torch.autograd.gradcheck(value, leaves)


def test_the_real_images_themselves_are_at_no_distance_and_without_pull():
    real, images, labels = real_side()
    seen, leaves = with_leaves(images)
    value = SpectralFilterDistance(fixed(Ridge(0.1)))(real, seen, labels, Context())
    assert float(value.detach()) < 1e-11
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(value, leaves))
    equal = torch.ones(2, 3, 3, requires_grad=True)
    assert torch.equal(
        torch.autograd.grad(distances(equal.detach(), equal), equal)[0], torch.zeros(2, 3, 3)
    )


def test_descent_finds_the_covariance_and_the_class_means():
    """Gaussian features straight to the term: matched through a ridge, all of both is found."""
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=draw, dtype=torch.float64)
    labels = torch.arange(300) % CLASSES
    theirs = 0.3 * torch.randn(
        300, 4, generator=draw, dtype=torch.float64
    ) @ mixing + labels.unsqueeze(1)
    need = StatisticSpec(LayerRole.FEATURES, Channels(), Pooled(Covariance))
    flc = StatisticSpec(LayerRole.FEATURES, Channels(), LabelCorrelation)
    real = {one: one.empty(CLASSES, [(4,)]) for one in (need, flc)}
    for one, statistics in real.items():
        one.update(statistics, Observation(theirs, {LayerRole.FEATURES: (theirs,)}, theirs), labels)
    term = SpectralFilterDistance(fixed(Ridge(1.0)), tap=LayerRole.FEATURES)
    ours = torch.randn(12, 4, generator=draw, dtype=torch.float64).requires_grad_()
    some = torch.arange(12) % CLASSES
    optimizer = torch.optim.Adam([ours], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for _ in range(500):
        optimizer.zero_grad()
        term(
            real, Observation(ours, {LayerRole.FEATURES: (ours,)}, ours), some, Context()
        ).backward()
        optimizer.step()
        schedule.step()
    found = Covariance.of_all(ours.detach().unsqueeze(1))
    torch.testing.assert_close(found.covariance, real[need][0].covariance, rtol=0.02, atol=0.05)
    means = torch.stack([ours.detach()[some == c].mean(0) for c in range(CLASSES)])
    torch.testing.assert_close(
        means,
        torch.stack([theirs[labels == c].mean(0) for c in range(CLASSES)]),
        rtol=0.02,
        atol=0.05,
    )


@pytest.mark.parametrize("beta", [1e-6, 1e-12])
def test_one_image_of_one_position_under_a_tiny_ridge(beta):
    """Correlations of rank 0 and 1 in float32: finite values and gradients, near those of
    float64.
    """
    losses = []
    pulls = []
    for dtype in (torch.float32, torch.float64):
        real, _, _ = real_side(dtype)
        seen, leaves = with_leaves(observation(1, 2, dtype))
        term = SpectralFilterDistance(fixed(Ridge(beta)), signal="mean")
        losses.append(term(real, seen, LABELS[:2], Context()))
        pulls.append(torch.autograd.grad(losses[-1], leaves))
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=1e-3, atol=0)
    for low, high in zip(*pulls, strict=True):
        assert low.dtype == torch.float32
        assert low.isfinite().all()
        assert (low - high).norm() <= 1e-2 * high.norm()


def test_details_below_rounding_are_worked_on_in_double(monkeypatch):
    seen = []
    original = factors.through

    def spy(filters: Filters, matrices: list[Tensor], signals: list[Tensor]) -> Any:
        seen.extend(one.dtype for one in matrices)
        return original(filters, matrices, signals)

    monkeypatch.setattr("rayd.objectives.spectral_filter_distance.through", spy)
    real, _, _ = real_side(torch.float32)
    for beta in (0.1, 1e-6):
        SpectralFilterDistance(fixed(Ridge(beta)))(
            real, observation(1, 5, torch.float32), LABELS, Context()
        )
    assert seen == [torch.float32] * 2 + [torch.float64] * 2


def test_features_that_are_not_finite_are_one_clear_error():
    real, _, _ = real_side()
    seen = observation(1, len(LABELS))
    seen.layers[LayerRole.CONV_PATH][1][0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="no longer finite; lower synthesis"):
        SpectralFilterDistance(fixed(Ridge(0.1)))(real, seen, LABELS, Context())


def test_gradient_steps_that_diverge_are_refused():
    real, _, _ = real_side()
    largest = max(float(torch.linalg.eigvalsh(one.covariance[0])[-1]) for one in real[FFC])
    SpectralFilterDistance(fixed(GradientStep(1.99 / largest, 4)))(
        real, observation(1, 5), LABELS, Context()
    )
    with pytest.raises(
        ConfigError, match=f"diverge: it must be below {2 / largest:.4g}".replace(".", r"\.")
    ):
        SpectralFilterDistance(fixed(GradientStep(2.01 / largest, 4)))(
            real, observation(1, 5), LABELS, Context()
        )


def test_weights_that_leave_nothing_are_refused():
    for weights in ((0.0, 0.0), (-1.0, 2.0)):
        with pytest.raises(ValueError, match="must not be negative, nor both 0"):
            SpectralFilterDistance(
                fixed(Ridge(0.1)), filter_weight=weights[0], signal_weight=weights[1]
            )


def test_only_what_is_compared_is_needed():
    assert SpectralFilterDistance(fixed(Ridge(0.1))).specs == (FFC, FLC)
    assert SpectralFilterDistance(fixed(Ridge(0.1)), signal="mean").specs == (FFC,)
    assert SpectralFilterDistance(fixed(Ridge(0.1)), signal_weight=0.0).specs == (FFC,)


# Averages over blocks


def blocks_of(
    term: SpectralFilterDistance, real: RealStatistics, seeds: list[list[int]]
) -> list[Tensor]:
    """The value at the last look at each block, memory handed over from each to the next."""
    memory: dict[str, Tensor] = {}
    values = []
    for block, looks in enumerate(seeds):
        memory = dict(memory)
        for step, seed in enumerate(looks):
            context = Context(
                memory=memory, progress=step / len(looks), block=block, blocks=len(seeds)
            )
            value = term(real, observation(seed, len(LABELS)), LABELS, context)
        values.append(value)
    return values


@pytest.mark.parametrize("signal", ["class", "mean"])
def test_blocks_are_averaged_with_what_the_last_looks_at_those_before_gave(signal):
    real, theirs, known = real_side()
    term = SpectralFilterDistance(fixed(Ridge(0.1)), signal=signal, updating=True)
    values = blocks_of(term, real, [[1, 2], [3, 4, 5], [6, 7]])
    statistics = [
        [
            by_hand(maps, LABELS, signal)
            for maps in observation(seed, len(LABELS)).layers[LayerRole.CONV_PATH]
        ]
        for seed in (2, 5, 7)
    ]
    means = statistics[0]
    for b, value in enumerate(values, start=1):
        if b > 1:
            both = zip(means, statistics[b - 1], strict=True)
            means = [
                tuple((1 - 1 / b) * old + new / b for old, new in zip(*pair, strict=True))
                for pair in both
            ]
        expected = 0.0
        for (matrix, vector), maps in zip(means, theirs.layers[LayerRole.CONV_PATH], strict=True):
            target, its = by_hand(maps, known, signal)
            ridge = [
                torch.linalg.inv(one + 0.1 * torch.eye(len(one), dtype=one.dtype))
                for one in (target, matrix)
            ]
            expected += float(
                (ridge[0] - ridge[1]).norm() + (ridge[0] @ its - ridge[1] @ vector).norm()
            )
        assert float(value) == pytest.approx(expected, rel=1e-9)


def test_a_class_that_a_block_lacks_is_averaged_over_the_blocks_that_hold_it():
    """The real images themselves, in blocks of one class and of two, leave no difference."""
    real, seen, labels = real_side()
    term = SpectralFilterDistance(
        fixed(AllPass()), filter_weight=0, signal_weight=1, signal="class", updating=True
    )
    counts = labels.bincount(minlength=CLASSES)
    memory: dict[str, Tensor] = {}
    for block, held in enumerate([[0, 1], [2], [0, 1]]):
        rows = torch.isin(labels, torch.tensor(held))
        maps = tuple(layer[rows] for layer in seen.layers[LayerRole.CONV_PATH])
        part = Observation(seen.logits[rows], {LayerRole.CONV_PATH: maps}, seen.images[rows])
        context = Context(memory=memory, block=block, blocks=3, class_counts=counts)
        value = term(real, part, labels[rows], context)
        # until a block held it, the last class is missing
        assert (float(value) < 1e-12) == (block > 0)


def test_the_mean_passes_its_gradient_on_with_the_weight_of_the_block():
    memory: dict[str, Tensor] = {}
    current = torch.tensor([[[2.0]]], requires_grad=True)
    for block in range(4):
        mean = RunningMeans(Context(memory=memory, block=block, blocks=5))("x", current + block)
        (gradient,) = torch.autograd.grad(mean.sum(), current)
        assert float(gradient) == pytest.approx(1 / (block + 1))
        assert float(mean.detach()) == pytest.approx(2 + block / 2)
    assert not any(tensor.requires_grad for tensor in memory.values())


def test_looks_at_one_block_replace_each_other():
    memory: dict[str, Tensor] = {}
    looks = [(0, 1.0), (0, 3.0), (1, 10.0), (1, 5.0), (2, 9.0)]
    found = []
    for block, value in looks:
        found.append(
            float(
                RunningMeans(Context(memory=memory, block=block, blocks=4))(
                    "x", torch.tensor(value)
                )
            )
        )
    assert found == pytest.approx([1, 3, 6.5, 4, (3 + 5 + 9) / 3])


def test_an_observer_that_missed_a_block_averages_those_that_it_saw():
    memory: dict[str, Tensor] = {}
    seen = [(1, 2.0), (3, 4.0)]
    found = [
        float(RunningMeans(Context(memory=memory, block=b, blocks=5))("x", torch.tensor(v)))
        for b, v in seen
    ]
    assert found == [2.0, 3.0]


def test_one_block_or_none_to_come_needs_no_memory():
    alone = Context()
    RunningMeans(alone)("x", torch.ones(2))
    assert alone.memory == {}
    memory: dict[str, Tensor] = {}
    for block in range(3):
        RunningMeans(Context(memory=memory, block=block, blocks=3))("x", torch.ones(2))
    assert set(memory) == {"block", "before", "x before"}


def test_memory_is_not_changed_in_place():
    real, _, _ = real_side()
    term = SpectralFilterDistance(fixed(Ridge(0.1)), updating=True)
    memory: dict[str, Tensor] = {}
    for block in range(2):
        before = dict(memory)
        copies = {name: tensor.clone() for name, tensor in before.items()}
        term(
            real,
            observation(block, len(LABELS)),
            LABELS,
            Context(memory=memory, block=block, blocks=3),
        )
        assert all(torch.equal(before[name], copies[name]) for name in before)
    assert {name for name in memory if name.endswith("now")} == {
        f"{kind} {d} now" for kind in ("matrix", "signal") for d in (3, 5)
    }


def test_without_updating_nothing_is_remembered():
    real, _, _ = real_side()
    context = Context(block=1, blocks=3)
    SpectralFilterDistance(fixed(Ridge(0.1)))(real, observation(1, len(LABELS)), LABELS, context)
    assert context.memory == {}


# What is kept of the real side


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often real matrices, which have no graph, are factorised."""
    calls = {"solved": 0, "decomposed": 0}
    solve = Ridge.__call__
    decompose = Spectrum.of

    def solving(self: Ridge, matrices: Tensor) -> Tensor:
        calls["solved"] += not matrices.requires_grad
        return solve(self, matrices)

    def decomposing(matrices: Tensor) -> Spectrum:
        calls["decomposed"] += 1
        return decompose(matrices)

    monkeypatch.setattr(Ridge, "__call__", solving)
    monkeypatch.setattr(Spectrum, "of", decomposing)
    return calls


def test_the_real_side_is_filtered_once_while_beta_stays(monkeypatch):
    calls = counted(monkeypatch)
    real, _, _ = real_side()
    term = SpectralFilterDistance(
        lambda context: Filters(Ridge(1 - context.progress), Ridge(1 - context.progress))
    )
    for seed in range(4):
        seen, _ = with_leaves(observation(seed, len(LABELS)))
        term(real, seen, LABELS, Context())
    assert calls == {"solved": 2, "decomposed": 0}  # one a dimension
    for progress in (0.25, 0.5, 0.75, 0.75):
        seen, _ = with_leaves(observation(1, len(LABELS)))
        term(real, seen, LABELS, Context(progress=progress))
    assert calls == {"solved": 2, "decomposed": 2}


def test_what_is_remembered_is_what_would_be_computed_anew():
    real = real_side()[0]
    other = real_side(seed=5)[0]
    seen = observation(1, len(LABELS))
    asked = [(side, Ridge(beta)) for side in (real, other, real) for beta in (0.1, 0.1, 0.01, 0.5)]
    current = Ridge(1.0)
    term = SpectralFilterDistance(lambda _: Filters(current, current))
    values = []
    fresh = []
    for side, current in asked:
        values.append(float(term(side, seen, LABELS, Context())))
        fresh.append(float(SpectralFilterDistance(fixed(current))(side, seen, LABELS, Context())))
    assert values == pytest.approx(fresh, rel=1e-10)
    assert len({round(value, 9) for value in values}) == 6


def test_a_matrix_that_is_shared_with_other_signals_is_not_mistaken():
    real = real_side()[0]
    other = real_side(seed=5)[0]
    seen = observation(1, len(LABELS))
    term = SpectralFilterDistance(fixed(Ridge(0.1)))
    mixed = {FFC: real[FFC], FLC: other[FLC]}
    values = [float(term(side, seen, LABELS, Context())) for side in (real, mixed, real)]
    assert values[0] == values[2] != values[1]


def test_factors_go_with_the_statistics():
    real, _, _ = real_side()
    term = SpectralFilterDistance(fixed(Ridge(0.1)))
    term(real, observation(1, len(LABELS)), LABELS, Context())
    (kept,) = term._derived.values()
    assert isinstance(kept, Factors)
    assert [group.places for group in kept.groups] == [(0, 2), (1, 3)]
    del real
    gc.collect()
    assert len(term._derived) == 0


def test_measured_ffc_is_the_one_pass_covariance_whatever_the_sharding():
    """The part between batches included: batches of other means, merged from shards in two ways."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(60, 4, 3, 3, generator=draw, dtype=torch.float64) + torch.arange(
        60.0
    ).reshape(-1, 1, 1, 1)
    rows = maps.permute(0, 2, 3, 1).reshape(-1, 4)
    for sizes in ([60], [7, 20, 33], [1] * 60):
        whole = FFC.empty(CLASSES, [(4, 3, 3)])
        for part in maps.split(sizes):
            shard = FFC.empty(CLASSES, [(4, 3, 3)])
            FFC.update(
                shard,
                Observation(part, {LayerRole.CONV_PATH: (part.float(),)}, part),
                torch.arange(len(part)) % CLASSES,
            )
            whole = tuple(a.merge(b) for a, b in zip(whole, shard, strict=True))
        (found,) = whole
        assert found.scatter.shape == (1, 4, 4)
        expected = rows.float().double().T.cov(correction=0)
        torch.testing.assert_close(found.covariance[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18", "convnet"])
def test_on_real_networks(name):
    """As many layers as there are convolutions on the path, and gradients for all images, in both
    layouts of memory.
    """
    network = (
        build(NetworkSettings(name=name, norm="batch"), (3, 16, 16), 4, seed=0)
        .eval()
        .requires_grad_(False)
    )
    tapped = FeatureExtractor(network, {LayerRole.CONV_PATH}, (3, 16, 16))
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(8) % 4
    images = torch.randn(8, 3, 16, 16, generator=draw)
    real: RealStatistics = {
        need: need.empty(4, tapped.dimensions(LayerRole.CONV_PATH)) for need in (FFC, FLC)
    }
    for need, statistics in real.items():
        need.update(tuple(statistics), tapped(images), labels)
    real = {
        need: tuple(one.to(dtype=torch.float32) for one in statistics)
        for need, statistics in real.items()
    }
    term = SpectralFilterDistance(fixed(Ridge(0.1)))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        start = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).contiguous(
            memory_format=layout
        )
        start.requires_grad_()
        value = term(real, tapped(start), labels[:4], Context())
        found.append((value.detach(), *torch.autograd.grad(value, start)))
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        assert float((one - other).norm()) < 0.02 * float(other.norm())
    (kept,) = term._derived.values()
    assert sum(len(group.places) for group in kept.groups) == {"resnet18": 17, "convnet": 3}[name]


def test_classes_count_as_often_as_among_the_real_images():
    """The same images of each class, four times as many of the first: by class, no signal is
    apart.
    """
    real, seen, labels = real_side()
    few = torch.cat(
        [
            (labels == 0).nonzero().squeeze(1)[:3].repeat(4),
            *((labels == c).nonzero().squeeze(1)[:3] for c in (1, 2)),
        ]
    )
    even = torch.cat([(labels == c).nonzero().squeeze(1)[:3] for c in range(CLASSES)])
    term = SpectralFilterDistance(fixed(AllPass()), filter_weight=0)

    def apart(rows: Tensor, counts: Tensor | None) -> float:
        maps = tuple(layer[rows] for layer in seen.layers[LayerRole.CONV_PATH])
        some = Observation(seen.logits[rows], {LayerRole.CONV_PATH: maps}, seen.images[rows])
        return float(term(real, some, labels[rows], Context(class_counts=counts)))

    counts = torch.tensor([14, 13, 13])
    assert apart(few, counts) == pytest.approx(apart(even, counts), rel=1e-12)
    assert apart(few, None) != pytest.approx(apart(even, None), rel=1e-2)


def test_a_block_without_a_class_pulls_the_others_as_one_that_has_it():
    real, seen, labels = real_side()
    rows = (labels != 2).nonzero().squeeze(1)[:6]
    maps = tuple(layer[rows].clone().requires_grad_() for layer in seen.layers[LayerRole.CONV_PATH])
    some = Observation(seen.logits[rows], {LayerRole.CONV_PATH: maps}, seen.images[rows])
    term = SpectralFilterDistance(fixed(AllPass()), filter_weight=0)
    _, ours = term._synthetic(real, some, labels[rows], torch.tensor([14, 13, 13]))
    for signal, layer in zip(ours, maps, strict=True):
        mean = layer[labels[rows] == 1].mean((0, 2, 3))
        torch.testing.assert_close(signal[1], mean * 13 / 40)
        assert not signal[2].any()


def descended(matrix: Tensor, signal: Tensor, first: Tensor, size: float, steps: int) -> Tensor:
    """Weights of a linear regression on a covariance and a signal, one gradient step at a time."""
    weights = first
    for _ in range(steps):
        weights = weights - size * (matrix @ weights - signal)
    return weights


@pytest.mark.parametrize(("student", "expert"), [(4, 9), (6, 1)])
def test_two_sided_gradient_filters_are_steps_of_student_and_expert(student, expert):
    """Eq. 10 of UniDD: P steps on the synthetic images against Q steps on the real ones."""
    real, theirs, known = real_side()
    seen = observation(1, len(LABELS))
    term = SpectralFilterDistance(
        lambda _: Filters(GradientStep(0.2, student), GradientSum(0.2, student)),
        real_filters=lambda _: Filters(GradientStep(0.1, expert), GradientSum(0.1, expert)),
    )
    expected = torch.zeros((), dtype=torch.float64)
    layers = zip(seen.layers[LayerRole.CONV_PATH], theirs.layers[LayerRole.CONV_PATH], strict=True)
    for ours, other in layers:
        matrix, signal = by_hand(ours, LABELS, "class")
        target, its_signal = by_hand(other, known, "class")
        one = torch.eye(len(matrix), dtype=torch.float64)
        # what becomes of the first weights, without a signal, and what the signal adds from zero
        kept = descended(matrix, torch.zeros_like(one), one, 0.2, student)
        kept_there = descended(target, torch.zeros_like(one), one, 0.1, expert)
        learned = descended(matrix, signal, torch.zeros_like(signal), 0.2, student)
        learned_there = descended(target, its_signal, torch.zeros_like(signal), 0.1, expert)
        expected = expected + (kept - kept_there).norm() + (learned - learned_there).norm()
    value = term(real, seen, LABELS, Context())
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
