"""Exactly once: of several runs that want the same piece of work at the same time one does it."""

import collections
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rayd.engine.distill import distill
from rayd.engine.work_queue import lock_all, run_once
from rayd.errors import RunError
from tests.conftest import tiny
from tests.faults import stopping
from tests.runs import QUIET, bytes_of


def test_a_claim_is_one_holders_and_leaves_nothing_behind(tmp_path):
    paths = [tmp_path / "stage" / "b.json", tmp_path / "stage" / "a.json"]
    first = lock_all(paths)
    assert first is not None
    assert lock_all(paths[:1]) is None
    assert lock_all([tmp_path / "stage" / "0.json", paths[1]]) is None
    assert lock_all([tmp_path / "stage" / "0.json"]) is not None, "who does not get all keeps none"
    first.close()
    second = lock_all(paths)
    assert second is not None
    second.close()
    assert list((tmp_path / "stage").glob("[ab]*")) == []


def test_a_killed_holder_gives_its_claims_free(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from rayd.engine.work_queue import lock_all\n"
    )
    program += "lock = lock_all([Path(sys.argv[1])]); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert lock_all([tmp_path / "x"]) is None
    holder.kill()
    holder.wait()
    assert lock_all([tmp_path / "x"]) is not None


def test_where_there_are_no_locks_work_is_done_twice(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refused)
    assert lock_all([tmp_path / "x"]) is not None
    assert lock_all([tmp_path / "x"]) is not None


def test_every_piece_is_made_once_by_whoever_is_free():
    """Four threads want overlapping pieces in different orders; some pieces need several
    entries.
    """
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        from pathlib import Path

        root = Path(folder)
        made = collections.Counter[int]()
        waited = []

        def paths(piece: int) -> list[Path]:
            return [root / f"{piece}", root / f"{(piece + 1) % 12}.more"]

        def there(piece: int) -> bool:
            return (root / f"{piece}.done").exists()

        def run(number: int) -> None:
            def make(taken) -> None:
                for piece in taken:
                    time.sleep(0.02)
                    made[piece] += 1
                    (root / f"{piece}.done").touch()
                    taken.done(piece)

            order = [(7 * piece + 3 * number) % 12 for piece in range(12)]
            run_once(order, there, paths, make, waited.append)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert made == dict.fromkeys(range(12), 1)
        assert not list(root.glob("*.lock"))


def test_a_piece_that_is_made_in_vain_is_left_to_the_caller():
    made = []
    run_once([1], lambda _: False, lambda _: [], lambda taken: made.extend(taken))
    assert made == [1]


RACE = """
import sys
from pathlib import Path
from rayd.config import validate, Recipe, read_yaml
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.progress import Progress
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.store import Store

def told(kept):
    def keep(self, stage, inputs, *rest):
        kept(self, stage, inputs, *rest)
        with open(sys.argv[2], "a") as log:
            log.write(f"{stage} {self.path(stage, inputs, '').name}\\n")
    return keep

Store.put_tensors, Store.put_record = told(Store.put_tensors), told(Store.put_record)
if len(sys.argv) > 4:
    # on another kind of device, as far as the store knows
    Job.device = sys.argv[4]
    key = Squeeze.key
    Squeeze.key = lambda self, item: {**key(self, item), "device": sys.argv[4]}
recipe = validate(Recipe, read_yaml(Path(sys.argv[1])))
input()
distill(recipe, Path(sys.argv[3]), progress=Progress(quiet=True))
"""


def race(folder: Path, *runs: list[str]) -> list[str]:
    """What processes with further arguments for `RACE` keep in one store, a line for each entry."""
    command = [sys.executable, "-c", RACE, str(folder / "recipe.yaml"), str(folder / "log")]
    environment = os.environ | {"RAYD_CACHE": str(folder / "cache")}
    racing = [
        subprocess.Popen([*command, *run], env=environment, stdin=subprocess.PIPE, text=True)
        for run in runs
    ]
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in racing:
        process.wait(400)
    assert [process.returncode for process in racing] == [0] * len(runs)
    # counts of operations, for the time left, take less than waiting for another run's
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if not line.startswith("counts ")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_on_two_devices_at_the_same_time_share_a_cache(tmp_path):
    """Neither waits for the other, which may be far slower, and what comes later finds all."""
    from tests.engine.test_decoupled import edc

    (tmp_path / "recipe.yaml").write_text(edc().to_yaml())
    outs = [tmp_path / device for device in ("cpu", "cuda")]
    made = race(tmp_path, *([str(out), out.name] for out in outs))
    assert len(made) == len(set(made))
    assert {line.split()[0] for line in made} == {"squeeze", "measure", "synthesis", "students"}
    assert bytes_of(outs[0]) == bytes_of(outs[1])
    assert not list((tmp_path / "cache").rglob("*.lock"))
    again = [tmp_path / f"{device}-again" for device in ("cpu", "cuda", "mps")]
    assert race(tmp_path, *([str(out), out.name.partition("-")[0]] for out in again)) == []
    assert {bytes_of(out) for out in again} == {bytes_of(outs[0])}


def test_runs_at_the_same_time_make_everything_once(tmp_path):
    """Three processes with the same recipe, whose observers are trained, measured, and teach."""
    from tests.engine.test_decoupled import edc

    (tmp_path / "recipe.yaml").write_text(edc().to_yaml())
    outs = [tmp_path / str(number) for number in range(3)]
    made = race(tmp_path, *([str(out)] for out in outs))
    assert len(made) == len(set(made)) > 5
    assert {line.split()[0] for line in made} == {"squeeze", "measure", "synthesis", "students"}
    assert bytes_of(outs[0]) == bytes_of(outs[1]) == bytes_of(outs[2])
    assert not list((tmp_path / "cache").rglob("*.lock"))


@pytest.mark.shared_synthesis
def test_runs_with_the_same_set_share_it(tmp_path):
    """Also with other students; its bytes, and its card, are those of the run that made it."""
    first = distill(tiny(), tmp_path / "first", progress=QUIET)
    stop = stopping(RunError("synthesized again"))
    second = distill(
        tiny(evaluation={"epochs": 3, "baselines": []}),
        tmp_path / "second",
        progress=QUIET,
        callbacks=stop,
    )
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
    assert {**first.distilled.card, "config": 0} == {**second.distilled.card, "config": 0}
    assert second.distilled.card["config"]["evaluation"]["epochs"] == 3
    assert second.synthesis_seconds == first.synthesis_seconds > 0
    with pytest.raises(RunError, match="synthesized again"):
        distill(tiny(seed=1), tmp_path / "third", progress=QUIET, callbacks=stop)
