"""Characteristic functions, measured once or sampled each step: whole runs of CSDM and NCFM on
digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rayd import methods, networks
from rayd.artifacts import content_hash, read_tensors
from rayd.config import Recipe, merge
from rayd.data import ImageData, load
from rayd.engine.distill import distill
from rayd.engine.gradients.feature_matching import RealBatches
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo, Observer
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.open_pool import open_pool
from rayd.engine.plan import plan
from rayd.engine.pool import LocalRef
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.store import Store
from rayd.engine.worker import Worker
from rayd.recipes import assemble
from rayd.statistics import CharacteristicFunction, Frequencies
from rayd.statistics.frequencies import median_distance
from tests.engine.test_decoupled import stages_of
from tests.engine.test_measure import monkeypatched_shards, observed
from tests.faults import break_off, check_resumes
from tests.runs import NO_STUDENTS, QUIET, bytes_of, log_of

NETWORK = {"name": "convnet", "depth": 1, "width": 6}
TAIL = {"data": {"imbalance": 100}, "ipc": 4}
"""Class 9 has one image, fewer than the budget."""


def csdm(**overrides: Any) -> Recipe:
    base = {
        "name": "tiny-csdm",
        "method": "csdm",
        "data": {"name": "digits"},
        "ipc": 2,
        "observers": {
            "networks": NETWORK,
            "pool": 3,
            "augmentation": "crop_scale_rotate",
            "real_batch": 32,
        },
        "terms": {"characteristic_function": {"frequencies": 40}},
        "synthesis": {"steps": 6, "log_every": 2, "checkpoint_every": 3, "learning_rate": 0.1},
        "evaluation": {"networks": [NETWORK], "seeds": 1, "epochs": 2, "baselines": []},
        "resources": {"threads": 1},
    }
    return assemble(base, overrides)


def ncfm(**overrides: Any) -> Recipe:
    """Trained observers between their first and their last weights, four images in one."""
    base = {
        "name": "tiny-ncfm",
        "method": "ncfm",
        "ipc": 1,
        "observers": {"augmentation": "color_crop_cutout"},
        "squeeze": {"epochs": 2, "batch_size": 64, "transform": {"shift": 1, "flip": False}},
    }
    return csdm(**merge(base, overrides))


RECIPES = {
    "csdm": csdm,
    "csdm sampled": lambda **more: csdm(**merge({"real": "sampled"}, more)),
    "csdm long-tailed": lambda **more: csdm(**merge(TAIL, more)),
    "csdm linear": lambda **more: csdm(
        **merge({"terms": {"characteristic_function": {"kernel": "linear"}}}, more)
    ),
    "ncfm": ncfm,
    "ncfm sampled": lambda **more: ncfm(**merge({"real": "sampled"}, more)),
    "ncfm adversarial": lambda **more: ncfm(
        **merge(
            {
                "terms": {
                    "characteristic_function": {"sampling_network": True, "sampling_rate": 0.1}
                }
            },
            more,
        )
    ),
}

SAMPLED = [which for which in RECIPES if "sampled" in which]


@pytest.mark.parametrize("which", RECIPES)
def test_a_run_goes_through_its_stages_and_lowers_its_loss(tmp_path, which):
    steps = {
        "steps": 60,
        "log_every": 3,
        "checkpoint_every": 30,
        "learning_rate": 0.02,
        "optimizer": "adam",
        "momentum": 0.9,
    }
    recipe = RECIPES[which](synthesis=steps)
    run = distill(recipe, tmp_path / "run", progress=QUIET)
    stages = (
        ["squeeze"] * (recipe.method == "ncfm")
        + ["measure"] * (recipe.real == "measured")
        + ["synthesize", "evaluate"]
    )
    assert stages_of(tmp_path / "run") == stages
    logged = [line for line in log_of(tmp_path / "run") if "loss" in line]
    assert sum(line["characteristic_function"] for line in logged[-3:]) < 0.95 * sum(
        line["characteristic_function"] for line in logged[:3]
    )
    for line in logged:
        assert line["loss"] == pytest.approx(
            300 * line["characteristic_function"] + line.get("calibration", 0), rel=1e-5
        )
    assert len(run.distilled) == 10 * (recipe.ipc if recipe.method == "csdm" else 4)
    assert torch.isfinite(run.distilled.images).all()


@pytest.mark.parametrize(
    "which",
    [pytest.param(one, marks=pytest.mark.slow) for one in ("csdm", "ncfm adversarial", *SAMPLED)],
)
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, which):
    results = []
    for workers in (0, 1, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        recipe = RECIPES[which](resources=resources, observers={"per_step": 2}, **NO_STUDENTS)
        with monkeypatched_shards(400):
            distill(
                recipe, tmp_path / str(workers), cache=tmp_path / f"cache{workers}", progress=QUIET
            )
        results.append(bytes_of(tmp_path / str(workers)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("which", ["csdm", "csdm sampled", "ncfm", "ncfm adversarial"])
@pytest.mark.parametrize("at", [2, 4])
def test_an_interrupted_synthesis_resumes_to_the_same_bytes(tmp_path, which, at):
    recipe = RECIPES[which](**NO_STUDENTS)
    check_resumes(recipe, tmp_path, at)


def test_a_second_run_measures_nothing(tmp_path, monkeypatch):
    distill(ncfm(**NO_STUDENTS), tmp_path / "first", progress=QUIET)
    for stage in ("squeeze", "measure"):
        monkeypatch.setattr(Worker, stage, None)
    another = {
        "seed": 3,
        "terms": {
            "characteristic_function": {
                "head_amplitude_weight": 0.9,
                "root": False,
                "sampling_network": True,
            }
        },
    }
    distill(ncfm(ipc=2, **another, **NO_STUDENTS), tmp_path / "second", progress=QUIET)


def measured(
    recipe: Recipe, data: ImageData, cache: Path, shard: int
) -> dict[NetworkId, CharacteristicFunction]:
    """What every observer measures, in shards of a size."""
    method = methods.build(recipe)
    store = Store(cache)
    (need,) = method.specs()
    with (
        open_pool(recipe.resources, Worker, recipe, DatasetInfo.of(data)) as pool,
        monkeypatched_shards(shard),
    ):
        trained = {}
        if recipe.observers.trained:
            trained = Squeeze(Job(recipe, data, store), network_ids(recipe)).run(pool)
        weights = {network_id: pool.share(one.state) for network_id, one in trained.items()}
        states = Measure(Job(recipe, data, store), weights).run(pool)
    looking = network_ids(recipe)
    return {
        network_id: CharacteristicFunction.from_state(states[network_id].get()[need.key][0])
        for network_id in looking
    }


@pytest.mark.parametrize(
    ("shard", "workers"),
    [(130, 0), (500, 0), (4096, 0), pytest.param(500, 2, marks=pytest.mark.slow)],
)
def test_measured_functions_are_those_of_one_pass_in_float64(tmp_path, shard, workers):
    resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
    recipe = csdm(observers={"augmentation": None, "batch_size": 100}, resources=resources)
    data = load(recipe.data)
    (need,) = methods.build(recipe).specs()
    images = data.normalization(torch.from_numpy(data.train.images))
    labels = torch.from_numpy(data.train.labels)
    for network_id, got in measured(recipe, data, tmp_path, shard).items():
        network = networks.build(
            network_id.architecture, data.shape, data.classes, seed=network_id.seed(recipe)
        ).eval()
        # the batches that observers see: 100 images, anew in every shard
        batches = [batch for part in images.split(shard) for batch in part.split(100)]
        seen = observed(network, methods.build(recipe), batches)
        angles = (
            torch.cat([observation.layers[need.layer_role][0] for observation in seen])
            .double()
            .flatten(1)
            @ got.frequencies.T
        )
        for label in range(10):
            mine = angles[labels == label]
            assert got.count[label] == len(mine)
            torch.testing.assert_close(got.real[label], mine.cos().mean(0), rtol=0, atol=1e-12)
            torch.testing.assert_close(got.imaginary[label], mine.sin().mean(0), rtol=0, atol=1e-12)


def test_the_cut_into_shards_changes_the_last_digits_alone(tmp_path):
    recipe = ncfm()
    data = load(recipe.data)
    whole, cut = (
        list(measured(recipe, data, tmp_path / str(shard), shard).values()) for shard in (4096, 100)
    )
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(one.frequencies, other.frequencies)
        # float32 networks see other batches
        torch.testing.assert_close(one.cosine, other.cosine, rtol=0, atol=1e-3)
    assert not torch.equal(whole[0].frequencies, whole[1].frequencies)


def test_frequencies_travel_with_the_first_shard_alone(tmp_path, monkeypatch):
    recipe = csdm()
    travelled: list[bool] = []
    inner = Worker.measure

    def watched(self: Worker, *asked: Any) -> Any:
        team = inner(self, *asked)
        travelled.extend(
            any("frequencies" in layer for layers in states.values() for layer in layers)
            for states in team
        )
        return team

    monkeypatch.setattr(Worker, "measure", watched)
    measured(recipe, load(recipe.data), tmp_path, 500)
    # observer after observer
    assert travelled == [True, False, False] * 3


def test_every_observer_has_a_length_and_frequencies_of_its_own_that_do_not_depend_on_the_run(
    tmp_path,
):
    data = load(csdm().data)
    before, after = (
        list(measured(recipe, data, tmp_path / str(index), 4096).values())
        for index, recipe in enumerate((csdm(), csdm(seed=5, ipc=1)))
    )
    norms = [float(one.frequencies.norm()) for one in before]
    assert len({round(norm, 9) for norm in norms}) == 3
    assert all(
        torch.equal(a.frequencies, b.frequencies) for a, b in zip(before, after, strict=True)
    )


def test_a_sampled_length_is_that_of_the_whole_batch_whatever_the_chunks():
    recipe = csdm(real="sampled")
    data = load(recipe.data)
    (need,) = methods.build(recipe).specs()
    pixels, classes = RealBatches((data.train.images, data.train.labels)).draw(recipe, 0, 0)
    images = data.normalization(torch.from_numpy(pixels[:]))
    labels = torch.from_numpy(classes)
    observer = ObserverTasks(recipe, DatasetInfo.of(data))._networks.fixed(
        network_ids(recipe)[0], None, "float32"
    )
    whole = observer.forward(images).layers[need.layer_role][0].flatten(1)
    unit = Frequencies(scale=1.0, number=40).draw(whole.shape[1], torch.Generator().manual_seed(0))
    for chunk in (1, 32, len(labels)):
        ((function,),) = observer.sample(
            images, labels, chunk, draws=lambda _: torch.Generator().manual_seed(0)
        ).values()
        assert isinstance(function, CharacteristicFunction)
        torch.testing.assert_close(
            function.frequencies.double(), unit / median_distance(whole), rtol=1e-5, atol=0
        )
        assert function.count.tolist() == [32] * 10


def test_a_sampled_step_draws_its_frequencies_anew(tmp_path, monkeypatch):
    drawn = []
    inner = Observer.sample

    def watched(self: Observer, *asked: Any) -> Any:
        real = inner(self, *asked)
        drawn.extend(float(function.frequencies[0, 0]) for (function,) in real.values())
        return real

    monkeypatch.setattr(Observer, "sample", watched)
    distill(
        csdm(
            real="sampled",
            observers={"per_step": 2},
            terms={"characteristic_function": {"scale": 1.0}},
            **NO_STUDENTS,
        ),
        tmp_path,
        progress=QUIET,
    )
    assert len(set(drawn)) == len(drawn) == 12


@pytest.mark.parametrize(
    "other",
    [
        {"observers": {"interpolate": False}},
        {"terms": {"characteristic_function": {"frequencies": 41}}},
        {"terms": {"characteristic_function": {"scale": 1.5}}},
        {"terms": {"characteristic_function": {"scale": "median"}}},
        {"terms": {"characteristic_function": {"kernel": "laplace"}}},
        {"terms": {"characteristic_function": {"normalize": False}}},
        {"squeeze": {"epochs": 3}},
    ],
)
def test_what_changes_the_function_changes_its_key(other):
    data = load(ncfm().data)

    def key(recipe: Recipe) -> str:
        (need,) = methods.build(recipe).specs()
        return content_hash(
            Measure(Job(recipe, data, Store())).spec_key(network_ids(recipe)[0], need)
        )

    assert key(ncfm(**other)) != key(ncfm())
    assert key(
        ncfm(terms={"characteristic_function": {"root": False, "over_classes": "mean"}}, seed=4)
    ) == key(ncfm())


def test_interpolated_observers_stand_between_their_first_and_their_last_weights():
    recipe = ncfm()
    data = load(recipe.data)
    observers = ObserverTasks(recipe, DatasetInfo.of(data))
    places = []
    for network_id in network_ids(recipe):
        first = networks.build(
            network_id.architecture, data.shape, data.classes, seed=network_id.seed(recipe)
        ).state_dict()
        last = {name: torch.ones_like(value) for name, value in first.items()}
        now = observers._networks.fixed(network_id, LocalRef(last), "float32").network.state_dict()
        shares = torch.cat(
            [
                ((now[name] - 1) / (first[name] - 1)).flatten()
                for name in first
                if (first[name] != 1).all()
            ]
        )
        places.append(float(shares.median()))
        torch.testing.assert_close(shares, shares.median().expand_as(shares), atol=1e-4, rtol=1e-3)
    assert all(0 <= place <= 1 for place in places)
    assert len({round(place, 4) for place in places}) == 3


def test_what_terms_keep_for_networks_of_a_model_pool_is_in_checkpoints(tmp_path):
    """Their numbers go beyond `observers.pool`, by which other networks are counted."""
    recipe = csdm(
        real="sampled",
        observers={"pool": 1, "model_pool": {"start": 1, "push_every": 2, "capacity": 1}},
        terms={"characteristic_function": {"sampling_network": True, "sampling_rate": 0.3}},
        evaluation={"comparisons": []},
    )
    whole = distill(recipe, tmp_path / "whole", cache=tmp_path / "a", progress=QUIET)
    break_off(recipe, tmp_path / "broken", 4, cache=tmp_path / "b")
    resumed = distill(
        recipe, tmp_path / "broken", cache=tmp_path / "b", resume=True, progress=QUIET
    )
    assert torch.equal(resumed.distilled.images, whole.distilled.images)


def test_interpolated_observers_score_crops_with_their_trained_weights():
    """The key of scores in the store knows nothing of interpolation: other runs find them there."""
    data = load(ncfm().data)
    images = LocalRef(data.train.images[data.train.class_index[3][:4]])
    scores = []
    for interpolate in (True, False):
        recipe = ncfm(observers={"interpolate": interpolate})
        network_id = network_ids(recipe)[0]
        trained = networks.build(network_id.architecture, data.shape, data.classes, seed=5)
        worker = Worker(recipe, DatasetInfo.of(data))
        weights = LocalRef(trained.state_dict())
        scores += list(worker.score(network_id, weights, 3, images))
    assert torch.equal(scores[0]["loss"], scores[1]["loss"])


def test_interpolated_observers_are_calibrated_by_themselves_as_trained(tmp_path):
    squeeze = {
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": 0.05,
        "transform": {"shift": 1, "flip": False},
    }
    # the first line is that of the first step: afterwards the runs have different images
    changes = {"squeeze": squeeze, "synthesis": {"log_every": 1}}
    recipe = ncfm(**changes)
    method = methods.build(recipe)
    assert [method.group_of(term) for term in method.terms] == ["observers", "classifiers"]
    own = recipe.observers
    same = {"networks": NETWORK, "pool": own.pool, "augmentation": own.augmentation}
    # classifiers are drawn at random by default, observers in turn
    same |= {"order": own.order}
    same |= {"squeeze": recipe.squeeze.model_dump(exclude_unset=True)}
    distill(recipe, tmp_path / "run", cache=tmp_path / "cache", progress=QUIET)
    distill(
        ncfm(**changes, classifiers=same),
        tmp_path / "named",
        cache=tmp_path / "cache",
        progress=QUIET,
    )
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "named")
    assert len(list((tmp_path / "cache" / "squeeze").glob("*.safetensors"))) == own.pool
    text = plan(recipe, cache=tmp_path / "elsewhere", progress=QUIET).text()
    assert (
        "3 of 3 observers (convnet-d1-w6 #0, convnet-d1-w6 #1, convnet-d1-w6 #2) learn 2 epochs"
        in text
    )
    where_they_are = {**same, "interpolate": True}
    distill(
        ncfm(**changes, classifiers=where_they_are),
        tmp_path / "between",
        cache=tmp_path / "cache",
        progress=QUIET,
    )
    first, between = (
        next(line for line in log_of(tmp_path / run) if "loss" in line)
        for run in ("run", "between")
    )
    assert first["characteristic_function"] == between["characteristic_function"]
    assert first["calibration"] != between["calibration"]


def test_a_class_smaller_than_the_budget_gives_its_images_more_than_once(tmp_path):
    still = {"synthesis": {"learning_rate": 1e-12}}
    run = distill(csdm(**merge(merge(TAIL, still), NO_STUDENTS)), tmp_path / "run", progress=QUIET)
    tail = run.distilled.images[run.distilled.labels == 9]
    assert len(torch.unique(tail, dim=0)) < len(tail) == 4
    learned = distill(
        csdm(**merge(TAIL, NO_STUDENTS)), tmp_path / "learned", progress=QUIET
    ).distilled
    assert torch.isfinite(learned.images).all()


@pytest.mark.parametrize("real", ["measured", "sampled"])
def test_head_and_tail_are_told_by_the_sizes_of_classes(tmp_path, real):
    """With the sampled real side too, whose batches hold as many images of every class."""
    images = []
    for index, settings in enumerate(({"split": "median"}, {"split": "uniform"})):
        recipe = csdm(
            real=real, terms={"characteristic_function": settings}, **merge(TAIL, NO_STUDENTS)
        )
        images.append(distill(recipe, tmp_path / str(index), progress=QUIET).distilled.images)
    same = [
        torch.equal(*(some[label * 4 : label * 4 + 4] for some in images)) for label in range(10)
    ]
    assert same == [True] * 5 + [False] * 5


def test_a_run_reports_head_and_tail_by_the_sizes_of_classes(tmp_path):
    (result,) = distill(csdm(**TAIL), tmp_path, progress=QUIET).report.results
    assert result.head_accuracy == pytest.approx(sum(result.per_class[:5]) / 5)
    assert result.tail_accuracy == pytest.approx(sum(result.per_class[5:]) / 5)
    (result,) = distill(csdm(), tmp_path / "even", progress=QUIET).report.results
    assert result.head_accuracy is result.tail_accuracy is None


def test_the_sampling_network_is_kept_with_the_synthesis_and_moves_it(tmp_path):
    distill(RECIPES["ncfm adversarial"](**NO_STUDENTS), tmp_path / "with", progress=QUIET)
    distill(ncfm(**NO_STUDENTS), tmp_path / "without", progress=QUIET)
    assert bytes_of(tmp_path / "with") != bytes_of(tmp_path / "without")
    tensors, _ = read_tensors(max((tmp_path / "with" / "checkpoints").iterdir()))
    kept = {
        name
        for name in tensors
        if name.startswith("memory.observers.0.characteristic_function.layer0.")
    }
    assert any(".network." in name for name in kept)
    # the pool has three members that look in turn, six steps: two each
    assert {float(tensors[name]) for name in kept if ".step." in name} == {2.0}
