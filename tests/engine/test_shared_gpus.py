"""Tasks that share a GPU: as many processes as fit, each of which sees the GPU of a worker."""

import os
import time
from collections.abc import Iterator

import pytest
import ray
import torch

from rayd.config import ResourceSettings
from rayd.data import load
from rayd.engine import gpu_sharing
from rayd.engine.costs import Costs
from rayd.engine.gpu_sharing import processes, run_sharing_gpus
from rayd.engine.job import Job
from rayd.engine.on_ray.cluster import unused_gpus
from rayd.engine.on_ray.pool import RayPool
from rayd.engine.pool import LocalPool, TaskStream, WorkerInfo
from rayd.engine.stages.student_tasks import TrainingSets, tasks
from rayd.engine.stages.students import Students, student_bytes
from rayd.engine.store import Store
from rayd.errors import OutOfMemoryError
from rayd.evaluation.student import StudentResult
from tests.conftest import tiny
from tests.nodes import several_nodes

GB = 10**9
EIGHT = ResourceSettings(workers=8, gpus_per_worker=1, cpus_per_worker=7)


@pytest.mark.parametrize(
    ("change", "tasks", "each", "memory", "wanted"),
    [
        ({}, 15, 2 * GB, 24 * GB, 2),  # two rounds of eight
        ({}, 8, 2 * GB, 24 * GB, 1),  # each has a GPU of its own
        ({}, 500, 0.01 * GB, 80 * GB, 7),  # the cores of a worker
        ({"cpus_per_worker": 20}, 500, 0.01 * GB, 80 * GB, gpu_sharing.MOST),
        ({}, 500, 4 * GB, 24 * GB, 4),  # the memory
        ({}, 500, 0.5 * GB, 8 * GB, 5),  # the memory, of which each process takes some by itself
        ({}, 500, 40 * GB, 24 * GB, 1),  # one task runs, whatever is estimated
        ({"gpus_per_worker": 0.5}, 500, 4 * GB, 24 * GB, 2),
        ({"gpus_per_worker": 0}, 500, 0.01 * GB, 0, 1),
        ({"workers": 0}, 500, 0.01 * GB, 80 * GB, 1),
    ],
)
def test_as_many_tasks_share_a_gpu_as_memory_and_cores_allow(change, tasks, each, memory, wanted):
    assert processes(EIGHT.model_copy(update=change), tasks, each, memory) == wanted


def test_the_memory_of_a_student_grows_with_its_batch_network_and_teachers(tmp_path):
    def needed(**evaluation: object) -> float:
        recipe = tiny(evaluation={"seeds": 1, "epochs": 1, "baselines": [], **evaluation})
        data = load(recipe.data)
        sets = TrainingSets(data, None, ipc=10)
        (task,) = tasks(recipe, ["random"], sets)
        return student_bytes(Costs(recipe, data, Store(tmp_path)), recipe, task)

    wide = {"name": "convnet", "width": 64}
    narrow = {"name": "convnet", "width": 8}
    assert needed(networks=[wide]) > 4 * needed(networks=[narrow])
    assert needed(networks=[wide]) > 2 * needed(networks=[wide], batch_size=10)
    weights = 4 * 64 * 64 * 9 * 2
    assert needed(networks=[wide]) > 3 * weights


def test_a_student_that_is_begun_anew_has_the_results_of_its_second_training(tmp_path):
    """Memory ran out elsewhere on the GPU when the first of its two results had come."""
    recipe = tiny(evaluation={"seeds": 1, "baselines": [], "epoch": ["last", "validation-best"]})
    data = load(recipe.data)
    job = Job(recipe, data, Store(tmp_path))
    sets = TrainingSets(data, None, ipc=1)
    students = Students(job, sets, tasks(recipe, ["random"], sets))
    (student,) = students.items()

    def result(selection: str, epoch: int) -> StudentResult:
        return StudentResult("mlp", 0, 0.5, None, (), 0.0, epoch, 0.0, selection)

    last = result("last", epoch=2)
    best = result("validation-best", epoch=1)
    events = [[(0, last), OutOfMemoryError("The GPU ran out of memory")], [(0, last), (0, best)]]

    class Pool(LocalPool):
        def stream(self, method, items):
            taken = list(items)
            assert len(taken) == 1
            for event in events.pop(0):
                if isinstance(event, OutOfMemoryError):
                    raise event
                yield event

    pool = Pool(ResourceSettings(), Worker)
    with pytest.raises(OutOfMemoryError):
        students.run(pool)
    (found,) = students.run(pool).values()
    assert [one.selection for one in found] == ["last", "validation-best"]
    assert [one.epoch for one in students.find(student)] == [2, 1]


class Worker:
    """Tells which process it is, and which GPU it sees."""

    def see(self, seconds: float) -> Iterator[tuple[int, str]]:
        time.sleep(seconds)
        yield os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

    def run_out(self, fitting: set[int]) -> Iterator[int]:
        time.sleep(1.0)
        if os.getpid() not in fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        yield os.getpid()


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[RayPool]:
    """Two workers, each of which reserved one of two GPUs, as far as Ray knows."""
    with several_nodes() as cluster:
        cluster.add_node(num_cpus=2, num_gpus=2)
        resources = ResourceSettings(workers=2, gpus_per_worker=1, threads=1)
        with RayPool(resources, Worker) as pool:
            yield pool


def seen(pool: TaskStream, count: int) -> set[tuple[int, str]]:
    return {event for _, event in pool.stream("see", [(0.5,)] * count)}


def seen_of_all(pool: TaskStream, processes: int) -> set[tuple[int, str]]:
    """What so many workers see, once all of them are alive."""
    until = time.monotonic() + 120
    found = set[tuple[int, str]]()
    while len(found) < processes:
        assert time.monotonic() < until
        found |= seen(pool, 2 * processes)
    return found


@pytest.mark.slow
def test_gpus_that_nobody_reserved_are_known(two_gpus):
    """Sweeps say so when trials leave them unused."""
    assert unused_gpus() == 0
    two_gpus_of = {node["NodeID"]: node["Resources"].get("GPU", 0) for node in ray.nodes()}
    assert sorted(two_gpus_of.values()) == [0, 2]


@pytest.mark.slow
def test_further_workers_see_the_gpus_of_those_that_reserved_them(two_gpus):
    alone = seen(two_gpus, 6)
    assert len(alone) == 2
    assert {gpu for _, gpu in alone} == {"0", "1"}
    with two_gpus.sharing_gpus(3) as shared:
        found = seen_of_all(shared, 6)
    assert alone < found
    assert sorted(gpu for _, gpu in found) == ["0"] * 3 + ["1"] * 3
    # afterwards the pool is as it was
    assert seen(two_gpus, 6) == alone


@pytest.mark.slow
def test_what_does_not_fit_side_by_side_is_done_one_by_one(two_gpus, monkeypatch, caplog):
    info = [WorkerInfo("worker", 1, "", "", gpu="0", gpu_bytes=24 * GB)] * 2
    monkeypatch.setattr(two_gpus, "workers", lambda: info)
    first = {pid for pid, _ in seen(two_gpus, 6)}
    done = []

    def run(pool: TaskStream) -> None:
        seen_of_all(pool, 2 if pool is two_gpus else 6)
        for item, pid in pool.stream("run_out", [(first,)] * 6):
            assert pid in first
            done.append((pool is two_gpus, item))

    resources = EIGHT.model_copy(update={"workers": 2})
    run_sharing_gpus(two_gpus, resources, 6, lambda: GB, run)
    assert {item for alone, item in done if alone} == set(range(6))
    assert "with 3 tasks on each GPU; going on with one" in caplog.text


def test_without_gpus_or_with_few_tasks_nothing_is_shared_or_estimated():
    def estimate() -> float:
        raise AssertionError

    pools = []
    pool = LocalPool(ResourceSettings(), Worker)
    run_sharing_gpus(pool, ResourceSettings(), 100, estimate, pools.append)
    run_sharing_gpus(pool, EIGHT, 8, estimate, pools.append)
    assert pools == [pool, pool]
