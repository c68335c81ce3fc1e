"""What a measured statistic depends on is in its key, and what it does not is not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from rayd import devices, methods, networks
from rayd.artifacts import content_hash, write_tensors
from rayd.config import Recipe
from rayd.data import ImageData, ImageShape, load
from rayd.engine import statistic_aggregation
from rayd.engine.job import Job
from rayd.engine.network_ids import network_ids
from rayd.engine.observer import DatasetInfo, States
from rayd.engine.open_pool import open_pool
from rayd.engine.stages import measure
from rayd.engine.stages.measure import Measure, shards
from rayd.engine.store import Store
from rayd.engine.worker import Worker
from rayd.networks import LayerRole
from rayd.recipes import assemble
from rayd.statistics import Channels, Covariance, LabelCorrelation, Moments, Pooled
from tests.conftest import tiny


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def key(recipe: Recipe, data: ImageData, network_id: int = 0) -> str:
    (need,) = methods.build(recipe).specs()
    return content_hash(
        Measure(Job(recipe, data, Store())).spec_key(network_ids(recipe)[network_id], need)
    )


@pytest.mark.parametrize(
    "observers",
    [
        {"augmentation": None},
        {"seed": 1},
        {"networks": {"width": 9}},
        {"networks": {"norm": "none"}},
        {"precision": "bfloat16"},
        {"batch_size": 7},
    ],
)
def test_what_changes_the_statistic_changes_its_key(data, observers):
    assert key(tiny(observers=observers), data) != key(tiny(), data)


def test_what_is_drawn_for_given_weights_is_drawn_anew_for_another_seed(data, tmp_path):
    """Weights that are given know no seed, but what they are interpolated with and their
    frequencies do.
    """
    first, *_ = network_ids(tiny())
    given = tmp_path / "weights.safetensors"
    network = networks.build(first.architecture, data.shape, data.classes, seed=0)
    write_tensors(given, network.state_dict(), {})
    taken = {"networks": {"weights": str(given)}, "trained": True, "pool": 1, "per_step": 1}
    recipes = [tiny(observers={**taken, "seed": seed}, squeeze={"epochs": 0}) for seed in (0, 1)]
    assert key(recipes[0], data) != key(recipes[1], data)


def test_members_and_data_have_keys_of_their_own(data):
    assert key(tiny(), data, 0) != key(tiny(), data, 1)
    fewer = tiny(data={"classes": ["0", "1", "2"]})
    assert key(fewer, load(fewer.data)) != key(tiny(), data)


@pytest.mark.parametrize(
    "setting",
    [
        {"seed": 3},
        {"ipc": 2},
        {"observers": {"pool": 9}},
        {"synthesis": {"steps": 5}},
        {"evaluation": {"epochs": 2}},
    ],
)
def test_what_does_not_change_it_shares_it(data, setting):
    assert key(tiny(**setting), data) == key(tiny(), data)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_moments_are_those_of_a_single_pass_in_float64(data, tmp_path, workers):
    """Every statistic of EDC, class-wise and merged over classes, against sums over all that the
    observers hear.
    """
    resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
    networks_ = [
        {"name": "convnet", "width": 5, "depth": depth, "norm": "batch"} for depth in (1, 2)
    ]
    recipe = assemble({
        "method": "edc", "data": {"name": "digits"}, "observers": {"networks": networks_, "batch_size": 100},
        "terms": {"moments": {"patch": 3}}, "resources": resources,
    })  # fmt: skip
    method = methods.build(recipe)
    ids = network_ids(recipe)
    states = [
        networks.build(
            one.architecture, data.shape, data.classes, seed=one.seed(recipe)
        ).state_dict()
        for one in ids
    ]
    with (
        open_pool(recipe.resources, Worker, recipe, DatasetInfo.of(data)) as pool,
        monkeypatched_shards(500),
    ):
        weights = {
            network_id: pool.share(dict(state))
            for network_id, state in zip(ids, states, strict=True)
        }
        measured = Measure(Job(recipe, data, Store(tmp_path)), weights).run(pool)
    images = data.normalization(torch.from_numpy(data.train.images))
    labels = torch.from_numpy(data.train.labels)
    for network_id, state, got in zip(
        ids, states, (measured[one].get() for one in ids), strict=True
    ):
        network = networks.build(network_id.architecture, data.shape, data.classes, seed=0)
        network.load_state_dict(state)
        # the batches that observers see: 100 images, anew in every shard of 500
        batches = [batch for shard in images.split(500) for batch in shard.split(100)]
        seen = observed(network.eval(), method, batches)
        for need in method.specs():
            for layer, statistic in enumerate(got[need.key]):
                maps = torch.cat([part.layers[need.layer_role][layer] for part in seen]).double()
                features = need.transform.vectors(maps)
                check(features, labels, Moments.from_state(statistic))


@pytest.mark.parametrize(
    ("shard", "workers"), [(100, 0), (300, 2), (700, 0), (100, 1), (10_000, 0)]
)
def test_correlations_are_those_of_a_single_pass_whatever_the_sharding(
    data, tmp_path, shard, workers
):
    """Pooled FFC and FLC of every layer of CFM, against products of all feature vectors at once."""
    recipe = assemble({
        "method": "cfm", "data": {"name": "digits"},
        "observers": {"networks": {"name": "convnet", "width": 6, "depth": 2, "norm": "batch"}, "batch_size": 100},
        "resources": {"workers": workers, "threads": 1, "cpus_per_worker": 0.5},
    })  # fmt: skip
    method = methods.build(recipe)
    (network_id,) = network_ids(recipe)
    network = networks.build(
        network_id.architecture, data.shape, data.classes, seed=network_id.seed(recipe)
    ).eval()
    with (
        open_pool(recipe.resources, Worker, recipe, DatasetInfo.of(data)) as pool,
        monkeypatched_shards(shard),
    ):
        weights = {network_id: pool.share(dict(network.state_dict()))}
        measured = Measure(Job(recipe, data, Store(tmp_path)), weights).run(pool)[network_id].get()
    images = data.normalization(torch.from_numpy(data.train.images))
    labels = torch.from_numpy(data.train.labels)
    seen = [
        observation.layers[LayerRole.CONV_PATH]
        for observation in observed(network, method, images.split(100))
    ]
    targets = torch.nn.functional.one_hot(labels, 10).double()
    ffc, flc = (
        measured[f"conv_path.channels.{name}"] for name in ("pooled.Covariance", "LabelCorrelation")
    )
    assert len(ffc) == len(flc) == 2
    for layer, (matrix, signal) in enumerate(zip(ffc, flc, strict=True)):
        features = Channels().vectors(torch.cat([taps[layer] for taps in seen]).double())
        rows = features.flatten(0, 1)
        centred = rows - rows.mean(0)
        found = Covariance.from_state(matrix)
        of_labels = LabelCorrelation.from_state(signal)
        assert found.covariance.shape == (1, rows.shape[1], rows.shape[1])
        torch.testing.assert_close(
            found.covariance[0], centred.T @ centred / len(rows), rtol=1e-9, atol=1e-12
        )
        expected = torch.einsum("nc,nsd->cd", targets, features) / len(rows)
        torch.testing.assert_close(of_labels.correlation, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("images", "size", "count"),
    [(1, 4096, 1), (50_000, 4096, 13), (524_288, 4096, 128), (1_281_167, 10_010, 128)],
)
def test_shards_grow_where_they_would_be_many(images, size, count):
    parts = shards(images)
    assert parts[0].start == 0
    assert parts[-1].stop == images
    assert all(left.stop == right.start for left, right in pairwise(parts))
    assert {part.stop - part.start for part in parts[:-1]} <= {size}
    assert len(parts) == count


@pytest.mark.parametrize(
    ("workers", "shards", "sizes"),
    [(0, 1, [8, 2]), (1, 128, [8, 2]), (2, 10, [8, 2]), (8, 16, [5, 5]), (64, 4, [1] * 10)],
)
def test_as_many_look_together_as_leave_every_worker_enough_items(workers, shards, sizes):
    recipe = tiny(observers={"pool": 10}, resources={"workers": workers})
    pool = list(network_ids(recipe))
    teams = measure.teams(pool, shards, recipe)
    assert [len(team) for team in teams] == sizes
    assert [network_id for team in teams for network_id in team] == pool


@pytest.mark.parametrize(
    ("workers", "alone"),
    [
        (0, []),
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, [0, 1, 2, 3, 5, 6]),
        (3, [0, 1, 2, 5, 6, 7]),
        (4, [0, 1, 2, 3]),
        (6, []),
    ],
)
def test_whole_observers_go_to_workers_where_each_gets_as_many_that_are_alike(workers, alone):
    """Five of one architecture and three of another: the others are measured in shards."""
    wide, narrow = (
        network_ids(tiny(observers={"networks": {"name": "convnet", "width": width}, "pool": pool}))
        for width, pool in ((8, 5), (4, 3))
    )
    networks_ = [*wide, *narrow]
    assert [networks_.index(one) for one in measure._alone(networks_, workers)] == alone


@pytest.mark.parametrize(
    ("method", "workers"), [("dm", 0), ("edc", 0), ("cfm", 0), ("csdm", 0), ("csdm", 2)]
)
def test_a_shard_sends_the_classes_that_it_holds(data, tmp_path, method, workers, monkeypatch):
    """Of ten shards of a class each every class is sent once, and the statistics are those of a
    single shard.
    """
    rows = np.concatenate([rows[:100] for rows in data.train.class_index])
    some = ImageData("digits", data.train.subset(rows), None, data.test, data.normalization)
    networks_ = {"name": "convnet", "width": 6, "depth": 2, "norm": "batch"}
    recipe = assemble({
        "method": method, "data": {"name": "digits"}, "observers": {"networks": networks_, "batch_size": 50},
        "resources": {"workers": workers, "threads": 1, "cpus_per_worker": 0.5},
    })  # fmt: skip
    sent = list[int]()
    merged = statistic_aggregation.merged

    def watched(needs, before, part, *rest):
        sent.append(nbytes(part))
        return merged(needs, before, part, *rest)

    monkeypatch.setattr(statistic_aggregation, "merged", watched)
    built = methods.build(recipe)
    ids = network_ids(recipe)
    states = [
        networks.build(
            one.architecture, data.shape, data.classes, seed=one.seed(recipe)
        ).state_dict()
        for one in ids
    ]
    measured = []
    for shard in (100, 1000):
        sent.clear()
        with (
            open_pool(recipe.resources, Worker, recipe, DatasetInfo.of(some)) as pool,
            monkeypatched_shards(shard),
        ):
            weights = {}
            if recipe.observers.trained:
                weights = {
                    one: pool.share(dict(state)) for one, state in zip(ids, states, strict=True)
                }
            store = Store(tmp_path / str(shard))
            found = Measure(Job(recipe, some, store), weights).run(pool)
        measured.append({network_id: stored.get() for network_id, stored in found.items()})
        if workers > 0:
            # they are merged in other processes
            assert not sent
            continue
        assert len(sent) == len(measured[0]) * 1000 // shard
        # a row of all classes together, and what else has no classes, come with every shard, but
        # frequencies with the first
        again = 0 if shard == 1000 else 9
        expected = 0
        for network_id, state in measured[-1].items():
            for need in built.specs(network_id.group):
                for layer in state[need.key]:
                    every = (
                        set(layer) if isinstance(need.kind, Pooled) else need.kind.statistic.shared
                    ) - need.kind.statistic.constant
                    expected += sum(
                        t.nbytes * (1 + again * (name in every)) for name, t in layer.items()
                    )
        assert sum(sent) == expected
    ours, whole = measured
    for network_id in whole:
        for key, layers in whole[network_id].items():
            for left, right in zip(ours[network_id][key], layers, strict=True):
                assert left.keys() == right.keys()
                for name in right:
                    torch.testing.assert_close(left[name], right[name], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def observed(
    network: nn.Module, method: methods.Method, batches: Sequence[torch.Tensor]
) -> list[networks.Observation]:
    """What an observer's network computes, in the memory layout in which an observer runs it.

    Convolution kernels of another layout may round otherwise (by 2e-8 on processors without
    AVX-512), which is far more than what float64 sums are compared to.
    """
    layout = devices.to_device(network, torch.device("cpu"))
    tapped = networks.FeatureExtractor(
        network, method.layer_roles(), ImageShape(*batches[0].shape[1:])
    )
    return [tapped(batch.contiguous(memory_format=layout)) for batch in batches]


def nbytes(states: States) -> int:
    """Bytes of all tensors."""
    return sum(
        tensor.nbytes for layers in states.values() for state in layers for tensor in state.values()
    )


def check(features: torch.Tensor, labels: torch.Tensor, got: Moments) -> None:
    """Compare with moments in one pass over all features (N, s, d)."""

    def same(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    for label in range(10):
        mine = features[labels == label].flatten(0, 1)
        same(got.mean[label], mine.mean(0))
        same(got.variance[label], mine.var(0, correction=0))
        same(got.within_variance[label], features[labels == label].var(1, correction=0).mean(0))
    everything = got.pooled()
    same(everything.mean[0], features.flatten(0, 1).mean(0))
    same(everything.variance[0], features.flatten(0, 1).var(0, correction=0))


@contextmanager
def monkeypatched_shards(size: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SHARD", size)
        yield
