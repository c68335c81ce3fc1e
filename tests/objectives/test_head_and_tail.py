"""Which classes are head: every rule by hand, and what no rule may do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayd.data.splits import long_tailed_counts
from rayd.objectives.head_and_tail import amplitude_weights


def weights(counts: list[float], head: float, split: str) -> list[float]:
    return amplitude_weights(torch.tensor(counts), head, split).tolist()


@pytest.mark.parametrize(
    ("split", "counts", "head"),
    [
        ("uniform", [9, 5, 1, 3], [1, 1, 1, 1]),
        ("median", [9, 5, 1, 3], [1, 1, 0, 0]),
        ("median", [9, 5, 4, 1, 3], [1, 1, 1, 0, 0]),
        ("median", [9, 4, 4, 1], [1, 1, 1, 0]),
        ("median", [7, 7, 7], [1, 1, 1]),
        ("rank", [1, 3, 5, 9], [0, 0, 1, 1]),
        ("rank", [1, 9, 5, 3, 4], [0, 1, 1, 0, 1]),
        ("rank", [4, 4, 4, 4], [1, 1, 0, 0]),
        ("continuous", [100, 1, 10], [1, 0, 0.5]),
        ("continuous", [6, 6], [1, 1]),
    ],
)
def test_shares_by_hand(split, counts, head):
    """With weight 1 a head class has 1, a tail class 0; any other weight lies between them in the
    same proportion.
    """
    assert weights(counts, 1.0, split) == pytest.approx(head, abs=1e-6)
    assert weights(counts, 0.8, split) == pytest.approx(
        [0.2 + 0.6 * share for share in head], abs=1e-6
    )
    assert weights(counts, 0.5, split) == pytest.approx([0.5] * len(counts))


@pytest.mark.parametrize(
    ("split", "head"),
    [("median", [1, 0, 1, 0]), ("rank", [1, 0, 1, 0]), ("continuous", [1, 0, 0.5, 0])],
)
def test_a_class_without_images_moves_no_split(split, head):
    assert weights([100, 0, 10, 1], 1.0, split) == pytest.approx(head, abs=1e-6)
    assert weights([0, 0], 1.0, split) == [0, 0]


@pytest.mark.parametrize("split", ["median", "rank", "continuous"])
@pytest.mark.parametrize("imbalance", [10, 50, 100, 200])
def test_long_tailed_cifar10_has_five_head_classes(split, imbalance):
    found = amplitude_weights(torch.from_numpy(long_tailed_counts(5000, imbalance, 10)), 0.8, split)
    assert (found > 0.5).tolist() == [True] * 5 + [False] * 5
    assert found[[0, -1]].tolist() == pytest.approx([0.8, 0.2])
    steps = found.diff()
    assert split != "continuous" or torch.allclose(steps, steps.mean(), atol=2e-3)


@pytest.mark.parametrize("head", [-0.1, 1.1, float("nan")])
def test_weights_outside_the_unit_interval_are_refused(head):
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\]. Got {head}"):
        amplitude_weights(torch.ones(2), head, "median")


def test_an_unknown_rule_is_refused():
    counts: Tensor = torch.ones(2)
    with pytest.raises(ValueError, match=r"must be one of .*'rank'.* Got 'mean'"):
        amplitude_weights(counts, 0.5, "mean")
