"""Streamed images are the decoded ones, wherever and in whatever order they are asked for, and
little memory holds them.
"""

import os
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rayd.config import DataSettings
from rayd.data import ImageData, ImageSet, ImageShape, load, loading
from rayd.data import survey as surveying
from rayd.data.decode import Decoder
from rayd.data.formats import folder, parquet
from rayd.data.formats.base import EncodedPixels
from rayd.data.selection import select
from rayd.data.streaming import READ_AHEAD, StreamedPixels, ahead, batches
from rayd.errors import ConfigError, DataError
from rayd.seeding import generator
from tests.data.files import encode, some_images, write_folder, write_parquet

NAMES = ("ant", "bee", "cow")
TRAIN = some_images(60, side=8, seed=1)
TEST = some_images(12, side=8, seed=2)
TRAIN_LABELS = np.arange(60) % 3
TEST_LABELS = np.arange(12) % 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in two training files and one for testing, and in folders, as PNG."""
    path = tmp_path_factory.mktemp("root")
    for shard, rows in enumerate((slice(0, 35), slice(35, 60))):
        contents = [encode(image) for image in TRAIN[rows]]
        labels = TRAIN_LABELS[rows].tolist()
        write_parquet(
            path / "zoo" / f"train-{shard}.parquet",
            contents,
            labels,
            names=NAMES,
            row_group_size=10,
        )
    write_parquet(
        path / "zoo" / "test-0.parquet",
        [encode(i) for i in TEST],
        TEST_LABELS.tolist(),
        names=NAMES,
    )
    for split, images, labels in (("train", TRAIN, TRAIN_LABELS), ("test", TEST, TEST_LABELS)):
        write_folder(
            path / "folders" / split,
            {name: images[labels == label] for label, name in enumerate(NAMES)},
        )
    return path


def zoo(name: str = "zoo", **chosen: object) -> DataSettings:
    return DataSettings(name=name, **{"stream": True, **chosen})


def pixels(data: ImageData) -> StreamedPixels:
    assert isinstance(data.train.images, StreamedPixels)
    return data.train.images


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("decoded")


@pytest.mark.parametrize("name", ["zoo", "folders"])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"image_size": 5},
        {"classes": ("cow", "ant")},
        {"validation_fraction": 0.25, "imbalance": 4},
    ],
    ids=["all", "resized", "classes", "validation and long tail"],
)
def test_streamed_data_are_the_decoded_ones(root: Path, name: str, chosen: dict) -> None:
    streamed, decoded = (load(zoo(name, stream=stream, **chosen), root) for stream in (True, False))
    assert streamed.train.streamed
    assert not decoded.train.streamed
    assert streamed.fingerprint == decoded.fingerprint
    assert streamed.normalization.fingerprint == decoded.normalization.fingerprint
    for one, other in (
        (streamed.train, decoded.train),
        (streamed.validation, decoded.validation),
        (streamed.test, decoded.test),
    ):
        if other is None:
            assert one is None
            continue
        assert one is not None
        assert (one.images.shape, one.images.dtype, one.images.nbytes) == (
            other.images.shape,
            other.images.dtype,
            other.images.nbytes,
        )
        assert np.array_equal(one.images[:], other.images[:])
        assert np.array_equal(one.labels, other.labels)
        assert (
            one.fingerprint
            == other.fingerprint
            == ImageSet(one.images, one.labels, one.class_names).fingerprint
        )


@pytest.mark.parametrize("name", ["zoo", "folders"])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(
    rows=st.lists(st.integers(-60, 59), max_size=20), inner=st.lists(st.integers(0, 19), max_size=9)
)
def test_any_rows_in_any_order(root: Path, name: str, rows: list[int], inner: list[int]) -> None:
    images = pixels(load(zoo(name), root))
    wanted = np.array(rows, np.int64)
    whole = images[:]
    assert np.array_equal(images[wanted], whole[wanted])
    part = images.part(wanted)
    again = np.array([row for row in inner if row < len(rows)], np.int64)
    assert np.array_equal(part[again], whole[wanted][again])
    assert np.array_equal(part.part(again)[:], whole[wanted][again])


@pytest.mark.parametrize(
    "rows", [slice(3, 9), slice(None, None, -7), slice(50, 99), slice(5, 5), np.arange(60) % 4 == 0]
)
def test_slices_and_masks_mean_what_they_mean_for_arrays(
    root: Path, rows: slice | np.ndarray
) -> None:
    images = pixels(load(zoo(), root))
    assert np.array_equal(images[rows], TRAIN[rows])
    assert np.array_equal(images.part(rows)[:], TRAIN[rows])


def test_what_no_array_of_rows_would_be_is_refused(root: Path) -> None:
    images = pixels(load(zoo(), root))
    with pytest.raises(IndexError):
        images[np.array([60])]
    with pytest.raises(IndexError, match="slice or by an array"):
        images[np.zeros((2, 2), np.int64)]
    with pytest.raises(DataError, match="60 streamed images must not be decoded all at once"):
        np.asarray(images)


@pytest.mark.parametrize("name", ["zoo", "folders"])
def test_pickled_it_is_small_and_still_itself(root: Path, name: str) -> None:
    images = pixels(load(zoo(name, image_size=64), root))
    images[np.array([3])]
    text = pickle.dumps(images)
    assert len(text) < images.nbytes / 50
    assert np.array_equal(pickle.loads(text)[:], images[:])
    part = pickle.dumps(images.part(slice(40, 44)))
    assert len(part) < len(text) or name == "zoo"
    assert part.count(b"train-") == (1 if name == "zoo" else 0)


def test_threads_change_nothing(root: Path) -> None:
    images = pixels(load(zoo(), root))
    for threads in (1, 3):
        assert np.array_equal(images.decode(slice(None), threads), TRAIN)
    seen = [rows.tolist() for rows, _ in batches(images, np.split(np.arange(60), 6))]
    assert seen == np.arange(60).reshape(6, 10).tolist()


def test_a_subset_decodes_its_own_images_only(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(zoo(), root)
    read = list[int]()
    at = parquet.ParquetImages.at
    monkeypatch.setattr(
        parquet.ParquetImages, "at", lambda self, rows: (read.extend(rows), at(self, rows))[1]
    )
    subset = data.train.subset([7, 3])
    assert not subset.streamed
    assert np.array_equal(subset.images, TRAIN[[7, 3]])
    data.train.part(slice(0, 50))
    assert read == [7, 3]


@pytest.mark.parametrize("how", ["random", "herding", "k-center"])
def test_selections_choose_the_same(root: Path, how: str) -> None:
    streamed, decoded = (load(zoo(stream=stream), root) for stream in (True, False))
    chosen = [
        select(how, data.train, 3, data.normalization, generator(0, "test"))
        for data in (streamed, decoded)
    ]
    assert np.array_equal(*chosen)


def test_what_was_found_is_kept_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "zoo", {name: TRAIN[label::3] for label, name in enumerate(NAMES)})
    seen: list[tuple[str, int, int]] = []

    def looked(**chosen: object) -> ImageData:
        seen.clear()
        return load(zoo(**chosen), tmp_path, tmp_path / "store", lambda *told: seen.append(told))

    first = looked()
    assert seen[0] == ("train", 0, 48)
    assert seen[-1] == ("test", 12, 12)
    assert len(list((tmp_path / "store" / "survey").iterdir())) == 2
    assert looked().fingerprint == first.fingerprint
    assert not seen
    for chosen in ({"image_size": 4}, {"classes": ("cow", "ant")}, {"split_seed": 1}):
        assert looked(**chosen).fingerprint != first.fingerprint
        assert seen
    (tmp_path / "zoo" / "ant" / "000.png").write_bytes(encode(TEST[0]))
    (tmp_path / "zoo" / "bee" / "000.png").write_bytes(encode(TEST[1]))
    assert looked().fingerprint != first.fingerprint
    kept = max((tmp_path / "store" / "survey").iterdir(), key=lambda path: path.stat().st_mtime)
    for damage in ("{", '{"result": {"fingerprint": "x", "histogram": [1]}}'):
        kept.write_text(damage)
        assert (
            looked().normalization.fingerprint
            == load(zoo(stream=False), tmp_path).normalization.fingerprint
        )
        assert seen
    monkeypatch.setattr(surveying, "_scan", refuse)
    looked()


def test_looking_at_eight_times_the_images_takes_no_more_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """75 and 600 images of 3 x 32 x 32, which are 0.2 and 1.8 MB, two at a time."""
    monkeypatch.setattr(surveying, "CHUNK_BYTES", 2 * 3 * 32 * 32)
    contents = [encode(image) for image in TRAIN]
    peaks = []
    for times in (1, 8):
        count = 75 * times
        path = write_parquet(
            tmp_path / str(times) / "train-0.parquet",
            (contents * 10)[:count],
            (np.arange(count) % 3).tolist(),
        )
        images = parquet.open_source(path.parent).splits["train"].read
        assert isinstance(images, EncodedPixels)
        tracemalloc.start()
        streamed = images.streamed(np.arange(count), Decoder(32))
        surveying.survey(
            streamed, np.zeros(count, np.int64), ("a",), tmp_path / "store", lambda *_: None
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 0.2 * 600 * 3 * 32 * 32


def test_touching_a_file_looks_again(root: Path) -> None:
    load(zoo(), root)
    file = root / "zoo" / "test-0.parquet"
    os.utime(file, (1e9, 1e9))
    seen: list[str] = []
    load(zoo(), root, on_progress=lambda split, *_: seen.append(split))
    assert set(seen) == {"test"}


def test_a_store_that_cannot_be_written_only_warns(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert load(zoo(), root, tmp_path / "file").train.streamed
    assert "scan all images again" in caplog.text


@pytest.mark.parametrize(
    ("available", "streamed"),
    [(None, False), (10**9, False), (2 * 72 * 192, False), (2 * 72 * 192 - 2, True)],
)
def test_by_default_memory_decides(
    root: Path, monkeypatch: pytest.MonkeyPatch, available: int | None, streamed: bool
) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: available)
    assert load(zoo(stream=None), root).train.streamed is streamed
    assert not load(zoo(stream=False), root).train.streamed
    assert load(zoo(), root).train.streamed
    assert not load(DataSettings(name="digits"), root).train.streamed


def test_this_machine_has_some_memory() -> None:
    from rayd.data.available_memory import available_memory

    assert 10**7 < (available_memory() or 10**8) < 10**15


def test_what_cannot_be_streamed_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'data.stream' needs Parquet files or an image folder; .* is read as arrays",
    ):
        load(zoo("digits"), root)
    with pytest.raises(ConfigError, match=r"'data\.normalization: zca' needs all pixels in memory"):
        load(zoo(normalization="zca"), root)
    monkeypatch.setattr(loading, "available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match="use 'standard'"):
        load(zoo(normalization="zca", stream=None), root)


@pytest.fixture
def breakable(tmp_path: Path) -> Callable[[str], StreamedPixels]:
    """Streamed images of files that a test may damage."""

    def make(layout: str) -> StreamedPixels:
        contents = [encode(image) for image in TRAIN[:9]]
        if layout == "parquet":
            write_parquet(
                tmp_path / "train-0.parquet", contents, TRAIN_LABELS[:9].tolist(), names=NAMES
            )
            split = parquet.open_source(tmp_path).splits["train"]
        else:
            write_folder(tmp_path, {name: TRAIN[label:9:3] for label, name in enumerate(NAMES)})
            split = folder.open_source(tmp_path).splits["train"]
        assert isinstance(split.read, EncodedPixels)
        return split.read.streamed(np.arange(9))

    return make


def test_a_vanished_file_is_named(
    tmp_path: Path, breakable: Callable[[str], StreamedPixels]
) -> None:
    images = breakable("folder")
    (tmp_path / "bee" / "001.png").unlink()
    images[np.array([0, 5])]
    with pytest.raises(
        DataError, match=r"Cannot decode the image at '.*bee/001.png': .*No such file"
    ):
        images[:]


@pytest.mark.parametrize("opened", [False, True])
def test_a_vanished_parquet_file_is_named(
    tmp_path: Path, breakable: Callable[[str], StreamedPixels], opened: bool
) -> None:
    images = breakable("parquet")
    if opened:
        images[:]
    (tmp_path / "train-0.parquet").unlink()
    with pytest.raises(DataError, match=r"Cannot read '.*train-0.parquet' as Parquet: .*No such"):
        images[np.array([7, 2])]


def test_another_file_in_its_place_is_noticed(
    tmp_path: Path, breakable: Callable[[str], StreamedPixels]
) -> None:
    images = breakable("parquet")
    write_parquet(tmp_path / "train-0.parquet", [encode(TEST[0])] * 9, [0] * 9, names=NAMES)
    with pytest.raises(
        DataError,
        match=r"train-0.parquet' has changed since it was opened: \d+ bytes then, \d+ now",
    ):
        images[:]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "has no bytes"), (b"", "is empty"), (encode(TRAIN[0])[:60], "Cannot decode")],
)
def test_a_damaged_image_is_named_by_file_and_row(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    contents = [encode(image) for image in TRAIN[:4]]
    write_parquet(tmp_path / "train-0.parquet", contents, [0, 1, 2, 0], names=NAMES)
    write_parquet(tmp_path / "train-1.parquet", [*contents, content], [0, 1, 2, 0, 1], names=NAMES)
    read = parquet.open_source(tmp_path).splits["train"].read
    assert isinstance(read, EncodedPixels)
    images = read.streamed(np.arange(9), shape=ImageShape(3, 8, 8))
    assert np.array_equal(images[:8], TRAIN[[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(DataError, match=sentence) as caught:
        images[5:]
    assert f"row 4 of '{tmp_path / 'train-1.parquet'}'" in str(caught.value)
    with pytest.raises(DataError, match="row 4 of"):
        list(batches(images, [slice(0, 4), slice(4, 9), slice(0, 4)]))


def test_answers_come_in_order_and_are_made_a_little_ahead() -> None:
    begun: list[int] = []

    def answer(request: int) -> int:
        begun.append(request)
        return request**2

    taken = []
    for request, squared in ahead(iter(range(10)), answer):
        assert squared == request**2
        assert max(begun) <= request + READ_AHEAD
        taken.append(request)
    assert taken == begun == list(range(10))
    assert list(ahead([], answer)) == []


def test_who_stops_early_leaves_no_thread_behind() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 0

    answers = ahead(endless(), lambda _: torch.zeros(()))
    next(answers)
    answers.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rayd-ahead")]


def test_a_coloured_background_is_seen_as_in_memory(tmp_path: Path) -> None:
    """Greyscale images with transparent pixels have a colour where the background has one."""
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for row in range(6):
            layers = np.random.default_rng(row).integers(0, 256, (4, 4, 2), dtype=np.uint8)
            Image.fromarray(layers, "LA").save(tmp_path / "data" / name / f"{row}.png")
    for background, channels in (("#ff0000", 3), ("grey", 1)):
        read = []
        for stream in (False, True):
            chosen = DataSettings(name=str(tmp_path / "data"), background=background, stream=stream)
            read.append(load(chosen, cache=tmp_path / "store"))
        assert [data.shape.channels for data in read] == [channels, channels]
        assert read[0].fingerprint == read[1].fingerprint


def test_an_image_file_that_was_replaced_is_noticed(
    tmp_path: Path, breakable: Callable[[str], StreamedPixels]
) -> None:
    images = breakable("folder")
    file = next(tmp_path.glob("*/001.png"))
    file.write_bytes(encode(np.zeros((3, 8, 8), np.uint8)))
    with pytest.raises(
        DataError, match=r"001.png' has changed since it was opened: \d+ bytes then"
    ):
        images[:]
