"""Of data at a URL each node fetches what its workers read, and hardly a file is fetched by two
nodes.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from rayd.config import Recipe
from rayd.data import load
from rayd.engine.job import Job
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.on_ray.pool import RayPool
from rayd.engine.pool import LocalPool
from rayd.engine.stages import measure
from rayd.engine.stages.measure import Measure, runs
from rayd.engine.store import Store
from tests.conftest import tiny
from tests.data.files import encode, some_images, write_parquet
from tests.data.storage import fetched
from tests.engine.test_streaming import stored

FILES = 24
EACH = 50
SHARD = 30


class Distant(ObserverTasks):
    """Observers in processes that know the storage of `tests.data.storage`."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in many files, of which shards are not whole ones."""
    for seed, (split, files) in enumerate((("train", FILES), ("test", 1))):
        contents = [encode(image) for image in some_images(EACH, side=16, seed=seed)]
        for file in range(files):
            labels = [(row + file) % 3 for row in range(EACH)]
            write_parquet(
                tmp_path / "storage" / "zoo" / f"{split}-{file:02}.parquet",
                contents,
                labels,
                row_group_size=10,
            )
    monkeypatch.setenv("FOLDER_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("RAYD_MIRROR", str(tmp_path / "driver"))
    monkeypatch.setattr(measure, "SHARD", SHARD)
    return tmp_path


def recipe(workers: int) -> Recipe:
    observers = {"networks": {"name": "convnet", "width": 4, "depth": 2}, "pool": 10, "per_step": 1}
    data = {"name": "folder://zoo", "stream": True}
    return tiny(data=data, observers=observers, resources={"workers": workers, "threads": 1})


@pytest.mark.parametrize(
    ("files", "shards"), [(24, 40), (294, 128), (1_281_167, 128), (1, 128), (7, 3), (1, 1)]
)
@pytest.mark.parametrize("workers", [1, 2, 30, 200])
def test_runs_are_of_consecutive_shards_and_leave_work_for_all(
    files: int, shards: int, workers: int
) -> None:
    numbers = runs(files, shards, workers)
    assert len(numbers) == shards
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= min(workers, shards)
    assert max(Counter(numbers).values()) <= measure.RUN


@pytest.mark.slow
def test_hardly_a_file_is_fetched_by_two_nodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(2)
    alone = recipe(0)
    data = load(chosen.data)
    with LocalPool(alone.resources, Distant, alone, DatasetInfo.of(data)) as pool:
        Measure(Job(alone, data, Store(root / "alone")), {}).run(pool)
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for node in ("one", "two"):
        monkeypatch.setenv("RAYD_MIRROR", str(root / node))
        cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAYD_MIRROR", str(root / "driver"))
    ray.init(address=cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    before = len(fetched())
    try:
        with RayPool(chosen.resources, Distant, chosen, DatasetInfo.of(data)) as pool:
            Measure(Job(chosen, data, Store(root / "together")), {}).run(pool)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert stored(root / "together", "measure") == stored(root / "alone", "measure")
    fetches = Counter(name for name, _ in fetched()[before:])
    assert len(fetches) == FILES
    # files between two runs, and what one worker does in the end for the other; by observer it
    # would be all files twice
    assert sum(fetches.values()) <= 1.25 * FILES, fetches
    for node in ("one", "two"):
        assert FILES / 4 <= len(list((root / node).rglob("*.parquet"))) <= 3 * FILES / 4
