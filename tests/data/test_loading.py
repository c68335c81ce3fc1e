"""Loading honours every setting, in the documented order."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from rayd.config import DataSettings
from rayd.data import ImageShape, Standardization, Whitening, load
from rayd.errors import ConfigError, DataError
from tests.data.files import encode, some_images, write_folder, write_parquet

NAMES = ("ant", "bee", "cow")
TRAIN = some_images(60, seed=1)
TEST = some_images(12, seed=2)
TRAIN_LABELS = np.arange(60) % 3
TEST_LABELS = np.arange(12) % 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one set of three classes: 20 training and 4 test images each."""
    path = tmp_path_factory.mktemp("root")
    write_parquet(
        path / "zoo" / "train-0.parquet",
        [encode(i) for i in TRAIN],
        TRAIN_LABELS.tolist(),
        names=NAMES,
    )
    write_parquet(
        path / "zoo" / "test-0.parquet",
        [encode(i) for i in TEST],
        TEST_LABELS.tolist(),
        names=NAMES,
    )
    return path


def zoo(**settings: object) -> DataSettings:
    return DataSettings(name="zoo", **settings)


def test_by_default_everything_is_loaded_as_it_is(root: Path) -> None:
    data = load(zoo(), root)
    assert (data.name, data.class_names, data.shape) == ("zoo", NAMES, ImageShape(3, 4, 4))
    assert np.array_equal(data.train.images, TRAIN)
    assert np.array_equal(data.train.labels, TRAIN_LABELS)
    assert np.array_equal(data.test.images, TEST)
    assert data.validation is None
    assert isinstance(data.normalization, Standardization)
    assert data.normalization.fingerprint == Standardization.fit(TRAIN).fingerprint


def test_classes_are_chosen_in_the_order_given(root: Path) -> None:
    data = load(zoo(classes=("cow", "ant")), root)
    assert data.class_names == ("cow", "ant")
    assert np.array_equal(data.train.images[data.train.labels == 0], TRAIN[TRAIN_LABELS == 2])
    assert np.array_equal(data.test.images[data.test.labels == 1], TEST[TEST_LABELS == 0])
    assert len(data.train) == 40


def test_a_class_is_found_however_unicode_composes_its_letters(tmp_path: Path) -> None:
    """Folders and npz files are read in the composed form, Parquet files as they are."""
    names = [unicodedata.normalize("NFD", "café"), "tea"]
    pngs = [encode(image) for image in some_images(12)]
    write_parquet(tmp_path / "train.parquet", pngs, [0, 1] * 6, names=names)
    for form in ("NFC", "NFD"):
        chosen = ("tea", unicodedata.normalize(form, "café"))
        read = load(DataSettings(name=str(tmp_path), classes=chosen))
        assert read.class_names == ("tea", names[0])


def test_validation_is_carved_from_the_training_split(root: Path) -> None:
    data = load(zoo(validation_fraction=0.25), root)
    assert data.validation is not None
    assert data.validation.counts.tolist() == [5, 5, 5]
    assert data.train.counts.tolist() == [15, 15, 15]
    together = np.concatenate([data.train.images, data.validation.images]).reshape(60, -1)
    assert np.array_equal(np.unique(together, axis=0), np.unique(TRAIN.reshape(60, -1), axis=0))
    assert data.normalization.fingerprint == Standardization.fit(data.train.images).fingerprint


def test_the_long_tail_is_cut_after_validation_and_spares_the_test_split(root: Path) -> None:
    plain = load(zoo(validation_fraction=0.2), root)
    tailed = load(zoo(validation_fraction=0.2, imbalance=16), root)
    assert tailed.train.counts.tolist() == [16, 4, 1]
    assert tailed.validation is not None
    assert plain.validation is not None
    assert tailed.validation.fingerprint == plain.validation.fingerprint
    assert tailed.test.fingerprint == plain.test.fingerprint
    assert tailed.normalization.fingerprint == Standardization.fit(tailed.train.images).fingerprint


def test_splits_depend_on_the_split_seed_alone(root: Path) -> None:
    first, again, other = (
        load(zoo(imbalance=4, split_seed=seed), root).fingerprint for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_images_are_resized(root: Path) -> None:
    data = load(zoo(image_size=8), root)
    assert data.shape == ImageShape(3, 8, 8)
    assert data.test.images.shape == (12, 3, 8, 8)


def test_whitening_is_a_setting(root: Path) -> None:
    data = load(zoo(normalization="zca"), root)
    assert isinstance(data.normalization, Whitening)
    assert torch.equal(data.normalization.transform, Whitening.fit(TRAIN).transform)


def test_digits_get_a_stratified_test_split() -> None:
    data = load(DataSettings(name="digits"))
    assert (len(data.train), len(data.test), data.classes) == (1438, 359, 10)
    assert (data.train.counts > 130).all()
    np.testing.assert_allclose(
        data.test.counts / (data.train.counts + data.test.counts), 0.2, atol=0.004
    )
    assert (
        load(DataSettings(name="digits", validation_fraction=0.1)).test.fingerprint
        == data.test.fingerprint
    )


def test_digits_are_resized_as_other_images_are() -> None:
    assert load(DataSettings(name="digits", image_size=16)).shape == ImageShape(1, 16, 16)


def test_a_validation_split_without_a_test_split_is_tested_on(tmp_path: Path) -> None:
    for first, split in enumerate(("train", "val")):
        images = {name: some_images(4, seed=2 * seed + first) for seed, name in enumerate(NAMES)}
        write_folder(tmp_path / split, images)
    data = load(DataSettings(name=str(tmp_path)))
    assert data.validation is None
    assert len(data.test) == 12
    write_folder(tmp_path / "test", {name: some_images(1, seed=99) for name in NAMES})
    data = load(DataSettings(name=str(tmp_path)))
    assert data.validation is not None
    assert (len(data.validation), len(data.test)) == (12, 3)
    carved = load(DataSettings(name=str(tmp_path), validation_fraction=0.25))
    assert carved.validation is not None
    assert len(carved.validation) == 3


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_folder(tmp_path, {"ant": some_images(4, side=6), "bee": some_images(4, side=9)})
    with pytest.raises(
        DataError,
        match=r"'data.image_size' is set: '.*bee/00.\.png' has height x width 9 x 9, expected 6 x 6",
    ):
        load(DataSettings(name=str(tmp_path)))
    assert load(DataSettings(name=str(tmp_path), image_size=7)).shape == ImageShape(3, 7, 7)


def test_test_images_take_the_training_images_form(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {name: some_images(2) for name in NAMES})
    write_folder(tmp_path / "test", {name: some_images(2, channels=1) for name in NAMES})
    assert load(DataSettings(name=str(tmp_path))).test.shape == ImageShape(3, 4, 4)


def test_only_the_images_that_are_wanted_are_decoded(tmp_path: Path) -> None:
    write_folder(tmp_path, {name: some_images(5) for name in NAMES})
    for file in (tmp_path / "bee").iterdir():
        file.write_bytes(b"damaged")
    assert len(load(DataSettings(name=str(tmp_path), classes=("ant", "cow"))).train) == 8


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"classes": ("ant", "be")},
            "Unknown class 'be' in 'data.classes' for '.*zoo'; did you mean 'bee'",
        ),
        ({"classes": ("ant", "ant")}, "Classes must have different names. Got 'ant' twice"),
        ({"classes": ("ant",)}, "at least two classes. Got 1"),
        ({"classes": ()}, "at least two classes. Got 0"),
        (
            {"imbalance": 100},
            "'data.imbalance' must leave every class an image; 100 leaves none for 'cow'",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    root: Path, settings: dict, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        load(zoo(**settings), root)


def test_whitening_large_images_is_refused(root: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'data.normalization: zca' needs images of at most 12,288 values"
    ):
        load(zoo(normalization="zca", image_size=65), root)


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1, 0]), ("test", [0, 1, 2])):
        write_parquet(
            tmp_path / f"{split}.parquet", [encode(i) for i in TRAIN[:3]], labels, names=NAMES
        )
    with pytest.raises(
        DataError,
        match=r"Every class must have an image in the train split of .*. Got none for 'cow'",
    ):
        load(DataSettings(name=str(tmp_path)))


def test_a_class_that_is_never_tested_is_refused(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1, 2]), ("test", [0, 1, 1])):
        write_parquet(
            tmp_path / f"{split}.parquet", [encode(i) for i in TRAIN[:3]], labels, names=NAMES
        )
    with pytest.raises(DataError, match=r"in the test split of .*. Got none for 'cow'"):
        load(DataSettings(name=str(tmp_path)))


def test_one_image_a_class_cannot_be_split(tmp_path: Path) -> None:
    write_folder(tmp_path, {name: some_images(1) for name in NAMES})
    with pytest.raises(
        DataError, match=r"test split cannot be carved from .*no class has more than one image"
    ):
        load(DataSettings(name=str(tmp_path)))


def test_data_never_import_ray() -> None:
    code = "import sys, rayd.data; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
