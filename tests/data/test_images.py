"""Image sets refuse arrays that do not fit and know their classes."""

import pickle

import numpy as np
import pytest

from rayd.data import ImageData, ImageSet, ImageShape, Standardization
from rayd.errors import DataError
from tests.data.files import some_images

NAMES = ("ant", "bee", "cow")


def image_set(labels: list[int], seed: int = 0, side: int = 4) -> ImageSet:
    return ImageSet(
        some_images(len(labels), side=side, seed=seed), np.array(labels, np.int64), NAMES
    )


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), [0, 1], r"must be uint8 \(N, C, H, W\). Got float32"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], r"Got uint8 \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8).transpose(0, 3, 1, 2), [0, 1], "C-contiguous"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0], r"Labels must be int64 \(2,\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 3], r"0\.\.2. Got 3 in row 1"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, -1], "Got -1 in row 1"),
    ],
)
def test_what_does_not_fit_is_refused(images: np.ndarray, labels: list[int], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        ImageSet(images, np.array(labels, np.int64), NAMES)


def test_labels_of_another_type_are_refused() -> None:
    with pytest.raises(DataError, match="Got int32"):
        ImageSet(np.zeros((1, 3, 4, 4), np.uint8), np.zeros(1, np.int32), NAMES)


def test_classes_counts_and_index_agree() -> None:
    made = image_set([2, 0, 2, 2])
    assert made.shape == ImageShape(channels=3, height=4, width=4)
    assert len(made) == 4
    assert made.classes == 3
    assert made.counts.tolist() == [1, 0, 3]
    assert [rows.tolist() for rows in made.class_index] == [[1], [], [0, 2, 3]]


def test_subset_takes_rows_in_the_order_given() -> None:
    made = image_set([0, 1, 2, 1])
    some = made.subset([3, 0])
    assert some.labels.tolist() == [1, 0]
    assert np.array_equal(some.images, made.images[[3, 0]])
    assert some.class_names == NAMES


def test_fingerprint_sees_pixels_labels_and_names_and_nothing_else() -> None:
    made = image_set([0, 1, 2])
    same = pickle.loads(pickle.dumps(made))
    other_pixel = made.images.copy()
    other_pixel[2, 1, 0, 3] ^= 1
    others = [
        ImageSet(other_pixel, made.labels, NAMES),
        ImageSet(made.images, made.labels[::-1].copy(), NAMES),
        ImageSet(made.images, made.labels, ("ant", "bee", "cat")),
        ImageSet(made.images.reshape(3, 1, 12, 4), made.labels, NAMES),
    ]
    assert same.fingerprint == made.fingerprint
    assert len({made.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_splits_must_agree() -> None:
    train = image_set([0, 1, 2])
    normalization = Standardization.fit(train.images)
    with pytest.raises(
        DataError, match=r"test images of 'zoo' must have .*\(3, 4, 4\). Got \(3, 5, 5\)"
    ):
        ImageData("zoo", train, None, image_set([0], side=5), normalization)
    renamed = ImageSet(train.images, train.labels, NAMES[::-1])
    with pytest.raises(
        DataError, match="validation split of 'zoo' must have the training split's classes"
    ):
        ImageData("zoo", train, renamed, train, normalization)


def test_data_fingerprint_depends_on_training_split_and_normalization_only() -> None:
    train = image_set([0, 1, 2])
    test = image_set([1], seed=1)
    normalization = Standardization.fit(train.images)
    made = ImageData("zoo", train, None, test, normalization)
    assert made.fingerprint == ImageData("farm", train, test, train, normalization).fingerprint
    assert (
        made.fingerprint
        != ImageData("zoo", train, None, test, Standardization.fit(test.images)).fingerprint
    )
    assert made.fingerprint != ImageData("zoo", test, None, test, normalization).fingerprint
