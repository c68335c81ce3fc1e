"""Where a step keeps only one worker busy, the synthesizer runs in that worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rayd import methods
from rayd.config import Recipe
from rayd.engine import distill as runs
from rayd.engine.gradients.base import tasks_per_step
from rayd.engine.milestones import Callback, Milestone
from rayd.engine.on_ray import neighbours
from rayd.engine.on_ray.pool import RayPool
from rayd.recipes import resolve
from tests.conftest import tiny
from tests.faults import workers_of
from tests.runs import QUIET
from tests.slow_worker import SlowWorker, shares


def one_observer(**resources: Any) -> Recipe:
    return tiny(
        # one more than workers: it is measured in shards
        observers={"pool": 3, "per_step": 1},
        evaluation={"seeds": 1, "epochs": 1, "baselines": []},
        resources={"threads": 1, **resources},
    )


@pytest.mark.parametrize(
    ("recipe", "tasks"),
    [("dm-cifar10-ipc10", 2), ("edc-cifar10-ipc10", 1), ("mtt-cifar10-ipc10", 1), ("dc-digits", 1)],
)
def test_tasks_of_a_step_are_counted(recipe: str, tasks: int) -> None:
    assert tasks_per_step(methods.build(resolve(recipe))) == tasks


def test_tasks_of_groups_and_of_training_count() -> None:
    assert tasks_per_step(methods.build(tiny())) == 2
    pool = {"start": 2, "capacity": 3, "push_every": 4, "trained_per_step": 3}
    idm = tiny(method="idm", observers={"per_step": 1, "pool": 1, "model_pool": pool})
    assert tasks_per_step(methods.build(idm)) == 4


def two_observers(**resources: Any) -> Recipe:
    return tiny(
        observers={"pool": 3, "per_step": 2},
        evaluation={"seeds": 1, "epochs": 1, "baselines": []},
        resources={"threads": 1, **resources},
    )


def test_workers_share_the_tasks_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two tasks is computed where the synthesizer is; bytes are those of one process."""
    log = tmp_path / "answers"
    runs.distill(two_observers(), tmp_path / "alone", cache=tmp_path / "one", progress=QUIET)
    slow = partial(SlowWorker, log=log, seconds=0.002)
    monkeypatch.setattr("rayd.engine.driver.Worker", slow)
    runs.distill(
        two_observers(workers=2, cpus_per_worker=0.5),
        tmp_path / "ray",
        cache=tmp_path / "two",
        progress=QUIET,
    )
    made = [tmp_path / name / "distilled" / "data.safetensors" for name in ("alone", "ray")]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert sorted(shares(log).values()) == [12, 12]


class Doubling:
    """A replica."""

    def double(self, number: float) -> torch.Tensor:
        """Twice the number."""
        return torch.tensor(2 * number)


def around(monkeypatch: pytest.MonkeyPatch, usable: set[int]) -> Any:
    """The pool of the second of four workers."""
    monkeypatch.setattr(
        neighbours.ray, "get_runtime_context", lambda: SimpleNamespace(get_actor_name=lambda: "b")
    )
    made = neighbours.WorkersByName(["a", "b", "c", "d"]).around(Doubling())
    made.__dict__["_workers"] = ["a", "b", "c", "d"]
    made.__dict__["_health"] = SimpleNamespace(usable=lambda: usable)
    return made


def test_tasks_that_are_shorter_than_a_call_stay_where_the_synthesizer_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = around(monkeypatch, {0, 2, 3})
    pool._computed["double"].extend([1.0] * 7 + [0.001])
    found = list(pool.map("double", [(1.0,), (3.0,)], [0, 2]))
    assert [float(number) for number in found] == [2.0, 6.0]


@pytest.mark.parametrize(
    ("usable", "affinity", "workers"),
    [
        ({0, 2, 3}, [0, 1, 2, 3], [0, 1, 2, 3]),
        ({0, 2, 3}, [4, 5], [0, 1]),
        # none is given two while another one has none
        ({0, 2, 3}, [0, 4], [0, 1]),
        ({0}, [0, 1, 2, 3], [0, 1, 0, 1]),
        (set(), [0, 1, 2], [1, 1, 1]),
    ],
)
def test_every_worker_has_its_share_of_a_step(
    monkeypatch: pytest.MonkeyPatch, usable: set[int], affinity: list[int], workers: list[int]
) -> None:
    assert around(monkeypatch, usable)._among(affinity) == workers


def test_what_a_synthesizer_shares_is_stored_when_it_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, whoever it is sent to; what stays with it is not stored."""
    stored = []

    class Stored:
        def __init__(self, value: Any):
            stored.append(value)

    monkeypatch.setattr(neighbours, "RayRef", Stored)
    tensor = torch.ones(2)
    near = neighbours.NearRef(tensor)
    assert near.get() is tensor
    assert not stored
    for _ in range(2):
        near.__reduce__()
    assert len(stored) == 1


def test_what_a_synthesizer_shares_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on to change its images, while tasks that were sent are still computed."""
    pool = around(monkeypatch, {0, 2, 3})
    images = {"images": torch.zeros(2)}
    shared = pool.share(images)
    images["images"].add_(1)
    assert torch.equal(shared.get()["images"], torch.zeros(2))


@pytest.mark.chaos
@pytest.mark.parametrize("recipe", [one_observer, two_observers])
def test_a_killed_worker_is_replaced_with_its_synthesizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Callable[..., Recipe]
) -> None:
    """Same bytes as in process; what merged the statistics is not there any more."""
    runs.distill(recipe(), tmp_path / "alone", cache=tmp_path / "one", progress=QUIET)
    killed = []

    def kill(milestone: Milestone) -> None:
        assert [one.is_closed for one in hosted] == [True]
        for worker in workers_of(os.getpid()):
            killed.append(worker)
            os.kill(worker, signal.SIGKILL)

    hosted = []
    host = RayPool.host

    def recorded(self: RayPool, *arguments: Any) -> Any:
        hosted.append(host(self, *arguments))
        return hosted[-1]

    monkeypatch.setattr(RayPool, "host", recorded)
    runs.distill(
        recipe(workers=2, cpus_per_worker=0.5),
        tmp_path / "ray",
        cache=tmp_path / "two",
        progress=QUIET,
        callback=Callback((0.6,), kill),
    )
    assert len(killed) == 2
    made = [tmp_path / name / "distilled" / "data.safetensors" for name in ("alone", "ray")]
    assert made[0].read_bytes() == made[1].read_bytes()
