"""Results of tiny runs of every method, kept from one commit and compared at another, bit for bit.

A guard for changes that must not change results. As bits depend on the processor, none are kept in
the repository:

    git stash; RAYD_GOLDEN=~/golden python -m pytest tests/golden     # keeps what is missing
    git stash pop; RAYD_GOLDEN=~/golden python -m pytest tests/golden # compares
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rayd
from rayd.artifacts import content_hash, read_json, read_tensors, tensor_hash
from rayd.recipes import names, resolve

FOLDER = os.environ.get("RAYD_GOLDEN")
FEW = {
    "synthesis": {"steps": 6, "log_every": 2, "checkpoint_every": 4},
    "evaluation": {
        "seeds": 1,
        "epochs": 2,
        "whole_epochs": 1,
        "baselines": ["random"],
        "comparisons": [],
    },
}
LITTLE_TRAINING = {"squeeze": {"epochs": 1}}
FOUR_EXPERTS = {
    "experts": {"count": 4, "epochs": 6},
    "objective": {"start": {"most": 3}, "steps": 3},
}
LOW_RANK = {"objective": {"start": {"most": 3, "offset": 1, "window": 1}}}
GUIDES = {"classifiers": {"pool": 1, "squeeze": {"epochs": 1}}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dm": ("digits", {"observers": {"pool": 3}}),
    "dm-sampled": ("digits", {"real": "sampled", "observers": {"real_batch": 16}}),
    "iid-dm": ("iid-digits", {"observers": {"pool": 2}, **GUIDES}),
    "iid-idm": ("iid-idm-digits", {"observers": {"model_pool": {"train_steps": 2}}, **GUIDES}),
    "edc": ("edc-digits", LITTLE_TRAINING),
    "gvbsm": ("edc-digits", {"method": "gvbsm", **LITTLE_TRAINING}),
    "rded": ("edc-digits", {"method": "rded", "synthesis": {"steps": 0}, **LITTLE_TRAINING}),
    "cfm": ("cfm-digits", LITTLE_TRAINING),
    "unidd": ("cfm-digits", {"method": "unidd", **LITTLE_TRAINING}),
    "csdm": ("csdm-digits", {"observers": {"pool": 3}}),
    "ncfm": ("ncfm-digits", {"observers": {"pool": 2}, **LITTLE_TRAINING}),
    "dc": ("dc-digits", {"observers": {"real_batch": 16}}),
    "frepo": ("frepo-digits", {"observers": {"real_batch": 16}}),
    "mtt": ("mtt-digits", FOUR_EXPERTS),
    "ls-mtt": ("ls-mtt-digits", FOUR_EXPERTS | LOW_RANK),
}

pytestmark = [
    pytest.mark.skipif(
        FOLDER is None,
        reason="set RAYD_GOLDEN to a folder to keep and compare results of tiny runs",
    ),
    pytest.mark.shared_synthesis,
]


def compare(name: str, found: Mapping[str, Any]) -> None:
    """Compare with what is kept, or keep it."""
    path = Path(str(FOLDER)) / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2))
    assert json.loads(path.read_text()) == found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", CASES)
def test_golden_run(name: str, workers: int, tmp_path: Path) -> None:
    recipe, overrides = CASES[name]
    few = {key: {**FEW.get(key, {}), **overrides.get(key, {})} for key in FEW} | {
        "resources": {"workers": workers}
    }
    run = rayd.distill(recipe, out=tmp_path / "run", quiet=True, **{**overrides, **few})
    tensors, _ = read_tensors(run.directory / "distilled" / "data.safetensors")
    results = read_json(run.directory / "evaluation.json")["results"]
    accuracies = [
        [result["set"], result["network"], result["test_accuracy"]["runs"]] for result in results
    ]
    # one file for any number of workers
    compare(name, {"tensors": tensor_hash(tensors), "results": accuracies})


def test_golden_identities() -> None:
    """What runs, their checkpoints and caches are known by."""
    compare("identities", {name: content_hash(resolve(name).identity()) for name in names()})
