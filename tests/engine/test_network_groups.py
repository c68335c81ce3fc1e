"""Guides beside the observers, and networks that grow beside the synthesis: whole runs on
digits.
"""

from __future__ import annotations

import pytest
import torch

from rayd.artifacts import read_tensors
from rayd.config import Recipe, ResourceSettings, merge
from rayd.data import load
from rayd.engine.distill import distill
from rayd.engine.gradients import model_pool
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.gradients.model_pool import ModelPool, TrainTask
from rayd.engine.job import Job
from rayd.engine.network_ids import network_ids, turn
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.plan import plan
from rayd.engine.pool import LocalPool, LocalRef
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.store import Store
from rayd.engine.worker import Worker
from rayd.errors import ConfigError, RunError
from rayd.recipes import assemble
from rayd.synthetic import initial
from tests.conftest import tiny
from tests.engine.test_decoupled import stages_of
from tests.faults import check_resumes
from tests.runs import NO_STUDENTS, QUIET, bytes_of, log_of

NETWORK = {"name": "convnet", "depth": 1, "width": 6}


def iid(method: str = "iid-dm", **overrides: object) -> Recipe:
    base = {
        "name": "tiny-iid",
        "method": method,
        "data": {"name": "digits"},
        "ipc": 2,
        "observers": {
            "networks": NETWORK,
            "batch_size": 64,
            "augmentation": "crop_scale_rotate",
            "real_batch": 8,
        },
        "classifiers": {
            "networks": {**NETWORK, "depth": 2},
            "pool": 2,
            "squeeze": {"epochs": 2},
            "augmentation": "crop_scale",
        },
        "synthesis": {"steps": 6, "log_every": 2, "checkpoint_every": 3, "learning_rate": 0.1},
        "evaluation": {"networks": [NETWORK], "seeds": 1, "epochs": 2, "baselines": []},
        "resources": {"threads": 1},
    }
    if method.endswith("idm"):
        growing = {"push_every": 2, "capacity": 5, "train_steps": 2, "batch_size": 16}
        base = merge(base, {"observers": {"model_pool": growing}})
    else:
        base = merge(base, {"observers": {"pool": 3}})
    return assemble(base, overrides)


def test_guides_are_squeezed_and_observers_measured(tmp_path):
    run = distill(iid(), tmp_path / "run", progress=QUIET)
    assert stages_of(tmp_path / "run") == ["squeeze", "measure", "synthesize", "evaluate"]
    assert [one["network"] for one in run.distilled.card["observers"]] == ["convnet-d2-w6"] * 2
    logged = next(line for line in log_of(tmp_path / "run") if "loss" in line)
    parts = logged["mean"] + 0.05 * logged["centralization"] + 0.01 * logged["covariance"]
    assert logged["loss"] == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("method", ["iid-dm", pytest.param("iid-idm", marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, method):
    results = []
    for workers in (0, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        recipe = iid(method, resources=resources)
        distill(recipe, tmp_path / str(workers), cache=tmp_path / f"cache{workers}", progress=QUIET)
        results.append(bytes_of(tmp_path / str(workers)))
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["iid-dm", "iid-idm"])
@pytest.mark.parametrize("at", [2, 4])
def test_an_interrupted_synthesis_resumes_to_the_same_bytes(tmp_path, method, at):
    check_resumes(iid(method), tmp_path, at)


def test_guides_change_what_is_learned_and_their_weight_counts(tmp_path):
    made = []
    for index, weight in enumerate((0.0, 0.05, 5.0)):
        recipe = iid(terms={"centralization": {"weight": weight}})
        made.append(distill(recipe, tmp_path / str(index), progress=QUIET).distilled.images)
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[1], made[2])


def test_a_regulariser_on_another_method_uses_the_guides(tmp_path):
    recipe = iid("dm", terms={"centralization": {"weight": 0.05}, "covariance": {"weight": 0.01}})
    distill(recipe, tmp_path / "dm", progress=QUIET)
    distill(iid(), tmp_path / "iid", progress=QUIET)
    ours, theirs = (
        read_tensors(tmp_path / run / "distilled" / "data.safetensors")[0]["images"]
        for run in ("dm", "iid")
    )
    torch.testing.assert_close(ours, theirs)


def test_guides_may_be_measured_too(tmp_path):
    recipe = iid(terms={"centralization": {"centre": "real"}})
    distill(recipe, tmp_path / "run", progress=QUIET)
    lines = log_of(tmp_path / "run")
    assert any("centralization" in line for line in lines)
    assert len(list((tmp_path / "cache" / "measure").iterdir())) == 3 * 2 + 2


def test_sampled_and_partitioned(tmp_path):
    run = distill(
        iid("iid-dm", real="sampled", synthetic={"kind": "partitioned"}, ipc=1),
        tmp_path / "run",
        progress=QUIET,
    )
    assert len(run.distilled) == 40
    assert run.report.storage_bytes["images"] == 10 * 64 * 4


def model_pool_of(recipe: Recipe) -> ModelPool:
    return ModelPool(recipe, LocalPool(ResourceSettings(threads=1), object))


def test_the_queue_grows_and_forgets_its_oldest():
    networks = model_pool_of(iid("idm"))
    assert [len(networks.active(step)) for step in range(6)] == [4, 4, 5, 5, 5, 5]
    assert networks.active(4) == range(1, 6)
    looking = [networks.draw(step, 0) for step in range(200)]
    assert all(number in networks.active(step) for step, number in enumerate(looking))
    train = LocalRef(None)
    assert len({train_task.network_id.index for train_task in networks.train_tasks(5, train)}) == 2
    assert [train_task.network_id.index for train_task in networks.train_tasks(5, train)] == [
        train_task.network_id.index
        for train_task in model_pool_of(iid("idm")).train_tasks(5, train)
    ]


def test_every_network_of_the_queue_has_its_turn():
    networks = model_pool_of(iid("idm", observers={"model_pool": {"push_every": 100000}}))
    counts = torch.bincount(
        torch.tensor([networks.draw(step, 0) for step in range(400)]), minlength=4
    )
    assert counts.min() > 60


def growth_of(
    recipe: Recipe, number: int, step: int, weights: dict[str, torch.Tensor] | None
) -> tuple[ObserverTasks, TrainTask]:
    data = load(recipe.data)
    network_id = model_pool_of(recipe).network_id(number)
    train = LocalRef((data.train.images, data.train.labels))
    return ObserverTasks(recipe, DatasetInfo.of(data)), TrainTask(
        network_id, step, LocalRef(weights) if weights else None, train
    )


def test_a_network_learns_and_keeps_its_momentum():
    recipe = iid(
        "idm",
        observers={"model_pool": {"train_steps": 20, "batch_size": 64, "learning_rate": 0.05}},
    )
    state = None
    accuracies = []
    for step in range(6):
        observers, train_task = growth_of(recipe, 3, step, state)
        state, accuracy = observers.compute(train_task)
        accuracies.append(accuracy)
    assert accuracies[-1] > 0.6 > accuracies[0]
    assert any(name.startswith(model_pool.MOMENTUM) for name in state)


def test_momentum_goes_on_where_it_stopped():
    """Two times one step is two steps, if both see the same images."""
    plain = {"train_steps": 1, "batch_size": 100000}
    once = iid("idm", observers={"model_pool": plain})
    twice = iid("idm", observers={"model_pool": {**plain, "train_steps": 2}})
    state = None
    for step in range(2):
        observers, train_task = growth_of(once, 0, step, state)
        state, _ = observers.compute(train_task)
    observers, train_task = growth_of(twice, 0, 0, None)
    together, _ = observers.compute(train_task)
    for name, value in together.items():
        torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-4)


def test_a_lost_network_of_the_queue_is_in_the_checkpoint(tmp_path):
    distill(iid("idm", **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    tensors, _ = read_tensors(max((tmp_path / "run" / "checkpoints").iterdir()))
    numbers = {name.split(".")[1] for name in tensors if name.startswith("queue.")}
    assert numbers
    assert all(f"queue.{number}." in tensors for number in numbers)


def test_what_is_planned_names_guides_and_queue(tmp_path):
    planned = plan(iid("iid-idm"), cache=tmp_path / "cache", progress=QUIET)
    text = planned.text()
    assert "1 observer and 1 classifier" in text
    assert "2 networks trained alongside" in text
    assert "2 of 2 classifiers (convnet-d2-w6 #0, convnet-d2-w6 #1) learn 2 epochs" in text
    long = iid("iid-idm", classifiers={"squeeze": {"epochs": 1000}})
    advice = plan(long, cache=tmp_path / "cache", progress=QUIET).text()
    assert "proportional to classifiers.squeeze.epochs" in " ".join(advice.split())


def test_guides_that_are_too_deep_for_the_images_are_refused_in_a_sentence(tmp_path):
    recipe = tiny(ipc=2, terms={"centralization": {"weight": 0.05}})
    with pytest.raises(
        ConfigError,
        match=r"'resnet18_pool4-instance' does not fit images of 8 x 8 pixels .* 'classifiers.networks'",
    ):
        plan(recipe, cache=tmp_path, progress=QUIET)


def test_a_second_run_trains_no_guide(tmp_path, monkeypatch):
    distill(iid(**NO_STUDENTS), tmp_path / "first", progress=QUIET)
    monkeypatch.setattr(Worker, "squeeze", None)
    distill(iid(ipc=3, **NO_STUDENTS), tmp_path / "second", progress=QUIET)


def test_a_step_follows_the_mean_of_each_panel_and_the_sum_of_both(tmp_path):
    """One step of plain gradient descent against what every member of both panels answers on its
    own.
    """
    group = {"per_step": 2, "augmentation": None}
    plain = {"steps": 1, "momentum": 0.0, "learning_rate": 0.1}
    recipe = iid(observers=group, classifiers=group, synthesis=plain, **NO_STUDENTS)
    # with the precision that was chosen for this machine, which the classifiers in the store were
    # trained in
    recipe = distill(recipe, tmp_path / "run", progress=QUIET).recipe
    data = load(recipe.data)
    store = Store(tmp_path / "cache")
    pool = LocalPool(recipe.resources, Worker, recipe, DatasetInfo.of(data))
    facts = DatasetInfo.of(data)
    before = initial(recipe, data)
    state = LocalRef(dict(before.state_dict()))
    parameters = LocalRef({"images": before.images.detach()})
    squeezed = Squeeze(Job(recipe, data, store)).results()
    weights = {network_id: pool.share(one.state) for network_id, one in squeezed.items()}
    measured = Measure(Job(recipe, data, store), weights).run(pool)
    expected = before.images.detach().clone()
    for name in ("observers", "classifiers"):
        answers = []
        for slot in (0, 1):
            network_id = network_ids(recipe, name)[turn(recipe, 0, slot, name)]
            real = measured[network_id] if name == "observers" else None
            asked = GradientTask(
                network_id,
                0,
                1,
                0,
                slot,
                state,
                parameters,
                None,
                weights.get(network_id),
                0.5,
                real,
                LocalRef({}),
            )
            answers.append(ObserverTasks(recipe, facts).gradient(asked)[1]["images"])
        expected -= 0.1 * (answers[0] + answers[1]) / 2
    made = read_tensors(tmp_path / "run" / "distilled" / "data.safetensors")[0]["images"]
    torch.testing.assert_close(made, expected)


def test_who_sits_in_both_panels_is_trained_once(tmp_path, monkeypatch):
    trained: list[str] = []
    train = Worker.squeeze

    def counted(self, network_id, *arguments):
        trained.append(network_id.label)
        yield from train(self, network_id, *arguments)

    monkeypatch.setattr(Worker, "squeeze", counted)
    squeezing = {"epochs": 1, "transform": {"shift": 0, "flip": False}}
    same = {"networks": NETWORK, "trained": True, "pool": 2}
    recipe = iid(
        observers=same, classifiers={**same, "squeeze": squeezing}, squeeze=squeezing, **NO_STUDENTS
    )
    same_way = {
        "epochs": True,
        "batch_size": True,
        "learning_rate": True,
        "schedule": {"name"},
        "transform": {"shift", "flip"},
    }
    settings = recipe.squeeze.model_dump(include=same_way)
    recipe = iid(
        observers=same, classifiers={**same, "squeeze": settings}, squeeze=squeezing, **NO_STUDENTS
    )
    distill(recipe, tmp_path / "run", progress=QUIET)
    assert sorted(trained) == ["convnet-d1-w6 #0", "convnet-d1-w6 #1"]


def test_classifiers_are_drawn_at_random_and_observers_take_turns():
    recipe = iid(classifiers={"pool": 5, "per_step": 2})
    drawn = [
        tuple(turn(recipe, step, slot, "classifiers") for slot in range(2)) for step in range(400)
    ]
    assert drawn == [
        tuple(turn(recipe, step, slot, "classifiers") for slot in range(2)) for step in range(400)
    ]
    # without replacement in a step, each as often as the others, every pair in both orders
    assert all(first != second for first, second in drawn)
    often = [sum(index in pair for pair in drawn) for index in range(5)]
    assert all(120 < times < 200 for times in often)
    assert len(set(drawn)) == 5 * 4
    other = recipe.model_copy(update={"seed": 1})
    assert drawn != [
        tuple(turn(other, step, slot, "classifiers") for slot in range(2)) for step in range(400)
    ]
    assert [turn(recipe, step, 0) for step in range(3)] == [0, 1, 2]
    in_turn = iid(classifiers={"pool": 5, "order": "turn"})
    assert [turn(in_turn, step, 0, "classifiers") for step in range(7)] == [0, 1, 2, 3, 4, 0, 1]


def test_the_order_of_turns_leaves_the_identity_of_other_recipes_as_it_was():
    of_iid = iid(classifiers={"order": "turn"}).identity()
    assert "order" not in of_iid["observers"]
    assert "order" not in of_iid["guides"]
    assert iid().identity()["guides"]["order"] == "random"
    assert "order" not in tiny().identity()["observers"]
    assert tiny(observers={"order": "random"}).identity()["observers"]["order"] == "random"


def test_classifiers_that_diverge_name_their_own_setting(tmp_path):
    recipe = iid(classifiers={"squeeze": {"learning_rate": 1e30}}, **NO_STUDENTS)
    with pytest.raises(RunError, match=r"a smaller 'classifiers\.squeeze\.learning_rate' may help"):
        distill(recipe, tmp_path / "run", progress=QUIET)


def test_settings_of_a_squeeze_are_named_where_they_are_read():
    interpolated = tiny(observers={"trained": True, "interpolate": True})
    assert interpolated.squeezing_key("classifiers") == "squeeze"
    assert interpolated.squeezing("classifiers") == interpolated.squeeze
    assert tiny().squeezing_key("observers") == "squeeze"
    assert tiny().squeezing_key("classifiers") == "classifiers.squeeze"
