"""What can be known of a run from its directory alone."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayd.engine import status as statuses
from rayd.engine.distill import distill
from rayd.engine.pool import LocalPool, WorkerInfo
from rayd.engine.progress import StageProgress
from rayd.engine.status import Status, StatusFile, status
from rayd.errors import ArtifactError, OutputError, RunError
from rayd.locks import is_locked, locked
from tests.conftest import tiny
from tests.faults import stopping
from tests.runs import NO_STUDENTS, QUIET


def test_a_finished_run(tmp_path):
    distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    found = status(tmp_path / "run")
    assert (found.state, found.stage, found.done, found.total, found.seconds_left) == (
        "finished",
        "evaluate",
        1,
        1,
        None,
    )
    assert found.driver == {"pid": os.getpid(), "node": found.driver["node"], "holds_lock": False}
    assert found.disk_bytes > (tmp_path / "run" / "distilled" / "data.safetensors").stat().st_size
    assert found.workers == []
    assert "finished" in found.text().splitlines()[0]
    assert "--resume" not in found.text()


def test_a_run_that_failed_says_how(tmp_path):
    fail = stopping(RunError("The loss is not finite."))
    with pytest.raises(RunError):
        distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET, callbacks=fail)
    found = status(tmp_path / "run")
    assert (found.state, found.stage, found.error) == (
        "failed",
        "synthesize",
        "The loss is not finite.",
    )
    assert found.text().splitlines()[-1] == f"continue rayd distill --resume {tmp_path / 'run'}"


def test_a_run_that_was_interrupted_says_so_and_how_to_continue(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        distill(
            tiny(**NO_STUDENTS),
            tmp_path / "run",
            cache=tmp_path / "my cache",
            progress=QUIET,
            callbacks=stopping(KeyboardInterrupt()),
        )
    found = status(tmp_path / "run")
    assert (found.state, found.error) == ("interrupted", None)
    assert (
        found.command
        == f"rayd distill --resume {tmp_path / 'run'} --cache '{tmp_path / 'my cache'}'"
    )
    assert found.text().splitlines()[-1] == f"continue {found.command}"


def test_a_trial_is_continued_by_its_sweep(tmp_path):
    """By hand its students would see the test split."""
    with pytest.raises(RunError):
        distill(
            tiny(data={"validation_fraction": 0.2}, **NO_STUDENTS),
            tmp_path,
            progress=QUIET,
            judged_on="validation",
            callbacks=stopping(RunError("stopped")),
        )
    assert status(tmp_path).command is None
    assert "rayd distill" not in status(tmp_path).text()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Crowd(LocalPool):
    """A group with a worker that was started again."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def workers(self) -> list[WorkerInfo]:
        return [
            WorkerInfo("worker", 7, "here", "worker-7", restarts=2),
            WorkerInfo("worker", 0, "", "", there=False),
        ]

    def logs(self) -> str:
        return "/logs"

    def publish(self, stage: str, rate: float) -> None:
        self.told.append((stage, rate))


def test_a_run_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(statuses, "INTERVAL", 0.05)
    with locked(tmp_path):
        file = StatusFile(tmp_path / "status.json")
        crowd = Crowd()
        meter = StageProgress("measure", 10, "shards", _began=time.monotonic() - 4)
        meter.update(0)
        meter.update(2, terms={"loss": 0.5, "nan": math.nan})
        file.stage(meter)
        with file.pool(crowd):
            until(lambda: len(crowd.told) > 1)
            found = status(tmp_path)
            assert (found.state, found.driver["holds_lock"], found.stage) == (
                "running",
                True,
                "measure",
            )
            assert found.rate == pytest.approx(0.5, rel=0.2)
            assert found.seconds_left == pytest.approx(16, rel=0.2)
            assert found.terms == {"loss": 0.5, "nan": None}
            assert found.restarts == 2
            assert "1 of 2 alive, 2 restarts, logs in /logs" in found.text()
            assert "pid 7 on here, worker-7.out|err" in found.text()
            assert "not started yet" in found.text()
        assert crowd.told[0][0] == "measure"
        file.close()
    assert status(tmp_path).restarts == 2


def test_a_driver_without_a_last_word_was_killed_unless_it_may_be_elsewhere(tmp_path):
    told = {
        "state": "running",
        "driver": {"pid": 1, "node": "another"},
        "written": time.time(),
        "interval": 2.0,
    }
    place = tmp_path / "status.json"
    for change, expected in [
        ({}, "running"),
        ({"written": time.time() - 60}, "killed"),
        ({"driver": {"pid": 1, "node": os.uname().nodename}}, "killed"),
    ]:
        place.write_text(json.dumps(told | change))
        assert status(tmp_path).state == expected
    with locked(tmp_path):
        assert status(tmp_path).state == "running"


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(OutputError, match="holds no run of rayd; name the --out of one"):
        status(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_terms_are_those_of_the_log_if_the_status_has_none(tmp_path):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "synthesize", "step": 3, "seconds": 1.0, "loss": 0.5, "odd": "x"}\n'
        '{"stage": "evaluate", "step": 9, "seconds": 2.0, "random/mlp/2/test_accuracy": 0.7}\n'
        '3\n{"stage"'
    )
    for content in (None, '{"state": "running"}'):
        if content is not None:
            (tmp_path / "status.json").write_text(content)
        assert status(tmp_path).terms == {"loss": 0.5}
        assert status(tmp_path).state == "killed"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is truncated or not JSON"),
        ("{", "is truncated or not JSON"),
        ("[1]", "must hold a JSON object. Got list"),
        ('{"state": "running", "state": "finished"}', "holds the key 'state' twice"),
        ("{}", "lacks state"),
        ('{"state": "on"}', "'state' in '.*status.json' must be 'running', 'finished'"),
        ('{"state": "running", "driver": 3}', "'driver' in .* Got 3 instead"),
        ('{"state": "running", "driver": {"pid": "1", "node": "a"}}', "'driver.pid' in "),
        ('{"state": "running", "written": "now"}', "'written' in "),
        ('{"state": "running", "rate": NaN}', "'rate' in .* must be a finite number"),
        ('{"state": "running", "workers": [{"role": "worker"}]}', "lacks 'workers.0.pid'"),
        ('{"state": "running", "stages": ["measure"]}', "'stages' in "),
        ('{"state": "running", "colour": 3}', "holds 'colour', which rayd does not know"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, content, sentence):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(ArtifactError, match=sentence):
        status(tmp_path)


def test_a_fifo_is_not_waited_for(tmp_path):
    (tmp_path / "config.yaml").touch()
    for name in ("status.json", ".lock", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ArtifactError, match="must be a file"):
        status(tmp_path)
    (tmp_path / "status.json").unlink()
    assert status(tmp_path).state == "killed"


def test_a_look_does_not_keep_a_run_from_its_directory(tmp_path):
    stop = time.monotonic() + 1
    while time.monotonic() < stop:
        is_locked(tmp_path)
        with locked(tmp_path):
            pass


def test_who_waits_for_a_lock_is_told_once_and_gets_it(tmp_path):
    held = threading.Event()
    asked = threading.Event()

    def keep() -> None:
        with locked(tmp_path):
            held.set()
            assert asked.wait(30)

    holder = threading.Thread(target=keep)
    holder.start()
    assert held.wait(30)
    told: list[bool] = []

    def on_wait() -> None:
        told.append(True)
        asked.set()

    with locked(tmp_path, on_wait):
        holder.join()
        assert told == [True]
    with locked(tmp_path, on_wait):
        assert told == [True]


@pytest.mark.slow
def test_workers_their_restarts_and_logs_are_found_from_outside(tmp_path):
    """A whole run on Ray, watched by its directory; a worker is killed, then the driver."""
    run = tmp_path / "run"
    options = [
        "synthesis.steps=100000",
        "observers.pool=4",
        "observers.per_step=2",
        "resources.threads=1",
        "--quiet",
    ]
    command = [
        sys.executable,
        "-m",
        "rayd",
        "distill",
        "digits",
        *options,
        "--out",
        str(run),
        "--workers",
        "2",
    ]
    running = subprocess.Popen(command, env=os.environ | {"RAYD_CACHE": str(tmp_path / "cache")})
    try:
        until(lambda: (run / "config.yaml").exists())

        def look(condition: Callable[[Status], bool]) -> Status:
            until(lambda: condition(status(run)), 120)
            return status(run)

        found = look(
            lambda now: now.stage == "synthesize" and now.done > 0 and len(now.workers) == 2
        )
        found = look(lambda now: all(one["there"] for one in now.workers))
        assert (found.state, found.driver["pid"], found.driver["holds_lock"]) == (
            "running",
            running.pid,
            True,
        )
        assert [one["role"] for one in found.workers] == ["worker", "worker"]
        assert all((Path(str(found.logs)) / f"{one['log']}.err").exists() for one in found.workers)
        os.kill(found.workers[0]["pid"], signal.SIGKILL)
        again = look(lambda now: now.restarts == 1 and all(one["there"] for one in now.workers))
        assert again.workers[0]["pid"] != found.workers[0]["pid"]
        assert again.workers[1]["pid"] == found.workers[1]["pid"]
    finally:
        running.kill()
        running.wait()
    found = status(run)
    assert (found.state, found.driver["holds_lock"]) == ("killed", False)
    assert f"continue rayd distill --resume {run} --cache" not in found.text()
    assert f"continue rayd distill --resume {run}" in found.text()


def test_a_stuck_worker_is_told_from_a_busy_one():
    worker = {"role": "worker", "pid": 7, "node": "n", "log": "l", "there": True}
    line = statuses._line
    assert line(worker).endswith("l.out|err")
    assert line(worker | {"busy": 500.0, "usual": None}).endswith(", busy")
    assert line(worker | {"busy": 50.0, "usual": 1.0}).endswith(", busy")
    assert line(worker | {"busy": 500.0, "usual": 400.0}).endswith(", busy")
    told = line(worker | {"busy": 500.0, "usual": 2.0})
    assert told.endswith("perhaps stuck: silent for 500 s where 2 s are usual")
    assert line(worker | {"busy": 500.0, "usual": 2.0, "there": False}).endswith(", lost")
