"""Both kinds of group keep the same promises."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.util.placement_group import (
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayd.config import ResourceSettings
from rayd.engine.on_ray.calls import LostError
from rayd.engine.on_ray.item_queue import ItemQueue, StreamedItems
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import LocalPool, ObjectRef, WorkerPool
from rayd.errors import DataError, ResourceError, RunError


class Worker:
    """What the groups below host."""

    def __init__(self, factor: int):
        self.factor = factor

    def scale(self, shared: ObjectRef, index: int, delay: float = 0.0) -> torch.Tensor:
        time.sleep(delay)
        return shared.get() * self.factor + index

    def process(self) -> int:
        return os.getpid()

    def count(self, upto: int) -> Iterator[int]:
        yield from range(upto)

    def bundle(self) -> str | None:
        time.sleep(0.5)
        pool = get_current_placement_group()
        return pool.id.hex() if pool is not None else None

    def refuse(self) -> None:
        raise DataError("The third image is broken.")

    def crash(self) -> None:
        raise ZeroDivisionError("a bug")

    def die_once(self, marker: Path, value: int) -> int:
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    def count_and_die_once(self, marker: Path, upto: int) -> Iterator[int]:
        for number in range(upto):
            if number == upto // 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield number


class Caller:
    """What is hosted beside the workers."""

    def __init__(self, pool: WorkerPool, offset: float):
        self.pool = pool
        self.offset = offset

    def total(self, count: int) -> torch.Tensor:
        shared = self.pool.share(torch.full((2,), self.offset))
        return sum(self.pool.map("scale", [(shared, i) for i in range(count)]), torch.zeros(2))


@pytest.fixture(scope="module", params=[0, 2])
def pool(request: pytest.FixtureRequest) -> Iterator[WorkerPool]:
    with open_pool(
        ResourceSettings(workers=request.param, cpus_per_worker=0.5, threads=1), Worker, 10
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def ray_group() -> Iterator[WorkerPool]:
    with open_pool(
        ResourceSettings(workers=2, cpus_per_worker=0.5, threads=1), Worker, 10
    ) as opened:
        yield opened


def test_results_come_in_the_order_of_the_items(pool):
    shared = pool.share(torch.ones(2))
    items = [(shared, i, 0.05 * (i % 3 == 0)) for i in range(7)]
    assert [
        int(result[0]) for result in pool.map("scale", items, affinity=[i // 2 for i in range(7)])
    ] == list(range(10, 17))


def test_no_items_give_no_results(pool):
    assert list(pool.map("scale", [])) == []
    assert list(pool.stream("count", [])) == []


def test_streams_give_every_event_once_and_in_order(pool):
    events = list(pool.stream("count", [(4,), (0,), (3,)]))
    for item, length in enumerate((4, 0, 3)):
        assert [event for index, event in events if index == item] == list(range(length))


def test_a_hosted_object_calls_the_workers(pool):
    host = pool.host(Caller, 0.5)
    assert host.call("total", 3).tolist() == [18.0, 18.0]


def test_an_error_of_rayd_arrives_as_itself(pool):
    with pytest.raises(DataError, match="third image"):
        list(pool.map("refuse", [()]))


class Picky:
    """What cannot be made."""

    def __init__(self, *_: object):
        raise DataError("The shard is missing.")

    def total(self) -> None:
        """Never called."""


def test_what_cannot_be_made_says_why(ray_group):
    with pytest.raises(DataError, match="shard is missing"):
        ray_group.host(Picky).call("total")
    with pytest.raises(DataError, match="shard is missing"):
        open_pool(ResourceSettings(workers=1, cpus_per_worker=0.0), Picky)


def test_a_bug_on_a_worker_is_told(ray_group):
    with pytest.raises(RunError, match="ZeroDivisionError: a bug"):
        list(ray_group.map("crash", [()]))


@pytest.mark.chaos
def test_a_killed_worker_costs_nothing_but_time(ray_group, tmp_path):
    items = [(tmp_path / str(i % 2), i) for i in range(6)]
    assert list(ray_group.map("die_once", items)) == list(range(6))


@pytest.mark.chaos
def test_a_killed_stream_is_passed_on_once(ray_group, tmp_path):
    events = list(
        ray_group.stream("count_and_die_once", [(tmp_path / "a", 6), (tmp_path / "b", 4)])
    )
    for item, length in enumerate((6, 4)):
        assert [event for index, event in events if index == item] == list(range(length))


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"workers": 1000}, r"1000 workers of 1 CPU each do not fit: the cluster holds \d+ of them"),
    ({"workers": 2, "gpus_per_worker": 1}, r"2 workers of 1 CPU and 1 GPU each do not fit"),
])  # fmt: skip
def test_what_the_cluster_cannot_hold_is_refused_at_once(ray_group, settings, sentence):
    began = time.monotonic()
    with pytest.raises(ResourceError, match=sentence):
        open_pool(ResourceSettings(**settings), Worker, 1)
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["pack", "spread"])
def test_workers_stay_in_the_placement_group_of_who_starts_them(ray_group, placement):
    """As those of a sweep's trial do: outside of it others may hold what they need."""
    reserved = placement_group([{"CPU": 0.5}] * 2, strategy=placement.upper())
    assert reserved.wait(60)
    there = PlacementGroupSchedulingStrategy(reserved, placement_group_capture_child_tasks=True)
    bundles = (
        ray.remote(num_cpus=0)(bundles_of).options(scheduling_strategy=there).remote(placement)
    )
    try:
        assert ray.get(bundles, timeout=120) == [reserved.id.hex()] * 4
    finally:
        remove_placement_group(reserved)


def bundles_of(placement: str) -> list[str | None]:
    settings = ResourceSettings(workers=2, cpus_per_worker=0.5, placement=placement, threads=1)
    with open_pool(settings, Worker, 1) as pool:
        return list(pool.map("bundle", [()] * 4))


def test_an_address_where_nothing_answers_is_refused_in_seconds():
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"No Ray cluster answers at '127\.0\.0\.1:9'"):
        open_pool(ResourceSettings(workers=1, address="127.0.0.1:9"), Worker, 1)
    assert time.monotonic() - began < 30


def test_a_ray_client_is_refused_with_what_to_do_instead():
    with pytest.raises(
        ResourceError, match=r"from outside a cluster submit the run: ray job submit"
    ):
        open_pool(ResourceSettings(workers=1, address="ray://127.0.0.1:10001"), Worker, 1)


def test_in_process_threads_are_those_of_a_worker():
    pool = LocalPool(ResourceSettings(threads=1), Threads)
    torch.set_num_threads(2)
    assert list(pool.map("count", [()])) == [1]
    assert torch.get_num_threads() == 2


class Threads:
    """Tells torch's threads."""

    def count(self) -> int:
        return torch.get_num_threads()


def test_items_go_to_their_homes_first():
    """One item a call, as a step with one observer has: every home computes its own."""
    queue = ItemQueue(1, [2], 3)
    assert queue.assign([0, 1, 2]) == [(2, 0)]
    assert queue.assign([0, 1]) == []


def test_items_of_busy_homes_are_taken_by_idle_workers():
    queue = ItemQueue(4, [1, 1, 1, 0], 3)
    assert queue.assign([0, 1, 2]) == [(0, 3), (1, 0), (2, 1)]
    assert queue.assign([2]) == [(2, 2)]
    assert queue.assign([0, 1, 2]) == []


def test_lost_items_are_assigned_first():
    queue = ItemQueue(3, [0, 1, 0], 2)
    assert queue.assign([0, 1]) == [(0, 0), (1, 1)]
    queue.put_back(1)
    assert queue.assign([0]) == [(0, 1)]


def test_the_item_that_all_others_wait_for_is_the_only_one_given():
    """Also where its worker was lost, and to one worker alone."""
    queue = ItemQueue(3, [0, 1, 0], 2)
    assert queue.assign([1], only=0) == [(1, 0)]
    assert queue.assign([0], only=0) == []
    queue.put_back(0)
    assert queue.assign([], only=0) == []
    assert queue.assign([0, 1], only=0) == [(0, 0)]
    assert queue.assign([0, 1]) == [(0, 2), (1, 1)]


def test_a_restarted_stream_passes_each_event_on_once():
    """Lost items come first, and repeat their events from the first one."""
    items = StreamedItems([("a",), ("b",)], workers=2)
    assert items.start() == (0, ("a",))
    assert [items.is_new_event(0) for _ in range(2)] == [True, True]
    items.put_back(0, LostError())
    assert items.start() == (0, ("a",))
    assert [items.is_new_event(0) for _ in range(3)] == [False, False, True]
    items.finish(0)
    assert items.start() == (1, ("b",))
    assert items.start() is None
    assert items.all_started


def test_each_worker_computes_the_tasks_of_its_own_networks(ray_group):
    """Twenty steps of one task each, whose homes take turns."""
    pids = [next(ray_group.map("process", [()], affinity=[step])) for step in range(20)]
    shares = Counter(pids)
    assert sorted(shares.values()) == [10, 10]
    assert pids[0::2] == [pids[0]] * 10


def test_small_values_travel_with_the_call(ray_group):
    """Requesting a few bytes from Ray's object store takes longer than sending them."""
    small = ray_group.share({"a": torch.ones(100), "b": None})
    large = ray_group.share({"a": torch.ones(100_000)})
    assert small._reference is None
    assert large._reference is not None
    assert small.key != ray_group.share({"a": torch.ones(100), "b": None}).key
    items = [(ray_group.share(torch.ones(size)), 0) for size in (2, 100_000)]
    assert [len(result) for result in ray_group.map("scale", items)] == [2, 100_000]
