"""What is broken between two runs: other data, damaged files, a stranger's directory. Full disks
are in test_faults.py.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayd.artifacts import read_tensors
from rayd.callbacks import Callbacks
from rayd.config import Recipe
from rayd.data import Whitening
from rayd.distilled import load
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled
from rayd.engine.rundir import writable
from rayd.engine.runlog import RunLog
from rayd.errors import ArtifactError, ConfigError, DataError, OutputError
from tests.conftest import tiny
from tests.faults import Steps, break_off, every_step_logged
from tests.runs import NO_STUDENTS, QUIET, bytes_of


def arrays(path: Path, seed: int) -> None:
    draws = np.random.default_rng(seed)
    np.savez(
        path, images=draws.integers(0, 255, (60, 8, 8), dtype=np.uint8), labels=np.arange(60) % 3
    )


def on_arrays(path: Path) -> Recipe:
    return tiny(data={"name": str(path)}, **NO_STUDENTS)


@pytest.mark.parametrize("finished", [True, False])
def test_data_that_changed_are_not_resumed_on(tmp_path, finished):
    arrays(tmp_path / "x.npz", 0)
    distill(on_arrays(tmp_path / "x.npz"), tmp_path / "run", progress=QUIET)
    if not finished:
        shutil.rmtree(tmp_path / "run" / "distilled")
    arrays(tmp_path / "x.npz", 1)
    with pytest.raises(OutputError, match=r"on other data than .*, or its config\.yaml was edited"):
        distill(on_arrays(tmp_path / "x.npz"), tmp_path / "run", resume=True, progress=QUIET)


@pytest.mark.parametrize(
    "content", ['{"a', '{"inputs": {}, "result": {"accuracy": 1}}', '{"inputs": {}, "result": 3}']
)
def test_a_damaged_student_result_is_made_again(tmp_path, content):
    first = distill(tiny(**NO_STUDENTS), tmp_path / "a", progress=QUIET)
    for record in (tmp_path / "cache" / "students").iterdir():
        record.write_text(content)
    again = distill(tiny(**NO_STUDENTS), tmp_path / "b", progress=QUIET)
    assert again.report.results[0].test_accuracy == first.report.results[0].test_accuracy


def test_when_every_checkpoint_is_damaged_the_run_starts_again(tmp_path):
    recipe = tiny(**NO_STUDENTS)
    distill(recipe, tmp_path / "run", progress=QUIET)
    expected = (tmp_path / "run" / "distilled" / "data.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "distilled")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[:50])
    distill(recipe, tmp_path / "run", resume=True, progress=QUIET)
    assert (tmp_path / "run" / "distilled" / "data.safetensors").read_bytes() == expected


def changed(path: Path) -> None:
    """A bit of its last tensor is another one than was written."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_whose_bits_changed_costs_steps_and_nothing_else(tmp_path, caplog):
    recipe = tiny(**NO_STUDENTS)
    distill(recipe, tmp_path / "whole", progress=QUIET)
    break_off(recipe, tmp_path / "run", 11)
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    changed(newest)
    steps = Steps()
    distill(
        every_step_logged(recipe),
        tmp_path / "run",
        resume=True,
        progress=QUIET,
        callbacks=Callbacks([steps]),
    )
    assert steps.made == list(range(6, 13))
    assert (
        f"'{newest}' is damaged: its tensors are not those that were written. An older checkpoint is used."
        in caplog.text
    )
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    assert not older.exists()


@pytest.mark.shared_synthesis
@pytest.mark.parametrize("stage", ["measure", "synthesis"])
def test_an_entry_of_the_cache_whose_bits_changed_is_made_again(tmp_path, caplog, stage):
    recipe = tiny(**NO_STUDENTS)
    distill(recipe, tmp_path / "first", progress=QUIET)
    if stage == "measure":
        shutil.rmtree(tmp_path / "cache" / "synthesis")
    entries = {
        path: path.read_bytes() for path in (tmp_path / "cache" / stage).glob("*.safetensors")
    }
    for path in entries:
        changed(path)
    distill(recipe, tmp_path / "second", progress=QUIET)
    assert caplog.text.count("Recomputing it.") >= len(entries)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    for path, content in entries.items():
        assert stage == "synthesis" or path.read_bytes() == content
        read_tensors(path)


@pytest.mark.parametrize("name", ["data.safetensors", "card.json"])
def test_a_damaged_result_is_made_again_once_it_is_moved_away(tmp_path, name):
    recipe = tiny(**NO_STUDENTS)
    distill(recipe, tmp_path / "run", progress=QUIET)
    result = tmp_path / "run" / "distilled" / name
    expected = bytes_of(tmp_path / "run")
    result.write_bytes(result.read_bytes()[:70])
    with pytest.raises(
        ArtifactError, match=r"is truncated .* Move '.*distilled' away, and --resume recomputes it"
    ):
        distill(recipe, tmp_path / "run", resume=True, progress=QUIET)
    result.parent.rename(tmp_path / "damaged")
    distill(recipe, tmp_path / "run", resume=True, progress=QUIET)
    assert bytes_of(tmp_path / "run") == expected


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path):
    recipe = tiny(**NO_STUDENTS)
    distill(recipe, tmp_path / "run", progress=QUIET)
    metrics = tmp_path / "run" / "metrics.jsonl"
    before = metrics.read_text()
    metrics.write_text(before + '{"stage": "eva')
    for _ in range(2):
        distill(recipe, tmp_path / "run", resume=True, progress=QUIET)
    assert all(json.loads(line) for line in metrics.read_text().splitlines())
    assert metrics.read_text().startswith(before)


def test_a_strangers_directory_is_left_alone(tmp_path):
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other" / "config.yaml").write_text("model: resnet\n")
    (tmp_path / "other" / "checkpoints" / "w.bin").touch()
    for options in ({"overwrite": True}, {"resume": True}, {}):
        with pytest.raises(OutputError, match="holds no run of rayd"):
            distill(tiny(**NO_STUDENTS), tmp_path / "other", progress=QUIET, **options)
    assert (tmp_path / "other" / "checkpoints" / "w.bin").exists()


def test_a_run_that_was_killed_before_its_settings_were_written_can_begin(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / ".config.yaml.0a1b2c3d.tmp").write_text("# A run of")
    distill(tiny(**NO_STUDENTS), tmp_path / "run", resume=True, progress=QUIET)
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_a_relative_directory_is_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = distill(tiny(**NO_STUDENTS), Path("runs/here"), cache=Path("cache-here"), progress=QUIET)
    assert run.directory == tmp_path / "runs" / "here"
    assert (tmp_path / "cache-here" / "measure").is_dir()


def test_an_evaluation_takes_settings_of_the_evaluation_only(tmp_path):
    run = distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    for wrong in ({"ipc": 5}, {"synthesis": {"steps": 3}}):
        with pytest.raises(
            ConfigError, match="takes settings of data, evaluation, labels, ranking, resources only"
        ):
            evaluate_distilled(run.distilled, wrong, None, None, QUIET)


def test_a_card_of_an_older_version_can_be_evaluated(tmp_path):
    run = distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    run.distilled.card["config"]["synthesis"]["setting_of_old"] = 3
    assert evaluate_distilled(run.distilled, {}, None, None, QUIET).results


def test_time_is_summed_over_interruptions(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.spend("measure", 2.0, True)
    log.spend("synthesize", 3.0, False)
    log.close()
    log = RunLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.spend("synthesize", 4.0, True)
    assert log.spent() == {"measure": 2.0, "synthesize": 7.0}
    log.close()


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path):
    """Also where the last event of a killed run was cut off; other stages and pictures stay."""
    folder = tmp_path / "tensorboard"
    for first, last in ((1, 6), (4, 8)):
        log = RunLog(tmp_path / "metrics.jsonl", folder)
        log.forget("synthesize", lambda step, first=first: step < first)
        for step in range(first, last):
            log.step("synthesize", step, 0.1, {"loss": 10.0 * first + step})
            log.step("squeeze", step + 10 * first, 0.1, {"loss": 0.0})
        log.picture("synthetic images", last, np.zeros((2, 2, 3), np.uint8))
        log.close()
        with next(folder.glob("events.*")).open("ab") as file:
            file.write(b"cut off")
    board = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    # files of the same second are read in any order
    losses = sorted((point.step, point.value) for point in board.Scalars("synthesize/loss"))
    assert losses == [(1, 11), (2, 12), (3, 13), (4, 44), (5, 45), (6, 46), (7, 47)]
    steps = sorted(point.step for point in board.Scalars("squeeze/loss"))
    assert steps == [11, 12, 13, 14, 15, 44, 45, 46, 47]
    assert sorted(picture.step for picture in board.Images("synthetic images")) == [6, 8]


def test_tensorboard_is_in_order_where_blocks_log_in_turn(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    for step in (1, 2, 3):
        log.step("squeeze", step, 0.1, {"loss": 0.5})
    for step in (1, 11, 2, 12, 3, 13):
        log.step("synthesize", step, 0.1, {"loss": step / 2, "mean": 1.0})
    log.spend("synthesize", 1.0, True)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(point.step, point.value) for point in board.Scalars("synthesize/loss")]
    assert points == [(1, 0.5), (2, 1.0), (3, 1.5), (11, 5.5), (12, 6.0), (13, 6.5)]
    assert len(board.Scalars("synthesize/mean")) == 6
    assert [point.step for point in board.Scalars("squeeze/loss")] == [1, 2, 3]


def test_a_path_under_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").touch()
    assert not writable(tmp_path / "file" / "cache")
    assert writable(tmp_path / "new" / "cache")
    with pytest.raises(OutputError, match=r"The cache '.*file/cache' cannot be written"):
        distill(
            tiny(**NO_STUDENTS), tmp_path / "run", cache=tmp_path / "file" / "cache", progress=QUIET
        )
    assert not (tmp_path / "run").exists()


def test_a_whitening_that_is_rounded_otherwise_is_that_of_the_set(tmp_path, monkeypatch):
    """Other machines and numbers of threads fit another matrix, in its last bits."""
    run = distill(
        tiny(data={"normalization": "zca"}, **NO_STUDENTS), tmp_path / "run", progress=QUIET
    )
    expected = run.report.results[0].test_accuracy
    fit = Whitening.fit.__func__

    def rounded(kind: type, images: np.ndarray) -> Whitening:
        fitted = fit(kind, images)
        return Whitening(fitted.mean, fitted.transform * (1 + 2**-20))

    monkeypatch.setattr(Whitening, "fit", classmethod(rounded))
    report = evaluate_distilled(load(tmp_path / "run"), {}, None, None, QUIET)
    assert report.results[0].test_accuracy == expected
    with pytest.raises(DataError, match="was distilled from other data"):
        evaluate_distilled(load(tmp_path / "run"), {"data": {"split_seed": 3}}, None, None, QUIET)


def test_a_finished_set_without_validation_images_is_distilled_again(tmp_path):
    run = distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    best = {"evaluation": {"epoch": "validation-best"}}
    fraction = {"data": {"validation_fraction": 0.1}}
    for overrides in (best, best | fraction):
        with pytest.raises(ConfigError) as refused:
            evaluate_distilled(run.distilled, overrides, None, None, QUIET)
    assert "distil again with data.validation_fraction=0.1" in str(refused.value)
    assert "evaluate with evaluation.epoch=last" in str(refused.value)
    again = distill(tiny(**NO_STUDENTS, **fraction), tmp_path / "again", progress=QUIET)
    (result,) = evaluate_distilled(again.distilled, best, None, None, QUIET).results
    assert result.epoch == "validation-best"
    last = {"evaluation": {"epoch": "last"}}
    assert evaluate_distilled(run.distilled, last, None, None, QUIET).results
