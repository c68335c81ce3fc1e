"""SVHN's cropped digits as published: `{train,test}_32x32.mat` (Netzer et al., 2011).

`X` is uint8 (32, 32, 3, N); `y` is (N, 1), with the digit 0 labelled 10.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayd.data.arrays import ImageShape, Pixels, Rows
from rayd.data.formats.base import ArrayPixels, Source, Split, SplitName, as_labels, check_file
from rayd.errors import DataError

DIGITS = tuple(map(str, range(10)))
TRAIN = "train_32x32.mat"


def matches(path: Path) -> bool:
    """Whether `path` is SVHN's training file, or a folder that holds it."""
    return path.name == TRAIN or (path / TRAIN).is_file()


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the data set in SVHN's files; ignores `class_names`, as the classes are the digits.

    Raises:
        DataError: a file is damaged or lacks an array, or a label is not in 1..10.
    """
    path = path.parent if path.name == TRAIN else path
    splits: dict[SplitName, Split] = {}
    for split in ("train", "test"):
        file = path / f"{split}_32x32.mat"
        if file.is_file():
            labels = as_labels(_variable(file, "y"), None, f"'{file}'")
            outside = np.flatnonzero((labels < 1) | (labels > 10))
            if outside.size:
                raise DataError(
                    f"Labels of '{file}' must lie in 1..10. "
                    f"Got {labels[outside[0]]} in row {outside[0]} instead."
                )
            splits[split] = Split(f"'{file}'", labels % 10, partial(_read, file))
    return Source(f"'{path}'", DIGITS, splits)


def _read(
    file: Path, rows: Rows, side: int | None = None, shape: ImageShape | None = None
) -> Pixels:
    images = _variable(file, "X")
    if images.ndim != 4 or images.dtype != np.uint8:
        raise DataError(
            f"'X' of '{file}' must be uint8 (H, W, 3, N). "
            f"Got {images.dtype} {images.shape} instead."
        )
    images = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    if len(rows) and rows[-1] >= len(images):
        raise DataError(
            f"'{file}' must hold one label per image. "
            f"Got {len(images)} images, but more labels instead."
        )
    return ArrayPixels(images, f"'{file}'")(rows, side, shape)


def _variable(file: Path, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    from scipy.io import loadmat

    check_file(file)
    try:
        variables = loadmat(file, variable_names=[name])
    except Exception as error:  # scipy raises many kinds of exceptions for damaged files
        raise DataError(f"Cannot read '{file}' as a MATLAB file: {error}.") from error
    if name not in variables:
        raise DataError(f"'{file}' must hold the array '{name}'.")
    array: np.ndarray[Any, np.dtype[Any]] = variables[name]
    return array
