"""A run whose directory and cache lie on a real S3 server on loopback: interrupted, and resumed
with an empty folder.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rayd import remote
from rayd.config import DataSettings
from rayd.data import copies
from rayd.data import load as load_data
from rayd.distilled import load
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled
from rayd.errors import RunError
from tests.conftest import tiny
from tests.data.files import encode, some_images, write_folder, write_parquet
from tests.faults import break_off
from tests.runs import NO_STUDENTS, QUIET

server = pytest.importorskip(
    "moto.server", reason="needs an S3 server: pip install 'moto[server]' s3fs"
)
s3fs = pytest.importorskip("s3fs", reason="needs a client of S3: pip install s3fs")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server that goes away with the test."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAYD_MIRROR": str(tmp_path / "mirrors"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSES", (0.1,))
    for forget in (remote._filesystem.cache_clear, s3fs.S3FileSystem.clear_instance_cache):
        forget()
    # the servers of a process know the same buckets
    name = f"bucket-{uuid.uuid4().hex}"
    remote._filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    running.stop()
    remote._filesystem.cache_clear()


def test_a_run_on_s3_goes_on_elsewhere_to_the_same_bytes(tmp_path, bucket):
    recipe = tiny(**NO_STUDENTS)
    expected = (
        distill(recipe, tmp_path / "run", cache=tmp_path / "other", progress=QUIET).directory
        / "distilled"
    )
    at = {"out": Path(f"{bucket}/run"), "cache": Path(f"{bucket}/cache")}
    break_off(recipe, steps=8, **at)
    shutil.rmtree(tmp_path / "mirrors")
    distill(recipe, resume=True, progress=QUIET, **at)
    shutil.rmtree(tmp_path / "mirrors")
    assert torch.equal(load(f"{bucket}/run").images, load(expected).images)
    system = remote._filesystem("s3")
    assert (
        system.cat(f"{bucket}/run/distilled/data.safetensors")
        == (expected / "data.safetensors").read_bytes()
    )
    assert {name.rpartition("/")[2] for name in system.ls(f"{bucket}/run", detail=False)} >= {
        "config.yaml", "metrics.jsonl", "status.json", "tensorboard", "checkpoints", "distilled", "evaluation.json"
    }  # fmt: skip


@pytest.mark.slow
def test_workers_work_on_s3(tmp_path, bucket):
    blocks = {
        "synthesis": {"steps": 12, "block": 5, "checkpoint_every": 5},
        "resources": {"workers": 2, "threads": 1},
    }
    seen = {
        "networks": {"name": "convnet", "width": 8, "depth": 2, "norm": "batch"},
        "pool": 1,
        "per_step": 1,
    }
    recipe = tiny(
        method="sre2l",
        observers=seen,
        squeeze={"epochs": 1},
        labels={"kind": "stored"},
        **blocks,
        **NO_STUDENTS,
    )
    there = {"out": tmp_path / "run", "cache": tmp_path / "other", "progress": QUIET}
    expected = (
        distill(recipe.model_copy(update={"resources": tiny().resources}), **there).directory
        / "distilled"
    )
    run = distill(recipe, Path(f"{bucket}/run"), cache=Path(f"{bucket}/cache"), progress=QUIET)
    shutil.rmtree(tmp_path / "mirrors")
    assert torch.equal(load(f"{bucket}/run").images, load(expected).images)
    system = remote._filesystem("s3")
    assert {name.rpartition("/")[2] for name in system.ls(f"{bucket}/run/checkpoints", detail=False)} == {
        "block-00000", "block-00001"
    }  # fmt: skip
    assert [name for name in system.find(f"{bucket}/run/distilled/labels") if "epochs-" in name]
    again = evaluate_distilled(load(f"{bucket}/run"), {}, None, Path(f"{bucket}/cache"), QUIET)
    assert again.results[0].test_accuracy == run.report.results[0].test_accuracy


def test_what_is_the_same_on_s3_is_not_fetched_again(bucket, monkeypatch):
    path = remote.local(f"{bucket}/folder/x")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    remote.send(path, path)
    monkeypatch.setattr(
        remote, "_fetch", lambda _, files: [pytest.fail(str(files))] if files else None
    )
    assert remote.bring(path)
    remote.bring_all(path.parent)
    assert remote.listed(path.parent) == [path]


@pytest.mark.parametrize("layout", ["parquet", "folder"])
def test_data_on_s3_that_the_disk_does_not_hold(tmp_path, bucket, layout, monkeypatch):
    here = tmp_path / "toy"
    for seed, split in enumerate(("train", "test")):
        images = some_images(90, side=16, seed=seed)
        if layout == "parquet":
            for part in range(3):
                contents = [encode(image) for image in images[30 * part :][:30]]
                write_parquet(
                    here / f"{split}-{part}.parquet", contents, [0, 1] * 15, row_group_size=10
                )
        else:
            write_folder(here / split, {"cat": images[:45], "dog": images[45:]})
    remote._filesystem("s3").put(str(here), f"{bucket}/toy", recursive=True)
    sizes = [path.stat().st_size for path in here.rglob("*") if path.is_file()]
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", str(sum(sizes) // 3))
    whole = load_data(DataSettings(name=str(here), stream=False))
    data = load_data(DataSettings(name=f"{bucket}/toy", stream=True), cache=tmp_path / "cache")
    assert data.fingerprint == whole.fingerprint
    rows = np.random.default_rng(0).permutation(90)
    assert np.array_equal(data.train.images[rows], whole.train.images[rows])
    kept = sum(path.stat().st_size for path in (tmp_path / "mirrors" / copies.FOLDER).rglob("*.p*"))
    assert kept <= sum(sizes) // 3 + max(sizes)


def test_a_bucket_that_is_not_there_is_told(bucket):
    with pytest.raises(RunError, match=r"Cannot reach 's3://other/run/config.yaml'"):
        distill(tiny(), Path("s3://other/run"), progress=QUIET)
