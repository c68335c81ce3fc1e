"""Images that stay encoded in their files until their pixels are needed.

`StreamedPixels` can replace an array uint8 (N, C, H, W): it has a shape, and indexing it decodes
the requested images in threads, in the requested order. It is small for any N, so it is cheap to
send to workers, which decode what they need; the files must exist there under the same paths, or be
at a URL. Decoded images are not cached: memory holds the batches in use, plus `READ_AHEAD` more
when iterating with `batches`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from rayd.data.arrays import ImageArray, ImageShape, Pixels, Rows
from rayd.data.decode import PLAIN, DecodeLog, Decoder, Encoded, cores, decode_images
from rayd.data.files import DataFile
from rayd.errors import DataError

READ_AHEAD = 2
"""Number of batches decoded ahead of the one in use."""

Request = TypeVar("Request")
Result = TypeVar("Result")
Wanted = TypeVar("Wanted", bound=slice | Rows)


class EncodedImages(Protocol):
    """Encoded images of a split, stored in files."""

    def read(self, rows: Rows) -> Iterable[Encoded]:
        """Read images at ascending rows lazily; efficient when most rows are requested."""
        ...

    def at(self, rows: Rows) -> Iterable[Encoded]:
        """Read images at rows in any order, each on decoding; efficient for few rows."""
        ...

    def narrowed(self, rows: Rows) -> tuple[EncodedImages, Rows]:
        """Drop the files that contain none of the rows; also return the rows, renumbered."""
        ...

    def files(self) -> Iterable[DataFile]:
        """Files that contain the images, in a fixed order."""
        ...


@dataclass(frozen=True, eq=False)
class StreamedPixels:
    """Encoded images that can be indexed like the array of their pixels."""

    encoded: EncodedImages
    """All encoded images of some files."""
    rows: Rows
    """Rows of `encoded`, in order."""
    image: ImageShape
    """Shape of each decoded image."""
    decoder: Decoder = PLAIN
    """Settings for decoding images to pixels."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self.rows), *self.image)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """Type of the decoded images."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64], /) -> Pixels:
        """Decode images to uint8 (n, C, H, W), in the requested order.

        Raises:
            DataError: a file is missing or has changed, or an image in it is damaged; the message
                names file and row.
            IndexError: a row is out of range.
        """
        return self.decode(rows, decoding_threads())

    def decode(
        self, rows: slice | npt.NDArray[np.int64], threads: int, log: DecodeLog | None = None
    ) -> Pixels:
        """Decode images with a given number of threads; count conversions in a log."""
        requested = self._at(rows)
        images = self.encoded.at(requested)
        return decode_images(images, len(requested), self.decoder, self.image, threads, log)

    def part(self, rows: slice | npt.NDArray[np.int64]) -> StreamedPixels:
        """Select images without decoding, in the requested order, with only the files needed."""
        encoded, renumbered = self.encoded.narrowed(self._at(rows))
        return StreamedPixels(encoded, renumbered, self.image, self.decoder)

    def files(self) -> Iterable[DataFile]:
        """Files that contain these images."""
        return self.encoded.files()

    def __array__(self, *_: object, **__: object) -> Pixels:
        raise DataError(
            f"{len(self):,} streamed images must not be decoded all at once; "
            "index only the rows that are needed."
        )

    def _at(self, rows: slice | npt.NDArray[np.int64]) -> Rows:
        requested: Rows = self.rows[rows]
        if requested.ndim != 1:
            raise IndexError(
                "Streamed images must be indexed by a slice or by an array of row numbers."
            )
        return requested


def decoding_threads() -> int:
    """Number of decoding threads: torch's (which workers limit), but at most one per core."""
    import torch

    return max(1, min(cores(), torch.get_num_threads()))


def part(images: ImageArray, rows: slice | Rows) -> ImageArray:
    """Select images in the requested order; streamed images stay encoded."""
    return images.part(rows) if isinstance(images, StreamedPixels) else images[rows]


def batches(images: ImageArray, rows: Iterable[Wanted]) -> Iterator[tuple[Wanted, Pixels]]:
    """Yield each set of rows with its images; streamed images are decoded ahead."""
    if not isinstance(images, StreamedPixels):
        for batch in rows:
            yield batch, images[batch]
        return
    threads = decoding_threads()
    yield from ahead(rows, lambda batch: images.decode(batch, threads))


def ahead(
    requests: Iterable[Request], answer: Callable[[Request], Result], depth: int = READ_AHEAD
) -> Iterator[tuple[Request, Result]]:
    """Yield requests with their results, in order; a thread computes `depth` results ahead."""
    waiting: deque[tuple[Request, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, "rayd-ahead") as pool:
        try:
            for request in requests:
                waiting.append((request, pool.submit(answer, request)))
                if len(waiting) > depth:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


def _next(waiting: deque[tuple[Request, Future[Result]]]) -> tuple[Request, Result]:
    request, future = waiting.popleft()
    return request, future.result()
