"""Interface of data set formats: opening a set reads its labels; pixels are read on demand.

Classes, splits and long tails are selected by labels alone, so that only selected images are
decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rayd.data.arrays import ImageShape, Labels, Pixels, Rows
from rayd.data.decode import CHUNK_IMAGES, PLAIN, ColourError, DecodeLog, Decoder, decode_images
from rayd.data.layout import SplitName as SplitName
from rayd.data.layout import printable
from rayd.data.resizing import resize
from rayd.data.streaming import EncodedImages, StreamedPixels
from rayd.errors import DataError


class ReadPixels(Protocol):
    """Callable that decodes images of a split."""

    def __call__(
        self, rows: Rows, side: int | None = None, shape: ImageShape | None = None
    ) -> Pixels:
        """Decode images at ascending `rows`.

        Args:
            rows: ascending rows of the split.
            side: side in pixels to resize to; None keeps the size.
            shape: required shape of an image; None accepts any.

        Returns:
            Images uint8 (len(rows), C, H, W).
        """


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a source."""

    where: str
    """File or folder, for error messages."""
    labels: Labels
    """int64 (N,), checked against the class names."""
    read: ReadPixels
    """Decodes the images."""
    origin: str = ""
    """Part of the data set that is the split, e.g. a folder; empty if it need not be mentioned."""


@dataclass(frozen=True, eq=False)
class SplitSubset:
    """Images selected from a split."""

    split: Split
    rows: Rows
    """Ascending rows of the split."""
    labels: Labels
    """Labels of the images, int64 (len(rows),)."""
    origin: str | None = None
    """How the images were assigned to this split, as a clause; None if the source has the split."""

    @property
    def described(self) -> str:
        """Origin of the images, as a clause."""
        return self.split.origin if self.origin is None else self.origin

    def at(self, positions: Rows) -> SplitSubset:
        """Select images by their positions in this subset."""
        return SplitSubset(self.split, self.rows[positions], self.labels[positions], self.origin)

    def place(self, position: int) -> str:
        """File or row of the image at a position, for messages."""
        row = self.rows[position : position + 1]
        read = self.split.read
        if isinstance(read, EncodedPixels):
            return printable(next(iter(read.encoded.read(row))).where)
        return f"row {int(row[0])} of {self.split.where}"


@dataclass(frozen=True, eq=False)
class Source:
    """An opened data set on disk: classes, splits, and content that is not read."""

    where: str
    """File or folder, for error messages."""
    class_names: tuple[str, ...]
    """One name per class, in label order."""
    splits: Mapping[SplitName, Split]
    """Splits by name, at least `train`."""
    left_out: tuple[str, ...] = ()
    """Content that was found but not read, with the reason, as clauses."""


@dataclass(frozen=True, eq=False)
class ArrayPixels:
    """Images that are already an array."""

    images: Pixels
    where: str

    def __call__(
        self, rows: Rows, side: int | None = None, shape: ImageShape | None = None
    ) -> Pixels:
        """See `ReadPixels`; returns the array itself if all rows are requested."""
        whole = len(rows) == len(self.images)
        images = self.images if whole else self.images[rows]
        images = images if side is None else resize(images, side)
        if shape is not None and images.shape[1:] != shape:
            raise DataError(
                f"Images of {self.where} must have shape {tuple(shape)}. "
                f"Got {images.shape[1:]} instead."
            )
        return np.ascontiguousarray(images)


@dataclass(frozen=True, eq=False)
class EncodedPixels:
    """Encoded images, in files or in memory."""

    encoded: EncodedImages
    """All images of the split."""

    def __call__(
        self, rows: Rows, side: int | None = None, shape: ImageShape | None = None
    ) -> Pixels:
        """See `ReadPixels`."""
        return self.decode(rows, Decoder(side), shape)

    def decode(
        self,
        rows: Rows,
        decoder: Decoder,
        shape: ImageShape | None = None,
        log: DecodeLog | None = None,
    ) -> Pixels:
        """Decode images at ascending rows; see `decode_images`."""
        encoded = self.encoded.read(rows)
        return decode_images(encoded, len(rows), decoder, shape, log=log)

    def shape(self, rows: Rows, decoder: Decoder, every: bool = False) -> ImageShape:
        """Shape to which images at ascending rows will be decoded; see `Decoder.announce`."""
        looked_at = rows if every else rows[:CHUNK_IMAGES]
        return decoder.announce(self.encoded.read(looked_at), every)

    def streamed(
        self, rows: Rows, decoder: Decoder | None = None, shape: ImageShape | None = None
    ) -> StreamedPixels:
        """Select images without decoding them."""
        decoder = decoder or PLAIN
        image = shape if shape is not None else self.shape(rows, decoder, every=True)
        encoded, renumbered = self.encoded.narrowed(rows)
        return StreamedPixels(encoded, renumbered, image, decoder)


def read_pixels(
    subset: SplitSubset,
    decoder: Decoder,
    shape: ImageShape | None = None,
    log: DecodeLog | None = None,
) -> Pixels:
    """Read the pixels of selected images, for any format.

    Args:
        subset: the images.
        decoder: settings for decoding.
        shape: required shape of an image; None accepts any.
        log: counts conversions.

    Returns:
        Images uint8 (N, C, H, W), C-contiguous.

    Raises:
        DataError: an image is damaged or has a different shape.
    """
    read = subset.split.read
    if isinstance(read, EncodedPixels):
        return read.decode(subset.rows, decoder, shape, log)
    channels = shape.channels if shape is not None else None
    try:
        images = decoder.arrays(read(subset.rows), channels, log)
    except ColourError:
        raise DataError(
            f"Images of {subset.split.where} are in colour, but the training images are greyscale: "
            "set 'data.mode=rgb' to read all in colour, or 'data.mode=grey' to convert all to "
            "greyscale."
        ) from None
    if shape is not None and images.shape[1:] != shape:
        raise DataError(
            f"Images of {subset.split.where} must have shape {tuple(shape)}. "
            f"Got {images.shape[1:]} instead."
        )
    return np.ascontiguousarray(images)


def as_labels(values: npt.ArrayLike, class_names: tuple[str, ...] | None, where: str) -> Labels:
    """Convert labels (N,) to int64.

    Raises:
        DataError: labels are not integers, not of rank 1, negative, or without a class name.
    """
    labels = np.asarray(values)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"Labels of {where} must be integers (N,). Got {labels.dtype} {labels.shape} instead."
        )
    labels = labels.astype(np.int64)
    bad = np.flatnonzero(labels < 0)
    if bad.size:
        hint = (
            "; it seems to be published without labels, so move or delete it"
            if bad.size == labels.size
            else ""
        )
        raise DataError(
            f"Labels of {where} must not be negative. "
            f"Got {labels[bad[0]]} in row {bad[0]} instead{hint}."
        )
    bad = np.flatnonzero(labels >= len(class_names)) if class_names is not None else bad
    if bad.size:
        raise DataError(
            f"Labels of {where} must lie in 0..{len(class_names or ()) - 1}, "
            f"as there are {len(class_names or ())} class names. "
            f"Got {labels[bad[0]]} in row {bad[0]} instead."
        )
    return labels


def numbered_classes(labels: Labels, where: str) -> tuple[str, ...]:
    """Create the class names "0", "1", ... for a set without class names.

    Raises:
        DataError: a label between 0 and the largest one does not occur.
    """
    classes = int(labels.max(initial=-1)) + 1
    missing = np.setdiff1d(np.arange(min(classes, 10**6)), labels)
    if missing.size:
        listed = ", ".join(map(str, missing[:5]))
        if missing.size > 5:
            listed += f" and {missing.size - 5} more"
        raise DataError(
            f"Labels of {where} must cover 0..{classes - 1}. No image has label {listed}."
        )
    return tuple(map(str, range(classes)))


def check_file(path: Path) -> None:
    """Reject a file that is missing or empty.

    Raises:
        DataError: the file does not exist or has 0 bytes.
    """
    if not path.is_file():
        raise DataError(f"There is no file '{path}'.")
    if path.stat().st_size == 0:
        raise DataError(f"'{path}' is empty (0 bytes).")
