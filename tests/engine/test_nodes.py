"""Clusters whose nodes come and go, several on this machine."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from rayd.config import ResourceSettings
from rayd.engine.distill import distill
from rayd.engine.on_ray import health, watch
from rayd.engine.on_ray.pool import RayPool
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.engine.progress import Progress
from rayd.errors import ResourceError, RunError
from tests.faults import four_observers, made
from tests.nodes import STAGES, finely_cut, moved_about, several_nodes


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that holds no worker."""
    with several_nodes() as head:
        yield head


class Worker:
    """Tells where it is."""

    def where(self, item: int, seconds: float) -> tuple[int, str]:
        time.sleep(seconds)
        return item, ray.get_runtime_context().get_node_id()

    def count(self, upto: int, seconds: float) -> Iterator[int]:
        for number in range(upto):
            time.sleep(seconds)
            yield number


class Slow:
    """Takes a while to start, as many that import torch from one file system do."""

    def __init__(self, seconds: float):
        time.sleep(seconds)

    def ready(self) -> bool:
        return True


class Caller:
    """What is hosted beside the workers."""

    def __init__(self, pool: WorkerPool):
        self.pool = pool

    def where(self, count: int, seconds: float) -> list[tuple[int, str]]:
        return list(self.pool.map("where", [(item, seconds) for item in range(count)]))


def resources(**settings: Any) -> ResourceSettings:
    return ResourceSettings(threads=1, **settings)


@pytest.mark.slow
def test_workers_are_used_as_their_nodes_come_and_done_without_when_they_go(cluster):
    first = cluster.add_node(num_cpus=1)
    with RayPool(resources(workers=2, elastic=True), Worker) as pool:
        host = pool.host(Caller)
        results = pool.map("where", [(item, 0.3) for item in range(60)])
        places = []
        places.append(next(results))
        second = cluster.add_node(num_cpus=1)  # joins in the middle
        while len({node for _, node in places}) < 2:
            places.append(next(results))
        cluster.remove_node(first, allow_graceful=False)  # leaves, and none can take its worker
        places += results
        assert [item for item, _ in places] == list(range(60))
        assert places[-1][1] == second.node_id
        # a hosted object, here as what merges statistics does, goes on with who is left, and uses who comes
        # back
        assert {node for _, node in host.call("where", 2, 0.1)} == {second.node_id}
        third = cluster.add_node(num_cpus=1)
        until = time.monotonic() + 60
        while {node for _, node in host.call("where", 8, 0.2)} != {second.node_id, third.node_id}:
            assert time.monotonic() < until
        roster = seen(pool, 3)
    assert [one.role for one in roster] == ["worker", "worker", "caller"]
    assert all(one.there and one.pid and one.log.startswith("worker-") for one in roster)


def seen(pool: RayPool, count: int) -> list[WorkerInfo]:
    """The roster, once so many have answered."""
    until = time.monotonic() + 30
    while True:
        roster = pool.workers()
        if sum(one.there for one in roster) >= count:
            return roster
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.slow
def test_a_stream_goes_on_elsewhere_when_its_node_is_lost(cluster):
    nodes = {
        node.node_id: node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))
    }
    with RayPool(resources(workers=2, placement="spread"), Worker) as pool:
        placed = {node for _, node in pool.map("where", [(item, 0.3) for item in range(4)])}
        assert placed == set(nodes)
        events = []
        for event in pool.stream("count", [(8, 0.3), (8, 0.3)]):
            events.append(event)
            if len(events) == 4:
                cluster.remove_node(nodes.popitem()[1], allow_graceful=False)
    for item in (0, 1):
        assert [number for index, number in events if index == item] == list(range(8))


@pytest.mark.slow
def test_a_node_that_ray_drains_gets_no_new_tasks(cluster, monkeypatch):
    """As after a spot notice: what it has begun it finishes, the rest is done elsewhere."""
    monkeypatch.setattr(watch, "DRAIN_INTERVAL", 1.0)
    leaving, staying = (cluster.add_node(num_cpus=1) for _ in range(2))
    with RayPool(resources(workers=2, placement="spread"), Worker) as pool:
        results = pool.map("where", [(item, 0.2) for item in range(60)])
        places = [next(results) for _ in range(6)]
        assert {node for _, node in places} == {leaving.node_id, staying.node_id}
        in_ten_minutes = int(1000 * (time.time() + 600))
        is_accepted, reason = ray._raylet.GcsClient(address=cluster.address).drain_node(
            leaving.node_id,
            autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
            "taken back",
            in_ten_minutes,
        )
        assert is_accepted, reason
        places += results
    assert [item for item, _ in places] == list(range(60))
    assert {node for _, node in places[-20:]} == {staying.node_id}


@pytest.mark.slow
def test_more_workers_may_take_longer_to_start(cluster, monkeypatch):
    cluster.add_node(num_cpus=2)
    monkeypatch.setattr(health, "crowding", lambda: 1.0)
    monkeypatch.setattr(health, "START_LIMIT", 0.5)
    monkeypatch.setattr(health, "START_EACH", 60.0)
    with RayPool(resources(workers=2), Slow, 3.0) as pool:
        assert list(pool.map("ready", [()])) == [True]
    monkeypatch.setattr(health, "START_EACH", 0.5)
    with pytest.raises(ResourceError, match=r"2 workers did not start within 1\.5 s"):
        RayPool(resources(workers=2), Slow, 60.0)


@pytest.mark.slow
def test_without_any_node_a_run_ends_in_a_sentence(cluster, monkeypatch):
    monkeypatch.setattr(health, "NO_WORKER_LIMIT", 5.0)
    with pytest.raises(
        ResourceError, match="1 workers of 1 CPU each do not fit: the cluster holds 0 of them"
    ):
        RayPool(resources(workers=1), Worker)
    with pytest.raises(ResourceError, match="1 worker did not start within 5 s"):
        RayPool(resources(workers=1, elastic=True), Worker)
    only = cluster.add_node(num_cpus=1)
    with RayPool(resources(workers=1), Worker) as pool:
        results = pool.map("where", [(item, 0.1) for item in range(100)])
        next(results)
        cluster.remove_node(only, allow_graceful=False)
        with pytest.raises(
            RunError, match=r"No worker was alive for .* minutes, as no node joined"
        ):
            list(results)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nodes_come_and_go_in_every_stage_of_a_run(tmp_path, monkeypatch):
    finely_cut(monkeypatch)
    distill(
        four_observers(), tmp_path / "still", cache=tmp_path / "one", progress=Progress(quiet=True)
    )
    elastic = four_observers(resources={"workers": 3, "elastic": True, "threads": 1})
    moves = moved_about(elastic, tmp_path / "moved", tmp_path / "other")
    assert [move.stage for move in moves] == list(STAGES)
    assert all(move.by_joined > 0 and move.by_lost > 0 for move in moves)
    assert made(tmp_path / "still", tmp_path / "one") == made(
        tmp_path / "moved", tmp_path / "other"
    )
