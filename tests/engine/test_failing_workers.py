"""Workers whose GPU fails, that hang, that are late, or whose node is about to go."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from rayd.config import ResourceSettings
from rayd.engine.memory import device_fault
from rayd.engine.on_ray import actor_tasks, health, item_queue
from rayd.engine.on_ray.cluster import memory_to_ask
from rayd.engine.on_ray.health import ActorMonitor, WorkerHealth
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.errors import DeviceFaultError, RunError

FAULT = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"
NO_HANDLE = "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
"""What cuBLAS says where other processes, or torch's caches, hold all memory of a GPU."""


class Worker:
    """Fails in ways that GPUs do, each only once for a marker."""

    def fail_once(self, marker: Path, value: int) -> int:
        if not marker.exists():
            marker.write_text(str(os.getpid()))
            raise RuntimeError(FAULT)
        assert int(marker.read_text()) != os.getpid()  # this process's context is dead
        return value

    def fail(self) -> None:
        raise RuntimeError(FAULT)

    def stream_and_fail_once(self, marker: Path, upto: int) -> Iterator[int]:
        for number in range(upto):
            if number == upto // 2 and not marker.exists():
                marker.touch()
                raise RuntimeError(FAULT)
            yield number

    def run_out_once(self, marker: Path, value: int) -> int:
        if not marker.exists():
            marker.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return value

    def stream_and_run_out_once(self, marker: Path, upto: int) -> Iterator[int]:
        for number in range(upto):
            if number == upto // 2 and not marker.exists():
                marker.touch()
                raise RuntimeError(f"CUDA error: {NO_HANDLE}")
            yield number

    def hang_once(self, marker: Path, value: int) -> int:
        time.sleep(0.02)
        if value == 5 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return value

    def stream_and_hang_once(self, marker: Path, upto: int) -> Iterator[int]:
        for number in range(upto):
            time.sleep(0.02)
            if number == upto // 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            yield number

    def hang(self, value: int) -> int:
        if value:
            os.kill(os.getpid(), signal.SIGSTOP)
        return value

    def large(self, index: int, seconds: float) -> np.ndarray:
        time.sleep(seconds if index == 0 else 0.0)
        return np.full(2_000_000, index, np.uint8)

    def note(self, folder: Path, index: int) -> int:
        (folder / str(index)).touch()
        time.sleep(1.5 if index == 0 else 0.0)
        return index


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerPool]:
    settings = ResourceSettings(workers=2, cpus_per_worker=0.5, threads=1)
    with open_pool(settings, Worker) as opened:
        yield opened


@pytest.mark.slow
def test_a_gpu_that_fails_costs_its_worker_and_the_task_is_done_again(workers, tmp_path, caplog):
    items = [(tmp_path / str(value % 2), value) for value in range(6)]
    assert list(workers.map("fail_once", items)) == list(range(6))
    assert "A GPU failed (CUDA error: an illegal memory access was encountered) on" in caplog.text
    events = list(workers.stream("stream_and_fail_once", [(tmp_path / "s", 6)]))
    assert [event for _, event in events] == list(range(6))


@pytest.mark.slow
def test_a_task_on_which_every_gpu_fails_ends_the_run_with_a_sentence(workers):
    with pytest.raises(DeviceFaultError, match=r"illegal memory.*3 times in a row.*--resume"):
        list(workers.map("fail", [()]))


def test_a_task_that_runs_out_of_memory_is_tried_once_more(workers, tmp_path):
    assert list(workers.map("run_out_once", [(tmp_path / "a", 7)])) == [7]
    events = list(workers.stream("stream_and_run_out_once", [(tmp_path / "b", 6)]))
    assert [event for _, event in events] == list(range(6))


def test_status_says_how_long_a_worker_has_been_silent(workers, tmp_path):
    assert [info.busy for info in workers.workers()] == [None] * len(workers.workers())
    events = workers.stream("stream_and_fail_once", [(tmp_path, 1)])
    next(events)
    time.sleep(0.2)
    silent = [info.busy for info in workers.workers() if info.busy is not None]
    assert len(silent) == 1
    assert silent[0] >= 0.2
    list(events)
    assert [info.busy for info in workers.workers()] == [None] * len(workers.workers())


@pytest.mark.slow
def test_a_worker_that_hangs_is_restarted(workers, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(actor_tasks, "HANG_LIMIT", 3.0)
    items = [(tmp_path / "a", value) for value in range(30)]
    assert list(workers.map("hang_once", items)) == list(range(30))
    assert (tmp_path / "a").exists()
    assert "over a task ('hang_once') that usually takes" in caplog.text
    events = list(workers.stream("stream_and_hang_once", [(tmp_path / "b", 6)]))
    assert [event for _, event in events] == list(range(6))


@pytest.mark.slow
def test_a_task_that_always_hangs_ends_the_run_with_a_sentence(workers, monkeypatch):
    monkeypatch.setattr(actor_tasks, "HANG_LIMIT", 3.0)
    monkeypatch.setattr(item_queue, "FAULTS", 2)
    with pytest.raises(RunError, match=r"hung 2 times in a row, at last for .* s; .*--resume"):
        list(workers.map("hang", [(0,), (0,), (0,), (1,)]))


def own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_results_behind_a_late_one_do_not_fill_the_drivers_memory(workers):
    list(workers.map("large", [(1, 0.0)] * 4))
    before = own_memory()
    results = workers.map("large", [(index, 2.0) for index in range(60)])
    first = next(results)
    grown = own_memory() - before
    assert int(first[0]) == 0
    assert grown < 30e6, grown
    assert [int(result[0]) for result in results] == list(range(1, 60))


def test_no_more_than_some_results_wait_for_a_late_one(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(actor_tasks, "WAITING", 3)
    results = workers.map("note", [(tmp_path, index) for index in range(40)])
    assert next(results) == 0
    assert len(list(tmp_path.iterdir())) <= 9
    assert list(results) == list(range(1, 40))


def test_faults_of_devices_are_told_from_other_errors():
    assert device_fault(RuntimeError(FAULT)).startswith("A GPU failed (CUDA error: an illegal")
    assert device_fault(torch.OutOfMemoryError("CUDA out of memory.")) is None
    assert device_fault(RuntimeError("CUDA error: out of memory")) is None
    assert device_fault(RuntimeError(f"CUDA error: {NO_HANDLE}")) is None
    assert device_fault(RuntimeError("shapes do not match")) is None
    assert device_fault(ValueError(FAULT)) is None


def test_workers_on_a_draining_node_get_no_new_tasks(monkeypatch):
    tracked = WorkerHealth([None] * 3)
    tracked.present = {0, 1, 2}
    tracked.last_info = {
        worker: WorkerInfo(role="worker", pid=1, node="n", log="", node_id=node)
        for worker, node in enumerate(["a", "b", "b"])
    }
    draining: set[str] = set()
    monkeypatch.setattr(tracked._draining, "nodes", lambda: draining)
    assert tracked.usable() == {0, 1, 2}
    draining.add("b")
    assert tracked.usable() == {0}
    # with no other left they go on: what they finish in time is not lost
    draining.add("a")
    assert tracked.usable() == {0, 1, 2}


@pytest.mark.parametrize(
    ("nodes", "resources", "asked"),
    [
        # what a worker takes, where nodes have more than that
        ([{"CPU": 4, "memory": 100}], {"workers": 2}, 40),
        # the share of a node, where it has less: an estimate refuses nothing
        ([{"CPU": 4, "memory": 60}], {"workers": 2}, 30),
        ([{"CPU": 4, "memory": 100}, {"CPU": 1, "memory": 10}], {"workers": 2}, 10),
        # nodes that hold no worker do not count
        ([{"CPU": 4, "memory": 100}, {"CPU": 0, "memory": 1}], {"workers": 2}, 40),
        ([{"CPU": 4, "memory": 100}], {"workers": 2, "elastic": True}, 0),
        ([{"CPU": 0, "memory": 100}], {"workers": 2}, 0),
    ],
)
def test_workers_ask_for_no_more_memory_than_their_share(nodes, resources, asked, monkeypatch):
    found = {str(index): node for index, node in enumerate(nodes)}
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: found)
    assert memory_to_ask(ResourceSettings(**resources), 40) == asked
    assert memory_to_ask(ResourceSettings(**resources), 0) == 0


class PingedActor:
    """An actor whose pings are answered at once."""

    def __init__(self) -> None:
        self.worker_info = self

    def options(self, max_task_retries: int) -> "PingedActor":
        return self

    def remote(self, role: str) -> object:
        return object()


def test_two_threads_poll_a_monitor(monkeypatch):
    answer = WorkerInfo(role="worker", pid=1, node="one", log="")

    def wait(pings, num_returns, timeout):
        time.sleep(0.001)  # the other thread may go on here
        return pings, []

    monkeypatch.setattr(health.ray, "wait", wait)
    monkeypatch.setattr(health.ray, "get", lambda ping, timeout: answer)
    monitor = ActorMonitor()
    actors = [("worker", PingedActor()) for _ in range(4)]
    with ThreadPoolExecutor(max_workers=2) as threads:
        polls = [threads.submit(monitor.poll, actors, {}) for _ in range(200)]
        assert all(poll.result() == [answer] * 4 for poll in polls)
