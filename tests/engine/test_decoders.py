"""Streamed images that a Ray Data pipeline decodes: the same bytes, once each, a bounded number at
a time.
"""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import numpy.typing as npt
import pytest
import ray

from rayd import remote
from rayd.config import DataSettings, Recipe
from rayd.data import ImageData, ImageSet, copies, load
from rayd.data.arrays import Pixels
from rayd.data.formats.base import EncodedPixels
from rayd.data.formats.parquet import open_source
from rayd.data.streaming import StreamedPixels
from rayd.engine.job import Job
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.on_ray.data import decoded
from rayd.engine.on_ray.pool import RayPool
from rayd.engine.open_pool import open_pool
from rayd.engine.preflight import preflight
from rayd.engine.stages import measure
from rayd.engine.stages.measure import Measure, in_store
from rayd.engine.store import Store
from rayd.errors import ConfigError, DataError, ResourceError
from tests.conftest import Recorded, tiny
from tests.data.files import encode, write_parquet
from tests.engine.test_streaming import stored

IMAGES = 240
SHARD = 40
BATCH = 16


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.shutdown()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHARD", SHARD)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 of the digits as Parquet in three files."""
    path = tmp_path_factory.mktemp("root")
    digits = load(DataSettings(name="digits"))
    write(path / "few", digits)
    return path


def write(path: Path, digits: ImageData, damaged: int | None = None) -> None:
    contents = [encode(image) for image in digits.train.images[:IMAGES]]
    if damaged is not None:
        contents[damaged] = contents[damaged][:30]
    labels = digits.train.labels[:IMAGES]
    for index, rows in enumerate(np.array_split(np.arange(IMAGES), 3)):
        some = [contents[row] for row in rows]
        write_parquet(
            path / f"train-{index}.parquet",
            some,
            labels[rows].tolist(),
            names=digits.class_names,
            row_group_size=30,
        )
    tested = [encode(image) for image in digits.test.images[:90]]
    write_parquet(
        path / "test-0.parquet", tested, digits.test.labels[:90].tolist(), names=digits.class_names
    )


def recipe(name: str = "few", streamed: bool = True, pool: int = 3, **resources: object) -> Recipe:
    return tiny(
        data={"name": name, "stream": streamed},
        observers={"pool": pool, "batch_size": BATCH},
        resources={"threads": 1, **resources},
    )


def measured(chosen: Recipe, root: Path, cache: Path) -> dict[str, bytes]:
    """What all observers measure, by file."""
    data = load(chosen.data, root)
    with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:
        Measure(Job(chosen, data, Store(cache)), {}).run(pool)
    return stored(cache, "measure")


@pytest.mark.parametrize(("workers", "decoders"), [(1, 1), (2, 2)])
def test_decoders_change_no_byte(tmp_path: Path, root: Path, workers: int, decoders: int) -> None:
    plain = measured(recipe(streamed=False), root, tmp_path / "plain")
    assert len(plain) == 3
    assert measured(recipe(), root, tmp_path / "streamed") == plain
    beside = recipe(workers=workers, decoders=decoders, cpus_per_worker=0.5)
    assert measured(beside, root, tmp_path / "decoders") == plain


@dataclass(frozen=True, eq=False)
class Watched(StreamedPixels):
    """Images that leave a file behind when they are decoded, and may wait a little first."""

    folder: Path = Path()

    def decode(self, rows: slice | npt.NDArray[np.int64], threads: int) -> Pixels:
        (self.folder / f"{self.rows[0]}-{time.monotonic_ns()}").touch()
        return super().decode(rows, threads)


def parts(path: Path, folder: Path, size: int) -> list[ImageSet]:
    """The training images in parts of a size, watched."""
    source = open_source(path)
    split = source.splits["train"]
    assert isinstance(split.read, EncodedPixels)
    whole = split.read.streamed(np.arange(IMAGES))
    folder.mkdir(exist_ok=True)
    found = []
    for start in range(0, IMAGES, size):
        rows = slice(start, start + size)
        some = Watched(whole.encoded, whole.rows[rows], whole.image, whole.decoder, folder)
        found.append(ImageSet(some, split.labels[rows], source.class_names))
    return found


def test_shards_come_in_order_and_few_of_them_wait(tmp_path: Path, root: Path) -> None:
    """One decoder, 24 shards and somebody slow: decoded are those that were asked for and at most
    three more.
    """
    ahead = list[int]()
    some = parts(root / "few", tmp_path / "seen", 10)
    for count, (part, shard) in enumerate(zip(some, decoded(some, 1), strict=True)):
        pixels, labels = shard.get()
        np.testing.assert_array_equal(pixels, part.images[:])
        np.testing.assert_array_equal(labels, part.labels)
        assert not pixels.flags.writeable
        if count in (0, 8):
            time.sleep(5)
        ahead.append(
            len({name.partition("-")[0] for name in os.listdir(tmp_path / "seen")}) - count - 1
        )
    assert max(ahead) <= 3


def test_each_shard_is_decoded_once_for_all_observers(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load(recipe().data, root)
    cut = parts(root / "few", tmp_path / "seen", SHARD)
    monkeypatch.setattr(ImageSet, "part", lambda self, rows: cut[rows.start // SHARD])
    for place, resources in enumerate(({"workers": 1, "decoders": 1}, {"workers": 1}, {})):
        before = len(os.listdir(tmp_path / "seen"))
        chosen = recipe(**resources)
        with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:
            store = Store(tmp_path / str(place))
            Measure(Job(chosen, data, store), {}).run(pool)
        # a worker decodes a shard in batches of its observers
        times = 1 if "decoders" in resources else -(-SHARD // BATCH)
        assert len(os.listdir(tmp_path / "seen")) - before == IMAGES // SHARD * times


@pytest.mark.chaos
def test_killed_workers_change_no_byte(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies in the middle of the pass, and takes the shard that it was at with it."""
    chosen = recipe(workers=2, decoders=1, cpus_per_worker=0.5, pool=4)
    data = load(chosen.data, root)
    killed = list[int]()
    with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:
        assert isinstance(pool, RayPool)

        def done(items: float) -> None:
            if items in (3, 10):
                victim = next(one for one in pool.workers() if one.pid and one.pid not in killed)
                killed.append(victim.pid)
                os.kill(victim.pid, signal.SIGKILL)

        Measure(Job(chosen, data, Store(tmp_path / "killed"))).run(pool, Recorded(done))
    assert len(killed) == 2
    assert stored(tmp_path / "killed", "measure") == measured(
        recipe(pool=4), root, tmp_path / "whole"
    )


def test_data_at_a_url(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR", str(tmp_path / "mirror"))
    store = fsspec.filesystem("memory")
    for file in (root / "few").iterdir():
        store.pipe_file(f"/bucket/few/{file.name}", file.read_bytes())
    chosen = recipe("memory://bucket/few", workers=1, decoders=1)
    assert measured(chosen, root, tmp_path / "url") == measured(recipe(), root, tmp_path / "path")
    assert (
        remote.root() / copies.FOLDER / "memory" / "bucket" / "few" / "train-0.parquet"
    ).exists()


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write(tmp_path / "bad", load(DataSettings(name="digits")), damaged=130)
    with pytest.raises(
        DataError, match=r"Cannot decode the image at row 50 of '.*train-1\.parquet'"
    ):
        for _ in decoded(parts(tmp_path / "bad", tmp_path / "seen", SHARD), 1):
            pass


def test_decoders_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="they need 'workers' above 0"):
        recipe(decoders=1)
    with pytest.raises(
        ResourceError,
        match="9 decoders need a CPU each that no worker has: the cluster has 3 of them",
    ):
        RayPool(recipe(workers=1, decoders=9).resources, ObserverTasks)


def test_shards_that_the_object_store_does_not_hold_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(workers=1, decoders=1)
    data = load(chosen.data, root)
    shard = SHARD * 64
    assert in_store(chosen, data.train) == 3 * shard
    assert in_store(recipe(workers=1), data.train) == 0
    whole = load(DataSettings(name="digits"))
    assert in_store(chosen, whole.train) == whole.train.images.nbytes
    preflight(chosen, data)
    node = {"Alive": True, "NodeID": ray.get_runtime_context().get_node_id()}
    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [node | {"Resources": {"CPU": 3, "object_store_memory": 3 * shard - 1}}],
    )
    with pytest.raises(
        ResourceError,
        match=r"real images would be in Ray's object store .* ask for fewer resources.decoders",
    ):
        preflight(chosen, data)
    monkeypatch.setattr(
        ray, "nodes", lambda: [node | {"Resources": {"CPU": 3, "object_store_memory": 1000}}]
    )
    with pytest.raises(
        ResourceError,
        match=r"on this node: leave them in their files \(data.stream=true\), or start Ray with",
    ):
        preflight(chosen, whole)
