"""Protocols by name have the settings of their papers and released code."""

from pathlib import Path
from typing import get_args

import pytest

from rayd import recipes
from rayd.config.protocols import Protocol
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.engine.stages.student_tasks import with_best_rates
from rayd.errors import ConfigError
from rayd.evaluation.student import StudentResult
from tests.conftest import tiny

DSA = "color_crop_cutout_flip_scale_rotate"
SGD = {"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.001, "weight_decay": 0.01}
HARD = {"loss": "cross-entropy", "batch_size": 256, **SGD}
TAUGHT = {"loss": "kl", "temperature": 20.0, "mix": "cutmix", "mix_concentration": 1.0, **ADAMW}
SETTINGS = {
    "dc": {**HARD, "epochs": 300, "augmentation": None},
    "dsa": {**HARD, "epochs": 1000, "augmentation": DSA, "learned_step_size": False},
    "mtt": {**HARD, "epochs": 1000, "augmentation": DSA, "learned_step_size": True},
    "fkd": {**TAUGHT, "epochs": 300, "batch_size": 1024},
    "edc": {
        **TAUGHT,
        "loss": "mse",
        "epochs": 1000,
        "batch_size": 25,
        "hard_weight": 0.025,
        "average": 0.99,
    },
    "rded": {**TAUGHT, "epochs": 300, "batch_size": 50, "clean_forward": True},
    "ncfm": {**ADAMW, "loss": "cross-entropy", "epochs": 2000, "mix": "cutmix"},
    "dd-ranking": {
        **HARD,
        "epochs": 1000,
        "augmentation": DSA,
        "seeds": 5,
        "learning_rates": (0.001, 0.005, 0.01, 0.05, 0.1),
    },
}
SCHEDULES = {
    "dc": ("restart", (0.5,), 0.1),
    "dsa": ("restart", (0.5,), 0.1),
    "mtt": ("restart", (0.5,), 0.1),
    "dd-ranking": ("restart", (0.5,), 0.1),
    "edc": ("multistep", (0.8, 0.9, 0.95), 0.5),
    "ncfm": ("multistep", (0.2, 0.4, 0.6, 0.8), 0.5),
}
LABELS = {"fkd": "stored", "rded": "online", "edc": "online"}


def named(protocol: str, recipe: str = "sre2l-cifar10-ipc10", **overrides: object):
    return recipes.resolve(recipe, {"evaluation.protocol": protocol, **overrides})


@pytest.mark.parametrize("protocol", get_args(Protocol))
def test_protocol_has_its_settings_whatever_the_recipe_says(protocol):
    made = named(protocol)
    evaluation = made.evaluation
    found = {key: getattr(evaluation, key) for key in SETTINGS[protocol]}
    assert found == SETTINGS[protocol]
    assert made.labels.kind == LABELS.get(protocol, "hard")
    schedule = evaluation.schedule
    if protocol in SCHEDULES:
        assert (schedule.name, schedule.milestones, schedule.factor) == SCHEDULES[protocol]
    else:
        assert (schedule.name, schedule.stretch) == ("cosine", 2.0 if protocol == "rded" else 1.0)


def test_views_of_the_taught_protocols():
    assert named("fkd").evaluation.transform.crop == (0.08, 1.0)
    assert named("rded").evaluation.transform.crop is None
    halves = named("rded", "rded-cifar10-ipc10", **{"synthetic.patches": 2})
    assert halves.evaluation.transform.crop == (0.5, 1.0)
    edc = named("edc").evaluation.transform
    assert (edc.rand_augment, edc.crop, edc.flip) == (2, (0.08, 1.0), True)


@pytest.mark.parametrize(("ipc", "batch"), [(1, 10), (10, 50), (50, 100)])
def test_batch_of_rded_grows_with_the_budget(ipc, batch):
    assert named("rded", ipc=ipc).evaluation.batch_size == batch


def test_digits_are_not_mirrored():
    assert named("dsa", "digits").evaluation.augmentation == DSA.replace("flip_", "")
    ncfm = named("ncfm", "digits").evaluation
    assert ncfm.augmentation == "color+crop_color+scale_color+rotate"
    assert not named("rded", "edc-digits").evaluation.transform.flip


def test_settings_beside_the_name_win_over_the_protocol_and_it_over_the_recipe(tmp_path):
    assert named("dsa", "digits").evaluation.epochs == 1000
    assert named("dsa", "digits", **{"evaluation.epochs": 7}).evaluation.epochs == 7
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\nevaluation: {protocol: dc, batch_size: 5}\n")
    evaluation = recipes.resolve(path).evaluation
    assert (evaluation.protocol, evaluation.epochs, evaluation.batch_size) == ("dc", 300, 5)
    assert evaluation.networks == recipes.resolve("digits").evaluation.networks


def test_unknown_protocol_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation.protocol.*dsa"):
        named("dsr")


def test_a_protocol_is_recorded_and_its_recipe_restored():
    made = named("ncfm", "digits")
    again = recipes.restore(made.model_dump(mode="json"))
    assert again.evaluation == made.evaluation
    assert again.evaluation.protocol == "ncfm"


def result(validation: float, test: float) -> list[StudentResult]:
    return [StudentResult("mlp", 0, test, validation, (test,), 0.1, 1, 1.0, "last")]


def test_step_size_is_chosen_on_the_validation_split_and_not_on_the_test_split():
    class Task:
        def __init__(self, rate: float, seed: int):
            self.variant = "distilled"
            self.network = "mlp"
            self.learning_rate = rate
            self.seed = seed

    work = [Task(rate, seed) for rate in (0.1, 0.01) for seed in (0, 1)]
    accuracies = [(0.9, 0.1), (0.3, 0.1), (0.7, 0.0), (0.7, 0.0)]
    results = {
        task: result(validation, test)
        for task, (validation, test) in zip(work, accuracies, strict=True)
    }
    assert [task.learning_rate for task in with_best_rates(work, results)] == [0.01, 0.01]


def test_every_set_gets_its_own_step_size(tmp_path: Path):
    recipe = tiny(
        data={"validation_fraction": 0.1},
        evaluation={"learning_rates": [0.01, 1e-6], "baselines": ["random"]},
    )
    run = distill(recipe, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))
    assert [r.set for r in run.report.results] == ["distilled", "random"]
    assert all(r.seeds == (0, 1) for r in run.report.results)
    assert "learning_rate best of 2 by validation" in run.report.results[0].protocol
    assert len(list((tmp_path / "cache" / "students").iterdir())) == 8


def test_step_sizes_are_not_chosen_without_a_validation_split(tmp_path: Path):
    recipe = tiny(evaluation={"learning_rates": [0.01, 0.1]})
    with pytest.raises(ConfigError, match=r"set 'data\.validation_fraction' above 0"):
        distill(recipe, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))
