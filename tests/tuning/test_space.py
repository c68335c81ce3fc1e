"""Spaces: what is refused before anything starts, which points are drawn, and that every ready one
lies on its recipe.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import yaml
from ray.tune.schedulers import pbt

from rayd import cli
from rayd.config import merge, nested
from rayd.data.outline import load_outline
from rayd.engine.counting import Counting
from rayd.engine.preflight import check_settings, preflight
from rayd.errors import ConfigError, RaydError, ResourceError
from tests.tuning.spaces import small
from tuning import load, names, sweep
from tuning.driver import VALIDATION
from tuning.search import ClampToDomains, DefineByRun, points, sampler, scheduler
from tuning.settings import SEED
from tuning.space import Domain, ResolvedSpace, Space
from tuning.table import Row, importance


@pytest.mark.parametrize("name", names())
def test_every_ready_space_lies_on_its_recipe(name):
    ground = ResolvedSpace(load(name))
    assert ground.check()
    drawn = points(ground, 8)
    if not ground.space.is_study:
        assert drawn[0] == ground.own_point(ground.space.base[0])
        assert len(drawn) == 8
    for point in drawn:
        check_settings(ground.recipe(point))
    assert ground.space.summary


@pytest.mark.parametrize("name", [name for name in names() if load(name).is_study])
def test_every_row_of_a_study_passes_the_checks_of_a_run(name, tmp_path):
    """Networks are built without values, and data that are not at hand are only outlined."""
    ground = ResolvedSpace(load(name))
    rows = {}
    for point in points(ground, 1):
        row = str({key: value for key, value in point.items() if key != SEED})
        rows[row] = point
    # all recipes of a space have the same images
    settings = next(iter(ground.own.values())).data
    settings = settings.model_copy(update={"validation_fraction": VALIDATION})
    data = load_outline(settings, tmp_path, tmp_path).data
    with Counting():
        for point in rows.values():
            preflight(ground.recipe(point), data)


def test_recipes_of_a_space_share_images_but_not_normalization():
    both = {"summary": "s", "base": ["dm-cifar10-ipc1", "frepo-cifar10-ipc1-equal"]}
    search = {"search": {"synthesis.learning_rate": {"uniform": [0.1, 1]}}}
    ResolvedSpace(Space.model_validate(both | search)).check()
    with pytest.raises(ConfigError, match="same data but for their normalization"):
        ResolvedSpace(
            Space.model_validate(both | search | {"base": ["dm-cifar10-ipc1", "digits"]})
        ).check()


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ({"synthesis.stepz": {"integer": [1, 5]}}, "did you mean 'synthesis.steps'"),
        (
            {"objective.alpha": {"uniform": [0, 1]}},
            "Unknown setting 'objective.alpha' in the objective of method 'dm'",
        ),
        (
            {"terms.flattness.weight": {"uniform": [0, 1]}},
            "Unknown term 'flattness'.*did you mean 'flatness'",
        ),
        ({"ipc": {"uniform": [1, 5]}}, "Setting 'ipc'.*integer"),
        (
            {"synthesis.learning_rate": {"uniform": [-1, 5]}},
            "'synthesis.learning_rate'.*greater than 0",
        ),
        (
            {"synthesis.optimizer": {"choice": ["sgd", "adamm"]}},
            "'synthesis.optimizer'.*'sgd' or 'adam'",
        ),
        ({"synthesis.momentum": {"choice": [0.5, "much"]}}, "'synthesis.momentum'.*number"),
        (
            {"data.validation_fraction": {"uniform": [0.1, 0.3]}},
            "cannot be searched.*use the same validation images",
        ),
        ({"resources.workers": {"integer": [0, 2]}}, "changes no result"),
        (
            {"experts.count": {"integer": [1, 5]}},
            "'experts'.* has no effect.* method 'dm' uses no experts",
        ),
        (
            {"synthetic.rank": {"integer": [1, 5]}},
            "'synthetic.rank' has no effect.* belongs to 'synthetic.kind: lowrank'",
        ),
        ({"ipc": {"integer": [2, 999]}}, "ipc must not exceed the smallest class"),
        (
            {"ipc": {"integer": [1, 3], "when": {"synthetic.kindd": "pixels"}}},
            "did you mean 'synthetic.kind'",
        ),
        ({"ipc": {"integer": [1, 3], "when": {"synthetic.kind": "lowrank"}}}, "is never used"),
        (
            {
                "ipc": {"choice": [1, 2], "when": {"synthesis.optimizer": "adam"}},
                "synthesis.optimizer": {"choice": ["adam"]},
            },
            "'synthesis.optimizer' must stand above 'ipc'",
        ),
    ],
)
def test_what_no_trial_could_do_is_refused_before_ray_starts(
    tmp_path, monkeypatch, search, sentence
):
    monkeypatch.setattr("tuning.driver.connect", None)
    with pytest.raises(ConfigError if "smallest" not in sentence else RaydError, match=sentence):
        sweep(small(search=search), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"search": {"ipc": {"uniform": [1, 2], "choice": [1]}}}, "exactly one of"),
        ({"search": {"ipc": {"uniform": [2, 1]}}}, "must rise"),
        ({"search": {"ipc": {"loguniform": [0, 1]}}}, "above 0"),
        ({"search": {"ipc": {"chioce": [1]}}}, "chioce"),
        ({"search": {"ipc": {"choice": []}}}, "at least one value"),
        ({"search": {}}, "at least one setting"),
        ({"scheduler": "asha", "rungs": []}, "needs 'rungs'"),
        ({"rungs": [0.5, 0.25]}, "ascend"),
        ({"scheduler": "pbt", "algorithm": "optuna"}, "needs 'algorithm: random'"),
        ({"algorithm": "optuna", "search": {"ipc": {"grid": [1, 2]}}}, "use choice"),
        ({"objectives": ["seconds"]}, "must begin with validation_accuracy"),
    ],
)
def test_a_space_that_does_not_fit_together_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(**settings)


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ({"synthetic.init": {"choice": ["real", "noise"]}}, "what its checkpoint holds"),
        ({"observers.pool": {"integer": [1, 3]}}, "what its checkpoint holds"),
    ],
)
def test_population_based_training_changes_only_what_a_checkpoint_does_not_depend_on(
    search, sentence
):
    ResolvedSpace(small(scheduler="pbt")).check()
    with pytest.raises(ConfigError, match=sentence):
        ResolvedSpace(small(scheduler="pbt", search=search)).check()


def test_a_trial_that_this_machine_cannot_hold_is_refused_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("tuning.driver.connect", None)
    with pytest.raises(
        ResourceError, match="A trial of 999 workers of 1 CPUs each does not fit this machine"
    ):
        sweep(small(), out=tmp_path / "out", workers=999)
    with pytest.raises(ResourceError, match="reserves 64 GPUs"):
        sweep(
            small(overrides={"resources": {"gpus_per_worker": 1, "cpus_per_worker": 0}}),
            out=tmp_path / "out",
            workers=64,
        )
    assert not (tmp_path / "out").exists()


def test_a_sweep_joins_the_cluster_of_its_recipe(tmp_path, monkeypatch):
    """As a run does; trials themselves have no address."""

    def refuse(address):
        raise ResourceError(f"joining '{address}'")

    monkeypatch.setattr("tuning.driver.connect", refuse)
    # more workers than this machine has CPUs, which is for the cluster to say
    there = {"resources": {"threads": None, "workers": 999, "address": "head:6379"}}
    for number, (given, joined) in enumerate([(None, "head:6379"), ("other:6379", "other:6379")]):
        with pytest.raises(ResourceError, match=f"joining '{joined}'"):
            sweep(small(overrides=there), out=tmp_path / str(number), address=given)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["edc-digitz"], "Unknown space 'edc-digitz'; did you mean 'edc-digits'"),
        (["nowhere/space.yaml"], "Cannot read"),
        (["edc-digits", "synthesis.stepz=3"], "did you mean 'synthesis.steps'?"),
        (["edc-digits", "--workers", "999"], "does not fit this machine"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", *arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_conditions_hold_in_every_point():
    search = {
        "synthesis.optimizer": {"choice": ["sgd", "adam"]},
        "synthesis.learning_rate": [
            {"loguniform": [0.1, 10.0], "when": {"synthesis.optimizer": "sgd"}},
            {"loguniform": [0.001, 0.01], "when": {"synthesis.optimizer": "adam"}},
        ],
        "synthesis.second_momentum": {
            "uniform": [0.9, 0.99],
            "when": {"synthesis.optimizer": "adam"},
        },
    }
    ground = ResolvedSpace(small(search=search))
    for point in points(ground, 30)[1:]:
        adam = point["synthesis.optimizer"] == "adam"
        assert ("synthesis.second_momentum" in point) == adam
        assert (point["synthesis.learning_rate"] <= 0.01) == adam
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        point = DefineByRun(ground)(study.ask())["settings"]
        assert ("synthesis.second_momentum" in point) == (point["synthesis.optimizer"] == "adam")
        ground.recipe(point)


def test_draws_depend_on_the_seed_and_their_number_alone():
    ground = ResolvedSpace(small())
    assert points(ground, 6)[:3] == points(ground, 3)
    assert points(ground, 6) != points(ResolvedSpace(small(seed=1)), 6)
    values = [point["synthesis.learning_rate"] for point in points(ground, 60)[1:]]
    assert all(0.1 <= value <= 10.0 for value in values)
    assert 0.3 < float(np.mean(np.log10(values) > 0)) < 0.7


def test_grids_are_gone_through():
    alone = ResolvedSpace(
        small(search={"ipc": {"grid": [1, 2]}, "synthesis.momentum": {"grid": [0.0, 0.5]}})
    )
    assert [tuple(point.values()) for point in points(alone, 5)] == [
        (1, 0.0),
        (1, 0.5),
        (2, 0.0),
        (2, 0.5),
    ]
    mixed = ResolvedSpace(
        small(search={"ipc": {"grid": [1, 2]}, "synthesis.learning_rate": {"uniform": [1, 2]}})
    )
    drawn = points(mixed, 3)
    assert [point["ipc"] for point in drawn] == [1, 2] * 3
    assert drawn[0]["synthesis.learning_rate"] == drawn[1]["synthesis.learning_rate"]


def test_values_of_a_grid_are_tried_where_its_condition_holds():
    search = {
        "synthesis.optimizer": {"grid": ["sgd", "adam"]},
        "synthesis.learning_rate": [
            {"grid": [1.0, 2.0], "when": {"synthesis.optimizer": "sgd"}},
            {"grid": [0.01, 0.02], "when": {"synthesis.optimizer": "adam"}},
        ],
    }
    alone = ResolvedSpace(small(search=search))
    expected = [("sgd", 1.0), ("sgd", 2.0), ("adam", 0.01), ("adam", 0.02)]
    assert [tuple(point.values()) for point in points(alone, 5)] == expected
    drawn = {"evaluation.learning_rate": {"uniform": [0.01, 0.1]}}
    mixed = points(ResolvedSpace(small(search={**search, **drawn})), 3)
    assert len(mixed) == 3 * len(expected)
    assert len({point["evaluation.learning_rate"] for point in mixed}) == 3


def test_a_space_may_extend_another(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {"extends": "edc-digits", "samples": 3, "search": {"ipc": {"choice": [1, 2]}}}
        )
    )
    mine = load(path, {"seed": 4})
    assert mine.name == "mine"
    assert set(mine.search) == {*load("edc").search, "ipc"}
    assert (mine.samples, mine.base, mine.overrides) == (3, ("edc-digits",), {"seed": 4})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends: mine.yaml\n", "in a circle: mine.yaml extends mine.yaml"),
        ("extends: edc-digits\nsearch:\n", "'search' in space 'mine' must fit"),
    ],
)
def test_mistakes_beside_extends_are_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load(path)


def test_a_space_stands_on_an_own_recipe_that_stands_on_another(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("base: edc-digits\nipc: 3\n")
    search = {"objective.alpha": {"uniform": [0, 1]}}
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({"base": "mine.yaml", "search": search}))
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"extends": "space.yaml", "samples": 3}))
    for given in (path, over):
        (recipe,) = ResolvedSpace(load(given)).own.values()
        assert (recipe.name, recipe.method, recipe.ipc) == ("mine", "edc", 3)
    monkeypatch.chdir(tmp_path)
    path.write_text(yaml.safe_dump({"base": ["mine.yaml", "edc-digits"], "search": {}}))
    assert load("space.yaml").base == ("mine.yaml", "edc-digits")


@pytest.mark.parametrize("kind", ["choice", "grid"])
def test_numbers_with_an_exponent_are_numbers(kind):
    """YAML 1.1 reads them as text, which a chart would sort by its letters."""
    domain = Domain.model_validate({kind: yaml.safe_load("[1e-3, 10, adam, null]")})
    assert domain.values == (0.001, 10, "adam", None)


def test_domains_know_their_values():
    whole = Domain(integer=(2, 4))
    assert [whole.holds(value) for value in (2, 4, 5, 2.5, True, "2")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert {sampler(whole).sample() for _ in range(60)} == {2, 3, 4}
    assert (
        whole.clamped(7.2),
        Domain(uniform=(0, 1)).clamped(1.4),
        Domain(choice=("a",)).clamped("a"),
    ) == (4, 1.0, "a")


def test_what_population_based_training_moved_stays_in_the_space():
    kept = ClampToDomains(ResolvedSpace(small(scheduler="pbt")))(
        {"settings": {"synthesis.learning_rate": 12.0}, "other": 1}
    )
    assert kept == {"settings": {"synthesis.learning_rate": 10.0}, "other": 1}


def test_population_based_training_perturbs_every_setting_of_every_trial():
    """Also one that the recipe leaves open, and choices, whose values are no factors."""
    search = {
        "synthesis.clip_gradient": {"loguniform": [0.1, 10.0]},
        "evaluation.mix": {"choice": ["none", "cutmix", "mixup"]},
        "evaluation.batch_size": {"choice": [16, 64, 256]},
    }
    ground = ResolvedSpace(small(scheduler="pbt", search=search))
    ground.check()
    chosen = scheduler(ground)
    random.seed(0)
    for point in points(ground, 6):
        moved = {"settings": point}
        for _ in range(5):
            moved, _ = pbt._explore(
                moved,
                chosen._hyperparam_mutations,
                chosen._resample_probability,
                chosen._perturbation_factors,
                chosen._custom_explore_fn,
            )
            for key, value in moved["settings"].items():
                assert ground.space.search[key][0].holds(value)


def test_importance_finds_what_matters():
    search = {
        "synthesis.learning_rate": {"loguniform": [0.1, 10.0]},
        "synthesis.momentum": {"uniform": [0.0, 0.9]},
    }
    ground = ResolvedSpace(small(search=search))
    trials = [
        Row(
            str(n),
            "finished",
            point,
            False,
            1.0,
            float(np.log10(point["synthesis.learning_rate"])),
            None,
            1,
            1.0,
            "",
            "",
        )
        for n, point in enumerate(points(ground, 40))
    ]
    shares = importance(ground, trials)
    assert list(shares) == ["synthesis.learning_rate", "synthesis.momentum"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["synthesis.learning_rate"] > 0.8
    assert importance(ground, trials[:9]) == {}
    level = [replace(trial, validation_accuracy=0.1) for trial in trials]
    assert importance(ground, level) == {}


def test_importance_leaves_out_settings_that_some_trials_lack():
    search = {
        "synthesis.optimizer": {"choice": ["sgd", "adam"]},
        "synthesis.momentum": {"uniform": [0.0, 0.9], "when": {"synthesis.optimizer": "sgd"}},
        "ipc": {"integer": [1, 4]},
    }
    ground = ResolvedSpace(small(search=search))
    trials = []
    for number, point in enumerate(points(ground, 20)):
        # the recipe's own value, outside of its domain
        settings = point if number else {**point, "ipc": 9}
        accuracy = float(settings["ipc"])
        row = Row(str(number), "finished", settings, False, 1.0, accuracy, None, 1, 1.0, "", "")
        trials.append(row)
    shares = importance(ground, trials)
    assert list(shares) == ["ipc", "synthesis.optimizer"]
    assert shares["ipc"] > 0.9


def test_settings_become_a_tree():
    assert nested({"a.b": {"c": 1}, "a.d": 2}) == merge({"a": {"b": {"c": 1}}}, {"a": {"d": 2}})
    assert isinstance(small(), Space)
