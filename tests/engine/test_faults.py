"""Disks that fill up: the run stops with one sentence, and goes on from the last good state once
there is room.

Damaged files of every kind are in test_damage.py, test_decoupled.py and test_store.py; workers that
die in test_pool.py and test_nodes.py.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rayd.artifacts import read_json
from rayd.config import Recipe
from rayd.engine import worker
from rayd.engine.distill import distill
from rayd.errors import RunError
from rayd.training import stored_labels
from tests.conftest import tiny
from tests.faults import four_observers, made
from tests.runs import QUIET, bytes_of

PAGE = 4096
NO_ROOM = "Cannot write .*: No space left on device"

Disk = Callable[[int], Path]


def recipe(**overrides: object) -> Recipe:
    return tiny(**{"evaluation": {"seeds": 1, "epochs": 1, "baselines": []}, **overrides})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a file system of so many pages, where the machine allows it; called again, gives it
    room.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(pages: int) -> Path:
        nonlocal mounted
        options = f"size={pages * PAGE}" + (",remount" if mounted else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"mounting needs root: {done.stderr.strip()}")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's own thread
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_disk_of_a_run_fills_up(tmp_path, small_disk, workers):
    """While it synthesizes: checkpoints are written where the synthesizer is, the log by the
    driver.
    """
    long = recipe(
        synthesis={"steps": 600, "log_every": 1, "checkpoint_every": 50},
        resources={"workers": workers, "threads": 1, "cpus_per_worker": 0.5},
    )
    distill(long, tmp_path / "whole", progress=QUIET)
    disk = small_disk(20)
    with pytest.raises(RunError, match=NO_ROOM):
        distill(long, disk / "run", progress=QUIET)
    assert list((disk / "run" / "checkpoints").glob("step-*"))
    small_disk(5000)
    distill(long, disk / "run", resume=True, progress=QUIET)
    assert bytes_of(disk / "run") == bytes_of(tmp_path / "whole")
    assert read_json(disk / "run" / "status.json")["state"] == "finished"


def test_the_disk_of_the_cache_fills_up(tmp_path, small_disk):
    """While it measures: observers that found room are not measured again."""
    distill(recipe(), tmp_path / "whole", progress=QUIET)
    pages = [-(-path.stat().st_size // PAGE) for path in (tmp_path / "cache" / "measure").iterdir()]
    assert len(pages) == 3
    disk = small_disk(pages[0] + 4)  # one of three, and directories
    with pytest.raises(RunError, match=NO_ROOM):
        distill(recipe(), tmp_path / "run", cache=disk / "cache", progress=QUIET)
    kept = {path.name for path in (disk / "cache" / "measure").iterdir()}
    assert 1 <= len(kept) < 3
    assert not any(name.endswith(".tmp") for name in kept)
    small_disk(5000)
    times = {name: (disk / "cache" / "measure" / name).stat().st_mtime_ns for name in kept}
    distill(recipe(), tmp_path / "run", cache=disk / "cache", resume=True, progress=QUIET)
    assert {name: (disk / "cache" / "measure" / name).stat().st_mtime_ns for name in kept} == times
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")


def test_the_disk_is_full_while_labels_are_stored(tmp_path, small_disk, monkeypatch):
    """Chunks that found room are not made again."""
    monkeypatch.setattr(stored_labels, "CHUNK_EPOCHS", 1)
    few = four_observers(squeeze={"epochs": 1}, synthesis={"steps": 2}, evaluation={"epochs": 3})
    distill(few, tmp_path / "whole", cache=tmp_path / "cache", progress=QUIET)
    disk = small_disk(5000)
    write = worker.write_chunk
    written: list[Path] = []

    def fill(*arguments: object) -> Path:
        if written:
            fill_up(disk)
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(worker, "write_chunk", fill)
    with pytest.raises(RunError, match=NO_ROOM):
        distill(few, disk / "run", cache=tmp_path / "cache", progress=QUIET)
    assert len(written) == 1
    (disk / "filler").unlink()
    monkeypatch.setattr(
        worker, "write_chunk", lambda *arguments: written.append(write(*arguments)) or written[-1]
    )
    distill(few, disk / "run", cache=tmp_path / "cache", resume=True, progress=QUIET)
    assert len(written) == len(set(written)) == 3
    assert made(disk / "run", tmp_path / "cache") == made(tmp_path / "whole", tmp_path / "cache")


def fill_up(disk: Path) -> None:
    """Leave no page of a disk of 5000 free."""
    free = 5000 * PAGE - sum(
        -(-path.stat().st_size // PAGE) * PAGE for path in disk.rglob("*") if path.is_file()
    )
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        for _ in range(free // PAGE + 1):
            filler.write(bytes(PAGE))


def test_the_disk_is_full_when_the_result_is_written(tmp_path, small_disk, monkeypatch):
    distill(recipe(), tmp_path / "whole", progress=QUIET)
    disk = small_disk(5000)
    from rayd.distilled import Distilled

    save = Distilled.save

    def fill(self: Distilled, directory: Path) -> None:
        fill_up(disk)
        save(self, directory)

    monkeypatch.setattr(Distilled, "save", fill)
    with pytest.raises(RunError, match=NO_ROOM):
        distill(recipe(), disk / "run", progress=QUIET)
    assert not (disk / "run" / "distilled" / "card.json").exists()
    monkeypatch.undo()
    (disk / "filler").unlink()
    distill(recipe(), disk / "run", cache=tmp_path / "cache", resume=True, progress=QUIET)
    assert bytes_of(disk / "run") == bytes_of(tmp_path / "whole")
