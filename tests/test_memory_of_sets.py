"""Memory that a large set takes: it is never copied whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rayd.training.sets import shared_tensor

ROOT = Path(__file__).parents[1]
SCRIPT = """
from benchmarks.memory import measure_set
grown = measure_set(1.0)
for name, most in {"range": 0.4, "save": 0.6, "again": 0.6, "fingerprint": 0.1, "students": 0.1}.items():
    assert grown[name] < most * 1e9, (name, grown)
"""
"""Images are denormalised in parts of 0.25 GB, whatever the size of the set."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_a_large_set_is_not_copied_for_its_picture_hash_or_students():
    """A GB of them; what grows is the part that is being looked at."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
def test_the_driver_holds_no_statistics_of_the_real_data():
    """Three observers of 50 MB each are measured on two workers."""
    script = "from benchmarks.memory import measure_moments\nassert measure_moments(50) < 25e6"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_memory_that_a_plan_estimates_is_that_of_a_run(workers):
    """Of the driver and of each worker, within a factor of 1.5."""
    few = "['synthesis.steps=20', 'evaluation.seeds=1', 'evaluation.epochs=5', 'evaluation.baselines=[]']"
    script = (
        "from benchmarks.memory import measure_plan\n"
        f"found = measure_plan('digits', {few}, {workers})\n"
        "assert all(size / 1.5 < planned < 1.5 * size for planned, size in found.values()), found"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_array_of_the_object_store_becomes_a_tensor_without_a_copy(recwarn):
    array = np.arange(6)
    array.flags.writeable = False
    assert shared_tensor(array).data_ptr() == array.ctypes.data
    assert torch.equal(shared_tensor(array), torch.arange(6))
    assert not recwarn.list
