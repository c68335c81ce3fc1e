"""What a student's result depends on is in its key; what it does not is shared between runs."""

from dataclasses import replace

import pytest

from rayd.artifacts import content_hash
from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.engine.evaluate import Candidates, tasks
from tests.conftest import tiny


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def keys(recipe: Recipe, data: ImageData) -> list[str]:
    work = tasks(recipe.evaluation, ["random"], Candidates(data, None, recipe.ipc))
    return [content_hash(task.inputs(recipe.evaluation, data, "cpu")) for task in work]


@pytest.mark.parametrize(
    "changed",
    [
        {"ipc": 2},
        {"evaluation": {"epochs": 5}},
        {"evaluation": {"learning_rate": 0.02}},
        {"evaluation": {"weight_decay": 0.0}},
        {"evaluation": {"batch_size": 3}},
        {"evaluation": {"augmentation": None}},
        {"evaluation": {"precision": "bfloat16"}},
        {"evaluation": {"networks": ["mlp"]}},
    ],
)
def test_what_changes_the_result_changes_its_key(data, changed):
    assert not set(keys(tiny(**changed), data)) & set(keys(tiny(), data))


def test_other_test_images_make_another_result(data):
    fewer = replace(data, test=data.test.subset(range(50)))
    assert not set(keys(tiny(), fewer)) & set(keys(tiny(), data))


@pytest.mark.parametrize("shared", [{"seed": 4}, {"synthesis": {"steps": 3}}, {"evaluation": {"whole_epochs": 2}}])
def test_a_baseline_is_shared_by_runs_that_differ_elsewhere(data, shared):
    assert keys(tiny(**shared), data) == keys(tiny(), data)


def test_students_of_other_numbers_have_other_random_subsets(data):
    candidates = Candidates(data, None, 1)
    assert candidates.fingerprint("random", 0) != candidates.fingerprint("random", 1)
    assert candidates.fingerprint("herding", 0) == candidates.fingerprint("herding", 1)
