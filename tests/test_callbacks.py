"""Callbacks of a run, and the synthesis as a loop."""

import csv
import re
import sys

import pytest
import torch

import rayd
from rayd.callbacks import HOOKS, CSVLogger, RunCallback
from rayd.config import parse_overrides
from rayd.errors import ConfigError, RunError
from tests.test_cli import QUICK

SETTINGS = {**parse_overrides(QUICK), "evaluation.baselines": [], "synthesis.log_every": 2}


class Recorder(RunCallback):
    """Keeps what it is told."""

    def __init__(self):
        self.events = []
        self.images = []

    def on_run_start(self, directory, recipe):
        self.events.append(("start", recipe.name))

    def on_stage(self, stage):
        self.events.append(("stage", stage))

    def on_step(self, step):
        self.events.append((step.stage, step.step))
        if step.distilled is not None:
            self.images.append(step.distilled().images.clone())

    def on_result(self, result):
        self.events.append(("result", result.set))

    def on_run_end(self, run, error):
        self.events.append(("end", error))


def distill(folder, **arguments):
    return rayd.distill(
        "digits",
        out=folder / "run",
        cache=folder / "cache",
        quiet=True,
        settings=SETTINGS,
        **arguments,
    )


def test_a_callback_is_told_of_everything_and_changes_nothing(tmp_path):
    recorder = Recorder()
    run = distill(tmp_path / "with", callbacks=[recorder, CSVLogger()])
    plain = distill(tmp_path / "without")
    assert torch.equal(run.distilled.images, plain.distilled.images)
    events = recorder.events
    assert events[0] == ("start", "digits")
    assert events[-1] == ("end", None)
    assert [step for stage, step in events if stage == "synthesize"] == [2, 4, 6]
    assert ("stage", "synthesize") in events
    assert ("result", "distilled") in events
    assert not torch.equal(recorder.images[0], recorder.images[1])
    assert torch.equal(recorder.images[-1], run.distilled.images)
    with (run.directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"2", "4", "6"} == {row["step"] for row in rows if row["stage"] == "synthesize"}
    assert any(row["stage"] == "result" for row in rows)


class Failing(RunCallback):
    """Fails at step 4."""

    def on_step(self, step):
        if step.step == 4:
            raise ValueError("no room")


def test_an_error_in_a_callback_is_a_sentence_and_loses_nothing(tmp_path):
    recorder = Recorder()
    with pytest.raises(RunError) as error:
        distill(tmp_path / "failed", callbacks=[Failing(), recorder])
    sentence = str(error.value)
    assert re.search(r"'Failing' failed in on_step \(ValueError: no room\).*resume=True", sentence)
    assert isinstance(recorder.events[-1][1], RunError)
    run = distill(tmp_path / "failed", resume=True)
    assert torch.equal(run.distilled.images, distill(tmp_path / "plain").distilled.images)


@pytest.mark.parametrize("callback", [7, "csv", Recorder, object()])
def test_what_is_no_callback_is_refused(callback, tmp_path):
    with pytest.raises(ConfigError, match="must be an object with one of the methods on_run_start"):
        distill(tmp_path, callbacks=[callback])
    assert not (tmp_path / "run").exists()


def test_an_object_with_one_hook_is_a_callback(tmp_path):
    class Bare:
        def on_stage(self, stage):
            stages.append(stage)

    stages = []
    distill(tmp_path, callbacks=[Bare()])
    assert "synthesize" in stages
    assert all(hasattr(RunCallback, hook) for hook in HOOKS)


def test_the_synthesis_as_a_loop(tmp_path):
    arguments = {"cache": tmp_path / "cache", "quiet": True, "settings": SETTINGS}
    steps = rayd.synthesize("digits", out=tmp_path / "run", **arguments)
    with pytest.raises(RunError, match="not finished"):
        steps.distilled  # noqa: B018
    seen = [(step.step, float(step.metrics["loss"])) for step in steps]
    assert [step for step, _ in seen] == [2, 4, 6]
    assert not (tmp_path / "run" / "evaluation.json").exists()
    plain = distill(tmp_path / "plain")
    assert torch.equal(steps.distilled.images, plain.distilled.images)
    judged = rayd.distill(resume=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert judged.report.results


def test_a_loop_may_be_left_and_resumed(tmp_path):
    arguments = {"cache": tmp_path / "cache", "quiet": True, "settings": SETTINGS}
    with rayd.synthesize("digits", out=tmp_path / "run", **arguments) as steps:
        assert next(steps).step == 2
    run = rayd.distill(resume=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert torch.equal(run.distilled.images, distill(tmp_path / "plain").distilled.images)


def test_errors_of_a_loop_come_with_its_first_step(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        next(rayd.synthesize("digitss", out=tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "package"), [("WandbLogger", "wandb"), ("MLflowLogger", "mlflow")]
)
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        getattr(rayd.callbacks, name)()


def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    distill(tmp_path, callbacks=[rayd.callbacks.WandbLogger(project="test", mode="offline")])
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_mlflow_file_store(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlflow").as_uri()
    distill(tmp_path, callbacks=[rayd.callbacks.MLflowLogger(tracking_uri=uri)])
    runs = mlflow.search_runs(experiment_names=["rayd"])
    assert runs["metrics.synthesize/loss"].notna().all()
