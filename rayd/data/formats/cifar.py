"""Binary version of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009).

A record is a label byte (CIFAR-100: coarse, then fine label) and 3072 pixels: 3 x 32 x 32, red
first. The better-known Python version is a set of pickles, which are never loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayd.data.arrays import ImageShape, Pixels, Rows
from rayd.data.formats.base import (
    ReadPixels,
    Source,
    Split,
    SplitName,
    as_labels,
    check_file,
    numbered_classes,
)
from rayd.data.resizing import resize
from rayd.errors import DataError

SHAPE = ImageShape(3, 32, 32)


@dataclass(frozen=True)
class BinaryFiles:
    """Files of CIFAR-10's or CIFAR-100's binary version."""

    folder: str
    """Folder inside the archive."""
    label_bytes: int
    """Bytes before the pixels; the last of them is the label."""
    names: str
    """File of the class names."""
    files: Mapping[SplitName, Sequence[str]]
    """Files of each split."""


LAYOUTS = (
    BinaryFiles(
        "cifar-10-batches-bin",
        1,
        "batches.meta.txt",
        {"train": [f"data_batch_{batch}.bin" for batch in range(1, 6)], "test": ["test_batch.bin"]},
    ),
    BinaryFiles(
        "cifar-100-binary",
        2,
        "fine_label_names.txt",
        {"train": ["train.bin"], "test": ["test.bin"]},
    ),
)


def matches(path: Path) -> bool:
    """Whether `path` is or contains a folder of CIFAR's binary version."""
    return _find(path) is not None


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the data set in CIFAR's binary files.

    Raises:
        DataError: a file is missing, empty or truncated, or a label is outside the class names.
    """
    found = _find(path)
    if found is None:
        raise DataError(f"'{path}' holds no binary CIFAR files.")
    folder, layout = found
    names = _names(folder / layout.names) or class_names
    splits: dict[SplitName, Split] = {}
    for split, files in layout.files.items():
        batches = [_records(folder / file, layout.label_bytes) for file in files]
        where = f"the {split} split of '{folder}'"
        labels = as_labels(
            np.concatenate([batch[:, layout.label_bytes - 1] for batch in batches]), names, where
        )
        splits[split] = Split(where, labels, _reader(batches, layout.label_bytes))
    return Source(
        f"'{folder}'", names or numbered_classes(splits["train"].labels, f"'{folder}'"), splits
    )


def _find(path: Path) -> tuple[Path, BinaryFiles] | None:
    for layout in LAYOUTS:
        for folder in (path, path / layout.folder):
            if (folder / layout.files["train"][0]).is_file():
                return folder, layout
    return None


def _names(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read the class names in '{path}': {error}.") from error


def _records(path: Path, label_bytes: int) -> Pixels:
    """Records of a file (N, label bytes + 3072), memory-mapped."""
    check_file(path)
    size = path.stat().st_size
    record = label_bytes + 3072
    if size % record:
        raise DataError(
            f"'{path}' must hold records of {record} bytes. "
            f"Got {size:,} bytes instead, which is no multiple."
        )
    return np.memmap(path, np.uint8, mode="r").reshape(-1, record)


def _reader(batches: Sequence[Pixels], label_bytes: int) -> ReadPixels:
    def read(rows: Rows, side: int | None = None, shape: ImageShape | None = None) -> Pixels:
        images = np.empty((len(rows), *SHAPE), np.uint8)
        first = 0
        for batch in batches:
            start, stop = np.searchsorted(rows, (first, first + len(batch)))
            images[start:stop] = batch[rows[start:stop] - first, label_bytes:].reshape(-1, *SHAPE)
            first += len(batch)
        return images if side is None else resize(images, side)

    return read
