"""NumPy archives, and the pixels that are none."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from rayd.data.formats.npz import open_source
from rayd.errors import DataError
from tests.data.files import some_images

IMAGES = some_images(6)
LABELS = np.array([0, 1, 2, 2, 1, 0])


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path / "zoo.npz", **arrays)
    return path / "zoo.npz"


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.transpose(0, 2, 3, 1),
        IMAGES / 255,
        (IMAGES / 255).astype(np.float32),
        IMAGES.astype(np.int64),
    ],
    ids=["NCHW", "NHWC", "float64", "float32", "int64"],
)
def test_pixels_are_understood(tmp_path: Path, images: np.ndarray) -> None:
    source = open_source(write(tmp_path, images=images, labels=LABELS[:, None]))
    assert np.array_equal(source.splits["train"].read(np.arange(6)), IMAGES)
    assert source.splits["train"].labels.tolist() == LABELS.tolist()


def test_greyscale_images_need_no_channel(tmp_path: Path) -> None:
    source = open_source(
        write(
            tmp_path,
            images=IMAGES[:, 0],
            labels=LABELS,
            class_names=np.array(["ant", "bee", "cow"]),
        )
    )
    assert source.class_names == ("ant", "bee", "cow")
    assert np.array_equal(source.splits["train"].read(np.array([2])), IMAGES[2:3, :1])


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_usual_keys_are_understood(tmp_path: Path, keys: tuple[str, ...]) -> None:
    arrays = dict(zip(keys, (IMAGES, LABELS, IMAGES[:2], LABELS[:2]), strict=True))
    source = open_source(write(tmp_path, **arrays))
    assert {split: len(contents.labels) for split, contents in source.splits.items()} == {
        "train": 6,
        "test": 2,
    }


def spoilt(value: float, dtype: type) -> np.ndarray:
    images = (IMAGES / 255).astype(dtype)
    images[4, 2, 1, 3] = value
    return images


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"images": spoilt(np.nan, np.float32)},
            r"finite and lie in \[0, 1\]. Got nan in row 4 \(index \(4, 2, 1, 3\)\)",
        ),
        ({"images": spoilt(np.inf, np.float64)}, "Got inf in row 4"),
        ({"images": spoilt(1.5, np.float64)}, "Got 1.5 in row 4"),
        ({"images": spoilt(256, np.int64)}, r"must lie in 0\.\.255. Got 256 in row 4"),
        ({"images": IMAGES + 1j}, "must be numbers. Got complex128"),
        ({"images": IMAGES[:, 0, 0]}, r"with C of 1 or 3. Got \(6, 4\)"),
        ({"images": IMAGES[:, :, :0]}, r"with C of 1 or 3. Got \(6, 3, 0, 4\)"),
        ({"images": IMAGES[:5]}, "one label per image. Got 6 for 5"),
        ({"labels": LABELS / 2}, "must be integers"),
        ({"labels": LABELS - 1}, "must not be negative. Got -1 in row 0"),
        ({"labels": LABELS * 2}, r"must cover 0..4. No image has label 1, 3."),
        (
            {"class_names": np.array(["ant", "bee"])},
            r"must lie in 0\.\.1, as there are 2 class names. Got 2 in row 2",
        ),
        ({"labels": np.array([0, 1, 2, 2, 1, None])}, "holds a pickle, which is never loaded"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, arrays: dict, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        open_source(write(tmp_path, **{"images": IMAGES, "labels": LABELS, **arrays}))


def test_missing_arrays_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"must hold the arrays images and labels, or x_train and y_train. Got data"
    ):
        open_source(write(tmp_path, data=IMAGES))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 damaged", "as a NumPy archive"),
        (pickle.dumps([1, 2]), "holds a pickle"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "zoo.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        open_source(path)


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, 1)], ids=["encrypted", "compression"])
def test_damaged_entries_of_the_archive_are_refused(
    tmp_path: Path, offset: int, value: int
) -> None:
    """Flags and compression of the first file in the archive's directory."""
    path = write(tmp_path, images=IMAGES, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + offset] = value
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"Cannot read '.*' as a NumPy archive"):
        open_source(path)
