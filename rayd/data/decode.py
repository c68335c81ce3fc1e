"""Encoded images (PNG, JPEG, ...) to one uint8 array, in threads.

The array is allocated once, from the first images' headers; encoded bytes are read a little ahead of the decoders and dropped
behind them, so the peak is the array and a few megabytes. PIL releases the GIL while it decodes.
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
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from rayd.data.images import ImageShape, Pixels
from rayd.data.resizing import fit_square
from rayd.errors import DataError

GREYSCALE = frozenset({"1", "L", "LA", "La"})
"""PIL's modes of one colour channel with at most 8 bits."""
DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""PIL's modes of more than 8 bits a channel."""

CHUNK_IMAGES = 256
CHUNK_BYTES = 2**22

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError)
"""What PIL raises for bytes that are no image, or only part of one."""


class Encoded(NamedTuple):
    """An image file's content, or the path that holds it."""

    content: bytes | memoryview | Path
    where: str
    """File and row, for errors."""

    @property
    def size(self) -> int:
        """Bytes of the content that this object keeps in memory."""
        return 0 if isinstance(self.content, Path) else len(self.content)


def decode_images(
    encoded: Iterable[Encoded], count: int, side: int | None = None, shape: ImageShape | None = None, threads: int | None = None
) -> Pixels:
    """`count` encoded images as one array uint8 (count, C, H, W).

    Without `shape`, the first image decides the size, and the majority of the first chunk whether the set is greyscale or RGB:
    ImageNet has a few greyscale images, which become RGB as palettes and alpha do.

    Args:
        encoded: the images, in order; consumed lazily.
        count: how many there are.
        side: resize every image to this side in pixels; images of any size are then accepted.
        shape: the shape to decode to; absent: the first image's.
        threads: decoding threads; absent: one a core that this process may use.

    Raises:
        DataError: an image is empty, damaged, of another size, has more than 8 bits a channel, or colours in a greyscale set.
    """
    chunks = _chunks(encoded)
    first = next(chunks, (0, []))
    if shape is None:
        shape = _shape(first[1], side)
    decoded = np.empty((count, *shape), np.uint8)
    threads = threads or _cores()
    with ThreadPoolExecutor(threads, "rayd-decode") as pool:
        running: deque[Future[None]] = deque()
        try:
            for start, chunk in chain([first], chunks):
                running.append(pool.submit(_decode_chunk, chunk, decoded[start : start + len(chunk)], side))
                if len(running) > 2 * threads:
                    running.popleft().result()
            while running:
                running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return decoded


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(images: Iterable[Encoded]) -> Iterator[tuple[int, list[Encoded]]]:
    """Runs of consecutive images with the index of their first, short enough in number and in bytes."""
    start, chunk, size = 0, list[Encoded](), 0
    for image in images:
        chunk.append(image)
        size += image.size
        if len(chunk) == CHUNK_IMAGES or size >= CHUNK_BYTES:
            yield start, chunk
            start, chunk, size = start + len(chunk), [], 0
    if chunk:
        yield start, chunk


def _decode_chunk(chunk: list[Encoded], decoded: Pixels, side: int | None) -> None:
    channels, height, width = decoded.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    for encoded, target in zip(chunk, decoded, strict=True):
        image = _open(encoded)
        _check_mode(image, channels, encoded.where)
        if side is None and image.size != (width, height):
            raise DataError(
                f"Images must all have the same size unless 'data.image_size' is set: {encoded.where} has height x width "
                f"{image.height} x {image.width}, wanted {height} x {width}."
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
    """The shape that the images' headers announce."""
    if not images:
        return ImageShape(1, side or 0, side or 0)
    grey = sum(_open(encoded).mode in GREYSCALE for encoded in images)
    width, height = (side, side) if side is not None else _open(images[0]).size
    return ImageShape(1 if 2 * grey > len(images) else 3, height, width)


def _open(encoded: Encoded) -> Image.Image:
    """The image with its header read, its pixels not yet."""
    try:
        content = encoded.content.read_bytes() if isinstance(encoded.content, Path) else encoded.content
        if len(content) == 0:
            raise DataError(f"The image at {encoded.where} is empty (0 bytes).")
        return Image.open(io.BytesIO(content))
    except DAMAGE as error:
        raise _damaged(encoded, error) from error


def _check_mode(image: Image.Image, channels: int, where: str) -> None:
    if image.mode in DEEP:
        raise DataError(f"Images must have 8 bits a channel. Got mode '{image.mode}' at {where} instead.")
    if channels == 1 and image.mode not in GREYSCALE:
        raise DataError(f"The image at {where} has colours (mode '{image.mode}') in a greyscale set.")


def _damaged(encoded: Encoded, error: Exception) -> DataError:
    reason = "it is in no known image format" if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
    return DataError(f"Cannot decode the image at {encoded.where}: {reason}.")
