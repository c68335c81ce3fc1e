"""Bit depth of images, and scaling of deeper ones to 8 bits per channel.

PIL reads colour images with 16 bits per channel as if they had 8, so the depth is taken from the
file's header.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rayd.data.arrays import Pixels
from rayd.errors import DataError

DEEP = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
"""PIL modes with more than 8 bits per channel."""
WHITE_LEVELS = (1, 255, 1023, 4095, 16383, 65535)
"""Common values of white, which error messages suggest."""


def scaled(values: npt.NDArray[Any], white: float | None, where: str, bits: str) -> Pixels:
    """Scale pixel values to uint8.

    Args:
        values: pixel values, of any shape.
        white: value that becomes 255; None refuses the values.
        where: location of the image or images, for error messages.
        bits: type of the values, for error messages.

    Raises:
        DataError: `white` is None, or values are not in 0..white.
    """
    least, most = _limits(values)
    if np.isnan(most):
        raise DataError(f"Pixels of {where} must be numbers. Got NaN instead; correct them.")
    if white is None:
        guess = next((level for level in WHITE_LEVELS if most <= level), most)
        raise DataError(
            f"Images must have 8 bits per channel. Got {bits} with values {least:g} to "
            f"{most:g} at {where} instead: set 'data.white_level' to the value of white, "
            f"e.g. {guess:g}, to scale them."
        )
    if not (least >= 0 and most <= white):
        raise DataError(
            f"Pixels of {where} must lie in 0..{white:g} ('data.white_level'). "
            f"Got {least:g} to {most:g} instead."
        )
    scaled: Pixels = np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    return scaled


def bits_of(image: Image.Image, content: bytes | memoryview) -> int:
    """Bits per channel of an encoded image, from its header where PIL does not report them."""
    if image.format == "JPEG":
        return 8
    if image.mode in DEEP:
        return 32 if image.mode in ("I", "F") else 16
    if image.format == "PNG":
        return bytes(content[24:25])[0] if bytes(content[:4]) == b"\x89PNG" else 8
    if image.format == "TIFF":
        return int(max(getattr(image, "tag_v2", {}).get(258, (8,))))
    if image.format == "JPEG2000":
        return _jpeg2000_bits(bytes(content))
    if image.format == "AVIF":
        return _avif_bits(bytes(content[:4096]))
    return _bits_of_tiles(image)


def _bits_of_tiles(image: Image.Image) -> int:
    """Bits per channel of raw formats, from the arguments of PIL's decoder."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    parts = arguments if isinstance(arguments, tuple) else (arguments,)
    if image.format == "PPM" and any(isinstance(part, int) and part > 255 for part in parts):
        return 16
    # "RGB;16" and "BGR;16" are bitmaps with 5, 6 and 5 bits per channel
    deep = [part for part in parts if isinstance(part, str) and part not in ("RGB;16", "BGR;16")]
    return 16 if any(";16" in part for part in deep) else 8


def full_range(image: Image.Image, bits: int) -> int:
    """Largest possible value of a channel, determined before the pixels are loaded."""
    # Netpbm files state it in their header
    tiles = getattr(image, "tile", None)
    if image.format == "PPM" and tiles:
        arguments = tiles[0][3]
        stated = arguments[-1] if isinstance(arguments, tuple) else None
        if isinstance(stated, int) and stated > 255:
            return stated
        return 65535
    return int(2**bits - 1)


def _jpeg2000_bits(content: bytes) -> int:
    """Largest bits per component, from the SIZ marker of a JPEG 2000 codestream."""
    start = content.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(content[start + 40 : start + 42], "big")
    components = content[start + 42 : start + 42 + 3 * count : 3]
    return max(((size & 127) + 1 for size in components), default=8) if start >= 0 else 8


def _avif_bits(head: bytes) -> int:
    """Bits per channel, from the AV1 configuration box of an AVIF file."""
    start = head.find(b"av1C")
    if start < 0 or len(head) < start + 7:
        return 8
    flags = head[start + 6]
    if not flags & 0x40:
        return 8
    return 12 if flags & 0x20 else 10


def _limits(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Smallest and largest value; NaN if any value is NaN."""
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
