"""A run starts its workers once: starting them takes seconds, and GPUs that were given back may be
taken by others.
"""

from typing import Any

import pytest

from rayd.data import load
from rayd.engine import driver, evaluate, preflight
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.pool import LocalPool, WorkerPool
from rayd.engine.stages import score, squeeze
from rayd.engine.store import Store
from tests.engine.test_decoupled import edc
from tests.runs import QUIET

ONE_WORKER = {"workers": 1, "threads": 1}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was hosted by each pool that a run opened; all are in this process."""
    found: list[str] = []

    def open_pool(resources: Any, factory: Any, *arguments: Any, **_: Any) -> WorkerPool:
        found.append(factory.__name__)
        return LocalPool(resources, factory, *arguments)

    for module in (driver, evaluate, score, squeeze):
        monkeypatch.setattr(module, "open_pool", open_pool)
    monkeypatch.setattr(preflight, "_check_cluster", lambda *_: None)
    return found


def test_all_stages_share_one_pool(tmp_path, opened):
    """Also students, and the patches of a baseline."""
    recipe = edc(
        labels={"kind": "stored"},
        synthetic={"init": "rded"},
        evaluation={"baselines": ["random", "rded"]},
        resources=ONE_WORKER,
    )
    distill(recipe, tmp_path / "run", progress=QUIET)
    assert opened == ["Worker"]


@pytest.mark.shared_synthesis
def test_a_run_whose_set_is_known_starts_workers_for_students_alone(tmp_path, opened):
    distill(edc(), tmp_path / "made", progress=QUIET)
    del opened[:]
    longer = edc(resources=ONE_WORKER, evaluation={"epochs": 4})
    distill(longer, tmp_path / "run", progress=QUIET)
    assert opened == ["StudentTrainer"]
    del opened[:]
    distill(longer, tmp_path / "again", progress=QUIET)
    assert opened == []


def test_the_driver_touches_no_gpu_that_workers_reserve(monkeypatch):
    """The head of a cluster may have none: patches of a baseline are then scored by workers."""
    opened = []
    monkeypatch.setattr(score, "open_pool", lambda resources, *_: opened.append(resources))
    recipe = edc(resources={**ONE_WORKER, "gpus_per_worker": 1})
    score._small_pool(Job(recipe, load(recipe.data), Store()))
    assert opened == [recipe.resources]
