"""NumPy archives: `images` and `labels`, or those of each split.

Names of the latter are `x_train`, `y_train`, `test_images`, `test_labels`, ... Images are (N, H,
W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3: uint8, other whole numbers in 0..255, or floats
in [0, 1]. `class_names` may hold the names. Object arrays, which are pickles, are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rayd.data.arrays import Labels, Pixels
from rayd.data.formats.base import (
    SPLIT_NAMES,
    ArrayPixels,
    Source,
    Split,
    SplitName,
    as_labels,
    numbered_classes,
)
from rayd.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def matches(path: Path) -> bool:
    """Whether `path` is an `.npz` file."""
    return path.suffix == ".npz" and path.is_file()


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the data set in a NumPy archive.

    Raises:
        DataError: the file is damaged or a pickle, lacks arrays, or has invalid pixels.
    """
    with _readable(path), np.load(path, allow_pickle=False) as archive:
        keys = _split_keys(list(archive.files))
        if "train" not in keys:
            raise DataError(
                f"'{path}' must hold the arrays images and labels, or x_train and y_train. "
                f"Got {', '.join(archive.files) or 'none'} instead."
            )
        names = class_names
        if "class_names" in archive.files:
            names = tuple(map(str, archive["class_names"]))
        arrays = {
            split: (archive[images], archive[labels]) for split, (images, labels) in keys.items()
        }
    splits: dict[SplitName, Split] = {}
    for split, (values, given) in arrays.items():
        images_key, labels_key = keys[split]
        where = f"'{images_key}' of '{path}'"
        images = _pixels(values, where)
        labels: Labels = as_labels(given, names, f"'{labels_key}' of '{path}'")
        if len(images) != len(labels):
            raise DataError(
                f"'{labels_key}' of '{path}' must hold one label per image. "
                f"Got {len(labels)} for {len(images)} instead."
            )
        splits[split] = Split(where, labels, ArrayPixels(images, where))
    if names is None:
        names = numbered_classes(splits["train"].labels, f"'{path}'")
        for split_read in splits.values():
            as_labels(split_read.labels, names, split_read.where)
    return Source(f"'{path}'", names, splits)


def _split_keys(keys: list[str]) -> dict[SplitName, tuple[str, str]]:
    """Keys of images and labels of each split."""
    pairs = [("train", "images", "labels"), ("train", "x", "y")]
    for spelled in SPLIT_NAMES:
        pairs += [
            (spelled, f"x_{spelled}", f"y_{spelled}"),
            (spelled, f"{spelled}_images", f"{spelled}_labels"),
        ]
    return {
        SPLIT_NAMES[spelled]: (images, labels)
        for spelled, images, labels in pairs
        if images in keys and labels in keys
    }


def _pixels(values: Array, where: str) -> Pixels:
    """Convert images to uint8 (N, C, H, W)."""
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise DataError(
            f"Images of {where} must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with C of 1 or 3. "
            f"Got {values.shape} instead."
        )
    if values.dtype.kind == "f":
        _check_range(values, 1.0, "be finite and lie in [0, 1]", where)
        values = np.rint(values * 255)
    elif values.dtype.kind in "iu":
        _check_range(values, 255, "lie in 0..255", where)
    else:
        raise DataError(f"Images of {where} must be numbers. Got {values.dtype} instead.")
    return np.ascontiguousarray(values, np.uint8)


def _check_range(values: Array, largest: float, requirement: str, where: str) -> None:
    inside = (values >= 0) & (values <= largest)  # false for NaN
    if not inside.all():
        index = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise DataError(
            f"Pixels of {where} must {requirement}. "
            f"Got {values[index]} in row {index[0]} (index {index}) instead."
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty (0 bytes).")
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower():
            raise DataError(
                f"'{path}' holds a pickle, which is never loaded; "
                "save arrays of numbers with numpy.savez."
            ) from error
        raise DataError(f"Cannot read '{path}' as a NumPy archive: {error}.") from error
