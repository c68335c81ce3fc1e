"""Results of a GPU are found and used on a CPU, and the other way round."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulated_cuda.conftest import Run

pytestmark = pytest.mark.timeout(600)

STAGES = {"edc": ("squeeze", "measure"), "mtt": ("experts",)}
"""Stages before the synthesis."""


@pytest.fixture(scope="module")
def shared(simulated: Run) -> dict[str, dict[str, Any]]:
    """What `program._shared` says of each scenario."""
    jobs = [{"scenario": name, "small": True, "also": ["shared"]} for name in STAGES]
    entries = simulated(*jobs)
    for entry in entries:
        assert entry["error"] is None, entry["error"]
    return {entry["scenario"]: entry["shared"] for entry in entries}


@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("name", STAGES)
def test_a_run_on_another_kind_of_device_computes_nothing_again(shared, name, here, there):
    found = shared[name]
    assert found["added"][f"run on {here}"] == {}
    # the card is that of the set as it was made, and says where
    assert found["cards"][f"run on {here}"] == {
        **{stage: [there] for stage in STAGES[name]},
        "synthesize": [there],
    }
    assert all(kinds == [there] for kinds in found["trained"][f"run on {here}"])


@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("name", STAGES)
def test_a_synthesis_uses_networks_and_statistics_of_another_device(shared, name, here, there):
    found = shared[name]
    added = found["added"][f"synthesis on {here}"]
    assert added.keys() == {"synthesis", "students"}
    assert found["cards"][f"synthesis on {here}"] == {
        **{stage: [there] for stage in STAGES[name]},
        "synthesize": [here],
    }


@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
@pytest.mark.parametrize("name", STAGES)
def test_an_evaluation_trains_only_the_students_that_are_missing(shared, name, here, there):
    """Neither the teachers nor the students of the first seed again."""
    found = shared[name]
    assert found["added"][f"evaluation on {here}"].keys() == {"students"}
    assert ["cpu", "cuda"] in found["trained"][f"evaluation on {here}"]


@pytest.fixture(scope="module")
def fresh(simulated: Run) -> dict[str, dict[str, Any]]:
    """What `program._fresh` says of each scenario."""
    entries = simulated(*({"scenario": one, "small": True, "also": ["fresh"]} for one in STAGES))
    for entry in entries:
        assert entry["error"] is None, entry["error"]
    return {entry["scenario"]: entry["fresh"] for entry in entries}


OWN = {"cuda": "tf32", "cpu": "float32"}
"""What `precision: auto` chooses for images of 8 x 8 pixels."""


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("name", STAGES)
def test_auto_precision_finds_what_another_device_made_in_another_precision(
    fresh, name, there, here
):
    """A run of the same recipe computes nothing, a resumed one the synthesis that is missing."""
    found = fresh[name][there]
    # sections that a method does not use stay as they are
    assert set(found["made"]["card"]["precision"].values()) - {"auto"} == {OWN[there]}
    assert found["same"]["added"] == {}
    assert found["same"]["card"] == found["made"]["card"]
    assert found["evaluation"]["added"] == {}
    resumed = found["resumed"]
    assert resumed["added"].keys() == {"synthesis", "students"}
    assert resumed["card"]["precision"] == found["made"]["card"]["precision"]
    assert resumed["card"]["devices"] == {
        **{stage: [there] for stage in STAGES[name]},
        "synthesize": [here],
    }


@pytest.mark.parametrize(("there", "here"), [("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("name", STAGES)
def test_auto_precision_is_that_of_the_device_for_what_is_computed(fresh, name, there, here):
    """Stages before the synthesis are found, and the card says in which precision and where."""
    found = fresh[name][there]["longer"]
    assert found["added"].keys() == {"synthesis", "students"}
    precision = found["card"]["precision"]
    assert (precision["synthesis"], precision["evaluation"]) == (OWN[here], OWN[here])
    sections = {"edc": ("squeeze", "observers"), "mtt": ("experts",)}[name]
    assert {precision[section] for section in sections} == {OWN[there]}
    assert found["card"]["devices"] == {
        **{stage: [there] for stage in STAGES[name]},
        "synthesize": [here],
    }
