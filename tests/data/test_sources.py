"""Data sets are found where the documentation says, and what stands in their place is told."""

from pathlib import Path

import numpy as np
import pytest

from rayd.data import data_roots, known_sources, locate
from rayd.data.sources import open_source
from rayd.errors import DataError
from tests.data.files import (
    encode,
    some_images,
    write_cifar10,
    write_folder,
    write_idx,
    write_parquet,
)

PNGS = [encode(image) for image in some_images(10)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without data."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAYD_DATA", raising=False)
    return tmp_path / "home"


def write_cifar(path: Path) -> Path:
    write_parquet(path / "train-0.parquet", PNGS, range(10))
    return path


def test_roots_are_looked_through_in_order(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "given", tmp_path / "environment", home / ".cache" / "rayd" / "data"]
    monkeypatch.setenv("RAYD_DATA", str(places[1]))
    assert data_roots(places[0]) == tuple(places)
    assert locate("cifar10", places[0]) is None
    for place in reversed(places):
        there = write_cifar(place / "cifar10")
        assert locate("cifar10", places[0]) == there


def test_torchvisions_own_folders_are_found(tmp_path: Path) -> None:
    write_cifar10(
        tmp_path / "cifar-10-batches-bin", some_images(10, side=32), np.arange(10), per_file=1
    )
    write_idx(
        tmp_path / "MNIST" / "raw",
        "train",
        some_images(10, channels=1),
        np.arange(10),
        zipped=False,
    )
    assert open_source("cifar10", tmp_path).class_names[0] == "airplane"
    assert len(open_source("mnist", tmp_path).splits["train"].labels) == 10
    assert locate("fashion_mnist", tmp_path) is None
    assert locate("svhn", tmp_path) is None


def test_a_data_set_may_be_a_path_or_lie_in_the_root(tmp_path: Path) -> None:
    write_folder(tmp_path / "zoo", {"ant": some_images(1), "bee": some_images(1)})
    np.savez(tmp_path / "farm.npz", images=some_images(2), labels=np.arange(2))
    assert open_source(str(tmp_path / "zoo")).class_names == ("ant", "bee")
    assert open_source("zoo", tmp_path).class_names == ("ant", "bee")
    assert open_source("farm", tmp_path).class_names == ("0", "1")
    assert open_source(str(tmp_path / "farm.npz")).class_names == ("0", "1")


def test_the_list_has_the_known_sets_and_what_else_is_there(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar10")
    write_folder(tmp_path / "zoo", {"ant": some_images(1), "bee": some_images(1)})
    (tmp_path / "notes").mkdir()
    infos = {info.name: info for info in known_sources(tmp_path)}
    assert infos["cifar10"].found == tmp_path / "cifar10"
    assert infos["cifar10"].classes == 10
    assert infos["svhn"].found is None
    assert infos["svhn"].how == "run 'rayd data fetch svhn'"
    assert infos["digits"].found is not None
    assert infos["zoo"].found == tmp_path / "zoo"
    assert "notes" not in infos


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("cifr10", "Unknown data set 'cifr10'; did you mean 'cifar10'"),
        (
            "cifar100",
            "'cifar100' was not found in '.*/cifar100', .*; run 'rayd data fetch cifar100'",
        ),
        ("imagenet-1k", "place its images in the data root"),
        ("./nowhere", "There is no data set at 'nowhere', relative to '.*where it was started"),
        ("/nowhere", r"There is no data set at '/nowhere'\.$"),
        ("", "'data.name' must not be empty"),
    ],
)
def test_a_missing_data_set_is_told_with_the_way_out(
    tmp_path: Path, name: str, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        open_source(name, tmp_path)


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    with pytest.raises(DataError, match=r"mnist' is an empty folder; run 'rayd data fetch mnist'"):
        open_source("mnist", tmp_path)
    with pytest.raises(DataError, match=r"mnist' is an empty folder.$"):
        open_source(str(tmp_path / "mnist"))


@pytest.mark.parametrize("file", ["set.pkl", "set.pt", "set.npy"])
def test_a_pickle_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / file).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match="may be a pickle: none is ever loaded"):
        open_source(str(tmp_path / "zoo" / file))
    with pytest.raises(DataError, match=r"zoo' holds pickles, which are never loaded"):
        open_source("zoo", tmp_path)


def test_pickled_cifar_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"\x80\x02}q\x01.")
    with pytest.raises(
        DataError,
        match=r"cifar-10-batches-py' holds pickles, which are never loaded; run 'rayd data fetch cifar10'",
    ):
        open_source("cifar10", tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no data")
    with pytest.raises(
        DataError,
        match=r"must be a folder of Parquet files, .* Got a folder that holds 'notes.txt' instead",
    ):
        open_source(str(tmp_path))
    with pytest.raises(DataError, match=r"Got a file.$"):
        open_source(str(tmp_path / "notes.txt"))


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this user not look into a folder, whoever runs the tests."""
    exists = Path.exists

    def checked(path: Path, **options: bool) -> bool:
        if folder in (path, *path.parents):
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", checked)


def test_what_cannot_be_read_stands_in_the_way_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "flowers", {"a": some_images(2), "b": some_images(2)})
    write_cifar(tmp_path / "cifar10")
    refuse(monkeypatch, tmp_path / "lost+found")
    (tmp_path / "lost+found").mkdir()
    found = {source.name: source.found for source in known_sources(tmp_path)}
    assert found["flowers"] == tmp_path / "flowers"
    assert found["cifar10"] == tmp_path / "cifar10"
    assert "lost+found" not in found
    with pytest.raises(DataError, match=r"Cannot read '.*lost\+found': Permission denied"):
        open_source(str(tmp_path / "lost+found"))
    refuse(monkeypatch, tmp_path / "cifar10")
    assert {source.name: source.found for source in known_sources(tmp_path)}["cifar10"] is None


def test_a_folder_called_like_a_known_set_is_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_cifar(tmp_path / "root" / "cifar10")
    write_folder(tmp_path / "cifar10", {"a": some_images(2), "b": some_images(2)})
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert len(open_source("cifar10", tmp_path / "root").class_names) == 10
    assert [record.getMessage() for record in caplog.records] == [
        "'cifar10' is the known data set of this name, not the folder 'cifar10' here; to "
        "read the folder, use data=./cifar10."
    ]
    assert open_source("./cifar10", tmp_path / "root").class_names == ("a", "b")
    caplog.clear()
    monkeypatch.chdir(tmp_path / "root")
    open_source("cifar10", tmp_path / "root")
    assert not caplog.records
