"""Where a step keeps only one worker busy, the synthesizer runs in that worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from rayd import methods
from rayd.config import Recipe
from rayd.engine import distill as runs
from rayd.engine.callbacks import Callback, Milestone
from rayd.engine.gradients.base import tasks_per_step
from rayd.engine.on_ray.pool import RayPool
from rayd.engine.progress import Progress
from rayd.recipes import resolve
from tests.conftest import tiny
from tests.faults import workers_of

QUIET = Progress(quiet=True)


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


@pytest.mark.chaos
def test_a_killed_worker_is_replaced_with_its_synthesizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same bytes as in process; what merged the statistics is not there any more."""
    runs.distill(one_observer(), tmp_path / "alone", cache=tmp_path / "one", progress=QUIET)
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
        one_observer(workers=2, cpus_per_worker=0.5),
        tmp_path / "ray",
        cache=tmp_path / "two",
        progress=QUIET,
        callback=Callback((0.6,), kill),
    )
    assert len(killed) == 2
    made = [tmp_path / name / "distilled" / "data.safetensors" for name in ("alone", "ray")]
    assert made[0].read_bytes() == made[1].read_bytes()
