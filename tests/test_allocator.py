"""Memory that is freed serves the next tensor."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from rayd import allocator, devices
from rayd.config import ResourceSettings

PAGE = resource.getpagesize()


def _pages_of(repeats: int) -> int:
    """Pages that the kernel has to clear while a tensor of 64 MB is made and dropped again and again."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.full((2**24,), 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_work_on_the_cpu_reuses_freed_memory():
    """The kernel clears the pages of a tensor once, not in every step."""
    devices.choose(ResourceSettings(device="cpu"))
    if not allocator.keep_freed_memory():
        pytest.skip("another C library than glibc, or the allocator is set by the environment")
    _pages_of(2)
    assert _pages_of(10) < 2**26 / PAGE


def test_given_back_memory_leaves_the_process():
    """After `give_back` the process holds less, and goes on."""
    if not allocator.keep_freed_memory():
        pytest.skip("another C library than glibc, or the allocator is set by the environment")
    _pages_of(1)
    allocator.give_back()
    assert _pages_of(1) >= 2**26 / PAGE


def test_settings_of_the_user_are_kept():
    """Who has set the allocator by an environment variable keeps that setting."""
    program = "from rayd.allocator import keep_freed_memory; print(keep_freed_memory())"
    environment = {"MALLOC_TRIM_THRESHOLD_": "131072", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
