"""Strangers' layouts are read as they are meant, or refused with the readings and the setting."""

import io
import os
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rayd.config import DataSettings, parse_overrides
from rayd.data import ImageData, load
from rayd.data.sources import open_source
from rayd.errors import ConfigError, DataError
from rayd.recipes import assemble
from tests.data.files import encode, some_images, write_parquet

COUNT = 6


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder for a data set, apart from the cache."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def images_of(path: Path, classes: Sequence[str], count: int = COUNT, first: int = 0) -> None:
    """Folders of classes, with images that differ everywhere."""
    for label, name in enumerate(classes):
        folder = path / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            seed = zlib.crc32(f"{path.name} {name} {first + index}".encode("utf-8", "replace"))
            image = some_images(1, seed=seed)[0]
            image[:, 0, 0] = label
            (folder / f"{first + index}.png").write_bytes(encode(image))


def counts(data: ImageData) -> tuple[int, int]:
    return len(data.train), len(data.test)


def read(path: Path, **settings: object) -> ImageData:
    return load(DataSettings(name=str(path), **settings))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("trainval", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("train", "dev"),
        ("train2017", "val2017"),
        ("train_images", "test_images"),
        ("flowers-train", "flowers-test"),
        ("TrainImages", "TestImages"),
        ("train", "holdout"),
        ("train", "hold-out"),
        ("train", "eval"),
        ("train", "evaluation"),
    ],
)
def test_folders_of_splits_are_splits_under_many_names(root: Path, train: str, test: str) -> None:
    images_of(root / train, ["cats", "dogs"])
    images_of(root / test, ["cats", "dogs"], 2)
    data = read(root)
    assert data.class_names == ("cats", "dogs")
    assert counts(data) == (12, 4)


@pytest.mark.parametrize(
    "folders",
    [
        ("images_background", "images_evaluation"),
        ("train", "unseen"),
        ("train", "test", "test_small"),
        ("fold1", "fold2", "fold3"),
        ("2019", "2020"),
        ("gallery", "query", "other"),
        ("val", "test"),
        ("train", "training"),
        ("test", "testing", "train"),
        ("first", "second"),
        ("amazon", "dslr", "webcam"),
        ("train_a", "train_b", "test"),
    ],
)
def test_folders_with_two_readings_are_refused(root: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        images_of(root / folder, ["cats", "dogs"])
    with pytest.raises(DataError, match=r"data\.(train|test)="):
        read(root)
    by_setting = read(root, train=folders[0], test=folders[1])
    assert by_setting.class_names == ("cats", "dogs")
    assert counts(by_setting) == (12, 12)
    as_classes = read(root, train=".")
    assert as_classes.class_names == tuple(sorted(folders))


def test_many_folders_with_the_same_folders_are_classes(root: Path) -> None:
    names = [f"person {letter}" for letter in "abc"] + ["man", "woman", "child"]
    for name in names:
        images_of(root / name, ["front", "side"], 3)
    assert read(root).class_names == tuple(sorted(names))


def test_classes_may_hold_one_folder_each(root: Path) -> None:
    for name in ("cats", "dogs"):
        images_of(root / name, ["images"])
    assert read(root).class_names == ("cats", "dogs")


def test_a_folder_between_split_and_classes_is_looked_into(root: Path) -> None:
    images_of(root / "train" / "images", ["cats", "dogs"])
    images_of(root / "test" / "images", ["cats", "dogs"], first=COUNT)
    data = read(root)
    assert data.class_names == ("cats", "dogs")
    assert counts(data) == (12, 12)


def test_a_refusal_proposes_the_larger_folder_for_training(root: Path) -> None:
    images_of(root / "part a", ["cats", "dogs"], 2)
    images_of(root / "part b", ["cats", "dogs"], 4)
    with pytest.raises(DataError, match=r"e\.g\. 'data.train=part b' and 'data.test=part a'"):
        read(root)


def test_one_named_split_leaves_the_others_out(root: Path) -> None:
    for folder in ("train", "unseen"):
        images_of(root / folder, ["cats", "dogs"])
    assert counts(read(root, train="train")) == (10, 2)
    assert open_source(str(root), settings=DataSettings(name=".", train="train")).left_out == (
        "12 images in folder 'unseen'",
    )


@pytest.mark.parametrize("name", ["train", "test", "val", "Train"])
@pytest.mark.parametrize("below", [".", "day"])
def test_a_class_may_be_called_like_a_split(root: Path, name: str, below: str) -> None:
    for inner in (below, "night") if below != "." else (below,):
        for vehicle in ("bus", "car", name):
            images_of(root / vehicle, [inner], first=int(inner == "night") * COUNT)
    assert read(root).class_names == tuple(sorted(("bus", "car", name)))


def test_splits_that_hold_a_class_called_train_are_splits(root: Path) -> None:
    for split in ("train", "test"):
        images_of(root / split, ["bus", "train"])
    assert read(root).class_names == ("bus", "train")


def test_flat_folders_called_like_splits_are_refused(root: Path) -> None:
    images_of(root, ["train", "test"])
    (root / "labels.csv").write_text("0.png,cat")
    with pytest.raises(DataError, match="hold images directly, not in one folder per class"):
        read(root)
    assert read(root, train=".").class_names == ("test", "train")


def test_a_table_beside_a_flat_folder_is_named(root: Path) -> None:
    images_of(root, ["images"])
    (root / "labels.csv").write_text("0.png,cat")
    with pytest.raises(DataError, match=r"only 'images' instead; labels in tables \(.csv\)"):
        read(root)


def test_unlabelled_test_images_are_left_out(root: Path) -> None:
    images_of(root / "train", ["cats", "dogs"])
    images_of(root, ["test"])
    source = open_source(str(root))
    assert set(source.splits) == {"train"}
    assert source.left_out == ("6 images in folder 'test'",)


def test_a_folder_around_everything_is_looked_into(root: Path) -> None:
    for split in ("train", "test"):
        images_of(root / "flowers" / "archive" / split, ["rose", "lily"])
    assert read(root).class_names == ("lily", "rose")


def test_hidden_and_system_folders_are_left_out(root: Path) -> None:
    images_of(root, ["cats", "dogs"])
    for name in (".thumbnails", "@eaDir", "__MACOSX"):
        images_of(root / "cats", [name], 2)
    images_of(root, ["__MACOSX", ".git"])
    (root / "dogs" / "._0.png").write_bytes(b"a Mac's notes")
    source = open_source(str(root))
    assert source.class_names == ("cats", "dogs")
    assert len(source.splits["train"].labels) == 12
    assert source.left_out == (
        "19 images hidden or in system folders ('._0.png', '.git', '.thumbnails' and 2 more)",
    )


@pytest.mark.parametrize("name", [".cache/table.parquet", "._train.parquet"])
def test_hidden_parquet_files_beside_class_folders_are_not_read(root: Path, name: str) -> None:
    images_of(root, ["cats", "dogs"])
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"PAR1")
    assert read(root).class_names == ("cats", "dogs")


def test_a_class_may_begin_with_underscores(root: Path) -> None:
    images_of(root, ["__other__", "cats"])
    assert read(root).class_names == ("__other__", "cats")


def test_what_is_left_out_is_said(root: Path) -> None:
    images_of(root, ["cats", "dogs"])
    (root / "cats" / "0.heic").write_bytes(b"")
    (root / "cats" / "notes.txt").write_text("")
    (root / "sheet.png").write_bytes(encode(some_images(1)[0]))
    os.symlink(root / "nowhere.png", root / "cats" / "gone.png")
    os.mkfifo(root / "cats" / "pipe.png")
    assert open_source(str(root)).left_out == (
        "1 image outside the class folders",
        "1 file with suffix .heic, which is not supported",
        "1 file that is not an image (.txt: 1)",
        "1 x broken link",
        "1 x pipe, socket or device",
    )


def test_links_to_class_folders_are_followed_and_loops_are_not(root: Path) -> None:
    images_of(root.parent / "elsewhere", ["cats"])
    images_of(root, ["dogs"])
    os.symlink(root.parent / "elsewhere" / "cats", root / "cats")
    os.symlink(root, root / "dogs" / "again")
    os.symlink("itself", root / "dogs" / "itself")
    source = open_source(str(root))
    assert source.class_names == ("cats", "dogs")
    assert source.splits["train"].labels.tolist() == [0] * COUNT + [1] * COUNT
    assert source.left_out == ("1 x broken link", "1 x link to a folder that contains it")


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "jp2", "avif", "tga", "dib", "PNG", "apng"])
def test_suffixes_that_pil_reads_are_images(root: Path, suffix: str) -> None:
    format = Image.registered_extensions()[f".{suffix.lower()}"]
    if format not in Image.SAVE:
        pytest.skip(f"PIL does not write {format} here")
    for name in ("cats", "dogs"):
        (root / name).mkdir()
        for index in range(2):
            image = encode(some_images(1, side=16, seed=index)[0], format)
            (root / name / f"{index}.{suffix}").write_bytes(image)
    assert counts(read(root)) == (2, 2)


def test_composed_and_decomposed_names_are_the_same_class(root: Path) -> None:
    accent = "caf\u00e9"
    images_of(root / "train", [accent, "tea"])
    images_of(root / "test", [unicodedata.normalize("NFD", accent), "tea"])
    data = read(root)
    assert data.class_names == (accent, "tea")
    decomposed = (unicodedata.normalize("NFD", accent), "tea")
    assert read(root, classes=decomposed).class_names == (accent, "tea")
    images_of(root / "train", [unicodedata.normalize("NFD", accent)])
    with pytest.raises(DataError, match=r"two folders named 'caf.+', which differ only in their"):
        read(root)


def test_names_that_are_not_utf8_are_refused_legibly(root: Path) -> None:
    images_of(root, ["cats", "dogs"])
    os.rename(os.fsencode(root / "dogs"), os.fsencode(root) + b"/d\xe9gs")
    with pytest.raises(DataError, match=r"names in UTF-8. Got 'd\\xe9gs'"):
        read(root)


def test_file_names_need_not_be_utf8(root: Path) -> None:
    images_of(root, ["cats", "dogs"])
    os.rename(root / "dogs" / "0.png", os.fsencode(root / "dogs") + b"/\xe9.png")
    assert counts(read(root)) == (10, 2)
    assert counts(read(root, stream=True)) == (10, 2)


ODD_NAMES = ("0", "010", "1e3", "2020-01-01", "no", "null", "yes", "שלום")


def test_odd_names_of_classes_are_text(root: Path) -> None:
    images_of(root, ODD_NAMES, 2)
    assert read(root).class_names == tuple(sorted(ODD_NAMES))
    for name in ODD_NAMES:
        if name != "yes":
            overrides = parse_overrides([f"data.name={root}", f"data.classes=[{name}, yes]"])
            recipe = assemble({"method": "dm"}, overrides)
            assert load(recipe.data).class_names == (name, "yes")


def test_a_single_image_of_a_class_is_named(root: Path) -> None:
    images_of(root, ["a", "c"])
    images_of(root, ["b"], 1)
    with pytest.raises(DataError, match="class 'b' has only one image"):
        read(root)


X = some_images(30, channels=1, seed=5)[:, 0]
Y = np.repeat(np.arange(3), 10)
OTHER = some_images(15, channels=1, seed=6)[:, 0]
OTHER_Y = np.repeat(np.arange(3), 5)


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "X_test", "y_test"),
        ("x_train", "y_train", "x_test", "Y_test"),
        ("x_train", "y_train", "test_x", "test_y"),
        ("x_train", "y_train", "x_eval", "y_eval"),
        ("X_train", "y_train", "X_valid", "y_valid"),
        ("xtrain", "ytrain", "xtest", "ytest"),
        ("trainX", "trainY", "testX", "testY"),
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("training_data", "training_targets", "holdout_data", "holdout_targets"),
        ("images", "labels", "test_images", "test_labels"),
        ("x", "y", "x_test", "y_test"),
    ],
)
def test_keys_of_npz_files_are_read_in_any_spelling(root: Path, keys: Sequence[str]) -> None:
    arrays = dict(zip(keys, (X, Y, OTHER, OTHER_Y), strict=True))
    np.savez(root / "a.npz", **arrays)
    data = read(root / "a.npz")
    assert counts(data) == (30, 15)
    assert np.array_equal(data.test.images[:, 0], OTHER)


def test_splits_of_npz_files_with_unknown_names_are_refused(root: Path) -> None:
    path = root / "a.npz"
    np.savez(path, x_train=X, y_train=Y, x_secret=OTHER, y_secret=OTHER_Y)
    with pytest.raises(DataError, match=r"'data.test=secret' to test on it, or 'data.train=train'"):
        read(path)
    assert counts(read(path, test="secret")) == (30, 15)
    assert counts(read(path, train="train")) == (24, 6)
    assert counts(read(path, train="secret", test="train")) == (15, 30)


@pytest.mark.parametrize("missing", ["x_test", "y_test"])
def test_half_a_pair_of_arrays_is_refused(root: Path, missing: str) -> None:
    arrays = {"x_train": X, "y_train": Y, "x_test": OTHER, "y_test": OTHER_Y}
    del arrays[missing]
    np.savez(root / "a.npz", **arrays)
    with pytest.raises(DataError, match=r"holds '._test' without its (labels|images)"):
        read(root / "a.npz")


def test_arrays_that_are_not_read_are_said(root: Path) -> None:
    path = root / "a.npz"
    np.savez(path, images=X, labels=Y, mean=np.zeros(3), image_ids=np.arange(30))
    assert open_source(str(path)).left_out == ("array 'mean'", "array 'image_ids'")


@pytest.mark.parametrize("names", [[b"a", b"b\xc3\xa9", b"c"], ["a", "b\u00e9", "c"]])
def test_class_names_of_npz_files_are_text(root: Path, names: list) -> None:
    np.savez(root / "a.npz", images=X, labels=Y, class_names=np.array(names))
    assert read(root / "a.npz").class_names == ("a", "b\u00e9", "c")


@pytest.mark.parametrize("names", [np.array("abc"), np.array([[b"a"]]), np.array([b"\xe9"] * 3)])
def test_class_names_that_are_no_text_are_refused(root: Path, names: np.ndarray) -> None:
    np.savez(root / "a.npz", images=X, labels=Y, class_names=names)
    with pytest.raises(DataError, match="Class names of"):
        read(root / "a.npz")


def test_encoded_images_in_npz_files_are_decoded(root: Path) -> None:
    """Upright, as those of folders are, whether streamed or not."""
    wide = np.zeros((1, 4, 8), np.uint8)
    wide[:, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(wide.transpose(0, 2, 1)[:, ::-1], exif=exif)
    contents = np.array([encode(wide), turned] * 3)
    np.savez(root / "a.npz", images=contents, labels=np.arange(6) % 2)
    for stream in (False, True):
        data = read(root / "a.npz", stream=stream)
        assert np.array_equal(data.train.images[np.array([0])], wide[None])
        assert np.array_equal(data.train.images[np.array([3])], wide[None])


def test_images_called_like_their_split_are_read(root: Path) -> None:
    images = some_images(12, seed=1)
    labels = np.arange(6) % 2
    np.savez(
        root / "a.npz",
        train=images[:6],
        train_labels=labels,
        test=images[6:],
        test_labels=labels,
    )
    assert counts(read(root / "a.npz")) == (6, 6)


def test_arrays_of_images_with_unclear_names_are_refused(root: Path) -> None:
    images = some_images(12, seed=1)
    labels = np.arange(6) % 2
    np.savez(root / "a.npz", X=images[:6], y=labels, Xt=images[6:], yt=labels)
    with pytest.raises(DataError, match=r"holds 'Xt', an array of images like 'X'.*data.train=X"):
        read(root / "a.npz")
    assert counts(read(root / "a.npz", train="X")) == (4, 2)


def test_truth_values_are_black_and_white(root: Path) -> None:
    np.savez(root / "a.npz", images=some_images(8)[:, 0] > 99, labels=np.arange(8) % 2)
    assert set(np.unique(read(root / "a.npz").train.images)) == {0, 255}


def test_arrays_without_a_colour_are_greyscale(root: Path) -> None:
    """As encoded images are."""
    grey = np.repeat(some_images(12, seed=3, channels=1), 3, 1)
    labels = np.arange(12) % 2
    np.savez(root / "a.npz", images=grey, labels=labels)
    assert tuple(read(root / "a.npz").shape) == (1, 4, 4)
    test = some_images(12, seed=4)
    np.savez(root / "b.npz", x_train=grey, y_train=labels, x_test=test, y_test=labels)
    with pytest.raises(DataError, match="are in colour, but the training images are greyscale"):
        read(root / "b.npz")
    assert tuple(read(root / "b.npz", mode="rgb").shape) == (3, 4, 4)
    np.savez(root / "c.npz", x_train=test, y_train=labels, x_test=grey[:, 0], y_test=labels)
    data = read(root / "c.npz")
    assert np.array_equal(data.test.images, grey)
    assert data.summary is not None
    assert data.summary.conversions == {"greyscale repeated in three channels": 12}


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_arrays_need_a_white_level(root: Path, dtype: type) -> None:
    path = root / "a.npz"
    np.savez(path, images=X.astype(dtype) * 16, labels=Y)
    with pytest.raises(DataError, match=r"must (lie in|be finite).*'data.white_level'"):
        read(path)
    scaled = np.concatenate([load_both(path, white_level=4080)])
    assert sorted(scaled.ravel().tolist()) == sorted(X.ravel().tolist())
    with pytest.raises(DataError, match=r"must lie in 0\.\.100"):
        read(path, white_level=100)


def load_both(path: Path, **settings: object) -> np.ndarray:
    data = read(path, **settings)
    return np.concatenate([data.train.images, data.test.images])


def test_a_single_array_is_no_archive(root: Path) -> None:
    with (root / "a.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match="archive of several arrays"):
        read(root / "a.npz")


def parquet(path: Path, files: Mapping[str, int]) -> None:
    """Parquet files with a number of images of each of two classes."""
    for seed, (name, count) in enumerate(files.items()):
        contents = [encode(image) for image in some_images(2 * count, seed=seed)]
        write_parquet(path / name, contents, [0, 1] * count, names=("a", "b"))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"train.parquet": 4, "test.parquet": 2}, (8, 4)),
        ({"train-00000-of-00002.parquet": 4, "train-00001-of-00002.parquet": 1}, (8, 2)),
        (
            {"train-00000-of-00001-a1b2c3.parquet": 5, "test-00000-of-00001-ff00.parquet": 1},
            (10, 2),
        ),
        ({"data/train-00000-of-00001.parquet": 4, "data/test.parquet": 2}, (8, 4)),
        ({"default/train/0000.parquet": 4, "default/test/0000.parquet": 2}, (8, 4)),
        ({"train/0000.parquet": 4, "train/0001.parquet": 1, "validation/0000.parquet": 1}, (10, 2)),
        ({"train_0.parquet": 4, "train_1.parquet": 1, "eval.parquet": 1}, (10, 2)),
        ({"train.parquet": 4, "test.parquet": 2, "extra-00000.parquet": 3}, (8, 4)),
    ],
)
def test_parquet_layouts_are_read(
    root: Path, files: dict[str, int], found: tuple[int, int]
) -> None:
    parquet(root, files)
    assert counts(read(root)) == found


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"train-00000-of-00003.parquet": 4, "train-00002-of-00003.parquet": 4},
            "must have 3 files, according to their names. Got 2: number 1 is missing",
        ),
        (
            {"train-00000-of-00001-aa.parquet": 4, "train-00000-of-00001-bb.parquet": 4},
            "holds shard 0 of 1 twice",
        ),
        (
            {"train-00000-of-00001.parquet": 4, "train-00000-of-00002.parquet": 4},
            "must be one set of shards",
        ),
        ({"train.parquet": 4, "train-00000-of-00001.parquet": 4}, "must be one set of shards"),
        ({"train/0000.parquet": 4, "train/0002.parquet": 4}, "lacks the file '0001.parquet'"),
        ({"train.parquet": 4, "train_unlabeled.parquet": 4}, "'data.train=train"),
        ({"train.parquet": 4, "test.parquet": 2, "test_small.parquet": 1}, "'data.test=test'"),
        ({"fr/train.parquet": 4, "de/train.parquet": 4}, "Got Parquet files in 2 folders"),
        ({"a/train/0000.parquet": 4, "b/train/0000.parquet": 4}, "in 2 folders"),
        ({"0000.parquet": 4}, "must be named train-"),
        ({"train_0_of_2.parquet": 4}, "must have 2 files"),
        ({"train.parquet": 4, "test-A.parquet": 2, "test-B.parquet": 2}, "test-A' or .*test-B'"),
    ],
)
def test_parquet_files_that_do_not_agree_are_refused(
    root: Path, files: dict[str, int], sentence: str
) -> None:
    parquet(root, files)
    with pytest.raises(DataError, match=sentence):
        read(root)


def test_a_parquet_file_that_is_there_twice_is_refused(root: Path) -> None:
    parquet(root, {"train_0.parquet": 4})
    (root / "train_1.parquet").write_bytes((root / "train_0.parquet").read_bytes())
    with pytest.raises(DataError, match=r"same file twice, as 'train_0.parquet' and 'train_1.par"):
        read(root)


def test_gaps_between_numbers_of_parquet_files_are_said(root: Path) -> None:
    parquet(root, {"train_0.parquet": 4, "train_2.parquet": 5})
    assert open_source(str(root)).left_out == ("number 1 of the files 'train_*', which is missing",)


def test_settings_choose_parquet_files(root: Path) -> None:
    parquet(root, {"train.parquet": 6, "train_small.parquet": 4, "test.parquet": 2})
    assert counts(read(root, train="train_small")) == (8, 4)
    assert counts(read(root, train="train", test="train_small")) == (12, 8)
    assert open_source(str(root), settings=DataSettings(name=".", train="train")).left_out == (
        "'train_small.parquet'",
    )
    with pytest.raises(DataError, match=r"Unknown split 'trains' in 'data.train'"):
        read(root, train="trains")


def test_settings_do_not_choose_among_fixed_files() -> None:
    with pytest.raises(ConfigError, match="have no effect on 'digits'"):
        load(DataSettings(name="digits", test="test"))


def test_orientation_is_applied_in_parquet_files_and_streams(root: Path) -> None:
    wide = np.zeros((3, 4, 8), np.uint8)
    wide[0, :2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned = Image.fromarray(wide.transpose(1, 2, 0)).transpose(Image.Transpose.ROTATE_90)
    turned.save(buffer, "PNG", exif=exif)
    write_parquet(root / "train.parquet", [buffer.getvalue()] * 6, [0, 1] * 3)
    for stream in (False, True):
        data = read(root, stream=stream)
        assert np.array_equal(data.train.images[np.array([0])][0], wide)
