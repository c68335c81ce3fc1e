"""Draws of many batches come back from their few tensors as they were."""

import pytest
import torch
from torch import Tensor

from rayd.training.packing import narrow, pack, stack, unpack, unstack


def draws(epoch: int, sizes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    """A box and a bit for each image, a roll and a share for each batch."""
    make = torch.Generator().manual_seed(epoch)
    return [
        {
            "boxes": torch.randint(-300, 300, (n, 4), generator=make),
            "bits": torch.rand(n, generator=make) < 0.5,
            "roll": torch.randint(-4, 5, (2,), generator=make),
            "share": torch.rand((), generator=make, dtype=torch.float64),
        }
        for n in sizes
    ]


@pytest.mark.parametrize("sizes", [(3, 3, 1), (2, 2), (1, 1, 1), (2,), (4, 2)])
def test_what_is_packed_comes_back(sizes):
    made = [draws(epoch, sizes) for epoch in range(3)]
    stacked = stack(
        [
            pack("transform", states, sizes) | pack("mix", states[::-1], sizes[::-1])
            for states in made
        ]
    )
    for epoch, states in enumerate(made):
        one = unstack(stacked, epoch)
        for wanted, got in (
            (states, unpack("transform", one, sizes)),
            (states[::-1], unpack("mix", one, sizes[::-1])),
        ):
            for a, b in zip(wanted, got, strict=True):
                assert a.keys() == b.keys()
                assert all(
                    torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
                )


def test_it_is_compact():
    sizes = (50, 50, 20)
    stacked = stack([pack("transform", draws(epoch, sizes), sizes) for epoch in range(64)])
    assert {name: (tuple(t.shape), t.dtype) for name, t in stacked.items()} == {
        "transform.images.boxes": ((64, 120, 4), torch.int16),
        "transform.images.bits": ((64, 120), torch.bool),
        "transform.batches.roll": ((64, 3, 2), torch.int8),
        "transform.batches.share": ((64, 3), torch.float64),
    }


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([-128, 127], torch.int8),
        ([-129, 0], torch.int16),
        ([2**15], torch.int32),
        ([2**31], torch.int64),
        ([2**31 - 1, -(2**31)], torch.int32),
    ],
)
def test_integers_keep_their_values_in_the_smallest_type(values, wanted):
    small = narrow(torch.tensor(values))
    assert small.dtype == wanted
    assert small.tolist() == values


def test_nothing_packed_is_nothing_for_each_batch():
    assert unpack("mix", pack("mix", [{}, {}], (2, 1)), (2, 1)) == [{}, {}]
