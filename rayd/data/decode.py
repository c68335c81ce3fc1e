"""Decoding of encoded images (PNG, JPEG, ...) to one uint8 array, in threads.

The array is allocated once, from the first images' headers; encoded bytes are read slightly ahead
of the decoders and dropped after use, so the peak is the array and a few megabytes. PIL releases
the GIL while it decodes.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from rayd.data.arrays import ImageShape, Pixels
from rayd.data.resizing import fit_square
from rayd.errors import DataError, ImageSizeError

GREYSCALE = frozenset({"1", "L", "LA", "La"})
"""PIL's modes of one colour channel with at most 8 bits."""
DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""PIL's modes of more than 8 bits a channel."""

CHUNK_IMAGES = 256
CHUNK_BYTES = 2**22

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Exceptions that PIL raises for bytes that are not an image, or only part of one."""


class Stored(Protocol):
    """Content that is read from a file on demand, like that of a `Path`."""

    def read_bytes(self) -> bytes:
        """Read the content."""
        ...


class Encoded(NamedTuple):
    """Content of an image file, or its location."""

    content: bytes | memoryview | Stored
    where: str
    """File and row, for errors."""

    @property
    def size(self) -> int:
        """Bytes of content held in memory."""
        return len(self.content) if isinstance(self.content, bytes | memoryview) else 0


def decode_images(
    encoded: Iterable[Encoded],
    count: int,
    side: int | None = None,
    shape: ImageShape | None = None,
    threads: int | None = None,
) -> Pixels:
    """Decode `count` encoded images to one array uint8 (count, C, H, W).

    Without `shape`, the first image decides the size, and the majority of the first chunk whether
    the set is greyscale or RGB: ImageNet has a few greyscale images, which become RGB, as do
    palettes and alpha.

    Args:
        encoded: the images, in order; consumed lazily.
        count: number of images.
        side: side in pixels to resize every image to; images of any size are then accepted.
        shape: shape to decode to; by default the first image's.
        threads: number of decoding threads; by default one per available core.

    Raises:
        DataError: an image is empty, damaged, of another size, has more than 8 bits per channel,
            or colours in a greyscale set.
    """
    threads = threads or cores()
    # with a given shape the first chunk decides nothing, so small batches use all threads
    chunks = _chunks(
        encoded,
        CHUNK_IMAGES if shape is None else min(CHUNK_IMAGES, -(-count // (2 * threads)) or 1),
    )
    first = next(chunks, (0, []))
    if shape is None:
        shape = _shape(first[1], side)
    decoded = np.empty((count, *shape), np.uint8)
    with ThreadPoolExecutor(threads, "rayd-decode") as pool:
        running: deque[Future[None]] = deque()
        try:
            for start, chunk in chain([first], chunks):
                running.append(
                    pool.submit(_decode_chunk, chunk, decoded[start : start + len(chunk)], side)
                )
                if len(running) > 2 * threads:
                    running.popleft().result()
            while running:
                running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return decoded


def announced_shape(encoded: Iterable[Encoded], side: int | None = None) -> ImageShape:
    """Shape that `decode_images` decodes images to, from their headers.

    Args:
        encoded: the images, in order; only the first chunk is read.
        side: as in `decode_images`.

    Raises:
        DataError: one of them is empty or damaged.
    """
    return _shape(next(_chunks(encoded), (0, []))[1], side)


def cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(
    images: Iterable[Encoded], most: int = CHUNK_IMAGES
) -> Iterator[tuple[int, list[Encoded]]]:
    """Yield runs of consecutive images, limited in number and bytes, with their first index."""
    start = 0
    chunk = list[Encoded]()
    size = 0
    for image in images:
        chunk.append(image)
        size += image.size
        if len(chunk) == most or size >= CHUNK_BYTES:
            yield start, chunk
            start = start + len(chunk)
            chunk = []
            size = 0
    if chunk:
        yield start, chunk


def _decode_chunk(chunk: list[Encoded], decoded: Pixels, side: int | None) -> None:
    channels, height, width = decoded.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    for encoded, target in zip(chunk, decoded, strict=True):
        image = _open(encoded)
        _check_mode(image, channels, encoded.where)
        if side is None and image.size != (width, height):
            raise ImageSizeError(
                "Images must all have the same size unless 'data.image_size' is set: "
                f"{encoded.where} has height x width {image.height} x {image.width}, "
                f"expected {height} x {width}."
            )
        try:
            if image.mode != mode:
                image = image.convert(mode)
            if side is not None:
                image = fit_square(image, side)
            pixels = np.frombuffer(image.tobytes(), np.uint8)
        except DAMAGE as error:
            raise _damaged(encoded, error) from error
        target[...] = pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _shape(images: list[Encoded], side: int | None) -> ImageShape:
    """Shape according to the images' headers."""
    if not images:
        return ImageShape(1, side or 0, side or 0)
    grey = sum(_open(encoded).mode in GREYSCALE for encoded in images)
    width, height = (side, side) if side is not None else _open(images[0]).size
    return ImageShape(1 if 2 * grey > len(images) else 3, height, width)


def _open(encoded: Encoded) -> Image.Image:
    """Open an image and read its header, not its pixels."""
    try:
        content = (
            encoded.content
            if isinstance(encoded.content, bytes | memoryview)
            else encoded.content.read_bytes()
        )
        if len(content) == 0:
            raise DataError(f"The image at {encoded.where} is empty (0 bytes).")
        return Image.open(io.BytesIO(content))
    except DAMAGE as error:
        raise _damaged(encoded, error) from error


def _check_mode(image: Image.Image, channels: int, where: str) -> None:
    if image.mode in DEEP:
        raise DataError(
            f"Images must have 8 bits per channel. Got mode '{image.mode}' at {where} instead."
        )
    if channels == 1 and image.mode not in GREYSCALE:
        raise DataError(
            f"The image at {where} has colours (mode '{image.mode}') in a greyscale set."
        )


def _damaged(encoded: Encoded, error: Exception) -> DataError:
    reason = (
        "it is in no known image format"
        if isinstance(error, UnidentifiedImageError)
        else str(error).rstrip(".")
    )
    return DataError(f"Cannot decode the image at {encoded.where}: {reason}.")
