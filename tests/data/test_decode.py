"""Decoding gives the pixels that were encoded, and says which image it could not decode."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayd.data.decode import CHUNK_IMAGES, DecodeLog, Decoder, Encoded, decode_images
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


def test_colour_is_decided_by_all_images() -> None:
    """A colour after thousands of greyscale images makes the set one of colours."""
    grey = some_images(3 * CHUNK_IMAGES, channels=1)
    colour = some_images(1)[0]
    contents = encoded(*map(encode, grey), encode(colour))
    decoded = decode_images(contents, len(contents), threads=4)
    assert np.array_equal(decoded[:-1], np.repeat(grey, 3, 1))
    assert np.array_equal(decoded[-1], colour)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA", "LA", "1"])
def test_grey_pixels_are_greyscale_however_they_are_stored(mode: str) -> None:
    grey = 255 * (some_images(3, channels=1) > 127).astype(np.uint8)
    decoded = decode_images(encoded(*(encode(image, mode=mode) for image in grey)), 3)
    assert np.array_equal(decoded, grey)


def test_colours_are_refused_where_the_training_images_are_greyscale() -> None:
    contents = encoded(encode(some_images(1, channels=1)[0]), encode(some_images(1)[0]))
    with pytest.raises(DataError, match=r"image at row 1 is in colour, .* set 'data.mode=rgb'"):
        decode_images(contents, 2, shape=ImageShape(1, 4, 4))


def test_mode_is_a_setting() -> None:
    colour = some_images(1)[0]
    grey = some_images(1, channels=1)[0]
    contents = encoded(encode(grey), encode(colour))
    decoded = decode_images(contents, 2, Decoder(mode="grey"))
    reference = Image.fromarray(colour.transpose(1, 2, 0)).convert("L")
    assert np.array_equal(decoded, np.stack([grey, np.asarray(reference)[None]]))
    assert np.array_equal(Decoder(mode="grey").arrays(colour[None]), decoded[1:])
    assert np.array_equal(
        decode_images(contents[:1], 1, Decoder(mode="rgb"))[0], np.repeat(grey, 3, 0)
    )
    assert np.array_equal(Decoder(mode="rgb").arrays(grey[None])[0], np.repeat(grey, 3, 0))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(format: str, orientation: int) -> None:
    """Pixels are those that viewers show, whichever way the camera was held."""
    seen = np.zeros((3, 16, 32), np.uint8)
    seen[0, :8] = 255
    seen[1, :, 16:] = 255
    stored = {
        1: seen,
        2: seen[:, :, ::-1],
        3: seen[:, ::-1, ::-1],
        4: seen[:, ::-1],
        5: seen.transpose(0, 2, 1),
        6: seen.transpose(0, 2, 1)[:, ::-1],
        7: seen.transpose(0, 2, 1)[:, ::-1, ::-1],
        8: seen.transpose(0, 2, 1)[:, :, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    if format == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    content = encode(stored, format, exif=exif, **options)
    log = DecodeLog()
    decoded = decode_images(encoded(content), 1, log=log)
    assert decoded.shape == (1, 3, 16, 32)
    assert np.abs(decoded[0].astype(int) - seen).max() <= 3
    if format != "TIFF" and orientation > 1:
        assert log.conversions == {"turned upright (EXIF orientation)": 1}


def test_a_png_whose_orientation_follows_its_pixels_is_turned_upright() -> None:
    """As programs write it that add EXIF data to a finished file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (seen,) = some_images(1, 3)
    content = encode(seen[:, ::-1].transpose(0, 2, 1), "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    log = DecodeLog()
    decoded = [decode_images(encoded(one), 1, log=log)[0] for one in (content, moved)]
    assert np.array_equal(*decoded)
    assert log.conversions == {"turned upright (EXIF orientation)": 2}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
def test_transparency_is_composited_on_the_background(mode: str) -> None:
    opaque = np.zeros((6, 6), bool)
    opaque[2:4, 1:5] = True
    options = {}
    if mode in ("RGBA", "LA"):
        pixels = np.zeros((6, 6, len(mode)), np.uint8)
        pixels[opaque, -1] = 255
        picture = Image.fromarray(pixels)
    elif mode == "PA":
        picture = Image.merge(
            "LA", [Image.new("L", (6, 6)), Image.fromarray(255 * opaque.astype(np.uint8))]
        )
        picture = picture.convert("RGBA").quantize(4)
    else:
        picture = Image.fromarray(np.where(opaque, 0, 9).astype(np.uint8)).convert(mode)
        options = {"transparency": (9, 9, 9) if mode == "RGB" else 9}
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    content = buffer.getvalue()
    decoded = decode_images(encoded(content), 1)[0, 0]
    assert np.array_equal(decoded, np.where(opaque, 0, 255))
    coloured = decode_images(encoded(content), 1, Decoder(background=(10, 200, 30)))[0]
    assert np.array_equal(coloured[:, 0, 0], [10, 200, 30])
    assert np.array_equal(coloured[:, 2, 2], [0, 0, 0])


def test_half_transparent_pixels_are_mixed() -> None:
    pixels = np.full((4, 4, 4), 100, np.uint8)
    pixels[..., 3] = 128
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    decoded = decode_images(encoded(buffer.getvalue()), 1)
    assert np.abs(decoded.astype(int) - 177).max() <= 1


def png_of_16_bits(kind: int, channels: int, value: int = 300) -> bytes:
    """PNG of 4 x 4 pixels with 16 bits a channel, which PIL cannot write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    row = b"\0" + np.full((4, channels), value, ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(4 * row))
        + chunk(b"IEND", b"")
    )


def of_16_bits(format: str, value: int = 300) -> bytes:
    if format.startswith("PNG"):
        kind, channels = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}[format[4:]]
        return png_of_16_bits(kind, channels, value)
    if format == "PPM":
        return b"P6 4 4 65535\n" + np.full((16, 3), value, ">u2").tobytes()
    if format == "PGM":
        return b"P5 4 4 65535\n" + np.full(16, value, ">u2").tobytes()
    kind = {"TIFF F": np.float32, "TIFF I": np.int32}.get(format, np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), value, kind)).save(buffer, format.split()[0])
    return buffer.getvalue()


DEEP = [
    "PNG L",
    "PNG RGB",
    "PNG LA",
    "PNG RGBA",
    "PPM",
    "PGM",
    "TIFF",
    "TIFF F",
    "TIFF I",
    "JPEG2000",
]


@pytest.mark.parametrize("format", DEEP)
def test_more_than_8_bits_are_refused_in_every_format(format: str) -> None:
    with pytest.raises(DataError, match=r"8 bits per channel. Got .*'data.white_level"):
        decode_images(encoded(of_16_bits(format)), 1)


@pytest.mark.parametrize("format", ["PNG L", "PGM", "TIFF", "TIFF F", "TIFF I", "JPEG2000"])
def test_more_than_8_bits_are_scaled_by_the_white_level(format: str) -> None:
    decoder = Decoder(white_level=600)
    assert (decode_images(encoded(of_16_bits(format)), 1, decoder) == 128).all()
    with pytest.raises(
        DataError, match=r"must lie in 0\.\.600 \('data.white_level'\). Got 700 to 700"
    ):
        decode_images(encoded(of_16_bits(format, 700)), 1, decoder)


@pytest.mark.parametrize("format", ["PNG RGB", "PPM"])
def test_deep_colours_are_scaled_from_their_full_range(format: str) -> None:
    content = of_16_bits(format, 32896)
    assert (decode_images(encoded(content), 1, Decoder(white_level=65535)) == 128).all()
    with pytest.raises(DataError, match="only be scaled from their full range"):
        decode_images(encoded(content), 1, Decoder(white_level=4095))


def test_bitmaps_of_16_bits_a_pixel_have_less_than_8_a_channel() -> None:
    """Rows of red and green, and of blue and white, in 5, 6 and 5 bits; the last row first."""
    colours = struct.pack("<4H", 0x001F, 0xFFFF, 0xF800, 0x07E0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, len(colours), 0, 0, 0, 0) + masks
    start = 14 + len(header)
    file = b"BM" + struct.pack("<IHHI", start + len(colours), 0, 0, start) + header + colours
    read = decode_images([Encoded(file, "x")], 1)
    assert read[0].transpose(1, 2, 0).tolist() == [
        [[255, 0, 0], [0, 255, 0]],
        [[0, 0, 255], [255, 255, 255]],
    ]


def test_drawings_are_refused_before_a_program_draws_them() -> None:
    """PIL starts Ghostscript for the content of a file, whatever its suffix."""
    drawing = encode(some_images(1)[0], "EPS")
    with pytest.raises(DataError, match=r"'a.png' is a drawing \(EPS\), which is not supported"):
        decode_images([Encoded(drawing, "'a.png'")], 1)


def test_frames_beyond_the_first_are_counted() -> None:
    frames = [Image.fromarray(image[0]) for image in some_images(3, channels=1)]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        options = {"lossless": True} if format == "WEBP" else {}
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:], **options)
        log = DecodeLog()
        decoded = decode_images(encoded(buffer.getvalue()), 1, log=log)
        assert np.array_equal(decoded[0, 0], np.asarray(frames[0]))
        assert log.conversions["only the first of several frames or pages read"] == 1


def test_other_colour_spaces_become_rgb_and_are_counted() -> None:
    content = encode(some_images(1)[0], "JPEG", mode="CMYK")
    log = DecodeLog()
    decoded = decode_images(encoded(content), 1, log=log)
    assert np.array_equal(
        decoded[0], np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    )
    assert log.conversions == {"converted from CMYK to RGB": 1}


def test_crop_squash_and_pad_keep_what_they_say() -> None:
    """A bar at the edge of a wide image is cut off, squashed or kept with its shape."""
    wide = np.full((3, 16, 48), 128, np.uint8)
    wide[:, :, :6] = 255
    content = encoded(encode(wide))
    assert (decode_images(content, 1, Decoder(16)) == 128).all()
    squashed = decode_images(content, 1, Decoder(16, fit="squash"))[0]
    assert (squashed[:, :, 0] > 240).all()
    assert (squashed[:, :, 4:] == 128).all()
    padded = decode_images(content, 1, Decoder(16, fit="pad", background=(0, 0, 0)))[0]
    assert (padded[:, :5] == 0).all()
    assert (padded[:, 6:10, 0] > 240).all()
    for fit in ("crop", "squash", "pad"):
        decoder = Decoder(16, fit=fit, mode="rgb")
        decoded = decode_images(content, 1, decoder)
        assert np.array_equal(decoder.arrays(wide[None]), decoded)


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
    assert decode_images(contents, 2, Decoder(8)).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"row 1 is empty \(0 bytes\)"),
        (b"no image at all", "Cannot decode the image at row 1: its image format is unknown"),
        (encode(some_images(1, side=32)[0])[:-900], "Cannot decode the image at row 1"),
        (
            encode(some_images(1, side=64)[0], "JPEG")[:900],
            "Cannot decode the image at row 1: .*truncated.*; remove or replace it",
        ),
        (
            encode(np.full((1, 4, 4), 300, np.uint16)),
            r"8 bits per channel. Got mode 'I(;16)?' with values 300 to 300 at row 1",
        ),
    ],
    ids=["empty", "no image", "truncated png", "truncated jpeg", "16 bits"],
)
def test_a_damaged_image_is_named(content: bytes, sentence: str) -> None:
    good = some_images(1, side=64)[0]
    shape = ImageShape(3, 64, 64)
    side = 64 if len(content) > 900 else None
    with pytest.raises(DataError, match=sentence):
        decode_images(encoded(encode(good), content), 2, Decoder(side), shape)


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


def _netpbm(values: np.ndarray, largest: int) -> bytes:
    """Netpbm file of values (H, W) or (H, W, 3) with a stated largest value."""
    kind = "P5" if values.ndim == 2 else "P6"
    head = f"{kind} {values.shape[1]} {values.shape[0]} {largest}\n"
    return head.encode() + values.astype(">u2").tobytes()


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_netpbm_files_are_scaled_from_the_value_that_they_state(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 1024, shape)
    content = encoded(_netpbm(values, 1023))
    with pytest.raises(DataError, match=r"data\.white_level"):
        decode_images(content, 1)
    pixels = decode_images(content, 1, Decoder(white_level=1023))[0]
    wanted = np.rint(values * (255 / 1023)).reshape(4, 4, -1).transpose(2, 0, 1)
    assert np.abs(pixels.astype(int) - wanted).max() <= 1


def test_deep_colours_are_not_scaled_from_a_part_of_their_range() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (4, 4, 3))
    content = encoded(_netpbm(values, 65535))
    with pytest.raises(DataError, match=r"with 'data.white_level=65535'. Got 4095 .*8 bits"):
        decode_images(content, 1, Decoder(white_level=4095))


def test_a_white_level_is_proposed_that_the_values_fit() -> None:
    for largest, proposed in ((1.0, "1"), (900.0, "1023"), (4000.0, "4095")):
        buffer = io.BytesIO()
        Image.fromarray(np.linspace(0, largest, 16, dtype=np.float32).reshape(4, 4)).save(
            buffer, "TIFF"
        )
        with pytest.raises(DataError, match=f"e.g. {proposed}, to scale"):
            decode_images(encoded(buffer.getvalue()), 1)


def test_pixels_that_are_no_numbers_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(buffer, "TIFF")
    for level in (None, 1.0):
        with pytest.raises(DataError, match=r"must be numbers. Got NaN"):
            decode_images(encoded(buffer.getvalue()), 1, Decoder(white_level=level))


@pytest.mark.parametrize("format", ["AVIF", "DDS", "TIFF", "PNG", "GIF", "BMP", "PCX"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_are_refused_in_every_format(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PIL's readers raise what they please; images that decode all the same are right or not."""
    # a header may announce a huge image
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**5)
    picture = Image.fromarray(some_images(1, side=9)[0].transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.convert("RGBA" if format == "DDS" else "RGB").save(buffer, format)
    draws = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        content = bytearray(buffer.getvalue())
        for position in draws.integers(0, min(len(content), 300), 3):
            content[position] = draws.integers(0, 256)
        try:
            decode_images(encoded(bytes(content)), 1, Decoder(8), threads=1)
        except DataError:
            refused += 1
    assert refused
