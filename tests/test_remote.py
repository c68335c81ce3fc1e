"""Storage at URLs: what is sent and fetched, runs that go on with an empty folder, and connections
that drop.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from rayd import remote
from rayd.artifacts import read_tensors, write_json, write_tensors
from rayd.callbacks import Callbacks
from rayd.config import DataSettings
from rayd.data import load as load_data
from rayd.data.fetch import fetch
from rayd.data.files import Listing
from rayd.data.objects import save
from rayd.data.sources import known_sources, open_source
from rayd.data.streaming import batches
from rayd.distilled import load
from rayd.engine.distill import distill
from rayd.engine.doctor import _directory
from rayd.engine.status import status
from rayd.engine.store import Store
from rayd.errors import ConfigError, DataError, OutputError, ResourceError, RunError
from rayd.export import export
from tests.conftest import tiny
from tests.data.files import encode, some_images, write_folder, write_parquet
from tests.faults import Steps, break_off
from tests.runs import NO_STUDENTS, QUIET
from tuning import sweep


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fsspec.AbstractFileSystem:
    """An empty memory://, whose mirrors are this test's; nobody waits before a further try."""
    monkeypatch.setenv("RAYD_MIRROR", str(tmp_path / "mirrors"))
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    system = remote._filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    return system


def forget_mirrors() -> None:
    """Be on another machine."""
    shutil.rmtree(os.environ["RAYD_MIRROR"], ignore_errors=True)


@pytest.mark.parametrize("place", ["memory://a/b", Path("memory://a/b"), "memory://a/b/"])
def test_a_path_tells_its_url(place):
    path = remote.local(place)
    assert path.parts[-4:] == ("rayd-mirror", "memory", "a", "b")
    assert (remote.url(path), remote.shown(path / "c")) == ("memory://a/b", "memory://a/b/c")
    assert remote.local(path) == path


def test_paths_and_file_urls_are_paths(tmp_path):
    assert remote.local(f"file://{tmp_path}/x") == remote.local(tmp_path / "x") == tmp_path / "x"
    assert remote.local("~/x") == Path.home() / "x"
    assert remote.url(tmp_path) is None
    assert not remote.bring(tmp_path / "x")
    write_json(remote.local(f"file://{tmp_path}/x"), {})
    assert remote.bring(tmp_path / "x")


def test_unknown_storage_and_missing_packages_are_told(monkeypatch):
    with pytest.raises(ConfigError, match="no storage at 'fancy://'"):
        remote.local("fancy://bucket/run")

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    remote._filesystem.cache_clear()
    with pytest.raises(ResourceError, match=r"install 'rayd\[gs\]'"):
        remote.local("gs://bucket/run")


def test_what_is_written_is_there_for_other_machines(memory):
    path = remote.local("memory://bucket/cache/x.safetensors")
    write_tensors(path, {"t": torch.ones(3)}, {"a": 1})
    assert memory.cat("/bucket/cache/x.safetensors") == path.read_bytes()
    forget_mirrors()
    tensors, note = read_tensors(path)
    assert torch.equal(tensors["t"], torch.ones(3))
    assert note == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]


def test_the_storage_holds_the_truth(memory):
    path = remote.local("memory://bucket/x.json")
    write_json(path, {"a": 1})
    memory.pipe_file("/bucket/x.json", b'{"a": "from elsewhere"}')
    assert remote.bring(path)
    assert path.read_text() == '{"a": "from elsewhere"}'
    memory.rm("/bucket/x.json")
    assert not remote.bring(path)
    assert not remote.exists(path)


def test_what_is_the_same_is_not_fetched_again(memory, monkeypatch):
    path = remote.local("memory://bucket/x.json")
    write_json(path, {"a": 1})
    monkeypatch.setattr(memory, "get", None)
    assert remote.bring(path)
    remote.bring_all(path.parent)


def test_directories_are_listed_fetched_and_removed(memory):
    for name in ("a/step-2", "a/step-1", "a/b/x", "c"):
        memory.pipe_file(f"/bucket/{name}", name.encode())
    directory = remote.local("memory://bucket/a")
    assert remote.listed(directory, "step-*") == [directory / "step-1", directory / "step-2"]
    assert remote.listed(directory) == [directory / "b", directory / "step-1", directory / "step-2"]
    assert remote.listed(remote.local("memory://bucket/none")) == []
    directory.mkdir(parents=True)
    (directory / "gone-there").touch()
    (directory / ".lock").touch()
    remote.bring_all(directory)
    there = sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )
    assert there == [".lock", "b/x", "step-1", "step-2"]
    assert (directory / "b" / "x").read_bytes() == b"a/b/x"
    assert remote.size(directory) == 8 + 8 + 5
    remote.remove(directory / "step-1")
    remote.remove(directory / "b")
    remote.remove(directory / "none")
    assert memory.find("/bucket") == ["/bucket/a/step-2", "/bucket/c"]
    assert not (directory / "b").exists()


def test_a_name_that_leads_out_of_its_folder_is_refused(memory, tmp_path):
    """Whatever a bucket is told to hold, files appear in the folder that stands for it."""
    memory.pipe_file("/bucket/run/config.yaml", b"")
    memory.pipe_file("/bucket/run/../../../../escaped", b"x")
    directory = remote.local("memory://bucket/run")
    for read in (remote.bring_all, remote.files, Listing.of):
        with pytest.raises(
            RunError, match=r"'\.\./.*escaped' in 'memory://bucket/run' leads out of"
        ):
            read(directory)
    assert not list(tmp_path.rglob("escaped"))


def test_a_listed_name_that_leads_out_of_its_folder_is_refused(memory, monkeypatch):
    monkeypatch.setattr(memory, "ls", lambda *_, **__: ["/bucket/run/a", "/bucket/run/.."])
    with pytest.raises(RunError, match=r"'\.\.' in 'memory://bucket/run' leads out of"):
        remote.listed(remote.local("memory://bucket/run"))


def failing(
    system: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, times: int, error: Exception
) -> list[str]:
    """The first calls of every kind fail; the names of those that did."""
    failed: list[str] = []
    for name in ("put_file", "get", "info", "ls", "find"):

        def call(
            *args: object, name: str = name, real: object = getattr(system, name), **kwargs: object
        ) -> object:
            if failed.count(name) < times:
                failed.append(name)
                raise error
            return real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(system, name, call)
    return failed


def test_dropped_connections_are_tried_again(memory, monkeypatch):
    failed = failing(memory, monkeypatch, 2, ConnectionResetError("connection reset by peer"))
    path = remote.local("memory://bucket/x.json")
    write_json(path, {"a": 1})
    forget_mirrors()
    assert remote.bring(path)
    assert {failed.count(name) for name in ("put_file", "get", "info")} == {2}


def test_a_storage_that_stays_away_is_told_in_one_sentence(memory, monkeypatch):
    failed = failing(memory, monkeypatch, 99, ConnectionResetError("connection reset by peer"))
    path = remote.local("memory://bucket/x.json")
    with pytest.raises(
        RunError,
        match=r"Cannot reach 'memory://bucket/x.json' in 3 tries: connection reset by peer; once",
    ):
        write_json(path, {"a": 1})
    assert failed == ["put_file"] * 3
    assert not path.exists()
    for look in (Store.tensors, Store.record, lambda store, *inputs: store.has(*inputs, "json")):
        with pytest.raises(RunError, match="Cannot reach"):
            look(Store(path.parent), "stage", {})


@pytest.mark.parametrize(
    "error", [PermissionError("Access Denied"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_stays_wrong_is_not_tried_again(memory, monkeypatch, error):
    failed = failing(memory, monkeypatch, 99, error)
    with pytest.raises(
        RunError, match=r"Cannot reach 'memory://bucket/x.json': .*(Access Denied|No space left)"
    ):
        write_json(remote.local("memory://bucket/x.json"), {})
    assert failed == ["put_file"]


def test_a_run_goes_on_elsewhere_to_the_same_bytes(tmp_path, memory):
    recipe = tiny(synthesis={"log_every": 1}, **NO_STUDENTS)
    undisturbed = distill(recipe, tmp_path / "run", cache=tmp_path / "other", progress=QUIET)
    expected = (undisturbed.directory / "distilled" / "data.safetensors").read_bytes()
    at = {"out": Path("memory://bucket/run"), "cache": Path("memory://bucket/cache")}
    break_off(recipe, steps=8, **at)
    assert [Path(name).name for name in memory.ls("/bucket/run/checkpoints", detail=False)] == [
        "step-00000005.safetensors"
    ]
    forget_mirrors()
    assert status(Path("memory://bucket/run")).state == "failed"
    break_off(recipe, steps=11, resume=True, **at)
    forget_mirrors()
    steps = Steps()
    run = distill(recipe, resume=True, progress=QUIET, callbacks=Callbacks([steps]), **at)
    assert steps.made == [11, 12]
    assert memory.cat("/bucket/run/distilled/data.safetensors") == expected
    lines = list(map(json.loads, memory.cat("/bucket/run/metrics.jsonl").decode().splitlines()))
    logged = [line["step"] for line in lines if line["stage"] == "synthesize" and "step" in line]
    assert logged == list(range(1, 13))
    assert {"measure", "students", "synthesis"} <= {
        Path(name).name for name in memory.ls("/bucket/cache", detail=False)
    }
    assert run.report.results[0].test_accuracy == undisturbed.report.results[0].test_accuracy
    forget_mirrors()
    assert torch.equal(load("memory://bucket/run").images, undisturbed.distilled.images)
    found = status(Path("memory://bucket/run"))
    assert (found.state, found.directory) == ("finished", "memory://bucket/run")
    with pytest.raises(
        OutputError, match=r"'memory://bucket/run' holds a run already; add --resume"
    ):
        distill(recipe, progress=QUIET, **at)


def test_connections_that_drop_now_and_then_cost_a_run_nothing(tmp_path, memory, monkeypatch):
    """Every third call of the storage fails, whatever it is."""
    recipe = tiny(**NO_STUDENTS)
    calls = itertools.count()
    expected = (
        distill(recipe, tmp_path / "run", cache=tmp_path / "other", progress=QUIET).directory
        / "distilled"
    )
    for name in ("put_file", "get", "info", "ls", "find", "rm"):

        def call(*args: object, real: object = getattr(memory, name), **kwargs: object) -> object:
            if next(calls) % 3 == 0:
                raise ConnectionResetError("connection reset by peer")
            return real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(memory, name, call)
    distill(
        recipe, Path("memory://bucket/run"), cache=Path("memory://bucket/cache"), progress=QUIET
    )
    assert next(calls) > 30
    assert (
        memory.store["/bucket/run/distilled/data.safetensors"].getvalue()
        == (expected / "data.safetensors").read_bytes()
    )


LOST = [
    "cache/measure",
    "step-00000010.safetensors",
    "cache/synthesis",
    "data.safetensors",
    "card.json",
    "evaluation.json",
]


@pytest.mark.parametrize("lost", LOST)
def test_a_storage_that_goes_away_ends_a_run_and_resume_goes_on(
    tmp_path, memory, monkeypatch, lost
):
    recipe = tiny(**NO_STUDENTS)
    expected = (
        distill(recipe, tmp_path / "run", cache=tmp_path / "other", progress=QUIET).directory
        / "distilled"
    )
    at = {
        "out": Path("memory://bucket/run"),
        "cache": Path("memory://bucket/cache"),
        "progress": QUIET,
    }
    put_file = memory.put_file

    def dropping(content: str, name: str) -> None:
        if lost in name:
            raise ConnectionError("the line is dead")
        put_file(content, name)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "put_file", dropping)
        with pytest.raises(
            RunError,
            match=r"Cannot reach 'memory://bucket/.*' in 3 tries: the line is dead; .*--resume",
        ):
            distill(recipe, **at)
    forget_mirrors()
    distill(recipe, resume=True, **at)
    assert (
        memory.cat("/bucket/run/distilled/data.safetensors")
        == (expected / "data.safetensors").read_bytes()
    )


def test_overwriting_and_strangers(memory):
    at = {"out": Path("memory://bucket/run"), "progress": QUIET}
    distill(tiny(**NO_STUDENTS), **at)
    forget_mirrors()
    distill(tiny(ipc=2, **NO_STUDENTS), overwrite=True, **at)
    forget_mirrors()
    assert len(load("memory://bucket/run")) == 20
    memory.pipe_file("/bucket/other/notes.txt", b"mine")
    with pytest.raises(
        OutputError, match=r"'memory://bucket/other' is not empty and holds no run of rayd"
    ):
        distill(tiny(**NO_STUDENTS), Path("memory://bucket/other"), progress=QUIET)


def test_data_at_a_url(memory, tmp_path):
    draws = np.random.default_rng(0)
    np.savez(
        tmp_path / "toy.npz",
        images=draws.integers(0, 255, (60, 8, 8), dtype=np.uint8),
        labels=np.arange(60) % 3,
    )
    memory.put_file(str(tmp_path / "toy.npz"), "/bucket/data/toy.npz")
    assert len(open_source("memory://bucket/data/toy.npz").splits["train"].labels) == 60
    assert len(open_source("toy", Path("memory://bucket/data")).splits["train"].labels) == 60
    assert "toy" in {info.name for info in known_sources(Path("memory://bucket/data"))}
    with pytest.raises(DataError, match=r"There is no data set at 'memory://bucket/data/none'"):
        open_source("memory://bucket/data/none")


def test_objects_are_given_with_a_store_at_a_url(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    path = save((images, np.arange(20) % 2), cache=Path("memory://bucket/store"))
    assert memory.glob("/bucket/store/given-data/*/arrays.npz")
    assert not Path("memory:").exists()
    forget_mirrors()
    assert len(load_data(DataSettings(name=str(path))).train) == 16


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_streamed_images_are_fetched_where_they_are_read(memory, tmp_path, layout):
    here = tmp_path / "toy"
    for seed, split in enumerate(("train", "test")):
        images = some_images(12, seed=seed)
        if layout == "parquet":
            write_parquet(
                here / f"{split}-0.parquet", [encode(image) for image in images], [0, 1] * 6
            )
        else:
            write_folder(here / split, {"cat": images[:6], "dog": images[6:]})
    memory.put(str(here), "/bucket/toy", recursive=True)
    streamed = load_data(
        DataSettings(name="memory://bucket/toy", stream=True), cache=Path("memory://bucket/cache")
    ).train
    sent = pickle.dumps(streamed)
    forget_mirrors()
    expected = load_data(DataSettings(name=str(here))).train.images
    assert np.array_equal(pickle.loads(sent).images[np.arange(11, -1, -1)], expected[::-1])
    forget_mirrors()
    elsewhere = pickle.loads(sent)
    assert np.array_equal(
        np.concatenate([pixels for _, pixels in batches(elsewhere.images, [slice(0, 12)])]),
        expected,
    )
    assert memory.exists("/bucket/cache/survey")


def test_what_works_on_paths_only_says_so(memory, tmp_path):
    run = distill(tiny(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    for refused, work in (
        (
            "An export is written to a path",
            lambda: export(run.distilled, "npz", "memory://bucket/x.npz"),
        ),
        (
            "'mnist' cannot be fetched to a URL",
            lambda: fetch("mnist", Path("memory://bucket/data")),
        ),
        (
            "A sweep's --out must be a path",
            lambda: sweep("edc-digits", out="memory://bucket/sweep"),
        ),
    ):
        with pytest.raises((DataError, OutputError), match=refused):
            work()
    assert not memory.find("/bucket")


def test_the_doctor_reaches_the_storage(memory, monkeypatch):
    assert _directory("cache", remote.local("memory://bucket/cache")).status == "good"
    failing(memory, monkeypatch, 99, ConnectionResetError("connection reset by peer"))
    found = _directory("cache", remote.local("memory://bucket/cache"))
    assert (found.status, "Cannot reach 'memory://bucket/cache'" in found.detail) == ("wrong", True)
