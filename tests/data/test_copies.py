"""Of data at URLs little is fetched when they are opened, and no more is kept than a limit allows;
results do not tell.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from rayd import remote
from rayd.artifacts import write_json
from rayd.config import DataSettings
from rayd.data import ImageData, copies, load
from rayd.data.files import DataFile, Listing
from rayd.data.sources import open_source
from rayd.data.streaming import StreamedPixels, batches
from rayd.errors import ConfigError, DataError, RunError
from rayd.locks import hold
from tests.data.files import encode, some_images, write_folder, write_parquet
from tests.data.storage import FolderStorage, fetched

NAMES = ("ant", "bee", "cow")
IMAGES = some_images(600, side=16)
TEST_IMAGES = some_images(300, side=16, seed=1)
LABELS = np.arange(600) % 3
TOTAL = {"zoo": 6, "folders": 900}
"""Data files in all."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 images for training and testing: in six Parquet files of 10 row groups, and in a file
    each.
    """
    path = tmp_path_factory.mktemp("made")
    contents = [encode(image) for image in IMAGES]
    for shard in range(4):
        rows = range(150 * shard, 150 * (shard + 1))
        some = [contents[row] for row in rows]
        labels = LABELS[rows].tolist()
        write_parquet(
            path / "zoo" / f"train-{shard}.parquet", some, labels, names=NAMES, row_group_size=15
        )
    for shard in range(2):
        some = [encode(image) for image in TEST_IMAGES[150 * shard :][:150]]
        labels = LABELS[:150].tolist()
        write_parquet(
            path / "zoo" / f"test-{shard}.parquet", some, labels, names=NAMES, row_group_size=15
        )
    for split, images in (("train", IMAGES), ("test", TEST_IMAGES)):
        write_folder(
            path / "folders" / split,
            {name: images[label::3] for label, name in enumerate(NAMES)},
        )
    return path


@pytest.fixture(autouse=True)
def _places(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDER_STORAGE", str(made))
    monkeypatch.setenv("RAYD_MIRROR", str(tmp_path / "mirrors"))
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    (made.parent / f"{made.name}.log").unlink(missing_ok=True)


def streamed(name: str, **chosen: object) -> ImageData:
    return load(DataSettings(name=name, **{"stream": True, **chosen}))


def kept() -> int:
    """Bytes of all copies, whole or not."""
    root = remote.root() / copies.FOLDER
    total = 0
    for path in root.glob("*/**/*"):
        # one may be evicted meanwhile
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def size(made: Path, name: str) -> int:
    return sum(path.stat().st_size for path in (made / name).rglob("*") if path.is_file())


def pixels(data: ImageData) -> StreamedPixels:
    assert isinstance(data.train.images, StreamedPixels)
    return data.train.images


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of all copies each time when some were fetched."""
    seen: list[int] = []
    get = remote.get

    def watching(files: list[tuple[Path, Path]]) -> None:
        get(files)
        seen.append(kept())

    monkeypatch.setattr(remote, "get", watching)
    return seen


@pytest.mark.parametrize("name", ["zoo", "folders"])
def test_opening_fetches_a_small_share(made: Path, name: str) -> None:
    source = open_source(f"folder://{name}")
    assert {split: len(one.labels) for split, one in source.splits.items()} == {
        "train": 600,
        "test": 300,
    }
    assert sum(count for _, count in fetched()) < (0.5 * size(made, name) if name == "zoo" else 1)
    assert kept() == 0


def test_of_a_parquet_file_footer_and_labels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER_STORAGE", str(tmp_path))
    contents = [np.random.default_rng(row).bytes(20_000) for row in range(300)]
    write_parquet(
        tmp_path / "big" / "train-0.parquet",
        contents,
        [row % 3 for row in range(300)],
        row_group_size=100,
    )
    assert len(open_source("folder://big").splits["train"].labels) == 300
    assert sum(count for _, count in fetched()) < 0.03 * 6_000_000


@pytest.mark.parametrize("name", ["zoo", "folders"])
@pytest.mark.parametrize("share", [None, 0.4, 0.0])
def test_a_limit_changes_no_result(
    made: Path, name: str, share: float | None, watched: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = None if share is None else int(share * size(made, name))
    if limit is not None:
        monkeypatch.setenv("RAYD_MIRROR_LIMIT", str(limit))
    data = streamed(f"folder://{name}")
    here = load(DataSettings(name=str(made / name), stream=False))
    assert data.fingerprint == here.fingerprint
    assert data.test.fingerprint == here.test.fingerprint
    rows = np.random.default_rng(0).permutation(600)
    for _ in range(2):
        assert np.array_equal(pixels(data)[rows[:50]], here.train.images[rows[:50]])
    for wanted, some in batches(pixels(data), [slice(0, 200), slice(200, 600)]):
        assert np.array_equal(some, here.train.images[wanted])
    largest = max(path.stat().st_size for path in (made / name).rglob("*") if path.is_file())
    if limit is None:
        assert kept() == size(made, name)
    else:
        # decoders read at most two files at a time here
        assert max(watched) <= limit + 2 * largest


@pytest.mark.parametrize("name", ["zoo", "folders"])
def test_with_room_every_file_is_fetched_once(made: Path, name: str) -> None:
    data = streamed(f"folder://{name}")
    pixels(data)[:]
    pixels(data)[np.random.default_rng(0).permutation(600)[:99]]
    whole = [file for file, count in fetched() if count == (made / file).stat().st_size]
    assert len(whole) == len(set(whole)) == TOTAL[name]


def test_the_next_run_fetches_nothing(made: Path) -> None:
    first = streamed("folder://zoo")
    before = len(fetched())
    again = streamed("folder://zoo")
    assert np.array_equal(pixels(again)[:], pixels(first)[:])
    assert len(fetched()) == before


def test_few_images_of_many_files_are_read_where_they_lie(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = streamed("folder://zoo")
    for copy in (remote.root() / copies.FOLDER).rglob("*.parquet"):
        copy.unlink()
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", str(size(made, "zoo") // 2))
    images = pixels(data).part(slice(None))
    before = len(fetched())
    assert np.array_equal(images[np.array([400, 7])], IMAGES[[400, 7]])
    assert not list((remote.root() / copies.FOLDER).rglob("*.parquet"))
    assert sum(count for _, count in fetched()[before:]) < 0.6 * size(made, "zoo")


def originals(count: int, size: int) -> list[DataFile]:
    """Files of memory://."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for index in range(count):
        system.pipe_file(f"/bucket/{index:02}", bytes([index]) * size)
    return list(Listing.of(remote.local("memory://bucket")))


def there(files: list[DataFile]) -> list[int]:
    return [index for index, file in enumerate(files) if copies.path(file).exists()]


def test_the_least_recently_used_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", "350")
    files = originals(6, 100)
    for index in (0, 1, 2):
        files[index].read_bytes()
        time.sleep(0.01)
    files[0].read_bytes()
    time.sleep(0.01)
    assert files[3].read_bytes() == bytes([3]) * 100
    assert there(files) == [0, 2, 3]
    with files[0].open() as evicted:
        for index in (1, 4, 5):
            files[index].read_bytes()
        assert there(files) == [1, 4, 5]
        assert evicted.read() == bytes(100), "an open copy is read to its end"


def test_runs_and_stores_never_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", "1")
    files = originals(3, 100)
    entry = remote.local("memory://bucket/store/x.json")
    write_json(entry, {"a": 1})
    for file in files:
        file.read_bytes()
    assert entry.exists()
    assert there(files) == [2]


def test_who_wants_the_same_file_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = originals(1, 1000)
    gets = list[int]()
    get = remote.get

    def slow(files: list[tuple[Path, Path]]) -> None:
        gets.append(len(files))
        time.sleep(0.2)
        get(files)

    monkeypatch.setattr(remote, "get", slow)
    threads = [threading.Thread(target=file.read_bytes) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gets == [1]
    assert [path.name for path in copies.path(file).parent.iterdir()] == ["00"]


def test_many_readers_under_a_small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", "250")
    files = originals(12, 100)
    wrong = list[int]()

    def reads(seed: int) -> None:
        for index in np.random.default_rng(seed).integers(12, size=60):
            if files[index].read_bytes() != bytes([index]) * 100:
                wrong.append(index)

    threads = [threading.Thread(target=reads, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert sum(copies.path(file).exists() for file in files) * 100 <= 250 + 4 * 100
        time.sleep(0.001)
    assert not wrong


def test_files_that_are_being_fetched_count_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", "350")
    first, *others = originals(6, 100)
    get = remote.get

    def slow(files: list[tuple[Path, Path]]) -> None:
        monkeypatch.setattr(remote, "get", get)
        for other in others:
            other.read_bytes()
        get(files)

    monkeypatch.setattr(remote, "get", slow)
    first.read_bytes()
    assert there([first, *others]) == [0, 4, 5]
    assert kept() == 300


def test_what_changed_is_told_and_fetched_again_when_opened_anew() -> None:
    (file,) = originals(1, 10)
    file.read_bytes()
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/00", b"another")
    (again,) = Listing.of(remote.local("memory://bucket"))
    assert again.read_bytes() == b"another"
    with pytest.raises(
        DataError,
        match="'memory://bucket/00' has changed since it was opened: 10 bytes then, 7 now",
    ):
        file.read_bytes()


def test_who_dies_while_fetching_leaves_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", "250")
    files = originals(3, 100)
    part = copies.path(files[0]).with_name(".9.200.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(20))
    lock = part.with_suffix(".lock")
    with hold(lock):
        os.utime(lock, (1, 1))
        for file in files:
            file.read_bytes()
        assert part.exists(), "its process lives"
    for file in files:
        file.read_bytes()
    assert not part.exists()


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYD_MIRROR_LIMIT", "much")
    with pytest.raises(
        ConfigError, match=r"\$RAYD_MIRROR_LIMIT must be a number of bytes, e.g. 200e9. Got 'much'"
    ):
        originals(1, 10)[0].read_bytes()


def test_by_default_half_of_the_disk_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYD_MIRROR_LIMIT", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=900))
    assert copies.limit(Path(), 100) == 500


def test_an_archive_at_a_url_is_read(made: Path) -> None:
    np.savez(made / "zoo.npz", images=IMAGES[:60], labels=LABELS[:60])
    data = load(DataSettings(name="folder://zoo.npz"))
    (made / "zoo.npz").unlink()
    assert (len(data.train), len(data.test)) == (48, 12)


def test_a_storage_without_sizes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As web servers are."""
    info = FolderStorage.info

    def without_size(self: FolderStorage, path: str, **_: object) -> dict[str, object]:
        return info(self, path) | {"size": None}

    monkeypatch.setattr(FolderStorage, "info", without_size)
    with pytest.raises(RunError, match="does not tell the sizes of files; download them"):
        open_source("folder://folders")
