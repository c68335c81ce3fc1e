"""MNIST's IDX files: `{train,t10k}-images-idx3-ubyte` and `-labels-idx1-ubyte`, gzipped or not.

A file consists of two zero bytes, the type (8: uint8), the rank, each dimension as a big-endian
32-bit integer, and the values.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rayd.data.arrays import Pixels
from rayd.data.formats.base import (
    ArrayPixels,
    Source,
    Split,
    SplitName,
    as_labels,
    check_file,
    numbered_classes,
)
from rayd.errors import DataError

PREFIXES: Mapping[SplitName, str] = {"train": "train", "test": "t10k"}
"""Prefix of the files of each split."""

UINT8 = 8


def matches(path: Path) -> bool:
    """Whether `path` is a folder with IDX files of training images."""
    return _find(path, "train", "images-idx3") is not None


def open_source(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """Open the data set in a folder of IDX files.

    Raises:
        DataError: a file is missing, damaged, or has an unexpected type or rank.
    """
    splits: dict[SplitName, Split] = {}
    for split, prefix in PREFIXES.items():
        images_file = _find(path, prefix, "images-idx3")
        labels_file = _find(path, prefix, "labels-idx1")
        if images_file is None:
            continue
        if labels_file is None:
            raise DataError(
                f"'{path}' must hold {prefix}-labels-idx1-ubyte next to '{images_file.name}'."
            )
        images = read_idx(images_file, rank=3)[:, None]
        labels = as_labels(read_idx(labels_file, rank=1), class_names, f"'{labels_file}'")
        if len(images) != len(labels):
            raise DataError(
                f"'{labels_file}' must hold one label per image. "
                f"Got {len(labels)} for {len(images)} images instead."
            )
        splits[split] = Split(f"'{images_file}'", labels, ArrayPixels(images, f"'{images_file}'"))
    names = class_names or numbered_classes(splits["train"].labels, f"'{path}'")
    return Source(f"'{path}'", names, splits)


def read_idx(path: Path, rank: int) -> Pixels:
    """Read the uint8 array of one IDX file.

    Raises:
        DataError: the file is damaged, or has another type or rank.
    """
    check_file(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot unpack '{path}': {error}.") from error
    header = bytes((0, 0, UINT8, rank))
    if content[:4] != header:
        raise DataError(
            f"'{path}' must start with {header.hex()}, as uint8 IDX files of rank {rank} do. "
            f"Got {content[:4].hex()} instead."
        )
    start = 4 + 4 * rank
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"'{path}' must hold {math.prod(shape):,} values according to its header. "
            f"Got {len(content) - start:,} instead."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(path: Path, prefix: str, middle: str) -> Path | None:
    for spelled in (middle, middle.replace("-", ".")):
        for suffix in ("", ".gz"):
            file = path / f"{prefix}-{spelled}-ubyte{suffix}"
            if file.is_file():
                return file
    return None
