"""Networks that learn from the synthetic images between steps: DC, DSA, FRePo and KRR on digits,
whole runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rayd import methods
from rayd.artifacts import read_tensors
from rayd.config import Recipe, ResourceSettings
from rayd.data import ImageShape, load
from rayd.engine.distill import distill
from rayd.engine.gradients.feature_matching import GradientTask, RealBatches
from rayd.engine.gradients.model_pool import Batches, ModelPool, ModelPoolTrainer, TrainTask
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.plan import plan
from rayd.engine.pool import LocalPool, LocalRef
from rayd.errors import ConfigError, RunError
from rayd.objectives.hallucinations import adversary_loss, cosines
from rayd.recipes import assemble
from rayd.synthetic import initial
from tests.faults import check_resumes
from tests.runs import QUIET, bytes_of, steps_of

NETWORK = {"name": "convnet", "depth": 1, "width": 6}
METHODS = ["dc", "dsa", "frepo", "krr"]


def recipe(method: str, **overrides: object) -> Recipe:
    """Nine steps: three networks of three steps each (DC), or a pool of three that are renewed
    after three (FRePo).
    """
    growing: dict[str, object] = {
        "dc": {"push_every": 3, "train_epochs": 2, "batch_size": 8},
        "dsa": {"push_every": 3, "train_epochs": 2, "augmentation": "crop_scale"},
        "frepo": {"start": 3, "lifetime": 3, "learning_rate": 0.01},
    }
    model_pool = {"model_pool": growing[method]} if method in growing else {}
    augmented = {"augmentation": "crop_scale"} if method == "dsa" else {}
    base = {
        "name": "tiny",
        "method": method,
        "data": {"name": "digits", "normalization": "standard"},
        "ipc": 2,
        "observers": {"networks": NETWORK, "real_batch": 8, **augmented, **model_pool},
        "synthesis": {"steps": 9, "log_every": 1, "checkpoint_every": 2, "learning_rate": 0.05},
        "evaluation": {
            "networks": [NETWORK],
            "seeds": 1,
            "epochs": 1,
            "baselines": [],
            "augmentation": None,
        },
        "resources": {"threads": 1},
    }
    return assemble(base, overrides)


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in steps_of(run)]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dc", {"synthesis": {"learning_rate": 1.0, "steps": 30}}),
        ("dsa", {"synthesis": {"learning_rate": 1.0, "steps": 30}}),
        ("frepo", {"synthesis": {"steps": 60}, "observers": {"real_batch": 20}}),
        ("krr", {"synthesis": {"steps": 60}, "observers": {"real_batch": 20}}),
    ],
)
def test_a_run_brings_the_loss_down(tmp_path, method, settings):
    run = distill(recipe(method, **settings), tmp_path / "run", progress=QUIET)
    losses = losses_of(tmp_path / "run")
    assert sum(losses[-6:]) < 0.95 * sum(losses[:6])
    assert len(run.distilled) == 20


@pytest.mark.parametrize("method", [pytest.param("dsa", marks=pytest.mark.slow), "frepo"])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, method):
    results = []
    for workers in (0, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        distill(recipe(method, resources=resources), tmp_path / str(workers), progress=QUIET)
        results.append(bytes_of(tmp_path / str(workers)))
    assert results[0] == results[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [4, 7])
def test_an_interrupted_synthesis_resumes_to_the_same_bytes(tmp_path, method, at):
    check_resumes(recipe(method), tmp_path, at)


def test_the_adversary_of_haba_computes_its_loss_in_float32_under_bfloat16(monkeypatch):
    """Under autocast products of features would be rounded to 1/256 and divided by 0.07."""
    chosen = assemble(
        {
            "method": "dm",
            "data": "digits",
            "ipc": 2,
            "real": "sampled",
            "observers": {
                "networks": NETWORK,
                "model_pool": {"loss": "contrast", "source": "synthetic"},
            },
            "synthetic": {"kind": "hallucinated"},
            "synthesis": {"precision": "bfloat16"},
        }
    )
    found: list[Tensor] = []

    def recorded(logits: Tensor, features: Tensor, labels: Tensor, bases: Tensor) -> Tensor:
        found.extend((features, cosines(features)))
        return adversary_loss(logits, features, labels, bases)

    monkeypatch.setattr("rayd.engine.gradients.model_pool.adversary_loss", recorded)
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(10, 1, 8, 8, generator=draws)
    labels = torch.arange(10) // 5
    supply = Batches(10, lambda rows: (images[rows], labels[rows]))
    task = TrainTask(NetworkId(chosen.observers.networks[0]), 0, None, None)
    trainer = ModelPoolTrainer(chosen, ImageShape(1, 8, 8), 10, torch.device("cpu"))
    trainer.train(task, supply)
    features, products = found[:2]
    assert products.dtype == torch.float32
    torch.testing.assert_close(products, cosines(features.double()).float(), atol=1e-6, rtol=0)


def model_pool_of(chosen: Recipe) -> ModelPool:
    return ModelPool(chosen, LocalPool(ResourceSettings(threads=1), object))


def test_the_network_of_dc_stays_for_its_steps_and_is_not_trained_in_the_last_of_them():
    networks = model_pool_of(recipe("dc"))
    assert [list(networks.active(step)) for step in range(7)] == [[1]] * 3 + [[2]] * 3 + [[3]]
    assert [
        [train_task.network_id.index for train_task in networks.train_tasks(step, None)]
        for step in range(6)
    ] == [
        [1],
        [1],
        [],
        [2],
        [2],
        [],
    ]


def test_a_single_loop_trains_nobody():
    chosen = assemble({"method": "dc", "data": {"name": "digits"}})
    assert (chosen.observers.model_pool.push_every, chosen.synthesis.steps) == (1, 1000)
    assert not any(model_pool_of(chosen).train_tasks(step, None) for step in range(5))


def test_the_pool_of_frepo_renews_each_network_when_its_time_has_come():
    networks = model_pool_of(recipe("frepo"))
    ages = {}
    seen: list[list[int]] = []
    for step in range(60):
        (train_task,) = networks.train_tasks(step, None)
        number = train_task.network_id.index
        assert number == networks.draw(step, 0)
        assert (networks.weights(number) is None) == (number not in ages)
        networks.update(train_task, ({"w": torch.tensor(float(step))}, 0.5))
        ages[number] = ages.get(number, 0) + 1
        seen.append(list(networks.active(step)))
        assert networks.accuracy(number) == 0
    # the first ones are renewed after 3, 2 and 1 of 3 times, all others after 3
    gone = {number: age for number, age in ages.items() if number not in seen[-1]}
    assert all(age == 3 - (number if number < 3 else 0) for number, age in gone.items())
    assert {number % 3 for number in seen[-1]} == {0, 1, 2}
    assert len(networks.state()) == 1 + 2 * len([number for number in seen[-1] if number in ages])
    again = model_pool_of(recipe("frepo"))
    again.restore(networks.state())
    assert (list(again.active(60)), again.draw(60, 0)) == (seen[-1], networks.draw(60, 0))
    assert again.state().keys() == networks.state().keys()


def growth_on(
    chosen: Recipe, images: torch.Tensor, weights: dict[str, torch.Tensor] | None = None
) -> TrainTask:
    data = load(chosen.data)
    start = initial(chosen, data)
    state = LocalRef(dict(start.state_dict()))
    now = LocalRef({"images": images})
    return TrainTask(
        model_pool_of(chosen).network_id(0),
        0,
        LocalRef(weights) if weights else None,
        None,
        state,
        now,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_a_network_learns_the_synthetic_images_and_goes_on_where_it_stopped(optimizer, loss):
    """Two times one pass is two passes, if each holds all images."""
    rate = 0.01 if optimizer == "adam" else 0.02
    settings = {
        "train_epochs": 1,
        "batch_size": 100,
        "optimizer": optimizer,
        "loss": loss,
        "learning_rate": rate,
        "momentum": 0.9,
    }
    # a bias before a normalisation has no gradient but rounding, of which Adam makes steps
    network = {**NETWORK, "norm": "none"}
    once = recipe("dc", observers={"networks": network, "model_pool": settings})
    twice = recipe(
        "dc", observers={"networks": network, "model_pool": {**settings, "train_epochs": 2}}
    )
    data = load(once.data)
    images = initial(merged(once, init="real"), data).batch()[0].detach()
    state = None
    accuracies = []
    for _ in range(2):
        state, accuracy = ObserverTasks(once, DatasetInfo.of(data)).compute(
            growth_on(once, images, state)
        )
        accuracies.append(accuracy)
    together, _ = ObserverTasks(twice, DatasetInfo.of(data)).compute(growth_on(twice, images))
    for name, value in together.items():
        torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-4)
    for _ in range(30):
        state, accuracy = ObserverTasks(once, DatasetInfo.of(data)).compute(
            growth_on(once, images, state)
        )
    assert accuracy > 0.7 > accuracies[0]


def merged(chosen: Recipe, **synthetic: object) -> Recipe:
    return chosen.model_copy(update={"synthetic": chosen.synthetic.model_copy(update=synthetic)})


def test_who_looks_first_is_who_is_trained_then(monkeypatch):
    """A new network has the same weights when it looks and when it begins to learn."""
    chosen = recipe("dc", observers={"model_pool": {"learning_rate": 1e-30}})
    data = load(chosen.data)
    observers = ObserverTasks(chosen, DatasetInfo.of(data))
    start = initial(chosen, data)
    network_id = model_pool_of(chosen).network_id(1)
    state = LocalRef(dict(start.state_dict()))
    now = LocalRef({"images": start.batch()[0].detach()})
    real = LocalRef(RealBatches((data.train.images, data.train.labels)).draw(chosen, 0, 0))
    nothing = LocalRef({})
    question = GradientTask(network_id, 0, 1, 0, 0, state, now, None, None, 0.0, real, nothing)
    fresh, gradient, _ = observers.compute(question)
    train_result, _ = observers.compute(TrainTask(network_id, 0, None, None, state, now))
    same, gradient_then, _ = observers.compute(
        GradientTask(
            network_id, 0, 1, 0, 0, state, now, None, LocalRef(train_result), 0.0, real, nothing
        )
    )
    torch.testing.assert_close(fresh["gradient"], same["gradient"])
    torch.testing.assert_close(gradient["images"], gradient_then["images"])


def test_the_network_is_trained_on_the_images_after_their_step(tmp_path, monkeypatch):
    order: list[tuple[str, float]] = []
    answer = ObserverTasks.compute

    def watched(self, asked):
        order.append((type(asked).__name__, float(asked.parameters.get()["images"].sum())))
        return answer(self, asked)

    monkeypatch.setattr(ObserverTasks, "compute", watched)
    distill(recipe("dc", synthesis={"steps": 3}), tmp_path / "run", progress=QUIET)
    kinds, sums = zip(*order, strict=True)
    assert kinds == ("GradientTask", "TrainTask", "GradientTask", "TrainTask", "GradientTask")
    assert sums[1] == sums[2] != sums[0]
    assert sums[3] == sums[4] != sums[2]


@pytest.mark.parametrize(
    ("ipc", "outer", "inner"),
    [(1, 1, 1), (5, 1, 1), (10, 10, 50), (30, 30, 20), (50, 50, 10), (60, 50, 10)],
)
def test_loops_are_those_of_the_number_of_images(ipc, outer, inner):
    chosen = assemble({"method": "dsa", "data": {"name": "cifar10"}, "ipc": ipc})
    model_pool = chosen.observers.model_pool
    assert (model_pool.push_every, model_pool.train_epochs, chosen.synthesis.steps) == (
        outer,
        inner,
        1000 * outer,
    )
    assert (model_pool.source, model_pool.trained, model_pool.capacity, model_pool.augmentation) == (
        "synthetic", "used", 1, "color_crop_cutout_flip_scale_rotate",
    )  # fmt: skip
    assert assemble(chosen.model_dump(mode="json")) == chosen


def test_declarations():
    dc = methods.build(recipe("dc"))
    frepo = methods.build(recipe("frepo"))
    assert [term.name for term in dc.terms] == ["gradient"]
    assert [term.name for term in frepo.terms] == ["regression"]
    assert dc.samples()
    assert not dc.specs()
    assert (dc.layer_roles(), len(frepo.layer_roles())) == (frozenset(), 1)


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        (
            "dc",
            {"real": "measured", "observers": {"model_pool": None}},
            "needs real mini-batches.*set 'real: sampled'",
        ),
        ("krr", {"real": "measured"}, "The term 'regression'.*set 'real: sampled'"),
        ("frepo", {"observers": {"model_pool": {"push_every": 5}}}, "set one of them to null"),
        (
            "frepo",
            {"observers": {"model_pool": {"start": 200}}},
            "must not exceed 'model_pool.capacity'",
        ),
        (
            "frepo",
            {"terms": {"regression": {"relative_ridge": 0}}},
            "'terms.regression.relative_ridge'",
        ),
        (
            "dc",
            {"terms": {"class_aware": {"weight": 1}}, "classifiers": {"trained": False}},
            "set 'classifiers.trained: true'",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(method, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe(method, **changes)


def test_what_is_planned_names_the_training(tmp_path):
    assert (
        "1 network trained alongside"
        in plan(recipe("frepo"), cache=tmp_path / "cache", progress=QUIET).text()
    )


def test_what_the_networks_became_is_in_the_checkpoint(tmp_path):
    distill(recipe("frepo"), tmp_path / "run", progress=QUIET)
    tensors, _ = read_tensors(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert len(tensors["queue.places"]) == 3
    assert any("momentum.exp_avg." in name for name in tensors)


def test_frepo_learns_its_labels(tmp_path):
    """From nine parts in ten for the own class; they are part of what is stored."""
    made = {
        labels: distill(
            recipe("frepo", synthetic={"labels": labels}), tmp_path / labels, progress=QUIET
        )
        for labels in LABELS
    }
    soft = made["classes"].distilled
    hard = made["hard"].distilled
    assert soft.labels.shape == (len(hard), 10)
    torch.testing.assert_close(soft.labels.sum(1), torch.ones(len(hard)))
    moved = (soft.labels[torch.arange(len(hard)), hard.labels] - 0.9).abs()
    assert float(moved.max()) > 1e-4
    assert soft.storage.numbers["labels"] == len(hard) * 10
    assert "labels" not in hard.storage.numbers


LABELS = ("classes", "hard")


@pytest.mark.parametrize(
    ("method", "labels", "words"),
    [("frepo", "experts", "has no experts to label images"), ("dc", "classes", "learns no labels")],
)
def test_labels_that_cannot_be_learned_are_refused(method, labels, words):
    with pytest.raises(ConfigError, match=words):
        methods.build(recipe(method, synthetic={"labels": labels}))


def test_a_pool_that_diverges_is_named_as_a_cause(tmp_path):
    diverging = recipe("dc", observers={"model_pool": {"learning_rate": 1e8}})
    with pytest.raises(RunError, match=r"not finite .* or observers\.model_pool\.learning_rate"):
        distill(diverging, tmp_path / "run", progress=QUIET)
