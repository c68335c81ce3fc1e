"""The plain parameterisation and where it starts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rayd.data import load
from rayd.errors import ConfigError, DataError
from rayd.synthetic import LowRank, Pixels, initial, restore
from rayd.synthetic.initialization import check_budget
from tests.conftest import tiny

LABELS = torch.tensor([0, 0, 1, 1])


def test_batch_is_differentiable_in_the_parameters():
    pixels = Pixels(torch.rand(4, 1, 2, 2), LABELS)
    images, labels = pixels.batch(torch.tensor([3, 0]))
    images.sum().backward()
    assert labels.tolist() == [1, 0]
    assert pixels.images.grad is not None
    assert pixels.images.grad.flatten(1).sum(1).tolist() == [4, 0, 0, 4]


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        (LABELS[:3], r"int64 \(3,\)"),
        (LABELS.float(), r"float32 \(4,\)"),
        (LABELS - 1, r"int64 \(4,\)"),
        (LABELS > 0, r"bool \(4,\)"),
        (torch.eye(2).long()[LABELS], r"int64 \(4, 2\)"),
        (torch.eye(2)[LABELS][:3], r"float32 \(3, 2\)"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(labels, got):
    with pytest.raises(ConfigError, match=rf"class indices \(4,\), .*Got {got} instead"):
        Pixels(torch.rand(4, 1, 2, 2), labels)
    factors = (torch.rand(1, 1, 2, 1), torch.rand(1, 1, 1, 2), torch.rand(4, 1, 1, 1))
    with pytest.raises(ConfigError):
        LowRank(*factors, labels)


@pytest.mark.parametrize(
    "images", [torch.rand(4, 2, 2), torch.zeros(4, 1, 2, 2, dtype=torch.uint8)]
)
def test_what_is_no_batch_of_normalized_images_is_refused(images):
    with pytest.raises(ConfigError, match=r"floats \(n, C, H, W\)\. Got"):
        Pixels(images, LABELS)


def test_storage_counts_labels_only_where_order_does_not_imply_them():
    assert Pixels(torch.rand(4, 1, 2, 2), LABELS).storage().bytes == {"images": 64}
    assert Pixels(torch.rand(4, 1, 2, 2), torch.tensor([0, 0, 0, 1])).storage().numbers == {
        "images": 16,
        "labels": 4,
    }


def test_clip_clamps_each_channel():
    pixels = Pixels(torch.linspace(-1, 2, 16).reshape(4, 1, 2, 2), LABELS)
    pixels.clip(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert pixels.images.min() == 0
    assert pixels.images.max() == 1


def test_a_replica_follows():
    original = Pixels(torch.rand(4, 1, 2, 2), LABELS)
    replica = restore(tiny().synthetic, dict(original.state_dict()))
    with torch.no_grad():
        original.images += 1
    replica.assign({name: p.detach() for name, p in original.named_parameters()})
    assert torch.equal(replica.batch()[0], original.batch()[0])


@pytest.mark.parametrize("init", ["real", "noise", "herding", "k-center"])
def test_initial_sets(init):
    recipe = tiny(ipc=2, synthetic={"init": init})
    data = load(recipe.data)
    images, labels = initial(recipe, data).batch()
    assert labels.tolist() == [c for c in range(10) for _ in range(2)]
    again, _ = initial(recipe, data).batch()
    assert torch.equal(images, again)
    if init != "noise":
        real = data.normalization(torch.from_numpy(data.train.images))
        distance = torch.cdist(images.detach().flatten(1), real.flatten(1))
        nearest = distance.min(1)
        assert nearest.values.max() < 1e-3
        assert torch.equal(torch.from_numpy(data.train.labels)[nearest.indices], labels)


def test_another_seed_starts_elsewhere():
    data = load(tiny().data)
    assert not torch.equal(
        initial(tiny(seed=1), data).batch()[0], initial(tiny(seed=2), data).batch()[0]
    )


def test_a_budget_beyond_the_smallest_class_is_refused():
    data = load(tiny().data)
    with pytest.raises(
        DataError,
        match=r"ipc must not exceed the smallest class: '\d' of 'digits' has \d+ training images. Got 999",
    ):
        check_budget(tiny(ipc=999), data)


LONG_TAIL = {"name": "digits", "imbalance": 20.0}
"""142 images of class 0, 7 of class 9."""


@pytest.mark.parametrize("init", ["real", "herding", "k-center"])
def test_a_long_tail_may_be_smaller_than_the_budget_and_it_is_said(init, caplog):
    recipe = tiny(ipc=10, data=LONG_TAIL, synthetic={"init": init})
    data = load(recipe.data)
    few = int((data.train.counts < 10).sum())
    assert few > 0
    check_budget(recipe, data)
    smallest = f"(10; '9' has {data.train.counts[9]})"
    assert caplog.messages == [
        f"{few} of the 10 classes of 'digits' have fewer training images than 'ipc' asks for {smallest}: "
        "initial images and baselines take theirs more than once."
    ]
    images, labels = initial(recipe, data).batch()
    assert labels.bincount().tolist() == [10] * 10
    assert len(torch.unique(images[labels == 9].detach(), dim=0)) == data.train.counts[9]
    assert len(torch.unique(images[labels == 0].detach(), dim=0)) == 10


def test_classes_that_are_uneven_by_themselves_are_as_good_as_a_long_tail(caplog):
    data = load(tiny().data)
    rows = np.concatenate(
        [index[: (1 if label == 0 else 50)] for label, index in enumerate(data.train.class_index)]
    )
    uneven = replace(data, train=data.train.part(rows))
    check_budget(tiny(ipc=5), uneven)
    (message,) = caplog.messages
    assert message.startswith(
        "1 of the 10 classes of 'digits' have fewer training images than 'ipc' asks for (5; '0' has 1)"
    )


def test_a_long_tail_within_the_budget_says_nothing(caplog):
    recipe = tiny(ipc=2, data=LONG_TAIL)
    check_budget(recipe, load(recipe.data))
    assert not caplog.messages


def test_a_batch_beyond_the_smallest_class_is_said(caplog):
    recipe = tiny(data=LONG_TAIL, real="sampled", observers={"real_batch": 8})
    check_budget(recipe, load(recipe.data))
    (message,) = caplog.messages
    assert "fewer training images than 'observers.real_batch' asks for (8; '9' has 7)" in message
    assert message.endswith("a batch draws from them with replacement.")
