"""Observers that two workers of Ray Train make together."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rayd.config import Recipe, ResourceSettings
from rayd.data import ImageData, load
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, trained_networks
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import LocalPool
from rayd.engine.stages import squeeze
from rayd.engine.stages.squeeze import Squeeze, together, trainers
from rayd.engine.store import Store
from rayd.engine.worker import Worker
from rayd.errors import DataError, ResourceError
from rayd.training import training_run
from rayd.training.parallelism import Parallelism
from tests.conftest import Recorded
from tests.engine.test_decoupled import SMALL, edc, stages_of
from tests.runs import NO_STUDENTS, QUIET

PLAIN = {"name": "convnet", "depth": 1, "width": 6, "norm": "none"}
HALVES = {"cpus_per_worker": 0.5, "threads": 1}


def recipe_of(network: dict[str, object], workers: int, **overrides: object) -> Recipe:
    observers = {"networks": [network], "pool": 1, "per_step": 1, "batch_size": 64}
    squeezing = {
        "epochs": 4,
        "batch_size": 100,
        "learning_rate": 0.02,
        "mix": "cutmix",
        "average": 0.9,
        "workers": workers,
    }
    return edc(observers=observers, squeeze=squeezing, resources=HALVES, **overrides)


@dataclass(frozen=True)
class Mortal:
    """Makes workers of which the second is killed once, after two epochs."""

    marks: Path

    def __call__(
        self, recipe: Recipe, facts: DatasetInfo, parallelism: Parallelism, device: torch.device
    ) -> Worker:
        training_run.CHECKPOINT_SECONDS = 0.0
        worker = Worker(recipe, facts, parallelism, device)
        train = worker.squeeze

        def squeezed(
            network_id: NetworkId, train_: object, validation: object, checkpoint: Path
        ) -> Iterator[object]:
            if checkpoint.exists():
                (self.marks / "resumed").touch()
            for event in train(network_id, train_, validation, checkpoint):
                if (
                    not parallelism.leads
                    and event.epoch == 2
                    and not (self.marks / "killed").exists()
                ):
                    (self.marks / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield event

        worker.squeeze = squeezed
        return worker


def squeezed(
    recipe: Recipe, data: ImageData, root: Path, marks: Path | None = None
) -> tuple[squeeze.TrainedObserver, list[int]]:
    from rayd.engine.on_ray.train import TrainPool

    store = Store(root)
    told = []
    resources = trainers(recipe)
    scratch = root / squeeze.UNFINISHED
    if marks is None:
        pool = LocalPool(resources, Worker, recipe, DatasetInfo.of(data))
    else:
        pool = TrainPool(
            resources, squeeze.WORKERS, scratch, Mortal(marks), recipe, DatasetInfo.of(data)
        )
    stage = squeeze.Squeeze(Job(recipe, data, store))
    with pool:
        everyone = stage.run(pool, Recorded(told.append))
    assert not scratch.exists() or not list(scratch.iterdir())
    return everyone[trained_networks(recipe)[0]], told


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_train_the_observer_of_one(tmp_path):
    data = load(recipe_of(PLAIN, 1).data)
    alone, _ = squeezed(recipe_of(PLAIN, 1), data, tmp_path / "alone")
    together, told = squeezed(recipe_of(PLAIN, 2), data, tmp_path / "together", tmp_path)
    assert (tmp_path / "killed").exists()
    assert (tmp_path / "resumed").exists()
    assert told == [0, 1, 2, 3, 4, 4]
    for name, value in alone.state.items():
        torch.testing.assert_close(together.state[name], value, atol=1e-5, rtol=0)
    facts = [{**one.facts, "seconds": 0, "inputs": None} for one in (alone, together)]
    assert facts[0] == facts[1]


@pytest.mark.slow
def test_a_run_uses_what_two_workers_trained(tmp_path):
    """Here the group of the later stages would hold all that they need."""
    recipe = edc(
        observers={"networks": [SMALL[1]], "pool": 1, "per_step": 1, "batch_size": 64},
        squeeze={"workers": 2, "epochs": 8},
        resources={"workers": 2, "cpus_per_worker": (os.cpu_count() or 2) / 2},
        labels={"kind": "stored"},
        synthetic={"init": "rded"},
        **NO_STUDENTS,
    )
    run = distill(recipe, tmp_path / "run", progress=QUIET)
    assert stages_of(tmp_path / "run") == [
        "squeeze",
        "measure",
        "score",
        "synthesize",
        "relabel",
        "evaluate",
    ]
    (observer,) = run.distilled.card["observers"]
    assert observer["train_accuracy"] > 0.8
    again = distill(recipe, tmp_path / "again", progress=QUIET)
    assert "squeeze" not in stages_of(tmp_path / "again")
    assert torch.equal(again.distilled.images, run.distilled.images)


class Unlucky:
    """Replicas of which the second finds a fault while the first waits for it."""

    def __init__(self, parallelism: Parallelism, device: torch.device):
        self.parallelism = parallelism

    def work(self) -> Iterator[float]:
        yield float(self.parallelism.mean(torch.tensor(1.0)))
        if not self.parallelism.leads:
            raise DataError("The second shard is broken.")
        yield float(self.parallelism.mean(torch.tensor(2.0)))


@pytest.mark.slow
def test_a_fault_of_one_worker_ends_the_run_in_its_words(tmp_path):
    from rayd.engine.on_ray.train import TrainPool

    with TrainPool(
        ResourceSettings(workers=2, **HALVES), "workers", tmp_path / "scratch", Unlucky
    ) as pool:
        events = []
        with pytest.raises(DataError, match="second shard is broken"):
            events.extend(pool.stream("work", [()]))
        # what the first worker said before may be overtaken by the fault
        assert set(events) <= {(0, 1.0)}
    assert not list((tmp_path / "scratch").iterdir())


def test_what_the_cluster_cannot_hold_together_is_refused_before_any_work(tmp_path):
    with pytest.raises(
        ResourceError, match=r"1000 workers of 0\.5 CPU each do not fit.*fewer squeeze\.workers"
    ):
        distill(recipe_of(PLAIN, 1000), tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


def test_only_workers_that_train_together_are_part_of_what_an_observer_is_made_of():
    data = load(recipe_of(PLAIN, 1).data)

    def inputs(workers: int, **changes: object) -> dict[str, object]:
        recipe = recipe_of(PLAIN, workers, **changes)
        return Squeeze(Job(recipe, data, Store()), ()).key(trained_networks(recipe)[0])

    assert inputs(1)["squeeze"] == recipe_of(PLAIN, 1).squeeze.model_dump(mode="json")
    assert inputs(1) != inputs(2)
    given = recipe_of(PLAIN, 2)
    assert not together(
        given.model_copy(update={"squeeze": given.squeeze.model_copy(update={"epochs": 0})})
    )
