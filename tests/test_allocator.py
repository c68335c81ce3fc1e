"""Memory that is freed serves the next tensor."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from rayd import allocator, devices
from rayd.config import ResourceSettings

TENSORS = 12
"""Together more than glibc would keep by itself, which is 64 MB at most."""
PAGES = TENSORS * 2**24 // resource.getpagesize()
"""Of tensors of 16 MB."""


def _cleared(repeats: int) -> int:
    """Pages that the kernel clears while tensors of 16 MB are made and dropped again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        [torch.full((2**22,), float(value)) for value in range(TENSORS)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def _keeping() -> None:
    devices.choose(ResourceSettings(device="cpu"))
    if not allocator.keep_freed_memory():
        pytest.skip("another C library than glibc, or the allocator is set by the environment")


@pytest.mark.usefixtures("_keeping")
def test_work_on_the_cpu_reuses_freed_memory() -> None:
    """The kernel clears the pages of the tensors once, not in every step."""
    _cleared(5)
    assert _cleared(10) < 3 * PAGES


@pytest.mark.usefixtures("_keeping")
def test_given_back_memory_leaves_the_process() -> None:
    """What was freed has to be cleared again after `give_back`."""
    _cleared(5)
    allocator.give_back()
    # some pages stay with neighbours that are still in use
    assert _cleared(1) > 0.5 * PAGES


def test_settings_of_the_user_are_kept() -> None:
    """Who has set the allocator by an environment variable keeps that setting."""
    program = "from rayd.allocator import keep_freed_memory; print(keep_freed_memory())"
    environment = {"MALLOC_TRIM_THRESHOLD_": "131072", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
