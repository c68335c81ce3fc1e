"""Sweeps on digits: what they leave, what they share, and how they survive."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from PIL import Image
from rich.console import Console

import rayd
import tuning
from rayd.artifacts import read_json, write_json
from rayd.config import merge
from rayd.engine.progress import Progress
from rayd.errors import ConfigError, OutputError, RunError
from tests.evaluation.test_report import build, student
from tests.runs import QUIET
from tests.tuning.spaces import TINY, small
from tuning import charts
from tuning.directory import prepare_directory, read_space
from tuning.driver import prepare
from tuning.live import Events, LiveTable
from tuning.results import _confirm, _distilled_accuracies, _draw, _with_test, write_results
from tuning.search import points
from tuning.space import ResolvedSpace
from tuning.table import Row, pareto

pytestmark = pytest.mark.shared_synthesis
SEARCHES = [name for name in tuning.names() if not tuning.load(name).is_study]
READY = [name for name in SEARCHES if name.endswith("-digits")]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One private cluster for all sweeps of this file."""
    ray.shutdown()  # tests of other files may have left one
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


def table(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def students(directory: Path) -> list[int]:
    """Number of students of each evaluated set of a run."""
    report = json.loads((directory / "evaluation.json").read_text())
    return [len(result["test_accuracy"]["runs"]) for result in report["results"]]


def quick(name: str) -> tuning.Space:
    space = tuning.load(name)
    tiny = TINY[next(part for part in TINY if name.startswith(part))]
    return space.model_copy(
        update={
            "overrides": merge(space.overrides, tiny),
            "confirm": 0,
            "final_seeds": 1,
            "seeds": 1,
        }
    )


QUICK = ("edc-digits", "methods-digits")
"""Spaces whose dry run is in the fast suite: teachers and soft labels, and several methods."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in READY],
)
def test_every_ready_space_passes_a_dry_run(tmp_path, name):
    grid = tuning.sweep(
        quick(name),
        samples=2,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
        concurrent=1,
        progress=QUIET,
    )
    assert len(grid) == 2
    assert not grid.errors
    found = tuning.summary(tmp_path / "out")
    assert (found.trials, found.finished, found.failed) == (2, 2, 0)
    assert 0 <= found.test_accuracy <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SEARCHES if name not in READY])
def test_every_other_ready_space_passes_one_on_digits(tmp_path, name):
    space = quick(name)
    there = {"observers": {"networks": {"width": 8, "depth": 1}}}
    if name in ("ls-mtt", "methods"):  # ranks go up to 12, in up to 20 sets
        there = {"data": {"image_size": 16}, "synthetic": {"budget": 30720}}
    space = space.model_copy(
        update={
            "overrides": merge(
                merge(space.overrides, {"data": {"name": "digits"}, "ipc": 2}), there
            )
        }
    )
    samples = 12 if name == "methods" else 2
    grid = tuning.sweep(
        space, samples=samples, out=tmp_path / "out", cache=tmp_path / "cache", progress=QUIET
    )
    assert not grid.errors
    if name == "methods":
        assert len({row["recipe"] for row in table(tmp_path / "out")}) > 2


FINISHED = small(
    samples=3,
    objectives=["validation_accuracy", "storage_bytes"],
    search={"ipc": {"choice": [1, 2, 3, 4]}},
    confirm=1,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ray.tune.ResultGrid, str]:
    """Directory of a finished sweep of `FINISHED`, its results, and what was displayed."""
    folder = tmp_path_factory.mktemp("finished")
    shown = io.StringIO()
    progress = Progress(console=Console(file=shown, width=200))
    grid = tuning.sweep(
        FINISHED,
        out=folder / "out",
        cache=folder / "cache",
        data_root=folder,
        concurrent=1,
        progress=progress,
    )
    return folder / "out", grid, shown.getvalue()


def test_a_sweep_leaves_what_it_promises(finished):
    out, grid, lines = finished
    assert "the other 20% for validation" in lines
    assert "3 of 3 done" in lines
    assert isinstance(grid, ray.tune.ResultGrid)
    assert {entry.name for entry in out.iterdir()} >= {
        "sweep.yaml", "trials", "tune", "trials.csv", "trials.parquet", "pareto.csv", "importance.png", "slices.png",
        "tensorboard", "summary.json", "best.yaml", "best", "confirm",
    }  # fmt: skip
    rows = table(out)
    drawn = {row["ipc"] for row in rows}
    assert len(drawn) == 3
    assert rows[0]["own_settings"] == "True"
    assert {row["status"] for row in rows} == {"finished"}
    assert pq.read_table(out / "trials.parquet").num_rows == 3
    assert {result.metrics["storage_bytes"] for result in grid} == {
        2560 * int(ipc) for ipc in drawn
    }
    for name in ("importance.png", "slices.png"):
        assert min(Image.open(out / name).size) > 100
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    found = tuning.summary(out)
    assert str(found.settings["ipc"]) == best["ipc"]
    recipe = rayd.recipes.resolve(out / "best.yaml")
    assert recipe.ipc == found.settings["ipc"]
    assert recipe.data.validation_fraction == 0
    judged = json.loads((out / "best" / "evaluation.json").read_text())["results"]
    assert students(out / "best") == [2]
    assert not any("validation split" in result["protocol"] for result in judged)
    assert list(found.confirmed) == ["best", "own"]
    assert list((out / "tensorboard").rglob("events*"))
    # nobody but the best saw the test split
    for report in (out / "trials").rglob("evaluation.json"):
        assert all(
            "judged on the validation split" in result["protocol"]
            for result in json.loads(report.read_text())["results"]
        )
    assert "/" not in "".join(found.settings)


def test_a_sweep_from_python(finished, tmp_path):
    """A copy of a finished sweep is continued, and so only read."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    sweep = rayd.tune(
        FINISHED,
        out=out,
        cache=finished[0].parent / "cache",
        data_root=finished[0].parent,
        resume=True,
        quiet=True,
    )
    assert sweep.summary == tuning.summary(out)
    assert [row.status for row in sweep.trials] == ["finished"] * 3
    assert sweep.recipe.ipc == sweep.summary.settings["ipc"]
    assert [axes.get_title() for axes in sweep.plot().axes] == ["ipc"]
    assert len(repr(sweep)) < 200
    with pytest.raises(OutputError, match="resume=True"):
        rayd.tune(FINISHED, out=out, quiet=True)
    with pytest.raises(rayd.RaydError, match=r"did you mean 'ipc'"):
        rayd.tune("edc-digits", out=tmp_path / "other", ipcc=5)


@pytest.mark.parametrize(
    ("seed", "arguments", "message"),
    [
        (0, {}, "holds a sweep already; add --resume"),
        (1, {"resume": True}, "holds another sweep: seed differ"),
        (0, {"resume": True, "samples": 2}, "cannot be decreased; set --samples 3 or more"),
    ],
)
def test_a_sweep_in_the_way_is_refused(finished, seed, arguments, message):
    other = FINISHED.model_copy(update={"seed": seed})
    with pytest.raises(OutputError, match=message):
        tuning.sweep(other, out=finished[0], progress=QUIET, **arguments)


def files(directory: Path) -> dict[Path, int]:
    """When each file below a directory was written."""
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def gone() -> type:
    """A class that a later version has no more."""
    kind = type("Gone", (), {})
    kind.__module__ = "tuning.search"
    return kind


@pytest.mark.parametrize("of", ["search", "trials", "tuner"])
def test_a_sweep_of_an_older_version_is_refused_or_goes_on(finished, tmp_path, monkeypatch, of):
    """Nothing is written where Ray Tune's files refer to a class that is no longer there."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    kind = gone()
    with monkeypatch.context() as patch:
        patch.setattr("tuning.search.Gone", kind, raising=False)
        pickled = pickle.dumps(kind())
    if of == "trials":
        (path,) = (out / "tune").glob("experiment_state-*.json")
        state = json.loads(path.read_text())
        metadata = json.loads(state["trial_data"][0][1])
        metadata["start_time"] = {"_type": "CLOUDPICKLE_FALLBACK", "value": pickled.hex()}
        state["trial_data"][0][1] = json.dumps(metadata)
        path.write_text(json.dumps(state))
    else:
        (path,) = (out / "tune").glob({"search": "basic-variant-state-*", "tuner": "tuner.pkl"}[of])
        path.write_bytes(pickled)
    before = files(out)
    arguments = {"out": out, "cache": finished[0].parent / "cache", "data_root": out.parent}
    if of == "tuner":
        tuning.sweep(FINISHED, resume=True, progress=QUIET, **arguments)
        assert [row["status"] for row in table(out)] == ["finished"] * 3
        return
    with pytest.raises(OutputError, match=r"written by another version .* Its results are unch"):
        tuning.sweep(FINISHED, samples=4, resume=True, progress=QUIET, **arguments)
    assert {path: before[path] for path in before if path.name != ".lock"}.items() <= files(
        out
    ).items()


def test_results_without_their_search_are_refused(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out, ignore=lambda *_: ["tune"])
    before = (out / "trials.csv").read_text()
    with pytest.raises(OutputError, match="but not the state of its search \\('tune/'\\)"):
        tuning.sweep(FINISHED, out=out, resume=True, progress=QUIET)
    assert (out / "trials.csv").read_text() == before


def begun(out: Path) -> dict[Path, int]:
    """When each trial of a sweep was last written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("trials/*/progress.json")}


def grow(space: tuning.Space, out: Path, cache: Path) -> list[dict[str, str]]:
    """Table of a finished sweep after it has been continued to four samples."""
    before = begun(out)
    arguments = {"cache": cache, "data_root": cache, "concurrent": 1, "progress": QUIET}
    tuning.sweep(space, out=out, samples=4, resume=True, **arguments)
    assert before.items() < begun(out).items(), "finished trials stay"
    rows = table(out)
    assert {row["trial"] for row in rows} <= {entry.name for entry in (out / "tune").iterdir()}
    assert {entry.name for entry in out.iterdir()} >= {"best", f"best-of-{len(before)}"}
    # another version, in which classes have other names, can continue it
    saved = [*(out / "tune").glob("*state-*.json"), *(out / "tune").glob("*state-*.pkl")]
    assert len(saved) > 1
    for path in saved:
        assert not any(name in path.read_bytes() for name in (b"tuning.", b"rayd."))
    # without a number, it is what it has become
    tuning.sweep(space, out=out, resume=True, **arguments)
    assert table(out) == rows
    assert tuning.summary(out).trials == len(rows) == 4
    return rows


def test_a_copied_sweep_grows(finished, tmp_path):
    """Its draws are those of a sweep of that size, and the original stays as it was."""
    before = files(finished[0])
    shutil.copytree(finished[0], tmp_path / "out")
    rows = grow(FINISHED, tmp_path / "out", finished[0].parent / "cache")
    drawn = [str(point["ipc"]) for point in points(ResolvedSpace(FINISHED), 4)]
    assert [row["ipc"] for row in rows] == drawn
    assert files(finished[0]) == before


def test_a_moved_sweep_of_optuna_with_halving_grows(tmp_path):
    """Nothing is written where it was begun."""
    search = {"synthesis.learning_rate": {"uniform": [0.1, 10]}}
    space = small(algorithm="optuna", scheduler="asha", search=search)
    cache = tmp_path / "cache"
    tuning.sweep(space, out=tmp_path / "begun", cache=cache, concurrent=1, progress=QUIET)
    out = tmp_path / "out"
    (tmp_path / "begun").rename(out)
    rows = grow(space, out, cache)
    assert not (tmp_path / "begun").exists()
    assert len({row["synthesis.learning_rate"] for row in rows}) == 4
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    # halving stops the worst at a rung
    for path in begun(out):
        told = [record["fraction"] for record in read_json(path)["run"]["records"]]
        assert told in ([0.25], [0.25, 0.5], [0.25, 0.5, 1.0])


def test_a_population_does_not_grow(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    space = small(scheduler="pbt", samples=4)
    prepare_directory(out, prepare(space, out, progress=QUIET), False)
    with pytest.raises(OutputError, match="by 'scheduler: pbt', which moves all of them together"):
        tuning.sweep(space, out=out, samples=6, resume=True, progress=QUIET)


@pytest.fixture(scope="module")
def partly_failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a sweep, and of its store, in which two trials differ in their students alone,
    and another one fails.
    """
    folder = tmp_path_factory.mktemp("partly-failed")
    search = {
        "synthesis.learning_rate": {"grid": [1.0, 1e30]},
        "evaluation.learning_rate": {
            "grid": [0.01, 0.1],
            "when": {"synthesis.learning_rate": 1.0},
        },
    }
    # images that are clipped would survive any step size
    synthesis = {"steps": 12, "clip": False, "schedule": "constant"}
    overrides = {"synthesis": synthesis, "evaluation": {"seeds": 3}}
    space = small(search=search, samples=1, overrides=overrides)
    tuning.sweep(
        space,
        out=folder / "out",
        cache=folder / "cache",
        data_root=folder,
        concurrent=1,
        progress=QUIET,
    )
    return folder


def test_trials_share_what_they_have_in_common(partly_failed):
    """Trials that differ in their students alone share statistics and the set."""
    spent = [
        (partly_failed / "out" / "trials" / row["trial"] / "run" / "metrics.jsonl").read_text()
        for row in table(partly_failed / "out")
        if row["status"] == "finished"
    ]
    assert len(spent) == 2
    assert sum('"stage": "synthesize", "step"' in text for text in spent) == 1
    # the trials', and that of the best
    assert len(list((partly_failed / "cache" / "synthesis").glob("*.safetensors"))) == 2
    assert not list((partly_failed / "cache").rglob("*.lock"))


def test_a_trial_that_fails_is_told_and_the_sweep_goes_on(partly_failed):
    out = partly_failed / "out"
    *good, bad = table(out)
    assert [row["status"] for row in good] == ["finished", "finished"]
    assert bad["status"] == "failed"
    assert "The loss is not finite" in bad["reason"]
    log = (out / "trials" / bad["trial"] / "log.txt").read_text()
    assert log.count("failed: The loss is not finite") == 2, "it was tried again once"
    assert tuning.summary(out).failed == 1


def test_a_resumed_sweep_tries_failed_trials_again(partly_failed, tmp_path):
    """What made them fail, a full disk or a missing file, may be mended."""
    folder = tmp_path / "moved"
    shutil.copytree(partly_failed, folder)
    out = folder / "out"
    before = (out / "sweep.yaml").read_text()
    tuning.sweep(
        read_space(out),
        out=out,
        resume=True,
        cache=folder / "cache",
        data_root=folder,
        concurrent=1,
        progress=QUIET,
    )
    *good, bad = table(out)
    assert [row["status"] for row in (*good, bad)] == ["finished", "finished", "failed"]
    assert (out / "trials" / bad["trial"] / "log.txt").read_text().count("failed: ") == 3
    for row in good:
        log = Path("trials", row["trial"], "log.txt")
        assert (out / log).read_text() == (partly_failed / "out" / log).read_text()
    assert (out / "sweep.yaml").read_text() == before


def test_overridden_seeds_are_the_students_of_trials_and_of_the_best(partly_failed):
    out = partly_failed / "out"
    for row in table(out)[:2]:
        assert students(out / "trials" / row["trial"] / "run") == [3]
    assert students(out / "best") == [3]


def test_a_sweep_whose_trials_all_fail_says_why(tmp_path):
    reason = "The loss is not finite in step 3."
    failed = Row("a", "failed", {}, True, 0.0, None, None, None, None, reason, "a/run")
    plan = prepare(small(), tmp_path, progress=QUIET)
    with pytest.raises(RunError, match="No trial of the sweep finished: The loss is not finite"):
        write_results(plan, tmp_path, [failed], QUIET)
    assert table(tmp_path)[0]["status"] == "failed"


def test_charts_that_fail_do_not_end_a_sweep(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(charts, "slices", lambda *_: 1 / 0)
    _draw(tmp_path, ResolvedSpace(small()), [], None, {})
    assert caplog.messages == ["The charts of the sweep could not be drawn: division by zero"]


def trial(name: str, status: str, fraction: float | None = None, failures: int = 0) -> Any:
    """One of Ray Tune's trials as far as it is displayed."""
    result = {}
    if fraction is not None:
        result = {"fraction": fraction, "validation_accuracy": 0.5, "seconds": 7.2}
    settings = {"settings": {"ipc": 2, "terms.mean.weight": 1 / 3}}
    return SimpleNamespace(
        trial_id=name, status=status, last_result=result, num_failures=failures, config=settings
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_trials_are_displayed_as_they_come_and_end(terminal, tmp_path):
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120)
    with LiveTable(Progress(console=console), ResolvedSpace(small()), 4, tmp_path) as live:
        Events().on_step_end(1, [trial("a", "RUNNING"), trial("b", "PENDING")])
        ended = [trial("a", "TERMINATED", 1), trial("b", "TERMINATED", 0.25), trial("d", "ERROR")]
        again = trial("c", "RUNNING", failures=1)
        live.show([again, *ended])
        live.show([again, *ended])
    shown = written.getvalue()
    if not terminal:
        assert shown.splitlines() == [
            "trial a (0 of 4 done): runs; ipc=2, terms.mean.weight=0.3333",
            "trial c (3 of 4 done, about 0:00:00 left): failed, tried again; "
            "ipc=2, terms.mean.weight=0.3333",
            "trial a (3 of 4 done, about 0:00:00 left): finished at 1.00, "
            "validation accuracy 0.500, 7 s",
            "trial b (3 of 4 done, about 0:00:00 left): stopped at 0.25, "
            "validation accuracy 0.500, 7 s",
            "trial d (3 of 4 done, about 0:00:00 left): failed; ipc=2, terms.mean.weight=0.3333",
        ]
        return
    table = shown[shown.rindex("small: 3 of 4 done") :].splitlines()
    states = [line.split()[0:2] for line in table[2:6]]
    assert states == [["c", "failed,"], ["a", "finished"], ["b", "stopped"], ["d", "failed"]]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_sweep_says_what_its_trials_do(terminal, tmp_path, monkeypatch):
    """From the status of their runs; lines only where nothing else was said for a while."""
    status = {"stage": "measure", "done": 3, "total": 20, "unit": "shards"}
    for name in "ab":
        (tmp_path / name / "run").mkdir(parents=True)
    write_json(tmp_path / "a" / "run" / "status.json", status)
    write_json(tmp_path / "b" / "run" / "status.json", {"stage": None})
    monkeypatch.setattr("tuning.live.SILENCE", 0.0)
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120)
    with LiveTable(Progress(console=console), ResolvedSpace(small()), 5, tmp_path) as live:
        live.show([])
        running = [trial(name, "RUNNING") for name in "abc"]
        live.show([*running, trial("d", "RUNNING", 1), trial("e", "PENDING")])
    shown = written.getvalue()
    if terminal:
        table = shown[shown.rindex("small: 0 of 5 done") :].splitlines()
        assert re.search(r"d +ends", table[2])
        assert re.search(r"a +measure 3/20 shards", table[3])
        assert re.search(r"b +reads data", table[4])
        assert re.search(r"c +starts", table[5])
        assert re.search(r"e +waits", table[6])
        return
    lines = shown.splitlines()
    assert lines[0] == "0 of 5 done after 0:00:00: no trial has started yet"
    assert lines[-1] == (
        "0 of 5 done after 0:00:00, about 0:00:00 left: trial a measure 3/20 shards, "
        "trial b reads data, trial c starts, trial d ends, 1 waiting"
    )
    monkeypatch.setattr("tuning.live.SILENCE", 60.0)
    live.show(running)
    assert written.getvalue() == shown


def test_time_left_of_a_sweep(tmp_path, monkeypatch):
    """What was computed since the sweep was begun or resumed, and evaluations on the way, count."""
    monkeypatch.setattr("tuning.live.SILENCE", 0.0)
    now = 100.0
    monkeypatch.setattr("tuning.live.time.monotonic", lambda: now)
    written = io.StringIO()
    display = Progress(console=Console(file=written, width=120))
    before = [trial("a", "TERMINATED", 1), trial("b", "ERROR")]
    with LiveTable(display, ResolvedSpace(small()), 6, tmp_path) as live:
        live.show([*before, trial("c", "RUNNING")])
        now = 150.0
        live.show([*before, trial("c", "RUNNING", 0.5)])
        now = 190.0
        live.show([*before, trial("c", "TERMINATED", 1), trial("d", "RUNNING", 0.5)])
        now = 300.0
        ended = [trial(name, "TERMINATED", 1) for name in "cdef"]
        live.show([*before, *ended])
    lines = [line for line in written.getvalue().splitlines() if " after " in line]
    assert [line.rpartition(": ")[0] for line in lines] == [
        "2 of 6 done after 0:00:00",
        "2 of 6 done after 0:00:50",
        # 1.5 trials took 90 s, 2.5 are left
        "3 of 6 done after 0:01:30, about 0:02:30 left",
        "6 of 6 done after 0:03:20",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_population_based_training_goes_on_from_the_better_ones(tmp_path):
    space = small(
        scheduler={"name": "pbt", "quantile": 0.5},
        search={"synthesis.learning_rate": {"loguniform": [0.001, 30.0]}},
        samples=4,
        overrides={"synthesis": {"steps": 40}, "evaluation": {"epochs": 5}},
    )
    tuning.sweep(space, out=tmp_path / "out", cache=tmp_path / "cache", progress=QUIET)
    rows = table(tmp_path / "out")
    assert {row["status"] for row in rows} == {"finished"}
    known = [read_json(path) for path in (tmp_path / "out" / "trials").rglob("progress.json")]
    heirs = [entry for one in known for name, entry in one.items() if name.startswith("run-")]
    assert heirs
    for heir in heirs:
        assert heir["history"][-1]["fraction"] in (0.25, 0.5, 0.75, 1.0)
        assert all(
            record["fraction"] > heir["history"][-1]["fraction"] or record["fraction"] == 1
            for record in heir["records"]
        )
        assert 0.001 <= heir["settings"]["synthesis.learning_rate"] <= 30


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_more_trials_than_cpus_with_workers_of_their_own_do_not_wait_for_ever(tmp_path):
    """Four trials of two workers each want two CPUs, share statistics, and train students at a
    rung, within a time limit.
    """
    space = small(
        samples=4,
        scheduler="none",
        rungs=[0.5],
        overrides={"observers": {"pool": 3, "per_step": 2}},
    )
    tuning.sweep(space, out=tmp_path / "out", cache=tmp_path / "cache", workers=2, progress=QUIET)
    assert {row["status"] for row in table(tmp_path / "out")} == {"finished"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_where_it_was(tmp_path):
    """Also if its directory was moved meanwhile."""
    space = small(samples=5, overrides={"synthesis": {"steps": 60}, "evaluation": {"epochs": 20}})
    out = tmp_path / "out"
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space.model_dump(mode="json")))
    command = [sys.executable, "-m", "rayd", "tune", str(tmp_path / "space.yaml")]
    command += ["--concurrent", "1", "--out"]
    environment = os.environ | {"RAYD_CACHE": str(tmp_path / "cache")}
    running = subprocess.Popen([*command, str(out), "--quiet"], env=environment)
    while len(done := list(out.glob("trials/*/run/evaluation.json"))) < 2:
        time.sleep(0.1)
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    # the process of a trial outlives the driver for a moment, and may write where it began
    moved = tmp_path / "moved"
    out.rename(moved)
    # one trial at a time: the first is finished and known to be
    first = moved / sorted(done)[0].relative_to(out)
    before = first.stat().st_mtime_ns
    arguments = [*command, str(moved), "--resume"]
    subprocess.run(arguments, env=environment, check=True, timeout=250)
    assert first.stat().st_mtime_ns == before
    rows = table(moved)
    assert len(rows) == 5
    assert {row["status"] for row in rows} == {"finished"}


def test_the_front_is_what_no_other_beats():
    def row(name: str, accuracy: float, size: int) -> Row:
        return Row(name, "finished", {}, False, 1.0, accuracy, None, size, 1.0, "", "")

    rows = [
        row("a", 0.9, 30),
        row("b", 0.8, 10),
        row("c", 0.8, 20),
        row("d", 0.95, 40),
        row("e", 0.95, 41),
    ]
    assert [one.trial for one in pareto(rows, ["validation_accuracy", "storage_bytes"])] == [
        "d",
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    "chosen", [{"epoch": ["validation-best"]}, {"learning_rates": [0.01, 0.1]}]
)
def test_a_selection_that_the_best_settings_could_not_make_is_refused_first(tmp_path, chosen):
    """They are distilled from all images, unless the recipe itself sets some aside."""
    plain = small(algorithm="random")
    space = plain.model_copy(update={"overrides": merge(plain.overrides, {"evaluation": chosen})})
    with pytest.raises(ConfigError, match=r"data\.validation_fraction' above 0"):
        prepare(space, tmp_path / "sweep", progress=Progress(quiet=True))
    aside = merge(space.overrides, {"data": {"validation_fraction": 0.2}})
    again = space.model_copy(update={"overrides": aside})
    assert prepare(again, tmp_path / "sweep", progress=Progress(quiet=True))


def test_confirmations_are_of_the_epoch_that_trials_are_compared_by():
    students = [
        student(accuracy, network=network, selection=selection)
        for network, accuracy in (("convnet", 0.5), ("mlp", 0.4))
        for selection in ("last", "validation-best")
    ]
    report = build(*(("distilled", one) for one in students), epoch=["last", "validation-best"])
    assert [one.mean for one in _distilled_accuracies(report)] == [0.5, 0.4]


@pytest.mark.parametrize(("chosen", "runs"), [(0.5, 4), (1.0, 2)])
def test_settings_of_the_recipe_itself_are_confirmed_once(tmp_path, monkeypatch, chosen, runs):
    distilled = []

    def distill(recipe, out, **_):
        distilled.append(recipe.seed)
        return SimpleNamespace(report=build(("distilled", student(recipe.seed / 10))))

    monkeypatch.setattr("tuning.results.distill", distill)
    own = {"synthesis": {"learning_rate": 1.0}}
    search = {"synthesis.learning_rate": {"grid": [0.5, 1.0]}}
    plan = prepare(small(search=search, overrides=own, confirm=2), tmp_path, progress=QUIET)
    best = SimpleNamespace(settings={"synthesis.learning_rate": chosen})
    accuracies = _confirm(plan, best, tmp_path, QUIET)
    assert len(distilled) == runs
    assert accuracies["own"] == accuracies["best"]


def test_test_accuracy_is_over_all_networks_as_the_validation_accuracy():
    pairs = [("convnet", 0.9), ("convnet", 0.7), ("mlp", 0.5), ("mlp", 0.3)]
    report = build(*(("distilled", student(accuracy, network=name)) for name, accuracy in pairs))
    tested = _with_test(tuning.Summary("small", trials=1, finished=1, failed=0), report)
    assert tested.test_accuracy == pytest.approx(0.6)
    assert tested.test_std == pytest.approx(stdev([0.9, 0.7, 0.5, 0.3]))
