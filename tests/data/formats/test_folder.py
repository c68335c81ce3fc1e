"""Image folders, with and without split folders, and Tiny ImageNet as it is published."""

from pathlib import Path

import numpy as np
import pytest

from rayd.data.formats.folder import matches, open_source
from rayd.errors import DataError
from tests.data.files import some_images, write_folder

IMAGES = {"cow": some_images(3, seed=1), "ant": some_images(2, seed=2)}


def test_classes_are_the_folders_sorted(tmp_path: Path) -> None:
    write_folder(tmp_path, IMAGES)
    (tmp_path / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    source = open_source(tmp_path)
    assert matches(tmp_path)
    assert source.class_names == ("ant", "cow")
    assert source.splits["train"].labels.tolist() == [0, 0, 1, 1, 1]
    pixels = source.splits["train"].read(np.arange(5))
    assert np.array_equal(pixels, np.concatenate([IMAGES["ant"], IMAGES["cow"]]))
    assert np.array_equal(source.splits["train"].read(np.array([1, 4])), pixels[[1, 4]])


def test_split_folders_are_splits(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_folder(tmp_path / split, IMAGES)
    write_folder(tmp_path / "test", {"cow": some_images(4)})
    source = open_source(tmp_path)
    assert {split: len(contents.labels) for split, contents in source.splits.items()} == {
        "train": 5,
        "validation": 5,
        "test": 6,
    }


def test_a_class_that_is_only_tested_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", IMAGES)
    write_folder(tmp_path / "test", {"ants": some_images(1)})
    with pytest.raises(DataError, match=r"Unknown class 'ants' in .*test'; did you mean 'ant'"):
        open_source(tmp_path)


def test_tiny_imagenet_is_read_as_published(tmp_path: Path) -> None:
    images = some_images(2)
    for split, folder in (
        ("train", "n01/images"),
        ("train", "n02/images"),
        ("val", "images"),
        ("test", "images"),
    ):
        write_folder(tmp_path / split, {folder: images})
    (tmp_path / "val" / "val_annotations.txt").write_text(
        "000.png\tn02\t0\t0\t63\t63\n001.png\tn01\t0\t0\t63\t63\n"
    )
    source = open_source(tmp_path)
    assert source.class_names == ("n01", "n02")
    assert set(source.splits) == {"train", "validation"}
    assert source.splits["validation"].labels.tolist() == [1, 0]
    assert np.array_equal(source.splits["validation"].read(np.arange(2)), images)


@pytest.mark.parametrize("content", [b"000.png\tn02\n001.p", b"\xff\xfe0\x000\x000\x00\n"])
def test_damaged_annotations_of_tiny_imagenet_are_refused(tmp_path: Path, content: bytes) -> None:
    for split, folder in (("train", "n01"), ("train", "n02"), ("val", "images")):
        write_folder(tmp_path / split, {folder: some_images(2)})
    (tmp_path / "val" / "val_annotations.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"val_annotations.txt' must hold a file and its class"):
        open_source(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, IMAGES)
    (tmp_path / "cow" / "001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cow/001.png' is empty \(0 bytes\)"):
        open_source(tmp_path).splits["train"].read(np.arange(5))


def test_folders_without_images_do_not_match(tmp_path: Path) -> None:
    (tmp_path / "ant").mkdir()
    assert not matches(tmp_path)
