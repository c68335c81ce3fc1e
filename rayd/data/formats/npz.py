"""NumPy archives with `images` and `labels`, or with such a pair for each split.

Keys of splits can be spelled in many ways: `x_train` and `y_train`, `test_images` and
`test_labels`, `X_test`, `valY`, ... Keys that belong to no pair are listed as left out. Images are
(N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3, and of type uint8, other integers in
0..255, floats in [0, 1], any numbers in 0..`data.white_level`, or bool; or one encoded file (PNG,
JPEG, ...) per image as NumPy bytes. `class_names` may hold class names. Object arrays, which are
pickles, are refused.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayd.config.data import GIVEN
from rayd.data.arrays import Labels, Pixels, Rows
from rayd.data.decode import Decoder, Encoded
from rayd.data.files import DataFile
from rayd.data.formats.base import (
    ArrayPixels,
    EncodedPixels,
    ReadPixels,
    Source,
    Split,
    SplitName,
    as_labels,
    numbered_classes,
)
from rayd.data.layout import assign, listed, nfc, requested, split_names, split_of, words
from rayd.errors import DataError

if TYPE_CHECKING:
    from rayd.config import DataSettings

DESCRIPTION = "an .npz file"
"""Name of the format in messages."""

Array = np.ndarray[Any, np.dtype[Any]]

IMAGE_WORDS = frozenset({"x", "image", "images", "img", "imgs", "data", "pixels", "inputs"})
"""Words in the keys of images."""
LABEL_WORDS = frozenset({"y", "label", "labels", "lbl", "lbls", "target", "targets"})
"""Words in the keys of labels."""
NAMES = ("class_names", "label_names")
"""Keys of class names, in order of preference."""
ENCODED_KINDS = "SV"
"""NumPy dtype kinds of byte strings."""

ARCHIVE_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    # flags of a damaged archive may indicate encryption or unknown compression
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Exceptions that NumPy and zipfile raise for a damaged archive."""


@dataclass(frozen=True, eq=False)
class EncodedArray:
    """Encoded images in an array of byte strings, possibly padded with zeros."""

    contents: Array
    """Byte strings (N,)."""
    where: str
    """Key and file, for error messages."""
    file: DataFile

    def read(self, rows: Rows) -> Iterator[Encoded]:
        """See `EncodedImages`."""
        # slices, as indexing strips trailing zeros, which may belong to the encoded file
        return (
            Encoded(self.contents[row : row + 1].tobytes(), f"row {row} of {self.where}")
            for row in rows
        )

    at = read

    def narrowed(self, rows: Rows) -> tuple[EncodedArray, Rows]:
        """See `EncodedImages`."""
        return EncodedArray(self.contents[rows], self.where, self.file), np.arange(len(rows))

    def files(self) -> Iterable[DataFile]:
        """See `EncodedImages`."""
        return (self.file,)


def matches(path: Path) -> bool:
    """Whether `path` is an `.npz` file."""
    return path.suffix == ".npz" and path.is_file()


def open_source(
    path: Path,
    class_names: tuple[str, ...] | None = None,
    settings: DataSettings | None = None,
) -> Source:
    """Open the data set in a NumPy archive.

    Raises:
        DataError: the file is damaged or a pickle, lacks arrays, has invalid pixels, or its splits
            are ambiguous.
    """
    decoder = Decoder() if settings is None else Decoder.of(settings)
    with _readable(path), _archive(path) as archive:
        title = _title(path)
        keys = _split_keys(archive.files, settings, title)
        names = class_names
        names_key = next((key for key in NAMES if key in archive.files), None)
        if names_key is not None:
            names = _names(archive[names_key], _title(path, names_key))
        arrays = {
            split: (archive[images], archive[labels]) for split, (images, labels) in keys.items()
        }
        used = {key for pair in keys.values() for key in pair} | {names_key}
        others = [key for key in archive.files if key not in used]
        if "test" not in keys and not requested(settings):
            _check_remaining(archive, keys["train"][0], arrays["train"][0], others, title)
        left_out = tuple(f"array '{key}'" for key in others)
    splits = {split: _split(keys[split], arrays[split], names, decoder, path) for split in arrays}
    if names is None:
        names = numbered_classes(splits["train"].labels, title)
        for split_read in splits.values():
            as_labels(split_read.labels, names, split_read.where)
    return Source(title, names, splits, left_out)


def _title(path: Path, key: str | None = None) -> str:
    """Name of a file or of one of its arrays in messages; of the argument, for given objects."""
    if GIVEN not in path.parts:
        return f"'{path}'" if key is None else f"'{key}' of '{path}'"
    if key is None:
        return "the data given"
    return f"the data set given as '{key[2:]}'" if key[:2] in ("x_", "y_") else f"'{key}'"


def _split_keys(
    keys: Sequence[str], settings: DataSettings | None, where: str
) -> dict[SplitName, tuple[str, str]]:
    """Keys of the images and labels of each split.

    Raises:
        DataError: there is no training split, half of a pair is missing, or several pairs may be
            the same split.
    """
    pairs = _pairs(keys, settings, where)
    named = split_names(pairs)
    # if other arrays name a split, arrays without one are the training split
    if "" in pairs and "train" not in named.values():
        named = {**named, "": "train"}
    if len(pairs) == 1 and not requested(settings):
        only = next(iter(pairs))
        if named.get(only, "train") == "train":
            return {"train": pairs[only]}
    if requested(settings):
        # parts without a name are selected by the key of their images
        named = {part or pairs[part][0]: split for part, split in named.items()}
        pairs = {part or pair[0]: pair for part, pair in pairs.items()}
    chosen = assign([*pairs], settings, where, "split", named)
    if "train" not in chosen:
        raise DataError(
            f"{where} must hold the arrays images and labels, or x_train and y_train. Got arrays "
            f"of {listed([*pairs])} instead: set 'data.train' to one of these splits."
        )
    return {split: pairs[part] for split, part in chosen.items()}


def _split(
    keys: tuple[str, str],
    arrays: tuple[Any, Any],
    names: tuple[str, ...] | None,
    decoder: Decoder,
    path: Path,
) -> Split:
    """Create a split from an array of images and an array of labels.

    Raises:
        DataError: the arrays differ in length, or labels or pixels are invalid.
    """
    images_key, labels_key = keys
    images, given = arrays
    where = _title(path, images_key)
    read = _reader(images, where, decoder, path)
    labels: Labels = as_labels(given, names, _title(path, labels_key))
    if len(images) != len(labels):
        raise DataError(
            f"'{labels_key}' of '{path}' must hold one label per image. "
            f"Got {len(labels)} for {len(images)} images instead."
        )
    return Split(where, labels, read, f"'{images_key}'")


def _pairs(
    keys: Sequence[str], settings: DataSettings | None, where: str
) -> dict[str, tuple[str, str]]:
    """Keys of images and labels, by part of the data set.

    Raises:
        DataError: half of a pair is missing, or a part has several arrays of one kind.
    """
    images, labels = _by_kind(keys, where)
    for part in sorted(images.keys() ^ labels.keys()):
        if part and split_of(part) is not None and requested(settings).get("train") is None:
            key = images.get(part) or labels[part]
            kind = "labels" if part in images else "images"
            raise DataError(f"{where} holds '{key}' without its {kind}; add or remove them.")
    pairs = {part: (images[part], labels[part]) for part in images if part in labels}
    if not pairs:
        raise DataError(
            f"{where} must hold the arrays images and labels, or x_train and y_train. "
            f"Got {', '.join(keys) or 'none'} instead."
        )
    return pairs


def _by_kind(keys: Sequence[str], where: str) -> tuple[dict[str, str], dict[str, str]]:
    """Keys of images, and keys of labels, by part of the data set."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    unclear: dict[str, str] = {}
    for key in keys:
        part, is_label = _part_of(key)
        # exports hold the network input in addition to 8-bit images
        if key == "inputs" and "card" in keys and "images" in keys:
            continue
        if key in NAMES or is_label is None:
            # images may have only the name of their split: train and train_labels
            if split_of(key) is not None:
                unclear[key.lower()] = key
            continue
        found = labels if is_label else images
        if part in found:
            kind = "labels" if is_label else "images"
            raise DataError(
                f"{where} must hold one array of {kind} per split. Got '{found[part]}' and "
                f"'{key}' instead; remove one."
            )
        found[part] = key
    for part in labels.keys() & unclear.keys() - images.keys():
        images[part] = unclear[part]
    return images, labels


def _part_of(key: str) -> tuple[str, bool | None]:
    """Part of the data set that an array belongs to, and whether it holds labels.

    >>> _part_of("X_test"), _part_of("train_labels"), _part_of("xtrain"), _part_of("mean")
    (('test', False), ('train', True), ('train', False), ('mean', None))
    """
    found = words(key)
    roles = [word for word in found if word in IMAGE_WORDS or word in LABEL_WORDS]
    if not roles:
        # xtrain and ytrain
        if len(found) == 1 and found[0][0] in "xy" and split_of(found[0][1:]) is not None:
            return found[0][1:], found[0][0] == "y"
        return key, None
    is_label = any(word in LABEL_WORDS for word in roles)
    return "_".join(word for word in words(key, numbers=True) if word not in roles), is_label


def _check_remaining(
    archive: np.lib.npyio.NpzFile, train: str, images: Array, others: Sequence[str], where: str
) -> None:
    """Reject arrays that may be a test split but are not named as one, such as `Xt` and `yt`.

    Args:
        archive: the archive.
        train: key of the training images.
        images: training images.
        others: keys that are not read.
        where: the archive, for error messages.

    Raises:
        DataError: an array has the shape of the training images.
    """
    for key in others:
        shape = _shape(archive, key)
        if len(shape) >= 3 and shape[1:] == images.shape[1:]:
            raise DataError(
                f"{where} holds '{key}', an array of images like '{train}', which may or may not "
                "be the test split: rename it to x_test and its labels to y_test, or set "
                f"'data.train={_part_of(train)[0] or train}' to leave it out."
            )


def _shape(archive: np.lib.npyio.NpzFile, key: str) -> tuple[int, ...]:
    """Shape of an array, from its header."""
    assert archive.zip is not None
    with archive.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0
        if version[0] > 1:
            header = np.lib.format.read_array_header_2_0
        return header(file)[0]


def _names(values: Array, where: str) -> tuple[str, ...]:
    """Convert class names to text, from text, bytes or integers."""
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise DataError(
            f"Class names of {where} must be text (classes,). "
            f"Got {values.dtype} {values.shape} instead."
        )
    if values.dtype.kind != "S":
        return tuple(nfc(str(name)) for name in values.tolist())
    try:
        return tuple(nfc(name.decode()) for name in values.tolist())
    except UnicodeDecodeError as error:
        raise DataError(f"Class names of {where} must be UTF-8: {error}.") from error


def _reader(values: Array, where: str, decoder: Decoder, path: Path) -> ReadPixels:
    """Create the reader of an array of images, encoded or not."""
    if values.ndim == 1 and values.dtype.kind in ENCODED_KINDS and values.dtype.names is None:
        return EncodedPixels(EncodedArray(values, where, DataFile.at(path)))
    return ArrayPixels(_pixels(values, where, decoder), where)


def _pixels(values: Array, where: str, decoder: Decoder) -> Pixels:
    """Convert images to uint8 (N, C, H, W)."""
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in (1, 3):
        values = values.transpose(0, 3, 1, 2)
    if values.ndim != 4 or values.shape[1] not in (1, 3) or 0 in values.shape[2:]:
        raise DataError(
            f"Images of {where} must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with C of 1 or 3. "
            f"Got {values.shape} instead."
        )
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif (
        values.dtype.kind in "iuf" and values.dtype != np.uint8 and decoder.white_level is not None
    ):
        values = decoder.scaled(values, where, str(values.dtype))
    elif values.dtype.kind == "f":
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
            f"Got {values[index]} in row {index[0]} (index {index}) instead; set "
            f"'data.white_level' if white has a different value than {largest:g}."
        )


def _archive(path: Path) -> np.lib.npyio.NpzFile:
    """Open an archive.

    Raises:
        DataError: the file holds a single array.
    """
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded
    raise DataError(
        f"'{path}' must be a NumPy archive of several arrays (numpy.savez). Got a single array "
        "instead."
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty (0 bytes).")
    try:
        yield
    except ARCHIVE_ERRORS as error:
        if "pickle" in str(error).lower():
            raise DataError(
                f"'{path}' holds a pickle, which is never loaded; "
                "save numeric arrays with numpy.savez."
            ) from error
        raise DataError(f"Cannot read '{path}' as a NumPy archive: {error}.") from error
