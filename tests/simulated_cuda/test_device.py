"""The simulated device itself: it refuses what CUDA refuses, allows the rest, and counts what a GPU
waits for.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulated_cuda.conftest import Run

ALLOWED = {
    "sum with a CPU scalar",
    "CPU indices",
    "fused optimizer",
    "backward pass",
    "draw on the CPU",
}


@pytest.fixture(scope="module")
def tried(simulated: Run) -> dict[str, Any]:
    (entry,) = simulated({"rules": True})
    assert entry["error"] is None, entry["error"]
    return entry


def test_what_cuda_refuses_is_refused(tried):
    assert set(tried["raised"]) == set(tried["attempts"]) - ALLOWED


def test_results_are_those_of_the_cpu(tried):
    assert tried["values"] == [[0, 2, 4], [6, 8, 10]]


@pytest.mark.parametrize("name", ["item", "mask", "nonzero", "unique", "to host"])
def test_waiting_for_the_device_is_counted(tried, name):
    assert tried[name] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "blocking"), [("to device", 1), ("made there", 1), ("to device at leisure", 0)]
)
def test_copies_to_the_device_are_counted(tried, name, blocking):
    assert tried[name] == [0, 1, blocking]


def test_arithmetic_on_the_device_costs_nothing(tried):
    assert tried["arithmetic"] == [0, 0, 0]
