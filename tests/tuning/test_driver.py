"""Sweeps on digits: what they leave, what they share, and how they survive."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from PIL import Image

import rayd
import tuning
from rayd.artifacts import read_json
from rayd.config import merge
from rayd.engine.progress import Progress
from rayd.errors import OutputError, RunError
from tests.tuning.spaces import TINY, small
from tuning.driver import _prepare_directory, prepare
from tuning.search import points
from tuning.space import ResolvedSpace
from tuning.table import Row, pareto

QUIET = Progress(quiet=True)
pytestmark = pytest.mark.shared_synthesis
READY = [name for name in tuning.names() if name.endswith("-digits")]


@pytest.fixture(scope="module", autouse=True)
def _cluster():
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
        quick(name), samples=2, out=tmp_path / "out", cache=tmp_path / "cache", progress=QUIET
    )
    assert len(grid) == 2
    assert not grid.errors
    found = tuning.summary(tmp_path / "out")
    assert (found.trials, found.finished, found.failed) == (2, 2, 0)
    assert 0 <= found.test_accuracy <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tuning.names() if name not in READY])
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


def test_a_sweep_leaves_what_it_promises(tmp_path, capsys):
    out = tmp_path / "out"
    space = small(
        samples=3,
        objectives=["validation_accuracy", "storage_bytes"],
        search={"ipc": {"choice": [1, 2, 3]}},
        confirm=1,
    )
    grid = tuning.sweep(space, out=out, cache=tmp_path / "cache", progress=Progress())
    lines = capsys.readouterr().err
    assert "the other 20% for validation" in lines
    assert "3 of 3 done" in lines
    assert isinstance(grid, ray.tune.ResultGrid)
    assert {entry.name for entry in out.iterdir()} >= {
        "sweep.yaml", "trials", "tune", "trials.csv", "trials.parquet", "pareto.csv", "importance.png", "slices.png",
        "tensorboard", "summary.json", "best.yaml", "best", "confirm",
    }  # fmt: skip
    rows = table(out)
    assert [row["ipc"] for row in rows] == sorted(row["ipc"] for row in rows) or len(
        {row["ipc"] for row in rows}
    ) == 3
    assert rows[0]["own_settings"] == "True"
    assert {row["status"] for row in rows} == {"finished"}
    assert pq.read_table(out / "trials.parquet").num_rows == 3
    assert {result.metrics["storage_bytes"] for result in grid} == {2560, 5120, 7680}
    for name in ("importance.png", "slices.png"):
        assert min(Image.open(out / name).size) > 100
    best = max(rows, key=lambda row: float(row["validation_accuracy"]))
    found = tuning.summary(out)
    assert str(found.settings["ipc"]) == best["ipc"]
    recipe = rayd.recipes.resolve(out / "best.yaml")
    assert recipe.ipc == found.settings["ipc"]
    assert recipe.data.validation_fraction == 0
    judged = json.loads((out / "best" / "evaluation.json").read_text())["results"]
    assert [len(result["test_accuracy"]["runs"]) for result in judged] == [2]
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
    with pytest.raises(OutputError, match="holds a sweep already; add --resume"):
        tuning.sweep(space, out=out, progress=QUIET)
    with pytest.raises(OutputError, match="holds another sweep: seed differ"):
        tuning.sweep(space.model_copy(update={"seed": 1}), out=out, resume=True, progress=QUIET)
    with pytest.raises(
        OutputError,
        match="holds a sweep of 3 samples, which cannot be decreased; set --samples 3 or more",
    ):
        tuning.sweep(space, out=out, samples=2, resume=True, progress=QUIET)


@pytest.mark.parametrize("proposer", ["random", "optuna"])
def test_a_finished_sweep_grows(tmp_path, proposer):
    search = {"synthesis.learning_rate": {"uniform": [0.1, 10]}}
    space = small(algorithm=proposer, scheduler="asha", search=search)
    out = tmp_path / "out"
    tuning.sweep(space, out=out, cache=tmp_path / "cache", concurrent=1, progress=QUIET)
    begun = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/progress.json")}
    assert len(begun) == 2
    tuning.sweep(space, out=out, cache=tmp_path / "cache", samples=4, resume=True, progress=QUIET)
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    rows = table(out)
    assert len({row["synthesis.learning_rate"] for row in rows}) == 4
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert tuning.summary(out).trials == 4
    assert {entry.name for entry in out.iterdir()} >= {"best", "best-of-2"}
    if proposer == "random":  # as if they had been asked for at once
        drawn = {str(point["synthesis.learning_rate"]) for point in points(ResolvedSpace(space), 4)}
        assert {row["synthesis.learning_rate"] for row in rows} == drawn
    # without a number, it is what it has become
    tuning.sweep(space, out=out, cache=tmp_path / "cache", resume=True, progress=QUIET)
    assert len(table(out)) == 4


def test_a_population_does_not_grow(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    space = small(scheduler="pbt", samples=4)
    _prepare_directory(out, prepare(space, out, progress=QUIET), False)
    with pytest.raises(OutputError, match="by 'scheduler: pbt', which moves all of them together"):
        tuning.sweep(space, out=out, samples=6, resume=True, progress=QUIET)


def test_trials_share_what_they_have_in_common(tmp_path):
    """Trials that differ in their students alone share statistics and the set; one that failed
    before is not run again.
    """
    space = small(samples=3, search={"evaluation.learning_rate": {"loguniform": [0.001, 0.1]}})
    tuning.sweep(
        space, out=tmp_path / "out", cache=tmp_path / "cache", concurrent=2, progress=QUIET
    )
    spent = [path.read_text() for path in (tmp_path / "out" / "trials").rglob("metrics.jsonl")]
    assert len(spent) == 3
    assert sum('"stage": "synthesize", "step"' in text for text in spent) == 1
    assert (
        len(list((tmp_path / "cache" / "synthesis").iterdir())) == 2
    )  # the trials', and that of the best
    assert not list((tmp_path / "cache").rglob("*.lock"))


def test_a_trial_that_fails_is_told_and_the_sweep_goes_on(tmp_path):
    space = small(
        search={"synthesis.learning_rate": {"grid": [1.0, 1e30]}},
        samples=1,
        overrides={"synthesis": {"steps": 12}},
    )
    tuning.sweep(space, out=tmp_path / "out", cache=tmp_path / "cache", progress=QUIET)
    good, bad = table(tmp_path / "out")
    assert (good["status"], bad["status"]) == ("finished", "failed")
    assert "The loss is not finite" in bad["reason"]
    log = (tmp_path / "out" / "trials" / bad["trial"] / "log.txt").read_text()
    assert log.count("failed: The loss is not finite") == 2, "it was tried again once"
    assert tuning.summary(tmp_path / "out").failed == 1


def test_a_sweep_whose_trials_all_fail_says_why(tmp_path):
    space = small(
        search={"synthesis.learning_rate": {"grid": [1e30]}},
        overrides={"synthesis": {"steps": 12}},
        retries=0,
    )
    with pytest.raises(RunError, match="No trial of the sweep finished: The loss is not finite"):
        tuning.sweep(space, out=tmp_path / "out", cache=tmp_path / "cache", progress=QUIET)
    assert table(tmp_path / "out")[0]["status"] == "failed"


def test_halving_stops_the_worst_at_a_rung(tmp_path):
    space = small(
        scheduler="asha",
        samples=4,
        search={"synthesis.learning_rate": {"grid": [1.0, 1.001, 1.002, 1.003]}},
    )
    tuning.sweep(
        space, out=tmp_path / "out", cache=tmp_path / "cache", concurrent=1, progress=QUIET
    )
    rows = table(tmp_path / "out")
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    for path in (tmp_path / "out" / "trials").rglob("progress.json"):
        told = [record["fraction"] for record in read_json(path)["run"]["records"]]
        assert told in ([0.25], [0.25, 0.5], [0.25, 0.5, 1.0])


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
    space = small(samples=5, overrides={"synthesis": {"steps": 60}, "evaluation": {"epochs": 20}})
    out = tmp_path / "out"
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space.model_dump(mode="json")))
    command = [
        sys.executable,
        "-m",
        "rayd",
        "tune",
        str(tmp_path / "space.yaml"),
        "--out",
        str(out),
        "--concurrent",
        "1",
    ]
    environment = os.environ | {"RAYD_CACHE": str(tmp_path / "cache")}
    running = subprocess.Popen([*command, "--quiet"], env=environment)
    while len(done := list(out.glob("trials/*/run/evaluation.json"))) < 2:
        time.sleep(0.1)
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.wait()
    # one trial at a time: the first is finished and known to be
    before = {path: path.stat().st_mtime_ns for path in sorted(done)[:1]}
    subprocess.run([*command, "--resume"], env=environment, check=True, timeout=250)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows = table(out)
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
