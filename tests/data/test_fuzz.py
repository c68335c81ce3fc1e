"""Generated data sets are read as they were generated, or refused in one sentence.

A data set is drawn (classes, images, how each is stored), written in one of the layouts, perhaps
damaged, and read. What comes back must be what was drawn: every image under its class, in its
split. A long run by hand:

    pytest tests/data/test_fuzz.py -m slow
"""

from __future__ import annotations

import io
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rayd.config import DataSettings
from rayd.data import ImageSet, load
from rayd.errors import RaydError
from tests.data.files import write_parquet

FAST = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LONG = settings(FAST, max_examples=1000, derandomize=False)

NAMES = (
    "cat",
    "dog",
    "no",
    "010",
    "1e3",
    "null",
    "caf\u00e9",
    "שלום",
    "train",
    "test",
    "a b",
    "__x",
)
SPLITS = (
    ("train", "test"),
    ("training", "testing"),
    ("Train", "valid"),
    ("seg_train", "seg_test"),
    ("train", "holdout"),
    ("train2017", "val2017"),
)
KEYS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("X_train", "Y_train", "X_eval", "Y_eval"),
    ("trainX", "trainY", "testX", "testY"),
)
STORED = ("plain", "palette", "alpha", "transparent", "orientation", "rgb", "tiff", "webp", "deep")
"""How an image is stored; only `deep` ones are refused."""
SIDE = 6

Contents = Counter[tuple[str, bytes]]
"""Images by class name and pixels."""


@dataclass(frozen=True)
class Drawn:
    """A data set before it is written."""

    names: tuple[str, ...]
    train: tuple[tuple[int, np.ndarray, str], ...]
    """Label, pixels (C, H, W) and storage of each training image."""
    test: tuple[tuple[int, np.ndarray, str], ...]
    colour: bool

    @property
    def deep(self) -> bool:
        """Whether an image must be refused."""
        return any(stored == "deep" for _, _, stored in (*self.train, *self.test))

    def contents(self, split: Sequence[tuple[int, np.ndarray, str]]) -> Contents:
        """What must be read of a split."""
        channels = 3 if self.colour else 1
        return Counter(
            (self.names[label], np.repeat(pixels, channels // len(pixels), 0).tobytes())
            for label, pixels, _ in split
        )


@st.composite
def data_sets(draw: st.DrawFn) -> Drawn:
    """Two or three classes with two to four training images and one test image or two."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=3, unique=True))
    colour = draw(st.booleans())
    pixels = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kinds = st.sampled_from(STORED[:-1] if draw(st.integers(0, 3)) else STORED)

    def images(label: int, count: int) -> list[tuple[int, np.ndarray, str]]:
        found = []
        for _ in range(count):
            channels = 3 if colour else 1
            image = pixels.integers(0, 256, (channels, SIDE, SIDE), dtype=np.uint8)
            found.append((label, image, draw(kinds)))
        return found

    train = [one for label in range(len(names)) for one in images(label, draw(st.integers(2, 4)))]
    test = [one for label in range(len(names)) for one in images(label, draw(st.integers(1, 2)))]
    return Drawn(tuple(sorted(names)), tuple(train), tuple(test), colour)


def stored(image: np.ndarray, kind: str) -> tuple[bytes, str]:
    """Bytes of an image file that shows `image`, and its suffix."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    exif = Image.Exif()
    suffix, format = {"tiff": (".tif", "TIFF"), "webp": (".webp", "WEBP")}.get(
        kind, (".png", "PNG")
    )
    options: dict[str, object] = {"lossless": True} if kind == "webp" else {}
    if kind == "deep":
        picture = Image.fromarray(image[0].astype(np.uint16) * 200)
    elif kind == "palette":
        # 36 pixels have at most 36 colours
        picture = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        if not np.array_equal(picture.convert("RGB"), _rgb(image)):
            picture = Image.fromarray(_rgb(image))
    elif kind == "alpha":
        picture = picture.convert("RGBA")
    elif kind == "transparent":
        # white is transparent black where the image is white
        pixels = np.dstack([_rgb(image), np.full((SIDE, SIDE), 255, np.uint8)])
        pixels[(pixels[..., :3] == 255).all(-1)] = 0
        picture = Image.fromarray(pixels)
    elif kind == "orientation":
        exif[0x0112] = 6
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        options["exif"] = exif
    elif kind == "rgb":
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue(), suffix


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(image, (3, SIDE, SIDE)).transpose(1, 2, 0))


def write_images(folder: Path, drawn: Drawn, split: Sequence[tuple[int, np.ndarray, str]]) -> None:
    """Write class folders."""
    for index, (label, image, kind) in enumerate(split):
        content, suffix = stored(image, kind)
        parent = folder / drawn.names[label]
        parent.mkdir(parents=True, exist_ok=True)
        (parent / f"{index}{suffix}").write_bytes(content)


def write_arrays(path: Path, drawn: Drawn, keys: Sequence[str], encoded: bool) -> None:
    """Write an npz file of pixels, or of encoded images."""
    arrays: dict[str, np.ndarray] = {"class_names": np.array([n.encode() for n in drawn.names])}
    for (images, labels), split in zip(
        (keys[:2], keys[2:]), (drawn.train, drawn.test), strict=True
    ):
        pixels = [image if not encoded else stored(image, kind)[0] for _, image, kind in split]
        arrays[images] = np.array(pixels)
        arrays[labels] = np.array([label for label, _, _ in split])
    np.savez(path, **arrays)


def write_shards(folder: Path, drawn: Drawn, shards: int) -> None:
    """Write Parquet files."""
    for name, split in (("train", drawn.train), ("test", drawn.test)):
        for shard in range(shards):
            part = split[shard::shards]
            write_parquet(
                folder / f"{name}-{shard:05}-of-{shards:05}.parquet",
                [stored(image, kind)[0] for _, image, kind in part],
                [label for label, _, _ in part],
                names=drawn.names,
            )


def contents(images: ImageSet) -> Contents:
    """What was read of a split."""
    rows = np.arange(len(images))
    pairs = zip(images.labels, images.images[rows], strict=True)
    return Counter((images.class_names[label], pixels.tobytes()) for label, pixels in pairs)


def read(path: Path, stream: bool) -> tuple[Contents, Contents] | str:
    """Images of both splits, or the sentence of a refusal. Any other exception fails the test."""
    try:
        data = load(DataSettings(name=str(path), stream=stream), cache=path.parent / "cache")
        return contents(data.train), contents(data.test)
    except RaydError as error:
        sentence = str(error)
        assert sentence.endswith(".")
        assert "\n" not in sentence
        return sentence


def check_folder(drawn: Drawn, splits: tuple[str, str], stream: bool, decompose: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set"
        write_images(path / splits[0], drawn, drawn.train)
        form = "NFD" if decompose else "NFC"
        names = tuple(unicodedata.normalize(form, name) for name in drawn.names)
        other = Drawn(names, drawn.train, drawn.test, drawn.colour)
        write_images(path / splits[1], other, drawn.test)
        compare(read(path, stream), drawn)


def check_flat(drawn: Drawn) -> None:
    """A folder without splits: all images come back, in their classes."""
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set"
        everything = (*drawn.train, *drawn.test)
        write_images(path, drawn, everything)
        found = read(path, False)
        like_splits = {"train", "test"} >= set(drawn.names)
        if isinstance(found, str):
            assert drawn.deep or like_splits, found
        else:
            assert not drawn.deep
            assert found[0] + found[1] == drawn.contents(everything)


def compare(found: tuple[Contents, Contents] | str, drawn: Drawn) -> None:
    if isinstance(found, str):
        assert drawn.deep, found
        assert "8 bits" in found
    else:
        assert not drawn.deep
        assert found == (drawn.contents(drawn.train), drawn.contents(drawn.test))


def check_npz(drawn: Drawn, keys: Sequence[str], encoded: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set.npz"
        write_arrays(path, drawn, keys, encoded)
        found = read(path, False)
        if encoded:
            compare(found, drawn)
        else:
            assert found == (drawn.contents(drawn.train), drawn.contents(drawn.test))


def check_parquet(drawn: Drawn, shards: int, lost: int | None, stream: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set"
        write_shards(path, drawn, shards)
        if lost is not None and shards > 1:
            (path / f"train-{lost % shards:05}-of-{shards:05}.parquet").unlink()
            assert isinstance(read(path, stream), str)
        else:
            compare(read(path, stream), drawn)


def check_damage(drawn: Drawn, kind: str, at: float, byte: int, cut: bool) -> None:
    """A file with a wrong byte or without its end: right data, or one sentence."""
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "set"
        plain = [(label, image, "plain") for label, image, _ in drawn.train]
        if kind == "folder":
            write_images(path / "train", drawn, plain)
            write_images(path / "test", drawn, [(k, image, "plain") for k, image, _ in drawn.test])
            files = sorted(path.rglob("*.png"))
        elif kind == "npz":
            path = path.with_suffix(".npz")
            write_arrays(path, drawn, KEYS[0], False)
            files = [path]
        else:
            write_shards(path, drawn, 1)
            files = sorted(path.glob("*.parquet"))
        file = files[int(at * 997) % len(files)]
        content = bytearray(file.read_bytes())
        position = int(at * len(content))
        content[position] = byte
        file.write_bytes(content[:position] if cut else content)
        found = read(path, False)
        # checksums of PNG and npz find every changed pixel; Parquet's pages have none here
        if not isinstance(found, str) and kind != "parquet":
            assert found == (drawn.contents(drawn.train), drawn.contents(drawn.test))


FOLDERS = (data_sets(), st.sampled_from(SPLITS), st.booleans(), st.booleans())
ARRAYS = (data_sets(), st.sampled_from(KEYS), st.booleans())
SHARDS = (data_sets(), st.integers(1, 3), st.none() | st.integers(0, 2), st.booleans())
DAMAGE = (
    data_sets(),
    st.sampled_from(["folder", "npz", "parquet"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.booleans(),
)

CHECKS = [
    pytest.param(check_folder, FOLDERS, id="split folders"),
    pytest.param(check_flat, (data_sets(),), id="class folders"),
    pytest.param(check_npz, ARRAYS, id="npz"),
    pytest.param(check_parquet, SHARDS, id="parquet"),
    pytest.param(check_damage, DAMAGE, id="damage"),
]


@pytest.mark.parametrize(("check", "drawn"), CHECKS)
def test_generated_data_are_read_or_refused(check, drawn) -> None:
    FAST(given(*drawn)(check))()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("check", "drawn"), CHECKS)
def test_many_generated_data_are_read_or_refused(check, drawn) -> None:
    LONG(given(*drawn)(check))()
