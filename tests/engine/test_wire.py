"""The wire format: tensors come back equal, writable, and not shared."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from rayd.engine.wire import Packed, pack, size, unpack


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
)
def test_tensors_round_trip(dtype):
    tensor = (torch.rand(3, 2) * 5).to(dtype)
    back = unpack(pack({"x": [tensor, (tensor[0],)], "n": 3}))
    assert back["n"] == 3
    assert torch.equal(back["x"][0], tensor)
    assert torch.equal(back["x"][1][0], tensor[0])
    assert back["x"][0].dtype == dtype
    back["x"][0].zero_()
    assert tensor.any()


class GradientResult(NamedTuple):
    loss: torch.Tensor
    gradients: dict[str, torch.Tensor]


def test_tensors_in_named_tuples_travel_as_arrays():
    """As tensors they would be unpickled on the device that they were on, which the reader may not
    have.
    """
    answer = GradientResult(torch.tensor(1.5), {"images": torch.ones(2)})
    packed = pack(answer)
    assert isinstance(packed, GradientResult)
    assert isinstance(packed.loss, Packed)
    assert isinstance(packed.gradients["images"], Packed)
    assert size(packed) == 12
    back = unpack(packed)
    assert torch.equal(back.loss, answer.loss)
    assert torch.equal(back.gradients["images"], answer.gradients["images"])


def test_arrays_stay_arrays_and_are_not_copied():
    array = np.arange(3)
    array.flags.writeable = False
    assert unpack(pack([array]))[0] is array


def test_scalars_keep_their_shape():
    assert unpack(pack(torch.tensor(2.5))).shape == ()


def test_gradients_do_not_travel():
    assert not unpack(pack(torch.ones(2, requires_grad=True))).requires_grad
