"""The digits included in scikit-learn: 1,797 real 8x8 images of handwritten digits.

Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998. Grey levels
0..16 are scaled to 0..255.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rayd.data.formats.base import ArrayPixels, Source, Split
from rayd.errors import DataError


def location() -> Path:
    """Path of the digits file in scikit-learn.

    Raises:
        DataError: scikit-learn is not installed.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError(
            "The data set 'digits' is part of scikit-learn, which is not installed; "
            "install scikit-learn."
        )
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def matches(path: Path) -> bool:
    """Whether `path` is the digits file in scikit-learn."""
    return path == location()


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the digits as a single split."""
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    split = Split("digits", table[:, -1], ArrayPixels(images, "digits"))
    return Source("digits", class_names or tuple(map(str, range(10))), {"train": split})
