"""The main job: whole runs, on digits, with every way of being interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

import rayd
from rayd.artifacts import read_tensors
from rayd.engine import evaluate
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.errors import ConfigError, OutputError, RunError
from rayd.locks import locked
from tests.conftest import tiny
from tests.faults import InterruptionError, check_resumes, workers_of
from tests.runs import NO_STUDENTS, QUIET, bytes_of, log_of, steps_of


def test_a_run_leaves_what_it_promises(tmp_path):
    run = distill(tiny(), tmp_path / "run", progress=QUIET)
    assert {entry.name for entry in (tmp_path / "run").iterdir()} >= {
        "config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "distilled", "evaluation.json",
    }  # fmt: skip
    assert {entry.name for entry in (tmp_path / "run" / "distilled").iterdir()} == {
        "data.safetensors",
        "card.json",
        "grid.png",
    }
    lines = log_of(tmp_path / "run")
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [4, 8, 12]
    assert lines[1].keys() == {"stage", "step", "seconds", "loss", "mean"}
    assert {line["stage"] for line in lines if line.get("finished")} == {
        "measure",
        "synthesize",
        "evaluate",
    }
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {result["set"] for result in evaluation["results"]} == {"distilled", "random", "whole"}
    for result in evaluation["results"]:
        assert 0 <= result["test_accuracy"]["mean"] <= 1
        assert len(result["test_accuracy"]["runs"]) == 2
        assert len(result["per_class"]) == 10
    assert evaluation["storage_bytes"] == {"images": 10 * 64 * 4}
    assert set(evaluation["seconds"]) == {"measure", "synthesize", "evaluate"}
    assert run.distilled.card["recipe"] == "tiny"
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["observers"]["pool"] == 3


def test_synthesis_lowers_the_loss(tmp_path):
    distill(tiny(synthesis={"steps": 60}, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    lines = log_of(tmp_path / "run")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_clipped_images_are_real_pixels(tmp_path):
    run = distill(
        tiny(synthesis={"clip": True, "learning_rate": 10}, **NO_STUDENTS),
        tmp_path / "run",
        progress=QUIET,
    )
    pixels = run.distilled.normalization.inverse(run.distilled.images)
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5
    free = distill(
        tiny(synthesis={"learning_rate": 10}, **NO_STUDENTS), tmp_path / "free", progress=QUIET
    )
    assert free.distilled.normalization.inverse(free.distilled.images).min() < -0.01


def test_a_second_run_measures_and_trains_nothing_again(tmp_path, monkeypatch):
    distill(tiny(), tmp_path / "first", progress=QUIET)
    from rayd.engine.observer_tasks import ObserverTasks
    from rayd.engine.student_trainer import StudentTrainer

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(ObserverTasks, "measure", refuse)
    monkeypatch.setattr(StudentTrainer, "train", refuse)
    distill(tiny(), tmp_path / "second", progress=QUIET)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


def test_another_seed_gives_another_set_from_the_same_measurements(tmp_path, monkeypatch):
    from rayd.engine.observer_tasks import ObserverTasks

    distill(tiny(**NO_STUDENTS), tmp_path / "first", progress=QUIET)
    monkeypatch.setattr(ObserverTasks, "measure", None)
    distill(tiny(seed=1, **NO_STUDENTS), tmp_path / "second", progress=QUIET)
    assert bytes_of(tmp_path / "first") != bytes_of(tmp_path / "second")


@pytest.mark.parametrize("real", ["measured", pytest.param("sampled", marks=pytest.mark.slow)])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, real):
    results = []
    for workers in (0, 1, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        observers = {"real_batch": 8} if real == "sampled" else {}
        recipe = tiny(real=real, observers=observers, resources=resources, **NO_STUDENTS)
        distill(recipe, tmp_path / str(workers), cache=tmp_path / f"cache{workers}", progress=QUIET)
        results.append(bytes_of(tmp_path / str(workers)))
    assert results[0] == results[1] == results[2]


def test_students_do_not_depend_on_workers(tmp_path, monkeypatch):
    """They are trained by the workers of the earlier stages, which are not started again."""
    opened = []
    open_pool = evaluate._open_pool

    def noted(job: Job, *arguments: Any) -> Any:
        opened.append(job)
        return open_pool(job, *arguments)

    monkeypatch.setattr(evaluate, "_open_pool", noted)
    reports = []
    for workers in (0, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        run = distill(
            tiny(resources=resources),
            tmp_path / str(workers),
            cache=tmp_path / f"cache{workers}",
            progress=QUIET,
        )
        reports.append([(r.set, r.test_accuracy) for r in run.report.results])
    assert reports[0] == reports[1]
    assert [job.recipe.resources.workers for job in opened] == [0]


@pytest.mark.parametrize("at", [1, 5, 6, 11])
def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, at):
    recipe = tiny(synthesis={"log_every": 1}, **NO_STUDENTS)
    check_resumes(recipe, tmp_path, at)
    assert [line["step"] for line in steps_of(tmp_path / "cut")] == list(range(1, 13))


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(tmp_path, monkeypatch):
    recipe = tiny(**NO_STUDENTS)
    distill(recipe, tmp_path / "whole", progress=QUIET)
    cut = tmp_path / "cut"
    monkeypatch.setattr(
        "rayd.distilled.Distilled.save", lambda *_: (_ for _ in ()).throw(InterruptionError)
    )
    with pytest.raises(InterruptionError):
        distill(recipe, cut, progress=QUIET)
    monkeypatch.undo()
    newest = max((cut / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    distill(recipe, cut, resume=True, cache=tmp_path / "cache", progress=QUIET)
    assert bytes_of(tmp_path / "whole") == bytes_of(cut)


def test_a_finished_run_resumes_to_its_report_without_work(tmp_path, monkeypatch):
    first = distill(tiny(), tmp_path / "run", progress=QUIET)
    for worker in (
        "rayd.engine.observer_tasks.ObserverTasks",
        "rayd.engine.student_trainer.StudentTrainer",
    ):
        monkeypatch.setattr(f"{worker}.__init__", None)
    again = distill(tiny(), tmp_path / "run", resume=True, progress=QUIET)
    assert again.report.results == first.report.results


def test_an_output_directory_is_respected(tmp_path):
    distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    with pytest.raises(OutputError, match="holds a run already; add --resume"):
        distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    with pytest.raises(OutputError, match="holds another run: ipc, seed differ"):
        distill(tiny(ipc=2, seed=4, **NO_STUDENTS), tmp_path / "run", resume=True, progress=QUIET)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="holds no run"):
            distill(tiny(**NO_STUDENTS), tmp_path / "other", overwrite=overwrite, progress=QUIET)
    assert [entry.name for entry in (tmp_path / "other").iterdir() if entry.name != ".lock"] == [
        "thesis.tex"
    ]
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="--resume or --overwrite, not both"):
        distill(tiny(**NO_STUDENTS), tmp_path / "run", resume=True, overwrite=True, progress=QUIET)
    distill(tiny(seed=4, **NO_STUDENTS), tmp_path / "run", overwrite=True, progress=QUIET)
    assert "seed: 4" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write into"):
        distill(tiny(**NO_STUDENTS), tmp_path / "file", progress=QUIET)


def test_a_directory_in_use_is_refused(tmp_path):
    with locked(tmp_path / "run"), pytest.raises(OutputError, match="in use by another run"):
        distill(tiny(), tmp_path / "run", resume=True, progress=QUIET)


def test_divergence_is_told(tmp_path):
    recipe = tiny(synthesis={"learning_rate": 1e30, "steps": 12}, **NO_STUDENTS)
    with pytest.raises(
        RunError, match=r"loss is not finite at step \d+; lower synthesis.learning_rate"
    ):
        distill(recipe, tmp_path / "run", progress=QUIET)


def test_a_set_that_is_not_finite_is_not_kept(tmp_path):
    """A checkpoint that comes before the next logged step is refused, too."""
    steps = {"learning_rate": 1e30, "steps": 12, "log_every": 12, "checkpoint_every": 1}
    with pytest.raises(
        RunError, match=r"loss is not finite at step \d+; lower synthesis.learning_rate"
    ):
        distill(tiny(synthesis=steps, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    kept = list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))
    assert kept
    for path in kept:
        assert all(tensor.isfinite().all() for tensor in read_tensors(path)[0].values())


def test_random_observers_with_batch_norm_cannot_be_measured(tmp_path):
    recipe = tiny(observers={"networks": {"norm": "batch"}}, **NO_STUDENTS)
    with pytest.raises(ConfigError, match="use real=sampled"):
        distill(recipe, tmp_path / "run", progress=QUIET)
    sampled = tiny(
        real="sampled", observers={"networks": {"norm": "batch"}, "real_batch": 4}, **NO_STUDENTS
    )
    distill(sampled, tmp_path / "sampled", progress=QUIET)


def test_the_api_mirrors_the_command_line(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny().to_yaml())
    run = rayd.distill(path, out=tmp_path / "run", ipc=2, quiet=True)
    distilled = rayd.load(tmp_path / "run")
    assert len(distilled) == len(run.distilled) == 20
    report = rayd.evaluate(
        distilled,
        networks=["mlp"],
        seeds=1,
        quiet=True,
        evaluation={"epochs": 2, "baselines": ["random"]},
    )
    assert [(r.set, r.network) for r in report.results] == [("distilled", "mlp"), ("random", "mlp")]


def test_in_process_work_needs_no_ray(tmp_path):
    """A whole run in an interpreter where importing Ray fails; workers are refused with a
    sentence.
    """
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny(**NO_STUDENTS).to_yaml())
    program = "import sys; sys.modules['ray'] = None; from rayd.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "distill", str(path), "--out"]
    subprocess.run([*command, str(tmp_path / "run")], check=True, capture_output=True)
    assert (tmp_path / "run" / "evaluation.json").exists()
    refused = subprocess.run(
        [*command, str(tmp_path / "refused"), "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "Workers need Ray, which is not installed" in refused.stderr


@pytest.mark.chaos
@pytest.mark.parametrize("victim", [pytest.param("worker", marks=pytest.mark.slow), "driver"])
def test_sigkill_midway_changes_nothing(tmp_path, victim):
    """A whole run on Ray whose observer actor, or whose driver, is killed by pid while it
    synthesizes.
    """
    options = [
        "synthesis.steps=400",
        "evaluation.epochs=1",
        "evaluation.seeds=1",
        "evaluation.baselines=[]",
        "observers.pool=4",
    ]
    options += ["observers.per_step=2", "resources.threads=1", "synthesis.checkpoint_every=50"]
    command = [sys.executable, "-m", "rayd", "distill", "digits", *options, "--quiet"]
    environment = os.environ | {"RAYD_CACHE": str(tmp_path / "cache")}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment)
    cut = [*command, "--out", str(tmp_path / "cut"), "--workers", "2"]
    environment["RAYD_CACHE"] = str(tmp_path / "other")
    running = subprocess.Popen(cut, env=environment)
    while not list((tmp_path / "cut" / "checkpoints").glob("step-00000050*")):
        time.sleep(0.1)
        assert running.poll() is None
    if victim == "driver":
        running.send_signal(signal.SIGKILL)
        running.wait()
        subprocess.run([*cut, "--resume"], check=True, env=environment)
    else:
        os.kill(min(workers_of(running.pid)), signal.SIGKILL)
        assert running.wait() == 0
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "cut")


def test_checkpoints_hold_everything_that_is_learned(tmp_path):
    distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    tensors, metadata = read_tensors(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert metadata["step"] == 12
    assert set(tensors) == {"set.images", "set.labels", "optimizer.0.momentum_buffer"}
