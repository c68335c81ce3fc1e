"""Labelled images for training or testing."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayd.data.augmentation import Rows
from rayd.data.images import ImageArray, ImageSet, ImageShape
from rayd.data.normalization import Normalization
from rayd.data.streaming import StreamedPixels, ahead, decoding_threads
from rayd.distilled import Distilled
from rayd.errors import DataError

NORMALIZED_ONCE = 2**28
"""Maximum bytes of a set kept as normalised float32; larger ones are normalised per batch."""
HASHED = 256
"""Number of images hashed at a time."""

Batch = TypeVar("Batch")


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images decoded on access, indexed like a uint8 tensor (n, C, H, W) on the CPU."""

    pixels: StreamedPixels
    """Source of the images."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, C, H, W)."""
        return self.pixels.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the decoded images."""
        return torch.uint8

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Rows) -> Tensor:
        return self.take(rows, decoding_threads())

    def take(self, rows: Rows, threads: int) -> Tensor:
        """Decode images with a given number of threads."""
        return torch.from_numpy(self.pixels.decode(_plain(rows), threads))

    def part(self, rows: Rows) -> StreamedImages:
        """Select images, still encoded."""
        return StreamedImages(self.pixels.part(_plain(rows)))


Images = Tensor | StreamedImages
"""Images (n, C, H, W), in memory or decoded on access."""


def taken(
    images: Images, batches: Iterable[Batch], rows: Callable[[Batch], Rows], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield each batch with its images, in order.

    Streamed images are prefetched by decoding threads; for a GPU, images in host memory are
    gathered ahead.

    Args:
        images: images of the set.
        batches: requested batches.
        rows: maps a batch to the rows of its images.
        device: device on which the images will be used; they are yielded where they are stored, in
            pinned memory if they are in host memory and `device` is a GPU.
    """
    if isinstance(images, StreamedImages):
        threads = decoding_threads()
        yield from ahead(batches, lambda batch: images.take(rows(batch), threads))
    elif device.type == "cuda" and images.device.type == "cpu":
        yield from ahead(batches, lambda batch: images[rows(batch)].pin_memory())
    else:
        for batch in batches:
            yield batch, images[rows(batch)]


def _images(images: ImageArray) -> Images:
    if isinstance(images, StreamedPixels):
        return StreamedImages(images)
    assert isinstance(images, np.ndarray)
    return shared_tensor(images)


def shared_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor over the memory of an array, without a copy; it must not be written to.

    Arrays in Ray's object store are read-only and shared by all workers of a machine: of a set that
    takes half of its memory, no worker can afford a copy.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return torch.from_numpy(array)


def _plain(rows: Rows) -> slice | npt.NDArray[np.int64]:
    return rows if isinstance(rows, slice) else rows.cpu().numpy()


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Labelled images for training or testing.

    Raises:
        DataError: pixels without a normalisation, or labels that are not one per image.
    """

    images: Images
    """uint8 pixels (n, C, H, W), streamed or not, or float32 network input."""
    labels: Tensor
    """Class indices int64 (n,); for training also soft labels float32 (n, classes)."""
    normalization: Normalization | None = None
    """Map from pixels to network input; None if the images are network input."""
    name: str = "training"
    """Name in messages: `distilled`, `random`, `whole`, ..."""
    class_names: tuple[str, ...] = ()
    """One name per class, in label order; empty if unknown."""
    source: ImageSet | None = None
    """Underlying real images, whose fingerprint is that of the set."""

    def __post_init__(self) -> None:
        if self.images.dtype == torch.uint8 and self.normalization is None:
            raise DataError(
                f"The uint8 pixels of the set '{self.name}' must come with a normalisation. "
                "Got none instead."
            )
        if len(self.images) != len(self.labels) or not len(self.images):
            raise DataError(
                f"The set '{self.name}' must have at least one image, and a label for each. "
                f"Got {len(self.images)} images and {len(self.labels)} labels instead."
            )

    @classmethod
    def from_distilled(cls, distilled: Distilled, name: str = "distilled") -> Self:
        """Create a training set from a distilled set."""
        return cls(
            distilled.images, distilled.labels, distilled.normalization, name, distilled.class_names
        )

    @classmethod
    def from_images(
        cls,
        image_set: ImageSet,
        normalization: Normalization,
        rows: npt.ArrayLike | None = None,
        name: str = "training",
    ) -> Self:
        """Create a set of all real images, or of those at `rows`."""
        chosen = image_set if rows is None else image_set.subset(rows)
        images = _images(chosen.images)
        labels = shared_tensor(chosen.labels)
        return cls(images, labels, normalization, name, chosen.class_names, chosen)

    def part(self, rows: Tensor) -> Self:
        """Select images at rows int64 (n,); streamed ones stay encoded."""
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.part(rows)
        return replace(self, images=images, labels=self.labels[rows], source=None)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """Shape of one image."""
        return ImageShape(*self.images.shape[1:])

    def inputs(self, images: Tensor) -> Tensor:
        """Convert images taken from `images`, on any device, to network input."""
        if images.dtype == torch.uint8 and self.normalization is not None:
            return self.normalization(images)
        return images

    def resident(self, device: torch.device) -> tuple[Images, Tensor]:
        """Images and labels from which batches are taken: on the device if they take at most half
        of its free memory.

        Streamed images stay where they are.
        """
        if not isinstance(self.images, Tensor):
            return self.images, self.labels
        once = self.images.dtype == torch.uint8 and 4 * self.images.numel() <= NORMALIZED_ONCE
        needed = 4 * self.images.numel() if once else self.images.nbytes
        if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] / 2:
            return self.images, self.labels
        images = self.images.to(device)
        return self.inputs(images) if once else images, self.labels.to(device)

    @property
    def image_fingerprint(self) -> str:
        """Hex BLAKE2b of images and normalisation."""
        return self._digest(self.images).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of images, labels and normalisation."""
        if self.source is None:
            return self._digest(self.images, self.labels).hexdigest()
        digest = self._digest()
        digest.update(self.source.fingerprint.encode())
        return digest.hexdigest()

    def _digest(self, *parts: Images) -> hashlib.blake2b:
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self.normalization.fingerprint if self.normalization else "").encode())
        for part in parts:
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            for start in range(0, len(part), HASHED):
                digest.update(part[start : start + HASHED].cpu().contiguous().numpy().data)
        return digest
