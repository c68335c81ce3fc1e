"""MNIST's files."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from rayd.data.formats.idx import matches, open_source
from rayd.errors import DataError
from tests.data.files import idx_bytes, some_images, write_idx

IMAGES = some_images(6, channels=1)
LABELS = np.array([0, 1, 2, 2, 1, 0])


@pytest.mark.parametrize("zipped", [True, False])
def test_both_splits_are_read(tmp_path: Path, zipped: bool) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS, zipped)
    write_idx(tmp_path, "t10k", IMAGES[:2], LABELS[:2], zipped)
    source = open_source(tmp_path, ("ant", "bee", "cow"))
    assert matches(tmp_path)
    assert source.class_names == ("ant", "bee", "cow")
    assert source.splits["train"].labels.tolist() == LABELS.tolist()
    assert np.array_equal(source.splits["train"].read(np.arange(6)), IMAGES)
    assert np.array_equal(source.splits["test"].read(np.array([1])), IMAGES[1:2])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (gzip.compress(idx_bytes(IMAGES[:, 0]))[:40], "Cannot unpack"),
        (b"not gzipped", "Cannot unpack"),
        (
            gzip.compress(idx_bytes(LABELS)),
            "must start with 00000803, as uint8 IDX files of rank 3 do. Got 00000801",
        ),
        (
            gzip.compress(idx_bytes(IMAGES[:, 0])[:-5]),
            "must hold 96 values according to its header. Got 91",
        ),
        (gzip.compress(idx_bytes(IMAGES[:5, 0])), "one label per image. Got 6 for 5 images"),
    ],
    ids=["empty", "cut", "plain", "labels in place of images", "short", "one image too few"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        open_source(tmp_path)


def test_missing_labels_are_told(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", IMAGES, LABELS)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="must hold train-labels-idx1-ubyte next to"):
        open_source(tmp_path)
