"""Selections agree with slow references, and are what their definitions say on sets where one can
see it.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayd.data import ImageSet, Standardization
from rayd.data.selection import herding, k_center, random, select
from rayd.errors import ConfigError, DataError

Reference = list[int]


def slow_herding(points: Tensor, count: int) -> Reference:
    mean = points.mean(0)
    chosen = []
    for _ in range(count):
        left = [i for i in range(len(points)) if i not in chosen]
        chosen.append(min(left, key=lambda i: float((mean - points[[*chosen, i]].mean(0)).norm())))
    return chosen


def slow_k_center(points: Tensor, count: int) -> Reference:
    chosen = [min(range(len(points)), key=lambda i: float((points[i] - points.mean(0)).norm()))]
    while len(chosen) < count:
        left = [i for i in range(len(points)) if i not in chosen]
        chosen.append(
            max(left, key=lambda i: min(float((points[i] - points[j]).norm()) for j in chosen))
        )
    return chosen


def features(seed: int, counts: list[int], dimension: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=draw)]
    return torch.randn(len(labels), dimension, generator=draw, dtype=torch.float64) + 100, labels


def image_set(counts: list[int], seed: int = 0) -> ImageSet:
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    images = draw.integers(0, 256, (len(labels), 1, 3, 3), dtype=np.uint8)
    return ImageSet(images, labels, tuple("abcdefgh"[: len(counts)]))


@pytest.mark.parametrize(("fast", "slow"), [(herding, slow_herding), (k_center, slow_k_center)])
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(5, 12), min_size=1, max_size=3),
    per_class=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_against_brute_force(fast, slow, seed, counts, per_class):
    x, y = features(seed, counts)
    expected = []
    for c in range(len(counts)):
        rows = (y == c).nonzero().squeeze(1)
        expected += rows[slow(x[rows], per_class)].tolist()
    assert fast(x, y, per_class).tolist() == expected


@pytest.mark.parametrize("choose", [herding, k_center])
def test_a_whole_class_is_chosen_once_even_with_duplicates(choose):
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0]])
    assert sorted(choose(x, torch.zeros(4, dtype=torch.long), 4)) == [0, 1, 2, 3]


def test_herding_and_k_center_where_one_can_see_it():
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 10.0], [0.0, -10.0]])
    y = torch.zeros(5, dtype=torch.long)
    assert herding(x, y, 3).tolist() == [0, 1, 2]
    assert k_center(x, y, 3).tolist() == [0, 3, 4]


@pytest.mark.parametrize("how", ["random", "herding", "k-center"])
def test_selections_are_sorted_by_class_distinct_and_nested(how):
    data = image_set([9, 6, 7])
    normalization = Standardization.fit(data.images)
    rows = {
        k: select(how, data, k, normalization, torch.Generator().manual_seed(3)).reshape(3, k)
        for k in (2, 5)
    }
    for k, chosen in rows.items():
        assert chosen.dtype == np.int64
        np.testing.assert_array_equal(data.labels[chosen], np.arange(3)[:, None].repeat(k, 1))
        assert len(np.unique(chosen)) == 3 * k
    np.testing.assert_array_equal(rows[2], rows[5][:, :2])


@pytest.mark.parametrize(("how", "function"), [("herding", herding), ("k-center", k_center)])
def test_select_uses_normalised_pixels(how, function):
    data = image_set([9, 6, 7])
    normalization = Standardization.fit(data.images)
    x = normalization(torch.from_numpy(data.images)).flatten(1)
    expected = function(x, torch.from_numpy(data.labels), 4)
    np.testing.assert_array_equal(select(how, data, 4, normalization, torch.Generator()), expected)


def test_random_draws_from_its_generator_and_every_image_is_drawn_as_often():
    data = image_set([6, 8])
    first, again, other = (
        random(data, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    draw = torch.Generator().manual_seed(0)
    drawn = np.bincount(np.concatenate([random(data, 3, draw) for _ in range(800)]), minlength=14)
    np.testing.assert_allclose(drawn[data.labels == 0], 400, rtol=0.2)
    np.testing.assert_allclose(drawn[data.labels == 1], 300, rtol=0.2)


@pytest.mark.parametrize("how", ["random", "herding", "k-center"])
def test_a_small_class_gives_every_image_before_any_again(how):
    data = image_set([9, 2])
    normalization = Standardization.fit(data.images)
    rows = select(how, data, 5, normalization, torch.Generator().manual_seed(0)).reshape(2, 5)
    assert len(np.unique(rows[0])) == 5
    assert sorted(rows[1][:2]) == sorted(np.flatnonzero(data.labels == 1))
    assert rows[1].tolist() == [*rows[1][:2], *rows[1][:2], rows[1][0]]
    fewer = select(how, data, 2, normalization, torch.Generator().manual_seed(0)).reshape(2, 2)
    np.testing.assert_array_equal(fewer, rows[:, :2])


@pytest.mark.parametrize("how", ["random", "herding", "k-center"])
def test_a_class_without_images_is_named(how):
    data = image_set([9, 0])
    with pytest.raises(
        DataError, match=r"Class 'b' must have at least 1 image\(s\) to select from. Got 0 instead."
    ):
        select(how, data, 3, Standardization.fit(data.images), torch.Generator())


@pytest.mark.parametrize("choose", [herding, k_center])
def test_features_of_a_class_that_is_too_small_are_refused(choose):
    x, y = features(0, [9, 2])
    with pytest.raises(
        DataError, match=r"Class 1 must have at least 3 image\(s\) to select from. Got 2 instead."
    ):
        choose(x, y, 3)


def test_an_unknown_selection_names_the_nearest():
    data = image_set([3])
    with pytest.raises(ConfigError, match="did you mean 'k-center'"):
        select("kcenter", data, 1, Standardization.fit(data.images), torch.Generator())
