"""Binary version of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009).

A record is a label byte (CIFAR-100: coarse label, then fine label) followed by 3 x 32 x 32 = 3072
pixel values, red channel first. The better-known Python version consists of pickles, which are
never loaded.
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
    """Files of the binary version of CIFAR-10 or CIFAR-100."""

    folder: str
    """Folder in the archive."""
    label_bytes: int
    """Number of bytes before the pixels; the last one is the label."""
    names: str
    """File with the class names."""
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
    """Whether `path` is or holds a folder of CIFAR's binary version."""
    return _find(path) is not None


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the data set in CIFAR's binary files.

    Raises:
        DataError: a file is missing, empty or truncated, or a label has no class name.
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
    """Memory-map the records of a file, (N, label bytes + 3072)."""
    check_file(path)
    size = path.stat().st_size
    record = label_bytes + 3072
    if size % record:
        raise DataError(
            f"The size of '{path}' must be a multiple of {record} bytes. "
            f"Got {size:,} bytes instead."
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
