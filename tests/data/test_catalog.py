"""The catalogue's facts, and the check of class order that rests on them."""

import pytest

from rayd.data import KNOWN, check_class_order
from rayd.data.catalog import IMAGENETTE_CLASSES


@pytest.mark.parametrize("known", KNOWN.values(), ids=lambda known: known.name)
def test_every_known_set_is_complete(known) -> None:  # type: ignore[no-untyped-def]
    assert known.how
    if known.class_names is not None:
        assert len(set(known.class_names)) == known.classes
        assert check_class_order(known.name, known.class_names) is None
    for download in known.downloads:
        assert len(download.md5) == 32
        assert all(url.endswith(download.file) for url in download.urls)


def test_cifar100_is_in_alphabetical_order() -> None:
    names = KNOWN["cifar100"].class_names
    assert names == tuple(sorted(names))
    assert (names[0], names[52], names[99]) == ("apple", "oak_tree", "worm")


def test_another_order_is_told() -> None:
    names = [*KNOWN["cifar10"].class_names]
    names[3], names[5] = names[5], names[3]
    assert "Class 3 of 'cifar10' must be 'cat'. Got 'dog'" in check_class_order("cifar10", names)
    assert "must have 10 classes. Got 9" in check_class_order("cifar10", names[:9])


def test_other_spellings_of_the_same_class_are_accepted() -> None:
    assert check_class_order("imagenette", list(IMAGENETTE_CLASSES)) is None
    spaced = [
        name.replace("T-shirt/top", "T - shirt / top")
        for name in KNOWN["fashion_mnist"].class_names
    ]
    assert check_class_order("fashion_mnist", spaced) is None


def test_synsets_must_be_sorted() -> None:
    synsets = [f"n{label:08}" for label in range(200)]
    assert check_class_order("tiny-imagenet", synsets) is None
    assert "Class 0" in check_class_order("tiny-imagenet", synsets[::-1])


def test_nothing_is_said_of_unknown_sets() -> None:
    assert check_class_order("zoo", ["cow", "ant"]) is None
