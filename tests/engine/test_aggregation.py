"""Statistics of the real data are merged beside the synthesizer, and the driver holds none."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.engine import wire
from rayd.engine.job import Job
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.on_ray import actors, calls
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import WorkerPool
from rayd.engine.stages import measure
from rayd.engine.stages.measure import Measure
from rayd.engine.statistic_aggregation import aggregate
from rayd.engine.store import Store
from rayd.errors import RunError
from tests.conftest import Recorded, tiny
from tests.engine.test_streaming import stored


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SHARD", 200)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def recipe(workers: int, pool: int = 5, **overrides: Any) -> Recipe:
    resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.25}
    networks = {"name": "convnet", "width": 16, "depth": 2}
    observers = {"pool": pool, "per_step": 1, "networks": networks}
    return tiny(observers=observers, resources=resources, **overrides)


def measured(chosen: Recipe, data: ImageData, cache: Path) -> dict[str, bytes]:
    """Files of the statistics."""
    with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:
        Measure(Job(chosen, data, Store(cache))).run(pool)
    return stored(cache, "measure")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_are_those_of_one_process_whoever_merges(
    data: ImageData, tmp_path: Path, workers: int
) -> None:
    """Of five observers some have a worker of their own, and the others are measured in shards."""
    alone = measured(recipe(0), data, tmp_path / "alone")
    assert len(alone) == 5
    assert measured(recipe(workers), data, tmp_path / "workers") == alone


def test_statistics_that_are_not_numbers_are_refused_and_not_stored(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a network whose weights are NaN: the synthesis would take its step size for the cause."""
    measure_shard = ObserverTasks.measure

    def broken(self: ObserverTasks, *arguments: Any) -> Any:
        results = measure_shard(self, *arguments)
        for layers in results[0].values():
            layers[0]["mean"][0] = float("nan")
        return results

    monkeypatch.setattr(ObserverTasks, "measure", broken)
    with pytest.raises(RunError, match=r"'convnet-d2-w16 #0' contain NaN.*observers.networks"):
        measured(recipe(0), data, tmp_path)
    assert not stored(tmp_path, "measure")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_synthesizer_that_is_made_again_repeats_its_events(
    data: ImageData, tmp_path: Path, workers: int
) -> None:
    """Also of observers whose files it wrote before it was lost: events are told apart by their
    number alone.
    """
    chosen = recipe(workers)
    job = Job(chosen, data, Store(tmp_path))
    stage = Measure(job)
    with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:
        measuring = stage._measuring(pool, stage.items())
        first = list(aggregate(pool, measuring))
        victim = sorted((tmp_path / "measure").glob("*.safetensors"))[0]
        before = stored(tmp_path, "measure")
        victim.unlink()
        assert list(aggregate(pool, measuring)) == first
    assert stored(tmp_path, "measure") == before
    shards = len(measuring.labels)
    assert dict(first) == dict.fromkeys(range(5), shards)


def test_no_statistic_passes_through_the_driver(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither parts of shards nor merged ones; what is left are events and references."""
    received = []
    sent = []

    def unpack(value: Any) -> Any:
        received.append(wire.size(value))
        return wire.unpack(value)

    def pack(value: Any) -> Any:
        packed = wire.pack(value)
        sent.append(wire.size(packed))
        return packed

    for module in (actors, calls):
        monkeypatch.setattr(module, "unpack", unpack)
    monkeypatch.setattr(actors, "pack", pack)
    files = measured(recipe(2), data, tmp_path)
    assert received
    assert max(received) < 1000
    # the images of all shards, and nothing of the statistics
    assert sum(sent) < data.train.images.nbytes + data.train.labels.nbytes + 1000
    assert len(files) == 5


def test_statistics_are_read_where_they_are_needed(data: ImageData, tmp_path: Path) -> None:
    """What a stage returns are names of files, also where these were there before."""
    chosen = recipe(0)
    job = Job(chosen, data, Store(tmp_path))
    with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:
        first = Measure(job).run(pool)
        again = Measure(job).run(pool)
    assert first == again
    for found in first.values():
        (states,) = found.get().values()
        assert states[0]["count"].sum() == len(data.train)


def test_damaged_statistics_are_measured_again(
    data: ImageData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = measured(recipe(0), data, tmp_path)
    victim = sorted((tmp_path / "measure").glob("*.safetensors"))[0]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 255
    victim.write_bytes(bytes(content))
    assert measured(recipe(0), data, tmp_path) == before
    assert "is damaged" in caplog.text


@pytest.mark.chaos
@pytest.mark.parametrize("role", ["worker", "synthesizer"])
def test_kills_while_measuring_change_no_byte(data: ImageData, tmp_path: Path, role: str) -> None:
    """Whoever is lost, worker or synthesizer, once in the whole observers and once in shards."""
    chosen = recipe(2)
    killed: list[int] = []
    shards = len(measure.shards(len(data.train)))

    def kill(pool: WorkerPool) -> None:
        # what was started or restarted just now is not known yet
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for info in pool.workers():
                if info.role == role and info.there and info.pid not in (0, *killed):
                    killed.append(info.pid)
                    os.kill(info.pid, signal.SIGKILL)
                    return
            time.sleep(0.05)

    with open_pool(chosen.resources, ObserverTasks, chosen, DatasetInfo.of(data)) as pool:

        def done(units: float) -> None:
            pool.workers()
            if units in (2 * shards, 4 * shards + 2):
                kill(pool)

        Measure(Job(chosen, data, Store(tmp_path / "killed"))).run(pool, Recorded(done))
    assert len(killed) == 2
    assert stored(tmp_path / "killed", "measure") == measured(recipe(0), data, tmp_path / "whole")
