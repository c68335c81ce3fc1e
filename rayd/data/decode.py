"""Decoding of encoded images (PNG, JPEG, ...) to one uint8 array, in threads.

All formats and streams decode with `Decoder`, which makes all decisions about pixels: images are
rotated upright according to their EXIF orientation; transparency is composited on a background;
more than eight bits per channel are refused unless a white level defines their scaling; and the set
is greyscale only if all images are. `DecodeLog` counts conversions.

The array is allocated once, when the first images are known. Encoded bytes are read slightly ahead
of decoding and dropped after use, so peak memory is the array plus a few megabytes. PIL releases
the GIL while it decodes.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from rayd.data import depth
from rayd.data.arrays import ImageShape, Pixels
from rayd.data.resizing import Fit, fit_square, resize
from rayd.errors import DataError, ImageSizeError

if TYPE_CHECKING:
    from rayd.config import DataSettings

Mode = Literal["grey", "rgb"]
"""Colour mode of all images in a set, with one or three channels."""

GREYSCALE = frozenset({"1", "L", "LA", "La"})
"""PIL modes with one colour channel of at most 8 bits."""
MANY_FRAMES = frozenset({"GIF", "TIFF", "WEBP", "PNG", "AVIF"})
"""Formats whose files can hold several frames or pages."""
DRAWINGS = frozenset({"EPS", "WMF"})
"""Formats that PIL renders with external programs, which a data set must not launch."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation; values 5 to 8 swap height and width."""
ORIENTED_BY = (
    "exif",
    "xmp",
    "XML:com.adobe.xmp",
    "Raw profile type exif",
    "Raw profile type APP1",
)
"""Keys of `Image.info` that may hold the orientation."""
_SPECIAL = frozenset({*ORIENTED_BY, "transparency"})
_MODES = {1: "L", 3: "RGB"}
_CHANNELS = {"grey": 1, "rgb": 3}

CHUNK_IMAGES = 256
CHUNK_BYTES = 2**22

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Exceptions that PIL's readers raise for bytes that are not an image, or only part of one."""


class Stored(Protocol):
    """Content that is read on demand, for example a `Path`."""

    def read_bytes(self) -> bytes:
        """Read the content."""
        ...


class Encoded(NamedTuple):
    """An encoded image, in memory or in a file."""

    content: bytes | memoryview | Stored
    where: str
    """File and row, for error messages."""

    @property
    def size(self) -> int:
        """Number of bytes held in memory."""
        return len(self.content) if isinstance(self.content, bytes | memoryview) else 0


@dataclass
class DecodeLog:
    """Conversions made while decoding."""

    conversions: Counter[str] = field(default_factory=Counter)
    """Number of images by conversion, which is described in words."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of images by height and width before resizing."""

    def add(self, other: DecodeLog) -> None:
        """Add the counts of another log."""
        self.conversions.update(other.conversions)
        self.sizes.update(other.sizes)


class ColourError(Exception):
    """A colour image was found where greyscale ones were expected."""


@dataclass(frozen=True)
class Decoder:
    """Settings for decoding images to pixels.

    >>> Decoder(side=32, fit="pad").size(480, 640)
    (32, 32)
    """

    side: int | None = None
    """Side in pixels to resize every image to; None keeps the size."""
    fit: Fit = "crop"
    """How to make images square."""
    mode: Mode | None = None
    """Greyscale or colour; None means greyscale unless an image is in colour."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour behind transparent pixels and around padded images."""
    white_level: float | None = None
    """Value that becomes 255 in images with more than 8 bits per channel; None refuses them."""

    @classmethod
    def of(cls, settings: DataSettings) -> Decoder:
        """Create the decoder that settings describe."""
        red, green, blue = ImageColor.getrgb(settings.background)[:3]
        return cls(
            side=settings.image_size,
            fit=settings.fit,
            mode=settings.mode,
            background=(red, green, blue),
            white_level=settings.white_level,
        )

    def key(self) -> dict[str, Any]:
        """Fields that differ from the defaults, except the side, for cache keys."""
        names = ("fit", "mode", "background", "white_level")
        return {
            name: getattr(self, name)
            for name in names
            if getattr(self, name) != getattr(PLAIN, name)
        }

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image after resizing."""
        return (height, width) if self.side is None else (self.side, self.side)

    def arrays(
        self, images: Pixels, channels: int | None = None, log: DecodeLog | None = None
    ) -> Pixels:
        """Apply `mode` and `side` to images given as an array.

        Args:
            images: uint8 (N, C, H, W).
            channels: number of channels of the training images; by default one if no image is in
                colour, as for encoded images.
            log: counts conversions and sizes.

        Raises:
            ColourError: an image is in colour, but one channel was requested.
        """
        stored = images.shape[1]
        if self.mode is not None:
            channels = _CHANNELS[self.mode]
        elif channels is None:
            channels = 1 if stored == 1 or _are_grey(images) else 3
        if stored == 1 and channels == 3:
            images = np.repeat(images, 3, axis=1)
            if log is not None:
                log.conversions["greyscale repeated in three channels"] += len(images)
        elif stored == 3 and channels == 1:
            grey = _are_grey(images)
            if self.mode != "grey" and not grey:
                raise ColourError
            if log is not None and not grey:
                log.conversions["colours converted to greyscale"] += _count_coloured(images)
            images = images[:, :1] if grey else _luminance(images)
        if self.side is not None:
            if log is not None:
                log.sizes[images.shape[2], images.shape[3]] += len(images)
            images = resize(images, self.side, self.fit, self.background)
        return images

    def scaled(self, values: npt.NDArray[Any], where: str, bits: str) -> Pixels:
        """Scale values to uint8 by the white level.

        Raises:
            DataError: there is no white level, or values are not in 0..white level.
        """
        return depth.scaled(values, self.white_level, where, bits)

    def announce(self, encoded: Iterable[Encoded], every: bool = False) -> ImageShape:
        """Determine the shape that images will be decoded to.

        The size is taken from the headers of the first images, which must agree. To choose between
        greyscale and colour, images are decoded until one is in colour.

        Args:
            encoded: the images, in order.
            every: search all images for colour, not only the first `CHUNK_IMAGES`.

        Raises:
            ImageSizeError: the first images differ in size and are not resized.
            DataError: an inspected image is empty or damaged.
        """
        chunks = _chunks(encoded)
        first = next(chunks, (0, []))[1]
        if not first:
            return ImageShape(1, self.side or 0, self.side or 0)
        channels = self._channels(first)
        if channels == 1 and every and self.mode is None:
            channels = max((self._channels(chunk) for _, chunk in chunks), default=1)
        height, width = (0, 0) if self.side is not None else _common_size(first)
        return ImageShape(channels, *self.size(height, width))

    def _channels(self, images: list[Encoded]) -> int:
        """Number of channels that the given images need: 3 if one of them is in colour."""
        if self.mode is not None:
            return _CHANNELS[self.mode]
        red, green, blue = self.background
        grey_background = red == green == blue
        for encoded in images:
            image = _open(encoded)[0]
            # transparent pixels take the background colour
            opaque = grey_background or not image.has_transparency_data
            if image.mode in GREYSCALE and opaque:
                continue
            try:
                self.decode(encoded, 1, DecodeLog())
            except ColourError:
                return 3
        return 1

    def decode(self, encoded: Encoded, channels: int, log: DecodeLog) -> Image.Image:
        """Decode one image to mode L or RGB, upright and resized.

        PIL may read the pixels only when they are accessed, which may raise one of `DAMAGE`.

        Raises:
            DataError: the image is empty, damaged, or has more than 8 bits per channel.
            ColourError: the image is in colour, but one channel was requested.
        """
        image, content = _open(encoded)
        try:
            # nearly all images need no conversion; skipping the checks matters for small ones,
            # which decode in microseconds
            if not (_is_plain(image, content) and image.mode == _MODES[channels]):
                image = self._eight_bits(image, content, encoded.where, log)
                if image.format in MANY_FRAMES and getattr(image, "is_animated", False):
                    log.conversions["only the first of several frames or pages read"] += 1
                image = _upright(image, log)
                image = self._opaque(image, log)
                image = self._in_mode(image, channels, log)
            if self.side is not None:
                log.sizes[image.height, image.width] += 1
                image = fit_square(image, self.side, self.fit, self.background)
        except DAMAGE as error:
            raise damaged(encoded, error) from error
        return image

    def _eight_bits(
        self, image: Image.Image, content: bytes | memoryview, where: str, log: DecodeLog
    ) -> Image.Image:
        """Scale an image with more than 8 bits per channel, or raise an error."""
        bits = depth.bits_of(image, content)
        if bits <= 8:
            return image
        full = depth.full_range(image, bits)
        if image.mode in depth.DEEP:
            values = np.asarray(image)
            if image.format == "PPM":
                # PIL scaled the values to 16 bits
                values = np.rint(values * (full / 65535))
            pixels = self.scaled(values, where, f"mode '{image.mode}'")
            # the orientation is applied later
            kept: dict[Any, Any] = {
                key: image.info[key] for key in ORIENTED_BY if key in image.info
            }
            format = image.format
            image = Image.fromarray(pixels)
            image.info = kept
            image.format = format
        elif self.white_level is None:
            raise DataError(
                f"Images must have 8 bits per channel. Got values up to {full} (mode "
                f"'{image.mode}') at {where} instead: set 'data.white_level={full}' to scale them."
            )
        elif self.white_level != full:
            # PIL scales deep colour images itself, from the full range to 8 bits per channel
            raise DataError(
                f"Colours with more than 8 bits can only be scaled from their full range, with "
                f"'data.white_level={full}'. Got {self.white_level:g} for {where} instead: if that "
                "is white, convert the images to 8 bits per channel first."
            )
        log.conversions[f"scaled to 8 bits per channel (white is {self.white_level:g})"] += 1
        return image

    def _opaque(self, image: Image.Image, log: DecodeLog) -> Image.Image:
        """Composite an image with transparent pixels on the background."""
        if not image.has_transparency_data:
            return image
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema()[0] == 255:
            return image
        canvas = Image.new("RGBA", image.size, (*self.background, 255))
        canvas.alpha_composite(layers)
        red, green, blue = self.background
        log.conversions[f"transparency composited on #{red:02x}{green:02x}{blue:02x}"] += 1
        return canvas.convert("RGB")

    def _in_mode(self, image: Image.Image, channels: int, log: DecodeLog) -> Image.Image:
        """Convert an opaque image to mode L or RGB."""
        if channels == 3:
            if image.mode == "RGB":
                return image
            if image.mode in GREYSCALE:
                log.conversions["greyscale repeated in three channels"] += 1
            elif image.mode not in ("RGBA", "P"):
                log.conversions[f"converted from {image.mode} to RGB"] += 1
            return image.convert("RGB")
        if image.mode in GREYSCALE:
            return image if image.mode == "L" else image.convert("L")
        image = image if image.mode == "RGB" else image.convert("RGB")
        if _is_grey(image):
            return image.getchannel(0)
        if self.mode != "grey":
            raise ColourError
        log.conversions["colours converted to greyscale"] += 1
        return image.convert("L")


PLAIN = Decoder()
"""Decoder without any settings."""


def decode_images(
    encoded: Iterable[Encoded],
    count: int,
    decoder: Decoder | None = None,
    shape: ImageShape | None = None,
    threads: int | None = None,
    log: DecodeLog | None = None,
) -> Pixels:
    """Decode `count` encoded images to one array uint8 (count, C, H, W).

    Without `shape`, the first images determine the size, and the set is greyscale if no image is in
    colour, regardless of how pixels are stored.

    Args:
        encoded: the images, in order; consumed lazily.
        count: number of images.
        decoder: settings for decoding.
        shape: shape to decode to; by default determined from the images.
        threads: number of decoding threads; by default one per available core.
        log: counts conversions.

    Raises:
        DataError: an image is empty, damaged, of a different size, has more than 8 bits per
            channel, or is in colour while `shape` is greyscale.
    """
    decoder = decoder or PLAIN
    threads = threads or cores()
    # if the shape is given, the first chunk need not be large, so small batches use all threads
    chunks = _chunks(
        encoded,
        CHUNK_IMAGES if shape is None else min(CHUNK_IMAGES, -(-count // (2 * threads)) or 1),
    )
    first = next(chunks, (0, []))
    undecided = shape is None and decoder.mode is None
    if shape is None:
        shape = decoder.announce(first[1])
    decoded = np.empty((count, *shape), np.uint8)
    log = log if log is not None else DecodeLog()
    with ThreadPoolExecutor(threads, "rayd-decode") as pool:
        decoding = _Decoding(decoder, decoded, log, pool, undecided)
        try:
            for start, chunk in chain([first], chunks):
                decoding.submit(start, chunk)
                if decoding.running > 2 * threads:
                    decoding.collect()
            while decoding.running:
                decoding.collect()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return decoding.decoded


@dataclass
class _Decoding:
    """Threaded decoding of chunks of images into one array."""

    decoder: Decoder
    decoded: Pixels
    """Images (N, C, H, W); greyscale at first, three channels once an image is in colour."""
    log: DecodeLog
    pool: ThreadPoolExecutor
    undecided: bool
    """Whether colour images may still occur, because neither shape nor mode was given."""
    _jobs: deque[tuple[int, list[Encoded], Future[DecodeLog]]] = field(default_factory=deque)
    """First row, images and result of each chunk, in order."""

    @property
    def running(self) -> int:
        """Number of chunks whose results are not collected yet."""
        return len(self._jobs)

    def submit(self, start: int, chunk: list[Encoded]) -> None:
        """Start decoding a chunk whose first image goes to row `start`."""
        target = self.decoded[start : start + len(chunk)]
        job = self.pool.submit(_decode_chunk, self.decoder, chunk, target)
        self._jobs.append((start, chunk, job))

    def collect(self) -> None:
        """Wait for the oldest chunk.

        Raises:
            DataError: an image is damaged, or differs in size or colour.
        """
        start, chunk, job = self._jobs.popleft()
        try:
            self.log.add(job.result())
        except ColourError:
            if not self.undecided:
                raise _coloured(self.decoder, chunk) from None
            self._widen(start, chunk)

    def _widen(self, start: int, chunk: list[Encoded]) -> None:
        """Switch to colour at a chunk with a colour image; repeat the channel of earlier images."""
        again = [(start, chunk)]
        for other, images, job in self._jobs:
            try:
                self.log.add(job.result())
            except ColourError:
                again.append((other, images))
        self._jobs.clear()
        if self.decoded.shape[1] == 1:
            self.decoded = np.repeat(self.decoded, 3, axis=1)
        for first, images in again:
            self.submit(first, images)


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


def _decode_chunk(decoder: Decoder, chunk: list[Encoded], decoded: Pixels) -> DecodeLog:
    channels, height, width = decoded.shape[1:]
    log = DecodeLog()
    for encoded, target in zip(chunk, decoded, strict=True):
        image = decoder.decode(encoded, channels, log)
        if image.size != (width, height):
            raise _other_size(encoded, (image.height, image.width), (height, width))
        try:
            pixels = np.frombuffer(image.tobytes(), np.uint8)
        except DAMAGE as error:
            raise damaged(encoded, error) from error
        target[...] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return log


def _common_size(images: list[Encoded]) -> tuple[int, int]:
    """Height and width of images, by their headers.

    Raises:
        ImageSizeError: they differ.
    """
    common = _upright_size(images[0])
    for encoded in images:
        size = _upright_size(encoded)
        if size != common:
            raise _other_size(encoded, size, common)
    return common


def _other_size(encoded: Encoded, size: tuple[int, int], common: tuple[int, int]) -> ImageSizeError:
    """Create the error for an image whose height and width differ from the others'."""
    return ImageSizeError(
        "Images must all have the same size unless 'data.image_size' is set: "
        f"{encoded.where} has height x width {size[0]} x {size[1]}, "
        f"expected {common[0]} x {common[1]}."
    )


def _coloured(decoder: Decoder, chunk: list[Encoded]) -> DataError:
    """Create the error for a colour image in a greyscale set."""
    where = next(encoded.where for encoded in chunk if decoder._channels([encoded]) == 3)
    return DataError(
        f"The image at {where} is in colour, but the training images are greyscale: set "
        "'data.mode=rgb' to read all in colour, or 'data.mode=grey' to convert all to greyscale."
    )


def _open(encoded: Encoded) -> tuple[Image.Image, bytes | memoryview]:
    """Open an image and read its header, but not its pixels; also return its content."""
    try:
        content = (
            encoded.content
            if isinstance(encoded.content, bytes | memoryview)
            else encoded.content.read_bytes()
        )
        if len(content) == 0:
            raise DataError(f"The image at {encoded.where} is empty (0 bytes).")
        image = Image.open(io.BytesIO(content))
        if image.format == "PNG" and _follows_pixels(bytes(content)):
            # PIL reads what comes after the pixels, perhaps the orientation, only with them
            image.load()
    except DAMAGE as error:
        raise damaged(encoded, error) from error
    if image.format in DRAWINGS:
        raise DataError(
            f"The image at {encoded.where} is a drawing ({image.format}), which is not supported; "
            "convert it to PNG."
        )
    return image, content


def _follows_pixels(png: bytes) -> bool:
    """Whether a PNG file has other chunks than the last, empty one after its pixels."""
    kind = png.rfind(b"IDAT")
    size = int.from_bytes(png[kind - 4 : kind], "big")
    # kind and checksum take four bytes each, the empty chunk twelve
    return kind >= 4 and len(png) - (kind + 4 + size + 4) > 12


def _is_plain(image: Image.Image, content: bytes | memoryview) -> bool:
    """Whether an image of mode L or RGB needs no conversion, judging by its header."""
    if not _SPECIAL.isdisjoint(image.info):
        return False
    if image.format == "PNG":
        return content[24] <= 8 and not getattr(image, "is_animated", False)
    return image.format == "JPEG"


def _upright(image: Image.Image, log: DecodeLog) -> Image.Image:
    """Rotate an image upright according to its EXIF orientation; PIL itself does so for TIFF."""
    if not any(key in image.info for key in ORIENTED_BY):
        return image
    if image.getexif().get(ORIENTATION, 1) not in range(2, 9):
        return image
    log.conversions["turned upright (EXIF orientation)"] += 1
    return ImageOps.exif_transpose(image)


def _upright_size(encoded: Encoded) -> tuple[int, int]:
    """Height and width of an image after rotating it upright, from its header."""
    image, _ = _open(encoded)
    turned = False
    try:
        if image.format != "TIFF" and any(key in image.info for key in ORIENTED_BY):
            turned = image.getexif().get(ORIENTATION, 1) in range(5, 9)
    except DAMAGE as error:
        raise damaged(encoded, error) from error
    return (image.width, image.height) if turned else (image.height, image.width)


def _is_grey(image: Image.Image) -> bool:
    """Whether all channels of an RGB image are equal."""
    pixels = np.asarray(image)
    return bool(
        (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all()
    )


def _are_grey(images: Pixels) -> bool:
    """Whether all channels are equal in images (N, 3, H, W)."""
    # in pieces, because most colour sets have a colour image in the first one
    pieces = (images[start : start + CHUNK_IMAGES] for start in range(0, len(images), CHUNK_IMAGES))
    return all(bool((piece == piece[:, :1]).all()) for piece in pieces)


def _count_coloured(images: Pixels) -> int:
    """Number of colour images among images (N, 3, H, W)."""
    pieces = (images[start : start + CHUNK_IMAGES] for start in range(0, len(images), CHUNK_IMAGES))
    return sum(int((piece != piece[:, :1]).any(axis=(1, 2, 3)).sum()) for piece in pieces)


def _luminance(images: Pixels) -> Pixels:
    """Convert colour images (N, 3, H, W) to greyscale (N, 1, H, W) like PIL (ITU-R 601-2)."""
    weights = np.array([19595, 38470, 7471], np.uint32)
    grey = np.empty((len(images), 1, *images.shape[2:]), np.uint8)
    for image, target in zip(images, grey, strict=True):
        target[0] = (np.tensordot(weights, image.astype(np.uint32), 1) + 0x8000) >> 16
    return grey


def damaged(encoded: Encoded, error: Exception) -> DataError:
    """Create the error for an image that PIL cannot read."""
    reason = (
        "its image format is unknown"
        if isinstance(error, UnidentifiedImageError)
        else str(error).rstrip(".")
    )
    # errors with an errno come from the file system, not from the image's content
    remedy = "; remove or replace it" if getattr(error, "errno", None) is None else ""
    return DataError(f"Cannot decode the image at {encoded.where}: {reason}{remedy}.")
