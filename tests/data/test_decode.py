"""Decoding gives the pixels that were encoded, and says which image it could not decode."""

import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayd.data.decode import CHUNK_IMAGES, Encoded, decode_images
from rayd.data.images import ImageShape
from rayd.errors import DataError
from tests.data.files import encode, some_images


def encoded(*contents: bytes) -> list[Encoded]:
    return [Encoded(content, f"row {row}") for row, content in enumerate(contents)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_pixels_come_back_in_order(channels: int, threads: int) -> None:
    images = some_images(2 * CHUNK_IMAGES + 3, channels)
    decoded = decode_images(encoded(*map(encode, images)), len(images), threads=threads)
    assert np.array_equal(decoded, images)
    assert decoded.flags.c_contiguous


def test_files_are_decoded_as_bytes_are(tmp_path: Path) -> None:
    images = some_images(3)
    for row, image in enumerate(images):
        (tmp_path / f"{row}.png").write_bytes(encode(image))
    decoded = decode_images((Encoded(tmp_path / f"{row}.png", f"{row}") for row in range(3)), 3)
    assert np.array_equal(decoded, images)


def test_jpeg_is_decoded_as_pil_does() -> None:
    content = encode(some_images(1, side=16)[0], "JPEG")
    reference = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)
    assert np.array_equal(decode_images(encoded(content), 1)[0], reference)


def test_greyscale_palette_and_alpha_become_rgb_in_an_rgb_set() -> None:
    colour = some_images(1)[0]
    grey = some_images(1, channels=1)[0]
    decoded = decode_images(
        encoded(encode(grey), encode(colour, mode="RGBA"), encode(grey, mode="P"), encode(colour)),
        4,
    )
    assert np.array_equal(decoded[[0, 2]], np.broadcast_to(grey, (2, 3, 4, 4)))
    assert np.array_equal(decoded[[1, 3]], np.stack([colour, colour]))


def test_colours_in_a_greyscale_set_are_refused() -> None:
    grey = [encode(image) for image in some_images(4, channels=1)]
    with pytest.raises(
        DataError, match=r"image at row 4 has colours \(mode 'RGB'\) in a greyscale set"
    ):
        decode_images(encoded(*grey, encode(some_images(1)[0])), 5)


def test_a_demanded_shape_decides_over_the_first_image() -> None:
    grey = some_images(2, channels=1)
    decoded = decode_images(encoded(*map(encode, grey)), 2, shape=ImageShape(3, 4, 4))
    assert np.array_equal(decoded, np.repeat(grey, 3, 1))
    with pytest.raises(DataError, match="row 0 has height x width 4 x 4, expected 5 x 4"):
        decode_images(encoded(*map(encode, grey)), 2, shape=ImageShape(3, 5, 4))


def test_another_size_is_refused_with_the_way_out() -> None:
    odd = np.zeros((3, 5, 6), np.uint8)
    contents = encoded(encode(some_images(1)[0]), encode(odd))
    with pytest.raises(
        DataError, match=r"'data.image_size' is set: row 1 has height x width 5 x 6, expected 4 x 4"
    ):
        decode_images(contents, 2)
    assert decode_images(contents, 2, side=8).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"row 1 is empty \(0 bytes\)"),
        (b"no image at all", "Cannot decode the image at row 1: it is in no known image format"),
        (encode(some_images(1, side=32)[0])[:-900], "Cannot decode the image at row 1"),
        (
            encode(some_images(1, side=64)[0], "JPEG")[:900],
            "Cannot decode the image at row 1: .*truncated",
        ),
        (
            encode(np.full((1, 4, 4), 300, np.uint16)),
            r"8 bits per channel. Got mode 'I(;16)?' at row 1",
        ),
    ],
    ids=["empty", "no image", "truncated png", "truncated jpeg", "16 bits"],
)
def test_a_damaged_image_is_named(content: bytes, sentence: str) -> None:
    good = some_images(1, side=64)[0]
    shape = ImageShape(3, 64, 64)
    with pytest.raises(DataError, match=sentence):
        decode_images(
            encoded(encode(good), content), 2, side=64 if len(content) > 900 else None, shape=shape
        )


def test_a_truncated_image_is_refused_or_whole() -> None:
    image = some_images(1, side=8)
    content = encode(image[0])
    refused = 0
    for length in range(len(content)):
        try:
            assert np.array_equal(decode_images(encoded(content[:length]), 1), image)
        except DataError:
            refused += 1
    assert (
        refused >= len(content) - 20
    )  # without its end marker and checksums an image is still whole


def test_a_damaged_byte_never_ends_in_another_error() -> None:
    rng = np.random.default_rng(0)
    for content in (encode(some_images(1, side=8)[0]), encode(some_images(1, side=8)[0], "JPEG")):
        for _ in range(200):
            damaged = bytearray(content)
            damaged[rng.integers(len(damaged))] = rng.integers(256)
            with suppress(DataError):
                decode_images(encoded(bytes(damaged)), 1)


def test_encoded_images_are_read_only_a_little_ahead() -> None:
    read = 0

    def damaged_from_the_start() -> Iterator[Encoded]:
        nonlocal read
        for row in range(100 * CHUNK_IMAGES):
            read += 1
            yield Encoded(b"no image", f"row {row}")

    with pytest.raises(DataError, match="row 0"):
        decode_images(
            damaged_from_the_start(), 100 * CHUNK_IMAGES, shape=ImageShape(3, 4, 4), threads=2
        )
    assert read <= 10 * CHUNK_IMAGES


def test_no_images_are_an_empty_array() -> None:
    assert decode_images([], 0, shape=ImageShape(3, 4, 4)).shape == (0, 3, 4, 4)
