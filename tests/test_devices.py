"""Arithmetic of convolutions."""

import pytest
import torch

from rayd import devices


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True)])
def test_convolutions_are_rounded_to_tf32_only_if_asked(monkeypatch, before, precision, rounded):
    """torch rounds them by default on GPUs that can."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with devices.convolutions(torch.device("cuda"), precision):
        assert torch.backends.cudnn.allow_tf32 is rounded
    assert torch.backends.cudnn.allow_tf32 is before
