"""What a measured statistic depends on is in its key, and what it does not is not."""

import pytest

from rayd import methods
from rayd.artifacts import content_hash
from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.engine import measure
from tests.conftest import tiny


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def key(recipe: Recipe, data: ImageData, member: int = 0) -> str:
    (need,) = methods.build(recipe).needs
    return content_hash(measure.inputs(recipe, data, need, member))


@pytest.mark.parametrize(
    "observers",
    [
        {"augmentation": None},
        {"seed": 1},
        {"network": {"width": 9}},
        {"network": {"norm": "none"}},
        {"precision": "bfloat16"},
        {"batch_size": 7},
    ],
)
def test_what_changes_the_statistic_changes_its_key(data, observers):
    assert key(tiny(observers=observers), data) != key(tiny(), data)


def test_members_and_data_have_keys_of_their_own(data):
    assert key(tiny(), data, 0) != key(tiny(), data, 1)
    fewer = tiny(data={"classes": ["0", "1", "2"]})
    assert key(fewer, load(fewer.data)) != key(tiny(), data)


@pytest.mark.parametrize(
    "setting",
    [{"seed": 3}, {"ipc": 2}, {"observers": {"pool": 9}}, {"synthesis": {"steps": 5}}, {"evaluation": {"epochs": 2}}],
)
def test_what_does_not_change_it_shares_it(data, setting):
    assert key(tiny(**setting), data) == key(tiny(), data)
