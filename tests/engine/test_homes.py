"""Every network has a home among the workers, and its gradient tasks go there."""

from __future__ import annotations

from collections import Counter

from rayd import methods
from rayd.config import Recipe
from rayd.engine.gradients.base import SharedImages
from rayd.engine.gradients.feature_matching import FeatureMatching
from rayd.engine.network_ids import network_ids
from rayd.engine.pool import LocalPool, LocalRef
from tests.conftest import tiny

WIDTHS = (4, 6, 8, 10)


def homes(recipe: Recipe, steps: int) -> list[int]:
    """The affinities of the tasks of some steps, in order."""
    source = FeatureMatching(
        recipe=recipe,
        method=methods.build(recipe),
        pool=LocalPool.around(None),
        block=0,
        blocks=1,
        weights={},
        accuracies={},
        measured={network_id: LocalRef({}) for network_id in network_ids(recipe)},
        train=None,
        memory={},
    )
    images = SharedImages(LocalRef({}), LocalRef({}), None)
    return [work.affinity for step in range(steps) for work in source.work(step, images)]


def test_networks_of_all_architectures_have_different_homes() -> None:
    networks = [{"name": "convnet", "width": width, "depth": 2} for width in WIDTHS]
    recipe = tiny(observers={"networks": networks, "pool": 1, "per_step": 1})
    found = homes(recipe, 8)
    assert found == [0, 1, 2, 3] * 2
    assert Counter(home % 2 for home in found) == {0: 4, 1: 4}


def test_networks_of_one_step_have_different_homes() -> None:
    found = homes(tiny(observers={"pool": 5, "per_step": 2}), 5)
    assert found == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
