"""Subsets have the published sizes, keep every class, and do not depend on who else was drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayd.data.splits import (
    check_labels,
    choose_classes,
    long_tailed,
    long_tailed_counts,
    stratified,
)
from rayd.errors import DataError

NAMES = ("ant", "bee", "cow")
some_labels = st.lists(st.integers(0, 2), max_size=60).map(
    lambda labels: np.array(labels, np.int64)
)


@pytest.mark.parametrize(
    ("imbalance", "total", "tail"),
    [(10, 20_431, 500), (50, 13_996, 100), (100, 12_406, 50), (200, 11_203, 25)],
)
def test_long_tailed_cifar10_has_the_published_sizes(
    imbalance: float, total: int, tail: int
) -> None:
    counts = long_tailed_counts(5000, imbalance, 10)
    assert (counts[0], counts.sum(), counts[-1]) == (5000, total, tail)


@pytest.mark.parametrize(
    ("imbalance", "total"), [(10, 19_573), (20, 15_907), (50, 12_608), (100, 10_847)]
)
def test_long_tailed_cifar100_has_the_published_sizes(imbalance: float, total: int) -> None:
    assert long_tailed_counts(500, imbalance, 100).sum() == total


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_a_whole_share_is_not_truncated_to_the_number_below(tail: int, imbalance: int) -> None:
    assert long_tailed_counts(tail * imbalance, imbalance, 10)[-1] == tail


def test_a_long_tail_draws_distinct_images_of_each_class() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 100))
    rows = long_tailed(labels, 25, NAMES, seed=42)
    assert np.bincount(labels[rows]).tolist() == [100, 20, 4]
    assert np.array_equal(rows, np.unique(rows))
    assert not np.array_equal(rows, long_tailed(labels, 25, NAMES, seed=43))
    assert np.array_equal(rows, long_tailed(labels, 25, NAMES, seed=42))


def test_a_class_smaller_than_its_share_keeps_all_it_has() -> None:
    labels = np.repeat(np.arange(3), [100, 5, 50])
    assert np.bincount(labels[long_tailed(labels, 4, NAMES, seed=0)]).tolist() == [100, 5, 25]


def test_a_long_tail_that_empties_a_class_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"'data.imbalance' .* 100 leaves none for 'cow' \(the largest class has 20\)",
    ):
        long_tailed(np.repeat(np.arange(3), 20), 100, NAMES, seed=0)


@given(some_labels, st.floats(0, 0.99), st.integers(0, 3))
def test_carving_is_a_stratified_partition(labels: np.ndarray, fraction: float, seed: int) -> None:
    kept, carved = stratified(labels, fraction, NAMES, seed, "validation")
    assert np.array_equal(np.sort(np.concatenate([kept, carved])), np.arange(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(carved) > 0).all()
    for label in range(3):
        size = (labels == label).sum()
        taken = (labels[carved] == label).sum()
        assert size == 0 or taken < size
        assert size < 2 or fraction == 0 or taken >= 1
        assert abs(taken - fraction * size) <= 1


def test_what_is_drawn_from_a_class_does_not_depend_on_the_others() -> None:
    labels = np.repeat(np.arange(3), 30)
    _, carved = stratified(labels, 0.2, NAMES, 0, "validation")
    _, alone = stratified(np.zeros(30, np.int64), 0.2, ("bee",), 0, "validation")
    assert np.array_equal(carved[labels[carved] == 1] - 30, alone)


def test_purposes_draw_differently() -> None:
    labels = np.repeat(np.arange(3), 30)
    carved = [
        stratified(labels, 0.2, NAMES, 0, purpose)[1].tolist() for purpose in ("validation", "test")
    ]
    assert carved[0] != carved[1]


@given(some_labels, st.permutations([0, 1, 2]), st.integers(1, 3))
def test_chosen_classes_are_renumbered_in_the_order_given(
    labels: np.ndarray, order: list[int], count: int
) -> None:
    chosen = order[:count]
    rows, renumbered = choose_classes(labels, chosen)
    assert np.array_equal(rows, np.flatnonzero(np.isin(labels, chosen)))
    assert [chosen[label] for label in renumbered] == labels[rows].tolist()


def test_labels_that_make_no_classification_are_refused() -> None:
    with pytest.raises(DataError, match=r"at least two classes. Got 1 in 'zoo'"):
        check_labels(np.zeros(3, np.int64), ("ant",), "'zoo'")
    with pytest.raises(
        DataError, match=r"Every class must have an image in 'zoo'. Got none for 'bee'"
    ):
        check_labels(np.array([0, 2]), NAMES, "'zoo'")
    with pytest.raises(DataError, match="'5' and 4 more"):
        check_labels(np.array([0]), tuple(map(str, range(10))), "'zoo'")
