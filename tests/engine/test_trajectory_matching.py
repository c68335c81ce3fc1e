"""Students that follow experts: whole runs on digits, however they are interrupted, shared out, and
led astray.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from rayd.artifacts import read_tensors
from rayd.card_text import describe
from rayd.config import Recipe, merge
from rayd.data import load as load_data
from rayd.distilled import load
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled
from rayd.engine.job import Job
from rayd.engine.plan import plan
from rayd.engine.stages.experts import Experts
from rayd.engine.store import Store
from rayd.engine.worker import Worker
from rayd.errors import ConfigError, DataError, RunError
from rayd.recipes import assemble
from tests.conftest import tiny
from tests.engine.test_decoupled import stages_of
from tests.faults import break_off, check_resumes, kill_one_in_each_stage
from tests.runs import NO_STUDENTS, QUIET, bytes_of, steps_of

NETWORK = {"name": "mlp", "width": 16}
METHODS = ("mtt", "tesla", "datm", "ls-mtt", "haba")


def following(method: str = "mtt", **overrides: object) -> Recipe:
    """Every stage, ending in a few seconds."""
    base = {
        "name": f"tiny-{method}",
        "method": method,
        "data": {"name": "digits"},
        "ipc": 2,
        "experts": {
            "network": NETWORK,
            "count": 3,
            "epochs": 6,
            "batch_size": 128,
            "learning_rate": 0.1,
            "augmentation": None,
        },
        "synthetic": {"step_size": 0.05},
        "synthesis": {
            "steps": 6,
            "log_every": 2,
            "checkpoint_every": 3,
            "learning_rate": 1.0,
            "learning_rates": {"log_step_size": 0.02},
        },
        "objective": {
            "steps": 4,
            "epochs": 2,
            "start": {"most": 4},
            "augmentation": "crop_scale",
            "per_step": 2,
        },
        "evaluation": {
            "networks": [NETWORK],
            "seeds": 1,
            "epochs": 3,
            "baselines": [],
            "augmentation": "crop_scale",
        },
        "resources": {"threads": 1},
    }
    if method == "datm":
        base = merge(base, {"objective": {"start": {"first": 2, "rise": 4}}})
    if method == "haba":
        adversary = {"name": "convnet", "depth": 1, "width": 4}
        seen = {"augmentation": "crop_scale", "model_pool": {"augmentation": "crop_scale"}}
        base = merge(base, {"observers": {"networks": adversary, **seen}})
    if method == "ls-mtt":
        base = merge(
            base, {"synthetic": {"rank": 2}, "objective": {"start": {"offset": 2, "window": 2}}}
        )
    return assemble(base, overrides)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_through_every_stage(tmp_path, method):
    run = distill(following(method), tmp_path / "run", progress=QUIET)
    assert stages_of(tmp_path / "run") == ["experts", "synthesize", "evaluate"]
    lines = steps_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all({"loss", "step_size", "skipped"} <= line.keys() for line in lines)
    card = json.loads((tmp_path / "run" / "distilled" / "card.json").read_text())
    assert card["step_size"] == pytest.approx(lines[-1]["step_size"], rel=0.02)
    assert card["step_size"] != pytest.approx(0.05, rel=1e-6)
    assert (card["experts"]["network"], card["experts"]["count"], card["experts"]["epochs"]) == (
        "mlp-w16",
        3,
        6,
    )
    assert f"step size      {card['step_size']:.4g}, learned" in describe(run.distilled)
    assert "experts        3 of mlp-w16 over 6 epochs" in describe(run.distilled)
    soft = method in ("datm", "ls-mtt")
    assert run.distilled.labels.is_floating_point() == soft
    assert run.report.results[0].protocol.startswith("learned-label" if soft else "hard-label")
    assert f"learning_rate {card['step_size']:.3g}" in run.report.results[0].protocol


@pytest.mark.parametrize("method", [pytest.param("datm", marks=pytest.mark.slow), "ls-mtt", "haba"])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, method):
    results = []
    for workers in (0, 2):
        recipe = following(
            method,
            resources={"workers": workers, "threads": 1, "cpus_per_worker": 0.5},
            **NO_STUDENTS,
        )
        distill(recipe, tmp_path / str(workers), cache=tmp_path / f"cache{workers}", progress=QUIET)
        results.append(bytes_of(tmp_path / str(workers)))
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_while_experts_train_changes_nothing(tmp_path):
    recipe = following(
        experts={"epochs": 60},
        objective={"start": {"most": 40}},
        synthesis={"steps": 40},
        **NO_STUDENTS,
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    distill(recipe, tmp_path / "whole", cache=tmp_path / "cache", progress=QUIET)
    command = [
        sys.executable,
        "-m",
        "rayd",
        "distill",
        str(path),
        "--quiet",
        "--out",
        str(tmp_path / "cut"),
        "--workers",
        "2",
    ]
    running = subprocess.Popen(command, env=os.environ | {"RAYD_CACHE": str(tmp_path / "other")})
    assert kill_one_in_each_stage(running, tmp_path / "cut") >= 1
    assert running.wait() == 0
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "cut")


@pytest.mark.parametrize("method", ["mtt", "ls-mtt"])
@pytest.mark.parametrize("at", [2, 4])
def test_an_interrupted_synthesis_resumes_to_the_same_bytes(tmp_path, method, at):
    recipe = following(method, synthesis={"log_every": 1}, **NO_STUDENTS)
    check_resumes(recipe, tmp_path, at)
    assert [line["loss"] for line in steps_of(tmp_path / "whole")] == [
        line["loss"] for line in steps_of(tmp_path / "cut")
    ]


def test_matching_teaches(tmp_path):
    """Students of the learned set come nearer to experts, and know more, than those of the real
    images that it started from.
    """
    still = {"synthesis": {"learning_rate": 1e-12, "learning_rates": {"log_step_size": 0.0}}}
    learned = {
        "synthesis": {"steps": 150, "log_every": 1},
        "evaluation": {"epochs": 60, "seeds": 3},
    }
    moved = distill(following(**learned), tmp_path / "moved", progress=QUIET)
    stayed = distill(following(**merge(learned, still)), tmp_path / "stayed", progress=QUIET)
    losses = [
        [line["loss"] for line in steps_of(tmp_path / run)][-30:] for run in ("moved", "stayed")
    ]
    assert sum(losses[0]) < 0.95 * sum(losses[1])
    assert moved.report.results[0].test_accuracy.mean > stayed.report.results[0].test_accuracy.mean


def test_experts_are_shared_by_runs_that_differ_in_anything_but_them(tmp_path, monkeypatch):
    distill(following(**NO_STUDENTS), tmp_path / "first", progress=QUIET)
    monkeypatch.setattr(Worker, "expert", None)
    distill(
        following("tesla", seed=1, ipc=1, experts={"count": 2}, **NO_STUDENTS),
        tmp_path / "second",
        progress=QUIET,
    )
    with pytest.raises(TypeError):
        distill(following(experts={"epochs": 5}, **NO_STUDENTS), tmp_path / "third", progress=QUIET)


def test_an_expert_that_cannot_be_read_is_trained_again(tmp_path):
    # with the precision that was chosen for this machine, which the experts in the store were
    # trained in
    recipe = distill(following(**NO_STUDENTS), tmp_path / "first", progress=QUIET).recipe
    store = Store()
    files = Experts(Job(recipe, load_data(recipe.data), store)).files()
    files[1].write_bytes(b"nothing")
    assert Experts(Job(recipe, load_data(recipe.data), store)).missing() == [1]
    distill(recipe, tmp_path / "second", progress=QUIET)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


def test_the_three_ways_to_the_gradient(tmp_path):
    made = {}
    for way in ("reverse", "full", "truncated"):
        recipe = following(objective={"way": way}, synthesis={"learning_rate": 30.0}, **NO_STUDENTS)
        distill(recipe, tmp_path / way, progress=QUIET)
        made[way] = load(tmp_path / way).images
    torch.testing.assert_close(made["reverse"], made["full"], atol=1e-4, rtol=1e-4)
    assert float((made["reverse"] - made["truncated"]).abs().max()) > 1e-3


def test_more_students_a_step_are_averaged(tmp_path):
    recipe = following(objective={"per_step": 1}, **NO_STUDENTS)
    distill(recipe, tmp_path / "one", progress=QUIET)
    distill(following(**NO_STUDENTS), tmp_path / "two", progress=QUIET)
    assert bytes_of(tmp_path / "one") != bytes_of(tmp_path / "two")


class TestDivergence:
    def test_students_beyond_the_limit_are_left_out_and_counted(self, tmp_path):
        # a student that has not come nearer has a loss of about 1
        recipe = following(
            objective={"loss_limit": 0.97}, synthesis={"log_every": 1, "steps": 10}, **NO_STUDENTS
        )
        distill(recipe, tmp_path / "run", progress=QUIET)
        lines = steps_of(tmp_path / "run")
        skipped = [line["skipped"] for line in lines]
        assert skipped == sorted(skipped)
        assert 0 < skipped[-1] < 20
        assert all(line["loss"] <= 0.97 for line in lines if "loss" in line)
        assert all(
            ("loss" in line) == (after - before < 2)
            for line, before, after in zip(lines, [0, *skipped[:-1]], skipped, strict=True)
        )

    def test_steps_without_any_student_change_nothing(self, tmp_path):
        recipe = following(objective={"loss_limit": 1e-6}, **NO_STUDENTS)
        run = distill(recipe, tmp_path / "run", progress=QUIET)
        assert run.distilled.card["step_size"] == pytest.approx(0.05)
        assert [line["skipped"] for line in steps_of(tmp_path / "run")] == [4, 8, 12]
        assert not list((tmp_path / "run" / "checkpoints").glob("*"))

    def test_too_many_in_a_row_end_the_run_and_leave_the_checkpoint(self, tmp_path):
        wild = {
            "synthesis": {"learning_rate": 1e30, "steps": 40, "checkpoint_every": 1},
            "objective": {"patience": 5},
        }
        recipe = following(**merge(wild, NO_STUDENTS))
        with pytest.raises(
            RunError,
            match=r"Every student of the last 5 steps diverged, up to step \d+ .* lower 'synth",
        ):
            distill(recipe, tmp_path / "run", progress=QUIET)
        steps = [
            int(path.stem.removeprefix("step-"))
            for path in (tmp_path / "run" / "checkpoints").iterdir()
        ]
        assert min(steps) < 5
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            assert all(t.isfinite().all() for t in read_tensors(path)[0].values())

    def test_what_was_counted_is_in_the_checkpoint(self, tmp_path):
        recipe = following(
            objective={"loss_limit": 0.97}, synthesis={"log_every": 1, "steps": 10}, **NO_STUDENTS
        )
        distill(recipe, tmp_path / "whole", progress=QUIET)
        break_off(recipe, tmp_path / "cut", 8)
        distill(recipe, tmp_path / "cut", resume=True, progress=QUIET)
        assert [line["skipped"] for line in steps_of(tmp_path / "whole")] == [
            line["skipped"] for line in steps_of(tmp_path / "cut")
        ]


class TestLowRank:
    def test_storage_is_counted_by_part_and_within_the_budget(self, tmp_path):
        run = distill(following("ls-mtt", ipc=3, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
        numbers = run.distilled.card["storage"]["numbers"]
        count = len(run.distilled)
        assert numbers["labels"] == 10 * count
        assert numbers["bases"] == 4 * count
        assert numbers["left"] == numbers["right"]
        assert 0.9 * 3 * 640 < sum(numbers.values()) <= 3 * 640
        assert run.report.storage_bytes == {name: 4 * number for name, number in numbers.items()}
        assert load(tmp_path / "run").images.equal(run.distilled.images)

    def test_any_method_learns_them(self, tmp_path):
        recipe = tiny(synthetic={"kind": "lowrank", "rank": 3}, ipc=2, **NO_STUDENTS)
        distill(recipe, tmp_path / "run", progress=QUIET)
        losses = [line["loss"] for line in steps_of(tmp_path / "run")]
        assert losses[-1] < losses[0]
        numbers = load(tmp_path / "run").card["storage"]["numbers"]
        assert set(numbers) == {"left", "right", "bases"}
        assert sum(numbers.values()) <= 2 * 640

    def test_sets_are_blocks(self, tmp_path):
        recipe = tiny(
            synthetic={"kind": "lowrank", "rank": 3, "sets": 4},
            ipc=2,
            synthesis={"block": 2},
            **NO_STUDENTS,
        )
        distill(recipe, tmp_path / "run", progress=QUIET)
        assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2

    @pytest.mark.parametrize("init", ["noise", "herding", "k-center"])
    def test_they_start_anywhere(self, tmp_path, init):
        recipe = following("ls-mtt", synthetic={"init": init}, **NO_STUDENTS)
        assert distill(recipe, tmp_path / "run", progress=QUIET).distilled.images.isfinite().all()

    def test_more_images_than_there_are_are_refused(self):
        with pytest.raises(
            DataError, match="Low-rank images must not be more a class than the smallest class has"
        ):
            plan(following("ls-mtt", ipc=50), progress=QUIET)


def test_labels_of_experts_start_where_experts_are_right(tmp_path):
    still = {
        "synthesis": {"learning_rate": 1e-12, "learning_rates": {"labels": 1e-12}},
        "experts": {"epochs": 30},
    }
    run = distill(following("datm", **merge(still, NO_STUDENTS)), tmp_path / "run", progress=QUIET)
    right = run.distilled.hard_labels == torch.arange(10).repeat_interleave(2)
    assert right.all()
    assert (
        (run.distilled.labels.max(1).values > 0.3) & (run.distilled.labels.max(1).values < 1)
    ).any()
    assert run.distilled.card["storage"]["numbers"] == {"images": 20 * 64, "labels": 200}


def test_a_learned_step_size_may_be_left_aside(tmp_path):
    run = distill(following(evaluation={"epochs": 20}), tmp_path / "run", progress=QUIET)
    given = {"evaluation": {"learned_step_size": False, "learning_rate": 0.02}}
    report = evaluate_distilled(load(tmp_path / "run"), given, None, None, QUIET)
    assert "learning_rate 0.02" in report.results[0].protocol
    assert report.results[0].test_accuracy != run.report.results[0].test_accuracy


def test_soft_labels_are_what_students_of_other_protocols_learn_from(tmp_path):
    distill(following("datm"), tmp_path / "run", progress=QUIET)
    report = evaluate_distilled(
        load(tmp_path / "run"), {"evaluation": {"mix": "cutmix"}}, None, None, QUIET
    )
    assert report.results[0].protocol.startswith("learned-label, 3 epochs, crop_scale, cutmix")


def test_a_plan_tells_experts_and_students():
    planned = plan(following("datm"), progress=QUIET)
    text = planned.text()
    assert "3 of 3 experts (mlp-w16) learn 6 epochs of" in text
    assert "0 cached" in text
    assert "6 steps of 2 students of 4 steps (reverse) on 20 images" in text
    parameters = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert planned.disk["experts"] == 3 * 7 * 4 * parameters
    assert all(stage.seconds > 0 for stage in planned.stages)


def test_a_plan_knows_what_is_there(tmp_path):
    distill(following(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    planned = plan(following(experts={"count": 5}), progress=QUIET)
    assert "2 of 5 experts" in planned.text()
    assert "3 cached" in planned.text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"synthetic": {"step_size": None}}, "learns a step size for students"),
        (
            {"synthetic": {"labels": "experts"}},
            "Labels need their own step size.* set 'synthesis.learning_rates.labels'",
        ),
        ({"objective": {"epochs": 7}}, r"must not exceed 'experts.epochs'. Got 6 instead"),
        (
            {"experts": {"network": {"name": "convnet", "norm": "batch"}}},
            "must have no state except parameters",
        ),
        ({"experts": {"average": 0.9}}, "no moving average"),
        ({"synthesis": {"precision": "bfloat16"}}, "needs 'synthesis.precision: float32'"),
        ({"synthesis": {"block": 5}}, "'synthesis.block' must be null"),
        (
            {"synthesis": {"learning_rates": {"basis": 1}}},
            "Setting 'synthesis.learning_rates.basis",
        ),
        ({"objective": {"start": {"least": 4, "most": 4}}}, "must be above 'start.least'"),
        ({"synthetic": {"labels": "experts", "init": "noise"}}, "needs real images"),
        (
            {"synthetic": {"labels": "random"}, "terms": {"centralization": {"weight": 1}}},
            "needs the class of each image",
        ),
        ({"synthetic": {"labels": "random", "kind": "partitioned"}}, "has hard labels"),
        ({"objective": {"start": {"most": 9}}}, "'objective.start.most' must be at most"),
        (
            {"synthesis": {"transform": {"crop": [0.5, 1]}}},
            "'synthesis.transform' has no effect in method",
        ),
        ({"objective": {"syn_steps": 4}}, "Unknown setting 'objective.syn_steps'"),
        (
            {"synthetic": {"kind": "lowrank", "rank": 9}},
            "rank must be from 1 to the images' shorter side",
        ),
        ({"synthetic": {"kind": "lowrank", "rank": 4, "budget": 100}}, "need at least"),
    ],
)
def test_what_cannot_work_is_refused_at_once(overrides, words):
    with pytest.raises(ConfigError, match=words):
        plan(following(**overrides), progress=QUIET)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"synthetic": {"step_size": 0.01}}, "Method 'dm' learns no step size"),
        ({"synthetic": {"labels": "random"}}, "Method 'dm' learns no labels"),
    ],
)
def test_other_methods_learn_no_step_size_and_no_labels(overrides, words):
    with pytest.raises(ConfigError, match=words):
        tiny(**overrides)


def test_terms_may_stand_beside_students(tmp_path):
    squeezed = {
        "classifiers": {
            "networks": {"name": "convnet", "depth": 1, "width": 4},
            "pool": 1,
            "squeeze": {"epochs": 1},
        }
    }
    recipe = following(terms={"centralization": {"weight": 0.05}}, **merge(squeezed, NO_STUDENTS))
    distill(recipe, tmp_path / "run", progress=QUIET)
    assert stages_of(tmp_path / "run")[:2] == ["squeeze", "experts"]
    assert all(
        {"loss", "centralization", "step_size"} <= line.keys()
        for line in steps_of(tmp_path / "run")
    )
