"""Many tensors arrive as they left, through one buffer."""

import pytest
import torch

from rayd.transfer import pack, send

TENSORS = [
    torch.arange(5),
    torch.tensor([True, False, True]),
    torch.randn(2, 3).T,
    torch.tensor(7, dtype=torch.int64),
    torch.empty(0, 4),
    torch.randn(3, dtype=torch.float64),
    torch.randint(0, 255, (2, 3, 5), dtype=torch.uint8),
]


@pytest.mark.parametrize("tensor", TENSORS, ids=lambda tensor: str(tensor.dtype))
def test_packed_tensors_keep_their_bytes(tensor):
    """Wherever it lies in the buffer, behind tensors of odd sizes too."""
    packed = [*TENSORS, tensor]
    buffer, starts = pack(packed)
    part = buffer[starts[-1] : starts[-1] + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    assert torch.equal(part, tensor)


def test_sent_tensors_have_their_types_and_shapes():
    """On another device, here one without numbers."""
    for sent, tensor in zip(send(TENSORS, torch.device("meta")), TENSORS, strict=True):
        assert (sent.device.type, sent.dtype, sent.shape) == ("meta", tensor.dtype, tensor.shape)


def test_nothing_is_copied_on_the_cpu():
    sent = send(TENSORS, torch.device("cpu"))
    assert all(one is other for one, other in zip(sent, TENSORS, strict=True))


def test_nothing_to_send():
    assert send([], torch.device("meta")) == []


@pytest.mark.parametrize(("device", "is_asynchronous"), [("cuda", True), ("mps", False)])
def test_only_cuda_may_copy_after_the_buffer_was_freed(monkeypatch, device, is_asynchronous):
    """It stages the buffer, or keeps its pinned memory; MPS reads what lies there by then."""
    asked = []

    def to(tensor: torch.Tensor, place: torch.device, non_blocking: bool = False) -> torch.Tensor:
        asked.append((place.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    send([torch.arange(5), torch.ones(2)], torch.device(device))
    assert asked == [(device, is_asynchronous)]
