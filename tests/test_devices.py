"""Arithmetic of convolutions, and waiting for a device."""

import pytest
import torch

from benchmarks import gpu_timings
from rayd import devices, machine


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True)])
def test_convolutions_are_rounded_to_tf32_only_if_asked(monkeypatch, before, precision, rounded):
    """torch rounds them by default on GPUs that can."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    with devices.convolutions(torch.device("cuda"), precision):
        assert torch.backends.cudnn.allow_tf32 is rounded
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize(("name", "waits"), [("cuda:1", ["cuda:1"]), ("mps", ["mps"]), ("cpu", [])])
def test_the_device_that_computes_is_waited_for(monkeypatch, name, waits):
    """Whichever is the current one; without it, a clock tells how long calls take to be queued."""
    device = torch.device(name)
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda one=None: waited.append(str(one)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    gpu_timings._clock(device)
    assert waited == waits
    machine.ratio(lambda: None, lambda: None, device, repeats=1)
    # two calls of each, one of them the warm-up
    assert waited == waits * 5
