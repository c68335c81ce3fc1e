"""The images of a step in parts: gradients of the whole, whoever computes which part."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd import methods
from rayd.artifacts import read_tensors
from rayd.config import Recipe
from rayd.engine.distill import distill
from rayd.errors import ConfigError
from rayd.networks import LayerRole, Observation
from rayd.objectives.batch_parts import summary
from rayd.recipes import assemble, resolve
from tests.conftest import tiny
from tests.runs import QUIET
from tests.slow_worker import SlowWorker, shares

FEW = {"seeds": 1, "epochs": 1, "baselines": []}
NETWORK = {"name": "convnet", "width": 8, "depth": 2}


def images_of(recipe: Recipe, directory: Path) -> torch.Tensor:
    distill(recipe, directory, cache=directory / "cache", progress=QUIET)
    tensors, _ = read_tensors(directory / "distilled" / "data.safetensors")
    return tensors["images"]


def dm(split: int, **overrides: Any) -> Recipe:
    settings = {"pool": 2, "per_step": 1}
    return tiny(ipc=3, observers=settings, synthesis={"split": split}, evaluation=FEW, **overrides)


def two_of_dm(split: int) -> Recipe:
    """Two observers a step, each with parts of its own."""
    settings = {"pool": 2, "per_step": 2}
    return tiny(ipc=3, observers=settings, synthesis={"split": split}, evaluation=FEW)


def edc(split: int) -> Recipe:
    return resolve(
        "edc-digits",
        {
            "ipc": 3,
            "observers": {"networks": [{**NETWORK, "norm": "batch"}], "per_step": 1},
            "squeeze": {"epochs": 2},
            "synthesis": {"steps": 6, "split": split},
            "evaluation": FEW,
        },
    )


def csdm(split: int) -> Recipe:
    return resolve(
        "csdm-digits",
        {
            "ipc": 3,
            "observers": {"networks": [NETWORK], "pool": 2, "per_step": 1},
            "synthesis": {"steps": 6, "split": split},
            "evaluation": FEW,
        },
    )


def filtered(method: str, split: int, **spectral_filter: Any) -> Recipe:
    """UniDD, and CFM in two blocks that follow one another."""
    return assemble(
        {
            "method": method,
            "ipc": 2,
            "data": {"name": "digits"},
            "observers": {"networks": {**NETWORK, "norm": "batch"}},
            "squeeze": {"epochs": 2},
            "synthesis": {
                "steps": 6,
                "split": split,
                "learning_rate": 0.01,
                "transform": {"crop": [0.5, 1.0]},
            },
            "terms": {"spectral_filter": spectral_filter},
            "evaluation": {**FEW, "networks": [NETWORK]},
        }
    )


def cfm(split: int) -> Recipe:
    return filtered("cfm", split)


def unidd(split: int) -> Recipe:
    # a ridge so small that statistics are taken in float64
    ridge = {"name": "ridge", "beta": 1e-7, "schedule": {"over": "steps"}}
    return filtered("unidd", split, filter=ridge, signal_weight=0.0)


def unidd_features(split: int) -> Recipe:
    return filtered("unidd", split, layers="features", signal="mean")


@pytest.mark.parametrize("recipe", [dm, two_of_dm, edc, csdm, cfm, unidd, unidd_features])
def test_parts_amount_to_the_whole(tmp_path: Path, recipe: Any) -> None:
    whole = images_of(recipe(1), tmp_path / "whole")
    parts = images_of(recipe(3), tmp_path / "parts")
    assert (whole - parts).abs().max() < 1e-4 * whole.abs().max()


def test_parts_are_summarised_in_the_precision_of_the_term(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small ridge depends on details of the statistics that float32 rounds away."""
    found = []

    def recorded(seen: Observation, *arguments: Any) -> Any:
        found.append(seen.layers[LayerRole.CONV_PATH][0].dtype)
        return summary(seen, *arguments)

    monkeypatch.setattr("rayd.engine.observer_tasks.summary", recorded)
    images_of(unidd(2), tmp_path / "small")
    images_of(cfm(2), tmp_path / "usual")
    assert found[:12] == [torch.float64] * 12
    assert found[12:] == [torch.float32] * 24


def test_what_a_worker_forgot_is_forwarded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by the parts that are kept, and results do not depend on it."""
    kept = images_of(dm(3), tmp_path / "kept")
    monkeypatch.setattr("rayd.engine.observer_tasks.KEPT_PARTS", 0)
    assert torch.equal(images_of(dm(3), tmp_path / "forgotten"), kept)


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        ("mtt-cifar10-ipc10", {}, "Students of method 'mtt' train on all images"),
        ("dc-digits", {}, "Sampled real images"),
        ("frepo-digits", {}, "needs all images of a step at once|Sampled real images"),
    ],
)
def test_what_needs_all_images_at_once_is_refused(
    recipe: str, overrides: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        methods.build(resolve(recipe, {**overrides, "synthesis": {"split": 2}}))


def test_the_keys_of_unsplit_results_stay() -> None:
    assert "split" not in dm(1).identity()["synthesis"]
    assert dm(2).identity()["synthesis"]["split"] == 2


@pytest.mark.slow
def test_parts_are_shared_evenly_by_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of any number of workers, each of which computes its share of the parts."""
    alone = images_of(dm(4), tmp_path / "0")
    for workers in (1, 2, 4):
        log = tmp_path / f"answers of {workers}"
        monkeypatch.setattr(
            "rayd.engine.driver.Worker", partial(SlowWorker, log=log, seconds=0.002)
        )
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.25}
        assert torch.equal(images_of(dm(4, resources=resources), tmp_path / f"{workers}"), alone)
        answers = shares(log)
        assert len(answers) == workers
        assert sum(answers.values()) == 12 * 4
        # the first steps may find that not all workers have answered yet
        assert min(answers.values()) >= 0.6 * 12 * 4 / workers
