"""Every method, every stage, on the simulated device under CUDA's strict rules; and what a step
makes a GPU wait for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from rayd.config import merge
from tests.simulated_cuda.conftest import Run
from tests.simulated_cuda.scenarios import NETWORK, SETTINGS

pytestmark = pytest.mark.timeout(900)
"""The first test of a group runs all of the group."""

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
    (
        "dm",
        "dm sampled",
        "datadam",
        "iid-dm",
        "csdm",
        "csdm sampled",
        "ncfm",
        "idm",
        "iid-idm",
        "dc",
        "dsa",
        "dcc",
        "idc",
        "cafe",
        "frepo",
        "krr",
        "kip",
    ),
    (
        "edc",
        "gvbsm",
        "sre2l",
        "dwa",
        "cda",
        "rded",
        "cfm",
        "unidd",
        "mtt",
        "tesla",
        "datm",
        "ls-mtt",
        "haba",
    ),
)
"""Scenarios that share a process, for which torch is imported once."""
STEP: dict[str, tuple[int, int]] = {
    "dm": (0, 2),
    "dm sampled": (0, 4),
    "datadam": (0, 2),
    "iid-dm": (0, 2),
    "csdm": (0, 1),
    "csdm sampled": (
        1,
        7,
    ),  # the median distance of a real batch is a length that the host draws with
    "ncfm": (0, 2),
    "idm": (0, 7),
    "iid-idm": (0, 11),
    "dc": (0, 5),
    "dsa": (0, 8),
    "dcc": (0, 8),
    "idc": (0, 11),
    "cafe": (0, 8),
    "frepo": (0, 2),
    "krr": (0, 2),
    "kip": (0, 2),
    "edc": (0, 11),
    "gvbsm": (1, 5),  # an eigendecomposition checks itself
    "sre2l": (0, 0),
    "dwa": (0, 0),
    "cda": (0, 2),
    "cfm": (1, 2),  # where a Cholesky factor fails, eigenvalues are used
    "unidd": (1, 2),
    "mtt": (1, 11),  # a step without any student that did not diverge is not taken
    "tesla": (1, 11),
    "datm": (1, 11),
    "ls-mtt": (1, 11),
    "haba": (1, 15),
}
"""How often the last step of a synthesis waits for the device, and how often it copies to it
without waiting, at most.
"""


@pytest.fixture(scope="module")
def reported(simulated: Run, request: pytest.FixtureRequest) -> Any:
    """What was reported of a scenario, small or not; it is run together with those of its group
    that this session tests.
    """
    tested = [item for item in request.session.items if item.path == request.path]
    wanted = {item.callspec.params["name"] for item in tested if hasattr(item, "callspec")}
    # tests without a scenario of their own are about those with more to do
    wanted |= ALSO.keys() if any(not hasattr(item, "callspec") for item in tested) else set()

    @cache
    def pool(index: int) -> dict[tuple[str, bool], dict[str, Any]]:
        names = [name for name in GROUPS[index] if name in wanted]
        large = [{"scenario": name, "also": ALSO.get(name, [])} for name in names]
        small = [{"scenario": name, "small": True} for name in names if name in STEP]
        entries = simulated(*large, *small)
        return {(entry["scenario"], "small" in entry): entry for entry in entries}

    def of(name: str, small: bool = False) -> dict[str, Any]:
        entry = next(
            pool(index)[name, small] for index, names in enumerate(GROUPS) if name in names
        )
        assert entry["error"] is None, entry["error"]
        return entry

    return of


every = pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in SETTINGS]
)


@every
def test_a_whole_run_keeps_the_rules_of_cuda(reported, name):
    entry = reported(name)
    assert entry["violations"] == []
    assert all(0 < accuracy < 1 for accuracy in entry["accuracies"].values())


stepping = pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in STEP]
)


@stepping
def test_a_step_hardly_waits_for_the_device(reported, name):
    entry = reported(name)
    last = entry["steps"][-1]
    (syncs, copies) = STEP[name]
    assert (last["blocking"], last["syncs"] <= syncs, last["copies"] <= copies) == (
        0,
        True,
        True,
    ), (last, entry["lines"])


@stepping
def test_more_classes_and_layers_do_not_make_a_step_wait_more(reported, name):
    small, large = (reported(name, small=small)["steps"][-1] for small in (True, False))
    assert large["operations"] != small["operations"]
    assert [large[count] for count in ("syncs", "blocking", "copies")] == [
        small[c] for c in ("syncs", "blocking", "copies")
    ]


@every
def test_an_epoch_of_training_waits_once_if_teachers_are_checked(reported, name):
    for kind, epoch in reported(name)["passes"].items():
        # RandAugment's operations are torchvision's, which wait
        if name != "edc" or kind == "observer":
            assert epoch["blocking"] == 0, epoch["lines"]
            assert epoch["syncs"] == (1 if kind.endswith("teachers") else 0), epoch["lines"]


@every
def test_the_device_is_empty_when_students_begin(reported, name):
    """Observers, statistics and real images are gone; constants of the normalisation (a whitening
    matrix: 16 kB) may stay.
    """
    assert reported(name)["held"] < 20_000


@every
def test_statistics_are_merged_on_the_host(reported, name):
    """As those that workers send: sums may round differently on a GPU."""
    assert reported(name)["merged"] in ([], ["cpu"])


def test_a_set_from_the_device_is_that_of_the_cpu(reported):
    for name in (name for name, also in ALSO.items() if "cpu" in also):
        assert reported(name)["difference"] < 1e-5


def test_a_plan_times_every_stage(reported):
    for name in (name for name, also in ALSO.items() if "plan" in also):
        assert reported(name)["plan"]["seconds"] > 0


def test_spectra_are_drawn_and_finished_sets_are_judged_again(reported):
    assert min(reported("cfm")["spectra"]) > 100
    assert len(reported("dm")["evaluated"]) == 3


@pytest.fixture(scope="module")
def special(simulated: Run) -> list[dict[str, Any]]:
    """Two runs on the second device, and one of a regression that cannot be solved."""
    second = {"overrides": {"resources": {"device": "cuda:1"}}}
    diverging = {"overrides": {"synthesis": {"learning_rate": 1e30}}}
    return simulated(
        {"scenario": "dm", **second},
        {"scenario": "idm", **second},
        {"scenario": "krr", **diverging},
    )


def test_another_device_than_the_current_one_draws_from_its_own_generator(special):
    """Dropout draws from a global generator: that of the device where the network is."""
    for entry in special[:2]:
        assert entry["error"] is None, entry["error"]
        assert {what for what, _ in entry["seeded"]} == {"get", "seed", "set"}
        assert {device for _, device in entry["seeded"]} == {1}


def test_a_regression_that_fails_on_the_device_is_told_when_its_loss_is_read(special):
    """On the CPU it is refused at once; asking a GPU in every step would make it wait."""
    assert (
        "RunError: The loss is not finite at step 5; lower synthesis.learning_rate."
        in special[2]["error"]
    )


EXACT = {"precision": "float32"}
EXACTLY: dict[str, dict[str, Any]] = {
    "csdm": {
        "observers": EXACT,
        "evaluation": {"baselines": ["forgetting"]},
        "ranking": {"count": 1, "epochs": 1, "early": 1},
    },
    "rded": {"observers": EXACT, "squeeze": EXACT, "synthesis": {"steps": 0}},
    "datm": {
        "experts": {"network": NETWORK, **EXACT},
        "synthetic": {"labels": "experts"},
        "evaluation": {"networks": [NETWORK]},
    },
}
"""Scenarios whose parts besides the steps have convolutions: resolved lengths, ranked images, scored
crops, predicted labels.
"""


def test_convolutions_are_exact_where_float32_is_asked_for(simulated):
    """By default torch rounds them to TF32."""
    jobs = []
    for name, settings in EXACTLY.items():
        overrides = merge({"synthesis": {"steps": 1, **EXACT}, "evaluation": EXACT}, settings)
        jobs.append({"scenario": name, "small": True, "overrides": overrides})
    for entry in simulated(*jobs):
        assert entry["error"] is None, entry["error"]
        assert entry["rounded"] == {}
