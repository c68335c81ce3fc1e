"""SVHN's MATLAB files."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from rayd.data.formats.svhn import matches, open_source
from rayd.errors import DataError
from tests.data.files import some_images

IMAGES = some_images(12)
LABELS = np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1])


def write(path: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> None:
    savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None].astype(np.uint8)})


def test_digit_0_is_labelled_0(tmp_path: Path) -> None:
    write(tmp_path / "train_32x32.mat")
    write(tmp_path / "test_32x32.mat", IMAGES[:3], LABELS[:3])
    for place in (tmp_path, tmp_path / "train_32x32.mat"):
        assert matches(place)
        source = open_source(place)
        assert source.class_names == tuple("0123456789")
        assert source.splits["train"].labels.tolist() == (LABELS % 10).tolist()
        assert np.array_equal(source.splits["train"].read(np.arange(12)), IMAGES)
        assert np.array_equal(source.splits["test"].read(np.array([0, 2])), IMAGES[[0, 2]])


def test_labels_that_are_no_digits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train_32x32.mat", labels=np.where(LABELS == 10, 0, LABELS))
    with pytest.raises(DataError, match=r"must lie in 1\.\.10. Got 0 in row 0"):
        open_source(tmp_path)


def test_damage_is_told(tmp_path: Path) -> None:
    file = tmp_path / "train_32x32.mat"
    file.write_bytes(b"MATLAB, but not really" * 20)
    with pytest.raises(DataError, match=r"Cannot read .* as a MATLAB file"):
        open_source(tmp_path)
    savemat(file, {"X": np.zeros(3)})
    with pytest.raises(DataError, match="must hold the array 'y'"):
        open_source(tmp_path)
    write(file, labels=np.concatenate([LABELS, [1]]))
    with pytest.raises(DataError, match="one label per image"):
        open_source(tmp_path).splits["train"].read(np.arange(13))
