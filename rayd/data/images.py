"""Labelled images: pixels in memory or in files, labels, and class names.

All later stages work on `ImageData`: the splits of a data set and the normalisation fitted on its
training split.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rayd.data.arrays import ImageArray, ImageShape, Labels, Pixels, Rows
from rayd.data.normalization import Normalization
from rayd.data.streaming import part
from rayd.data.summary import DataSummary
from rayd.errors import DataError

__all__ = [
    "ImageArray",
    "ImageData",
    "ImageSet",
    "ImageShape",
    "Labels",
    "Pixels",
    "Rows",
    "content_digest",
]

HASHED_BYTES = 2**25
"""Number of pixel bytes hashed at a time."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images.

    Raises:
        DataError: an array has the wrong type, rank or length, or a label has no class name.
    """

    images: ImageArray
    """uint8 (N, C, H, W): a C-contiguous array, or `StreamedPixels`."""
    labels: Labels
    """int64 (N,), indices into `class_names`."""
    class_names: tuple[str, ...]
    """One name per class, in label order."""
    known_fingerprint: str | None = None
    """Fingerprint, if known, because computing it decodes all streamed images."""

    def __post_init__(self) -> None:
        images = self.images
        labels = self.labels
        if images.dtype != np.uint8 or len(images.shape) != 4:
            raise DataError(
                f"Images must be uint8 (N, C, H, W). Got {images.dtype} {images.shape} instead."
            )
        if isinstance(images, np.ndarray) and not images.flags.c_contiguous:
            raise DataError(
                "Images must be C-contiguous. "
                f"Got strides {images.strides} for shape {images.shape} instead."
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"Labels must be int64 ({len(images)},), one per image. "
                f"Got {labels.dtype} {labels.shape} instead."
            )
        outside = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if outside.size:
            row = int(outside[0])
            raise DataError(
                f"Labels must lie in 0..{len(self.class_names) - 1}. "
                f"Got {labels[row]} in row {row} instead."
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        _, channels, height, width = self.images.shape
        return ImageShape(channels, height, width)

    @property
    def classes(self) -> int:
        """Number of classes, including classes without images."""
        return len(self.class_names)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Number of images of each class, int64 (classes,)."""
        return np.bincount(self.labels, minlength=self.classes).astype(np.int64)

    @cached_property
    def class_index(self) -> tuple[Rows, ...]:
        """Ascending rows of each class, one int64 array per class."""
        by_class = np.argsort(self.labels, kind="stable")
        return tuple(np.split(by_class, np.cumsum(self.counts)[:-1]))

    @cached_property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of shape, pixels, labels and class names; the same if streamed."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        digest = content_digest(self.images.shape, self.labels, self.class_names)
        step = max(1, HASHED_BYTES // max(1, math.prod(self.shape)))
        for start in range(0, len(self), step):
            digest.update(self.images[start : start + step].data)
        return digest.hexdigest()

    @property
    def streamed(self) -> bool:
        """Whether pixels are decoded on access instead of being kept in memory."""
        return not isinstance(self.images, np.ndarray)

    def part(self, rows: slice | Rows) -> ImageSet:
        """Select images in the order of `rows`, keeping all class names; does not decode any."""
        return ImageSet(part(self.images, rows), self.labels[rows], self.class_names)

    def subset(self, indices: npt.ArrayLike) -> ImageSet:
        """Copy images into memory in the order of `indices`, keeping all class names."""
        rows = np.asarray(indices, dtype=np.int64)
        return ImageSet(self.images[rows], self.labels[rows], self.class_names)


def content_digest(
    shape: tuple[int, ...], labels: Labels, class_names: tuple[str, ...]
) -> hashlib.blake2b:
    """Hash state after shape, class names and labels, before any pixels."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((shape, class_names)).encode())
    digest.update(np.ascontiguousarray(labels).data)
    return digest


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: its splits, and the normalisation that maps pixels to network input.

    Raises:
        DataError: the splits disagree in image shape or classes.
    """

    name: str
    """Name used to request it."""
    train: ImageSet
    """Images to distill."""
    validation: ImageSet | None
    """Images for model selection; None if there is no validation split."""
    test: ImageSet
    """Images for evaluation only."""
    normalization: Normalization
    """Normalisation fitted on `train`."""
    summary: DataSummary | None = None
    """Summary of what was read; None for data that were not loaded with `rayd.data.load`."""

    def __post_init__(self) -> None:
        for split, other in (("validation", self.validation), ("test", self.test)):
            if other is None:
                continue
            if other.shape != self.train.shape:
                raise DataError(
                    f"The {split} images of '{self.name}' must have the training images' shape "
                    f"{tuple(self.train.shape)}. Got {tuple(other.shape)} instead."
                )
            if other.class_names != self.train.class_names:
                raise DataError(
                    f"The {split} split of '{self.name}' must have the training split's classes, "
                    "in the same order."
                )

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return self.train.shape

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.train.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in label order."""
        return self.train.class_names

    def judged_on_validation(self) -> ImageData:
        """Return a copy with the validation split in place of the test split.

        Raises:
            DataError: there is no validation split.
        """
        if self.validation is None:
            raise DataError(
                f"'{self.name}' has no validation split: set 'data.validation_fraction' above 0."
            )
        return replace(self, test=self.validation)

    @cached_property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of what a distilled set depends on: training split and normalisation."""
        text = f"{self.train.fingerprint} {self.normalization.fingerprint}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
