"""Images that stay encoded in their files until somebody needs their pixels.

`StreamedPixels` stands where an array uint8 (N, C, H, W) may stand: it has a shape, and indexing it
decodes those images, in threads, in the order asked. It is small whatever N is, so that it travels
to workers, who decode what they need where they are; the files must be there under the same path,
or lie at a URL. Nothing that was decoded is kept: memory holds the batches in use, and `READ_AHEAD`
more where they are asked for one after another with `batches`.
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
from rayd.data.decode import Encoded, cores, decode_images
from rayd.data.files import DataFile
from rayd.errors import DataError

READ_AHEAD = 2
"""Batches that are decoded while those before them are in use."""

Request = TypeVar("Request")
Result = TypeVar("Result")
Wanted = TypeVar("Wanted", bound=slice | Rows)


class EncodedImages(Protocol):
    """The encoded images of a split, in files."""

    def read(self, rows: Rows) -> Iterable[Encoded]:
        """The images at ascending rows, lazily; quick where most are wanted."""
        ...

    def at(self, rows: Rows) -> Iterable[Encoded]:
        """The images at rows in any order, each read when it is decoded; quick where few are
        wanted.
        """
        ...

    def narrowed(self, rows: Rows) -> tuple[EncodedImages, Rows]:
        """Without the files that none of the rows is in, and the rows as they are numbered then."""
        ...

    def files(self) -> Iterable[DataFile]:
        """The files that hold them, in some order that does not change."""
        ...


@dataclass(frozen=True, eq=False)
class StreamedPixels:
    """Encoded images that can be indexed as the array of their pixels can."""

    encoded: EncodedImages
    """All images of some files."""
    rows: Rows
    """Which of them these are, in order."""
    image: ImageShape
    """Shape that each is decoded to."""
    side: int | None = None
    """Resize every image to this side in pixels."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self.rows), *self.image)

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        """That of the decoded images."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded images."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64], /) -> Pixels:
        """Decode images: uint8 (n, C, H, W), in the order asked.

        Raises:
            DataError: a file is gone or has changed, or an image in it is damaged; the sentence
                names file and row.
            IndexError: there is no such row.
        """
        return self.decode(rows, decoding_threads())

    def decode(self, rows: slice | npt.NDArray[np.int64], threads: int) -> Pixels:
        """The same in a number of threads."""
        wanted = self._at(rows)
        return decode_images(self.encoded.at(wanted), len(wanted), self.side, self.image, threads)

    def part(self, rows: slice | npt.NDArray[np.int64]) -> StreamedPixels:
        """Some of the images, in the order asked, still encoded; it knows of no files but
        theirs.
        """
        encoded, renumbered = self.encoded.narrowed(self._at(rows))
        return StreamedPixels(encoded, renumbered, self.image, self.side)

    def files(self) -> Iterable[DataFile]:
        """The files that hold these images."""
        return self.encoded.files()

    def __array__(self, *_: object, **__: object) -> Pixels:
        raise DataError(
            f"{len(self):,} streamed images must not be decoded all at once; index those that are needed."
        )

    def _at(self, rows: slice | npt.NDArray[np.int64]) -> Rows:
        wanted: Rows = self.rows[rows]
        if wanted.ndim != 1:
            raise IndexError(
                "Streamed images must be indexed by a slice or by an array of row numbers."
            )
        return wanted


def decoding_threads() -> int:
    """Threads that decode: those of torch in this thread, which a worker has been granted, but no
    more than there are cores.
    """
    import torch

    return max(1, min(cores(), torch.get_num_threads()))


def part(images: ImageArray, rows: slice | Rows) -> ImageArray:
    """Some of the images, in the order asked; streamed ones stay encoded."""
    return images.part(rows) if isinstance(images, StreamedPixels) else images[rows]


def batches(images: ImageArray, rows: Iterable[Wanted]) -> Iterator[tuple[Wanted, Pixels]]:
    """The images at each of some rows, one batch after another; streamed ones are decoded a little
    ahead.
    """
    if not isinstance(images, StreamedPixels):
        for wanted in rows:
            yield wanted, images[wanted]
        return
    threads = decoding_threads()
    yield from ahead(rows, lambda wanted: images.decode(wanted, threads))


def ahead(
    requests: Iterable[Request], answer: Callable[[Request], Result], depth: int = READ_AHEAD
) -> Iterator[tuple[Request, Result]]:
    """Each request with its answer, in order; a thread works on the next `depth` requests
    meanwhile.
    """
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
