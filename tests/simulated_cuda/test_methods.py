"""Every method, every stage, on the simulated device under CUDA's strict rules; and what a step makes a GPU wait for."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from tests.simulated_cuda.conftest import Run
from tests.simulated_cuda.scenarios import SETTINGS

SLOW = {"csdm sampled", "idm", "dsa", "krr", "cda", "unidd", "tesla", "datm"}
"""Whose every line another scenario runs too."""
ALSO: dict[str, list[str]] = {
    "dm": ["plan", "evaluate", "cpu"],
    "cfm": ["spectra", "plan"],
    "ls-mtt": ["plan"],
    "edc": ["evaluate"],
    "frepo": ["plan", "cpu"],
    "dc": ["cpu"],
}
"""What else is done with the result."""
GROUPS = (
    ("dm", "dm sampled", "iid-dm", "csdm", "csdm sampled", "ncfm", "idm", "iid-idm", "dc", "dsa", "frepo", "krr"),
    ("edc", "gvbsm", "sre2l", "cda", "rded", "cfm", "unidd", "mtt", "tesla", "datm", "ls-mtt"),
)
"""Scenarios that share a process, for which torch is imported once."""


@pytest.fixture(scope="module")
def reported(simulated: Run, request: pytest.FixtureRequest) -> Any:
    """What was reported of a scenario; it is run together with those of its group that this session tests."""
    wanted = {item.callspec.params["name"] for item in request.session.items if _named(item)}
    with_more = any(item.path == request.path and not _named(item) for item in request.session.items)

    @cache
    def group(index: int) -> dict[str, dict[str, Any]]:
        names = [name for name in GROUPS[index] if name in wanted or (with_more and name in ALSO)]
        entries = simulated(*({"scenario": name, "also": ALSO.get(name, [])} for name in names))
        return dict(zip(names, entries, strict=True))

    def of(name: str) -> dict[str, Any]:
        entry = next(group(index)[name] for index, names in enumerate(GROUPS) if name in names)
        assert entry["error"] is None, entry["error"]
        return entry

    return of


def _named(item: pytest.Item) -> bool:
    return hasattr(item, "callspec") and item.callspec.params.get("name") in SETTINGS


every = pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in SETTINGS])


@every
def test_a_whole_run_keeps_the_rules_of_cuda(reported, name):
    entry = reported(name)
    assert entry["violations"] == []
    assert all(0 < accuracy < 1 for accuracy in entry["accuracies"].values())


@every
def test_the_device_is_empty_when_students_begin(reported, name):
    """Observers, statistics and real images are gone; constants of the normalisation (a whitening matrix: 16 kB) may stay."""
    assert reported(name)["held"] < 20_000


def test_a_set_from_the_device_is_that_of_the_cpu(reported):
    for name in (name for name, also in ALSO.items() if "cpu" in also):
        assert reported(name)["difference"] < 1e-5


def test_a_plan_times_every_stage(reported):
    for name in (name for name, also in ALSO.items() if "plan" in also):
        assert reported(name)["plan"]["seconds"] > 0


def test_spectra_are_drawn_and_finished_sets_are_judged_again(reported):
    assert min(reported("cfm")["spectra"]) > 100
    assert len(reported("dm")["evaluated"]) == 3


def test_another_device_than_the_current_one_draws_from_its_own_generator(simulated):
    """Dropout draws from a global generator: that of the device where the network is."""
    entries = simulated(
        {"scenario": "dm", "overrides": {"resources": {"device": "cuda:1"}}},
        {"scenario": "idm", "overrides": {"resources": {"device": "cuda:1"}}},
    )
    for entry in entries:
        assert entry["error"] is None, entry["error"]
        assert {what for what, _ in entry["seeded"]} == {"get", "seed", "set"}
        assert {device for _, device in entry["seeded"]} == {1}
