"""Blocks that follow one another: CFM on digits, however it is interrupted and shared out."""

from __future__ import annotations

import pytest
import torch

from rayd.artifacts import read_tensors, write_tensors
from rayd.config import Recipe
from rayd.engine.distill import distill
from rayd.engine.plan import plan
from rayd.objectives import Context, SpectralFilterMatching
from rayd.recipes import assemble
from tests.engine.test_decoupled import SMALL
from tests.faults import break_off, check_resumes
from tests.runs import NO_STUDENTS, QUIET, bytes_of, losses_by_step


def cfm(**overrides: object) -> Recipe:
    base = {
        "name": "tiny-cfm",
        "method": "cfm",
        "data": {"name": "digits"},
        "ipc": 3,
        "observers": {"networks": SMALL, "pool": 1, "batch_size": 64},
        "squeeze": {
            "epochs": 2,
            "batch_size": 64,
            "learning_rate": 0.05,
            "transform": {"shift": 1, "flip": False},
        },
        "synthesis": {"steps": 4, "log_every": 2, "checkpoint_every": 3},
        "evaluation": {
            "networks": [SMALL[1]],
            "seeds": 1,
            "epochs": 1,
            "batch_size": 10,
            "baselines": [],
        },
        "resources": {"threads": 1},
    }
    return assemble(base, overrides)


def test_a_block_finds_what_the_one_before_left(tmp_path, monkeypatch):
    """In memory, and in the schedule of the filter: a running mean over three blocks, a ridge that
    falls.
    """
    found: list[tuple[int, float, int]] = []
    inner = SpectralFilterMatching.filters

    def filters(self, context: Context):
        before = int(context.memory["before"]) if context.memory else -1
        found.append((context.block, context.progress, before))
        return inner(self, context)

    monkeypatch.setattr(SpectralFilterMatching, "filters", filters)
    distill(cfm(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    found = found[:12]  # the chart of the result asks once more
    assert [block for block, _, _ in found] == [0] * 4 + [1] * 4 + [2] * 4
    assert [progress for _, progress, _ in found[:4]] == [0.0, 0.25, 0.5, 0.75]
    # two observers in turn: what they have averaged before is 0 in block 0, and one block more in
    # each later one
    assert [before for block, progress, before in found if progress >= 0.5] == [0, 0, 1, 1, 2, 2]


def test_blocks_that_follow_one_another_are_not_those_that_do_not(tmp_path):
    distill(cfm(**NO_STUDENTS), tmp_path / "updating", progress=QUIET)
    distill(
        cfm(terms={"spectral_filter": {"updating": False}}, **NO_STUDENTS),
        tmp_path / "alone",
        progress=QUIET,
    )
    ours, theirs = (
        read_tensors(tmp_path / run / "distilled" / "data.safetensors")[0]["images"]
        for run in ("updating", "alone")
    )
    first = torch.arange(30) % 3 == 0
    assert torch.equal(ours[first], theirs[first])
    assert not torch.equal(ours[~first], theirs[~first])


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    results = []
    for workers in (0, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        recipe = cfm(resources=resources, observers={"per_step": 2})
        distill(recipe, tmp_path / str(workers), cache=tmp_path / f"cache{workers}", progress=QUIET)
        results.append(bytes_of(tmp_path / str(workers)))
    assert results[0] == results[1]


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("at", [0, 2])
def test_an_interrupted_block_resumes_to_the_same_bytes(tmp_path, at, block):
    recipe = cfm(synthesis={"log_every": 1}, **NO_STUDENTS)
    check_resumes(recipe, tmp_path, at, block)
    assert losses_by_step(tmp_path / "whole") == losses_by_step(tmp_path / "cut")


def test_a_checkpoint_of_the_version_before_gives_its_memory_to_the_renamed_term(tmp_path):
    """Means over blocks go on where they were when the term was called 'spectral'."""
    distill(cfm(**NO_STUDENTS), tmp_path / "whole", progress=QUIET)
    break_off(cfm(**NO_STUDENTS), tmp_path / "cut", 3, block=1)
    renamed = 0
    for path in (tmp_path / "cut" / "checkpoints").rglob("*.safetensors"):
        tensors, metadata = read_tensors(path)
        old = {name.replace(".spectral_filter.", ".spectral."): t for name, t in tensors.items()}
        renamed += len(old.keys() - tensors.keys())
        write_tensors(path, old, metadata)
    assert renamed > 0
    distill(cfm(**NO_STUDENTS), tmp_path / "cut", resume=True, progress=QUIET)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "cut")


def test_what_is_planned_says_that_blocks_follow_one_another(tmp_path):
    assert (
        "in 3 blocks one after another"
        in plan(cfm(), cache=tmp_path / "cache", progress=QUIET).text()
    )


def test_a_block_is_an_image_of_each_class_whatever_their_number(tmp_path):
    recipe = cfm(data={"classes": ["3", "5", "8"]}, ipc=4)
    assert recipe.synthesis.block == "classes"
    assert (
        "on 12 images in 4 blocks one after another"
        in plan(recipe, cache=tmp_path / "cache", progress=QUIET).text()
    )
