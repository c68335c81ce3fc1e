"""Callbacks of a run, and the synthesis as a loop."""

import csv
import json
import os
import re
import struct
import subprocess
import sys

import pytest
import torch

import rayd
from rayd.analyses import base as analyses
from rayd.analyses.steps import snapshots
from rayd.callbacks import (
    HOOKS,
    SNAPSHOTS,
    Callbacks,
    CSVLogger,
    EarlyStopping,
    EndSynthesis,
    RunCallback,
    Step,
)
from rayd.config import parse_overrides
from rayd.data import Standardization
from rayd.distilled import Distilled
from rayd.engine.distill import distill as engine_distill
from rayd.engine.progress import Progress
from rayd.engine.rundir import ADDED
from rayd.engine.synthesizer import Synthesizer
from rayd.errors import ConfigError, DataError, RunError
from rayd.evaluation import matrix
from rayd.page import run as page
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
            self.images.append(step.distilled().images)

    def on_result(self, result):
        self.events.append(("result", result.set))

    def on_run_end(self, run, error):
        self.events.append(("end", error))


def distill(folder, out=None, callbacks_in_recipe=None, more=None, **arguments):
    named = {} if callbacks_in_recipe is None else {"callbacks": callbacks_in_recipe}
    return rayd.distill(
        "digits",
        out=out or folder / "run",
        cache=folder / "cache",
        quiet=True,
        settings={**SETTINGS, **named, **(more or {})},
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


def test_parallel_blocks_take_and_log_each_step_once(tmp_path, monkeypatch):
    """Also where the number of steps is no multiple of `synthesis.log_every`."""
    taken = []
    one_step = Synthesizer._one_step

    def counted(self):
        taken.append(self._step)
        return one_step(self)

    monkeypatch.setattr(Synthesizer, "_one_step", counted)
    recorder = Recorder()
    more = {"synthesis.steps": 5, "synthesis.block": 5}
    distill(tmp_path, callbacks=[recorder], more=more)
    # two blocks of five images
    assert taken == 2 * [0, 1, 2, 3, 4]
    logged = [step for stage, step in recorder.events if stage == "synthesize"]
    assert logged == [2, 4, 5, 7, 9, 10]


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
    ("name", "package"),
    [("WandbLogger", "wandb"), ("MLflowLogger", "mlflow"), ("TrackioLogger", "trackio")],
)
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        getattr(rayd.callbacks, name)()


class Losses(RunCallback):
    """The losses and accuracies that loggers should have."""

    def __init__(self):
        self.losses = []
        self.accuracy = None

    def on_step(self, step):
        if step.stage == "synthesize":
            self.losses.append(float(step.metrics["loss"]))

    def on_result(self, result):
        self.accuracy = result.test_accuracy.mean


def offline_records(path):
    """Records of a run of Weights & Biases on disk: a log in LevelDB's format."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    assert content.startswith(b":W&B")
    position = 7
    whole = b""
    while position + 7 <= len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_weights_and_biases_offline(tmp_path):
    """What the run wrote is read back."""
    pytest.importorskip("wandb")
    expected = Losses()
    logger = rayd.callbacks.WandbLogger(project="test", mode="offline")
    distill(tmp_path, callbacks=[logger, expected])
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    losses = []
    summary = {}
    name = None
    for record in offline_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            name = record.run.display_name
        elif kind == "history":
            for item in record.history.item:
                if "/".join(item.nested_key or [item.key]) == "synthesize/loss":
                    losses.append(json.loads(item.value_json))
        elif kind == "summary":
            for item in record.summary.update:
                summary["/".join(item.nested_key or [item.key])] = json.loads(item.value_json)
    assert name == "digits"
    assert losses == pytest.approx(expected.losses)
    assert any(value == expected.accuracy for value in summary.values()), summary


def test_mlflow_file_store(tmp_path, monkeypatch):
    """What the run wrote is read back."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    uri = (tmp_path / "mlflow").as_uri()
    expected = Losses()
    distill(tmp_path, callbacks=[rayd.callbacks.MLflowLogger(tracking_uri=uri), expected])
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("rayd")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "dm"
    history = client.get_metric_history(run.info.run_id, "synthesize/loss")
    assert [metric.value for metric in history] == expected.losses
    assert [metric.step for metric in history] == [2, 4, 6]
    assert expected.accuracy in run.data.metrics.values()


@pytest.mark.slow
def test_trackio_on_disk(tmp_path):
    """What the run wrote is read back; its folder is read at import, so in a process of its own."""
    pytest.importorskip("trackio")
    program = (
        "import json, sys, rayd\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "from tests.test_callbacks import Losses, distill\n"
        "from pathlib import Path\n"
        "expected = Losses()\n"
        "distill(Path('.').resolve(), callbacks=[rayd.callbacks.TrackioLogger(), expected])\n"
        "logs = SQLiteStorage.get_logs('rayd', 'digits-run')\n"
        "print(json.dumps([expected.losses, expected.accuracy, logs]))\n"
    )
    variables = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    losses, accuracy, logs = json.loads(done.stdout)
    logged = [entry["synthesize/loss"] for entry in logs if "synthesize/loss" in entry]
    assert logged == pytest.approx(losses)
    assert any(accuracy in entry.values() for entry in logs)


def test_callbacks_by_name_in_a_recipe(tmp_path, monkeypatch):
    """They are found by name, take arguments, change nothing, and stay when a run is resumed."""
    (tmp_path / "own_printer.py").write_text(
        "import rayd\n\n"
        "class Printer(rayd.callbacks.RunCallback):\n"
        "    def __init__(self, path):\n"
        "        self.path = path\n"
        "    def on_step(self, step):\n"
        "        with open(self.path, 'a') as file:\n"
        "            print(step.stage, step.step, file=file)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: digits\n"
        f"callbacks: [csv, {{name: 'own_printer:Printer', path: {tmp_path / 'steps.txt'}}}]\n"
    )
    arguments = {"cache": tmp_path / "cache", "quiet": True, "settings": SETTINGS}
    with rayd.synthesize(recipe, out=tmp_path / "run", **arguments) as steps:
        next(steps)
    resumed = rayd.distill(resume=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    plain = distill(tmp_path / "plain")
    assert torch.equal(resumed.distilled.images, plain.distilled.images)
    assert "callbacks" not in resumed.distilled.card["config"]
    lines = (tmp_path / "steps.txt").read_text().splitlines()
    # the run was left before its first checkpoint, so step 2 comes twice
    assert [line for line in lines if "synthesize" in line] == [
        f"synthesize {step}" for step in (2, 2, 4, 6)
    ]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert {row["stage"] for row in csv.DictReader(file)} >= {"synthesize", "result"}


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        ("cvs", "Unknown callback 'cvs'; did you mean 'csv'"),
        ("no_such_module:Mine", "No module named 'no_such_module'"),
        ({"name": "csv", "file": "x"}, "Callback 'csv' cannot be created.*'file'"),
        ({"name": "early-stopping", "patience": 0}, "'patience' of early stopping .* at least 1"),
        ("math:pi", "Callback 'math:pi' cannot be created"),
        ("early-stopping", r"'early-stopping' needs 'data\.validation_fraction' above 0"),
    ],
)
def test_a_callback_of_a_recipe_that_does_not_exist_is_refused(tmp_path, callback, sentence):
    with pytest.raises(ConfigError, match=sentence):
        distill(tmp_path, callbacks_in_recipe=[callback])
    assert not (tmp_path / "run").exists()


def test_a_set_is_tested_on_the_validation_split_meanwhile(tmp_path):
    """The accuracy is one of students, and asking for it changes no byte."""

    class Asks(RunCallback):
        def on_step(self, step):
            if step.validation_accuracy is not None:
                found.append(step.validation_accuracy())

    found = []
    validation = {"data.validation_fraction": 0.2, "evaluation.epochs": 20}
    asked = distill(tmp_path / "asked", callbacks=[Asks()], more=validation)
    plain = distill(tmp_path / "plain", more=validation)
    judged = engine_distill(
        asked.recipe,
        tmp_path / "judged",
        cache=tmp_path / "other",
        progress=Progress(quiet=True),
        judged_on="validation",
    )
    ours = next(result for result in judged.report.results if result.set == "distilled")
    assert len(found) == 3
    assert len(set(found)) > 1
    assert found[-1] == ours.test_accuracy.mean
    assert torch.equal(asked.distilled.images, plain.distilled.images)
    with pytest.raises(DataError, match=r"no validation split: set 'data\.validation_fraction'"):
        distill(tmp_path / "none", callbacks=[Asks()])


def test_overwriting_a_run_removes_what_was_added_to_it(tmp_path):
    """Sets of earlier steps and logged values of the old run are not taken for the new one's."""
    assert {SNAPSHOTS, analyses.FOLDER, matrix.FILE, page.FILE} < set(ADDED)
    callbacks = ["csv", "snapshots"]
    distill(tmp_path, callbacks_in_recipe=callbacks)
    (tmp_path / "run" / "analyses").mkdir()
    (tmp_path / "run" / "mine").mkdir()
    more = {"synthesis.steps": 4, "seed": 1}
    run = distill(tmp_path, callbacks_in_recipe=callbacks, more=more, overwrite=True)
    assert [step for step, _ in snapshots(run.directory)] == [2, 4]
    with (run.directory / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["name"] == "loss"]
    assert steps == ["2", "4"]
    assert not (run.directory / "analyses").exists()
    assert (run.directory / "mine").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_early_stopping_ends_with_the_best_set(tmp_path, workers):
    """No accuracy rises by more than 1, so the first set tested is the best."""
    recorder = Recorder()
    run = distill(
        tmp_path / "stopped",
        callbacks=[EarlyStopping(patience=1, min_delta=1), recorder],
        more={"data.validation_fraction": 0.2},
        workers=workers,
    )
    assert [step for stage, step in recorder.events if stage == "synthesize"] == [2, 4]
    assert torch.equal(run.distilled.images, recorder.images[0])
    assert run.distilled.card["ended_at_step"] == 2
    assert run.report.results
    # the store, which other runs share, does not have it
    whole = distill(
        tmp_path / "stopped",
        out=tmp_path / "stopped" / "whole",
        more={"data.validation_fraction": 0.2},
    )
    assert "ended_at_step" not in whole.distilled.card
    again = rayd.distill(resume=run.directory, cache=tmp_path / "stopped" / "cache", quiet=True)
    assert torch.equal(again.distilled.images, run.distilled.images)


@pytest.mark.parametrize("block", [5, "classes"])
def test_early_stopping_of_blocks_that_are_optimised_in_parallel_is_refused(tmp_path, block):
    """It ended with the initial images, which are all that there is before a block is finished."""
    more = {"data.validation_fraction": 0.2, "synthesis.block": block, "ipc": 2}
    arguments = {"more": more, "callbacks": [EarlyStopping()]}
    with pytest.raises(ConfigError, match=r"optimised in parallel: set 'synthesis\.block: null'"):
        distill(tmp_path, **arguments)
    assert not (tmp_path / "run").exists()
    more["synthesis.block"] = 20
    distill(tmp_path, **arguments)


def test_an_end_of_the_synthesis_after_its_end_is_refused():
    class Late(RunCallback):
        def on_step(self, step):
            raise EndSynthesis(None, 2)

    callbacks = Callbacks([Late()])
    with pytest.raises(EndSynthesis):
        callbacks.call("on_step", Step("synthesize", 2, {}, 0.0))
    with pytest.raises(RunError, match=r"only in on_step, where .* is 'synthesize'"):
        callbacks.call("on_step", Step("evaluate", 1, {}, 0.0))


def test_early_stopping_goes_on_while_the_accuracy_rises():
    accuracies = iter([0.5, 0.6, 0.6, 0.7, 0.7, 0.7])
    stopping = EarlyStopping(patience=2)
    steps = [
        Step(
            stage="synthesize",
            step=number,
            metrics={},
            seconds=0.0,
            distilled=lambda number=number: f"set {number}",
            validation_accuracy=lambda: next(accuracies),
        )
        for number in range(1, 7)
    ]
    for step in steps[:5]:
        stopping.on_step(step)
    with pytest.raises(EndSynthesis) as end:
        stopping.on_step(steps[5])
    assert (end.value.step, end.value.distilled) == (4, "set 4")


ACCURACIES = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.65, 10: 0.9}


def test_early_stopping_ends_where_it_would_without_an_interruption(tmp_path):
    """A resumed run repeats the steps since its last checkpoint."""
    recipe = rayd.recipes.resolve("digits", {"synthesis.log_every": 2, "synthesis.steps": 10})

    def step(number: int) -> Step:
        images = torch.full((1, 1, 2, 2), float(number))
        normalization = Standardization(torch.tensor([0.0]), torch.tensor([1.0]))
        made = Distilled(images, torch.tensor([0]), ["one"], normalization, {"steps": number})
        accuracy = ACCURACIES[number]
        return Step("synthesize", number, {}, 0.0, lambda: made, lambda: accuracy)

    def end(directory, numbers):
        stopping = EarlyStopping(patience=2)
        stopping.on_run_start(directory, recipe)
        for number in numbers:
            stopping.on_step(step(number))

    with pytest.raises(EndSynthesis) as whole:
        end(tmp_path / "whole", ACCURACIES)
    assert whole.value.step == 4
    for first in (2, 4, 6, 8):
        directory = tmp_path / str(first)
        end(directory, [2, 4, 6])
        with pytest.raises(EndSynthesis) as resumed:
            end(directory, [number for number in ACCURACIES if number >= first])
        assert resumed.value.step == 4
        # also where it was interrupted after its end
        with pytest.raises(EndSynthesis):
            end(directory, [10])
        assert resumed.value.distilled.images.unique().item() == 4
        assert list(resumed.value.distilled.card) == list(whole.value.distilled.card)
        assert [path.name for path in (directory / "early-stopping").glob("step-*")] == [
            "step-00000004"
        ]


def test_a_csv_logger_writes_each_line_once_and_to_each_run_its_own(tmp_path):
    logger = CSVLogger()
    more = {"synthesis.log_every": 1, "synthesis.checkpoint_every": 3}
    with pytest.raises(RunError, match="no room"):
        distill(tmp_path / "cut", callbacks=[logger, Failing()], more=more)
    run = distill(tmp_path / "cut", callbacks=[logger], more=more, resume=True)
    whole = distill(tmp_path / "whole", callbacks=[logger], more=more)
    lines = [(one.directory / "metrics.csv").read_text() for one in (run, whole)]
    assert lines[0] == lines[1]
    assert lines[0].count("synthesize,4,loss") == 1


def test_snapshots_of_a_resumed_run_are_of_the_same_steps(tmp_path):
    more = {"synthesis.log_every": 1, "synthesis.steps": 7, "synthesis.checkpoint_every": 3}
    named = [{"name": "snapshots", "every": 2}]
    with pytest.raises(RunError, match="no room"):
        distill(tmp_path, callbacks_in_recipe=named, more=more, callbacks=[Failing()])
    rayd.distill(resume=tmp_path / "run", cache=tmp_path / "cache", quiet=True)
    assert [step for step, _ in snapshots(tmp_path / "run")] == [2, 4, 6]
