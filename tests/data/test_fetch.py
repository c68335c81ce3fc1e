"""Fetching: what is published arrives whole, or nothing does."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayd.config import DataSettings
from rayd.data import KNOWN, catalog, fetch, load
from rayd.data.catalog import Download
from rayd.errors import DataError
from tests.data.files import some_images, write_cifar10, write_idx

IMAGES = some_images(60, side=32)
LABELS = np.arange(60) % 10


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAYD_DATA", raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A folder that stands for the servers."""
    path = tmp_path / "server"
    path.mkdir()
    return path


def publish(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    files: list[Path],
    train: int,
    test: int,
    **changes: str,
) -> None:
    """Have a known set's downloads come from `files`."""
    downloads = tuple(
        Download(f.name, hashlib.md5(f.read_bytes()).hexdigest(), (f.as_uri(),)) for f in files
    )
    downloads = tuple(replace(download, **changes) for download in downloads)
    changed = {**KNOWN, name: replace(KNOWN[name], downloads=downloads, train=train, test=test)}
    monkeypatch.setattr(catalog, "KNOWN", changed)


def cifar10_archive(server: Path) -> Path:
    folder = server / "cifar-10-batches-bin"
    write_cifar10(folder, IMAGES, LABELS, per_file=10)
    (folder / "batches.meta.txt").write_text("\n".join(KNOWN["cifar10"].class_names or ()))
    archive = server / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


def test_cifar_arrives_and_loads(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = cifar10_archive(server)
    publish(monkeypatch, "cifar10", [archive], train=50, test=10)
    told: list[tuple[str, int, int | None]] = []
    there = fetch("cifar10", tmp_path / "root", lambda *progress: told.append(progress))
    size = archive.stat().st_size
    assert there == tmp_path / "root" / "cifar10"
    assert told[-1] == (archive.name, size, size)
    assert [path.name for path in there.parent.iterdir()] == ["cifar10"]
    data = load(DataSettings(name="cifar10"), tmp_path / "root")
    assert np.array_equal(data.train.images, IMAGES[:50])
    assert np.array_equal(data.test.images, IMAGES[50:])
    assert fetch("cifar10", tmp_path / "root") == there


def test_mnist_arrives_and_loads(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = some_images(30, channels=1)
    write_idx(server, "train", grey[:20], LABELS[:20])
    write_idx(server, "t10k", grey[20:], LABELS[20:30])
    publish(monkeypatch, "mnist", sorted(server.iterdir()), train=20, test=10)
    fetch("mnist", tmp_path / "root")
    assert np.array_equal(
        load(DataSettings(name="mnist"), tmp_path / "root").test.images, grey[20:]
    )


def assert_nothing_left(root: Path) -> None:
    assert not root.exists() or not list(root.iterdir())


def test_a_server_that_cannot_be_reached_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = (
        Download("x.gz", "0" * 32, ("http://127.0.0.1:9/x.gz", "http://127.0.0.1:9/mirror/x.gz")),
    )
    monkeypatch.setattr(
        catalog, "KNOWN", {**KNOWN, "mnist": replace(KNOWN["mnist"], downloads=downloads)}
    )
    with pytest.raises(
        DataError,
        match=r"Cannot download 'x.gz' \(http://127.0.0.1:9/x.gz: .*refused; .*mirror/x.gz: .*\)",
    ):
        fetch("mnist", tmp_path / "root")
    assert_nothing_left(tmp_path / "root")


@pytest.mark.parametrize("damage", ["digest", "truncated", "counts", "not an archive"])
def test_what_is_not_as_published_leaves_nothing(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    archive = cifar10_archive(server)
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:-1000])
    if damage == "not an archive":
        archive.write_bytes(b"<html>moved</html>")
    changes = {"md5": "0" * 32} if damage == "digest" else {}
    publish(
        monkeypatch,
        "cifar10",
        [archive],
        train=50_000 if damage == "counts" else 50,
        test=10,
        **changes,
    )
    sentence = {
        "digest": "its MD5 is .*, expected 0000",
        "counts": "must have .*50000.* has .*50",
    }.get(damage, "Cannot fetch 'cifar10'")
    with pytest.raises(DataError, match=sentence) as caught:
        fetch("cifar10", tmp_path / "root")
    assert "\n" not in str(caught.value)
    assert_nothing_left(tmp_path / "root")


def test_the_second_mirror_serves_when_the_first_does_not(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = cifar10_archive(server)
    moved = server / "moved"
    publish(
        monkeypatch,
        "cifar10",
        [archive],
        train=50,
        test=10,
        urls=(moved.as_uri(), archive.as_uri()),
    )
    assert fetch("cifar10", tmp_path / "root").is_dir()


def test_an_archive_cannot_write_outside(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = server / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("../../escaped.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    publish(monkeypatch, "cifar10", [archive], train=50, test=10)
    with pytest.raises(DataError, match="Cannot fetch 'cifar10'"):
        fetch("cifar10", tmp_path / "root")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_what_is_in_the_way_is_not_overwritten(
    tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, "cifar10", [cifar10_archive(server)], train=50, test=10)
    mine = tmp_path / "root" / "cifar10" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep me")
    with pytest.raises(DataError, match="cifar10' exists but is not a valid 'cifar10'"):
        fetch("cifar10", tmp_path / "root")
    assert mine.read_text() == "keep me"


def test_names_that_cannot_be_fetched_are_told() -> None:
    with pytest.raises(DataError, match="Unknown data set 'cifar11'; did you mean"):
        fetch("cifar11")
    with pytest.raises(
        DataError, match="'imagenet-1k' cannot be fetched; place its images in the data root"
    ):
        fetch("imagenet-1k")
    assert fetch("digits").is_file()
