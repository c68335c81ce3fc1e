"""Students that several workers of Ray Train train together."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayd.config import Recipe
from rayd.data import load
from rayd.engine import evaluate
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.plan import plan
from rayd.engine.stages.student_tasks import TrainingSets, tasks
from rayd.engine.stages.students import students_at_a_time
from rayd.engine.store import Store
from rayd.engine.student_trainer import StudentTrainer
from rayd.errors import ResourceError
from rayd.training import training_run
from tests.conftest import tiny
from tests.engine.test_decoupled import edc
from tests.runs import QUIET

PLAIN = {"name": "convnet", "depth": 1, "width": 6, "norm": "none"}


def recipe(workers: int, **overrides: Any) -> Recipe:
    """Students without batch normalisation, whose batches differ by rounding alone."""
    evaluation = {
        "networks": [PLAIN],
        "seeds": 2,
        "epochs": 4,
        "batch_size": 7,
        "workers": workers,
        "average": 0.9,
        "baselines": ["random"],
        "comparisons": [],
    }
    return tiny(evaluation=evaluation, **overrides)


class Mortal(StudentTrainer):
    """A student's worker; one that does not lead is killed once, after two epochs."""

    def train(self, *arguments: Any) -> Iterator[Any]:
        training_run.CHECKPOINT_SECONDS = 0.0
        checkpoint: Path = arguments[4]
        mark = checkpoint.parents[1] / "killed"
        for event in super().train(*arguments):
            is_due = getattr(event, "epoch", 0) == 2 and not self._parallelism.leads
            if is_due and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield event


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_teams_of_two_train_the_students_of_one_worker(tmp_path, monkeypatch):
    """Also when one of a team is killed: the others go on from its checkpoint."""
    alone = distill(recipe(1), tmp_path / "alone", progress=QUIET)
    monkeypatch.setattr(evaluate, "StudentTrainer", Mortal)
    four = {"workers": 4, "cpus_per_worker": 0.25, "threads": 1}
    together = distill(recipe(2, resources=four), tmp_path / "together", progress=QUIET)
    assert (tmp_path / "cache" / "killed").exists()
    students = sorted((tmp_path / "cache" / "students").glob("*.json"))
    assert len(students) == 8
    for one, two in zip(alone.report.results, together.report.results, strict=True):
        assert one.set == two.set
        for left, right in zip(one.test_accuracy.runs, two.test_accuracy.runs, strict=True):
            # images near a boundary may change sides
            assert right == pytest.approx(left, abs=0.01)
    losses = [
        json.loads(path.read_text())["result"]["results"][0]["train_loss"] for path in students
    ]
    assert sorted(losses)[::2] == pytest.approx(sorted(losses)[1::2], rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_students_together_replay_stored_labels_and_ask_teachers(tmp_path):
    """In a run whose earlier stages had workers of their own."""
    two = {"workers": 2, "cpus_per_worker": 0.5, "threads": 1}
    chosen = edc(labels={"kind": "stored"}, evaluation={"workers": 2}, resources=two)
    run = distill(chosen, tmp_path / "run", progress=QUIET)
    assert {result.set for result in run.report.results} == {"distilled", "random"}


def test_only_workers_that_train_together_are_part_of_a_students_key():
    def inputs(workers: int) -> dict[str, Any]:
        chosen = recipe(workers)
        data = load(chosen.data)
        (task, *_) = tasks(chosen, ["random"], TrainingSets(data, None, chosen.ipc))
        return task.inputs(chosen.evaluation, data, "cpu")

    assert "workers" not in inputs(1)
    assert "workers" not in inputs(1)["protocol"]
    assert inputs(2) == {**inputs(1), "workers": 2}


def test_more_workers_than_the_cluster_holds_are_refused_before_any_work(tmp_path):
    with pytest.raises(ResourceError, match=r"1000 workers of .* fewer evaluation\.workers"):
        distill(recipe(1000), tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("workers", "together", "students", "wanted"),
    [(8, 1, 15, 8), (64, 4, 15, 60), (64, 1, 15, 15), (8, 2, 1, 2), (0, 2, 4, 2), (0, 1, 4, 1)],
)
def test_students_at_a_time(tmp_path, workers, together, students, wanted):
    chosen = recipe(together, resources={"workers": workers})
    job = Job(chosen, load(chosen.data), Store(tmp_path))
    assert students_at_a_time(job, students) == wanted


def test_the_plan_says_when_workers_outnumber_students(tmp_path):
    resources = {"workers": 8, "cpus_per_worker": 0.125}
    (remark,) = (
        text
        for text in plan(recipe(1, resources=resources), cache=tmp_path).remarks
        if "Of 8" in text
    )
    assert "evaluate 4" in remark
    assert "evaluation.workers=2" in remark
