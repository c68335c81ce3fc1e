"""Plans: of any recipe, without data, without decoding, with what is cached and what dominates."""

import json

import numpy as np
import pytest

from rayd import recipes
from rayd.config import parse_overrides
from rayd.data import load
from rayd.engine.distill import distill
from rayd.engine.job import Job
from rayd.engine.plan import PROCESS, Plan, StagePlan, plan, worker_memory
from rayd.engine.store import Store
from rayd.errors import ConfigError, DataError
from tests.conftest import tiny
from tests.engine.test_streaming import recipe, root
from tests.runs import QUIET

__all__ = ["root"]


def resolved(name: str, *overrides: str):
    return recipes.resolve(name, parse_overrides(list(overrides)))


@pytest.fixture(autouse=True)
def _nominal_speeds(monkeypatch):
    """No test depends on how fast this machine is."""
    monkeypatch.setattr("rayd.engine.speeds.Speeds.calibrate", lambda *_, **__: 0.0)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("dm-cifar10-ipc1", ["measure", "synthesize", "evaluate"]),
        ("dsa-cifar10-ipc1", ["synthesize", "evaluate"]),
        ("frepo-cifar10-ipc1", ["synthesize", "evaluate"]),
        ("datm-cifar10-ipc10", ["experts", "synthesize", "evaluate"]),
        ("edc-cifar10-ipc10-reduced", ["squeeze", "measure", "synthesize", "evaluate"]),
        ("rded-imagenet-10-ipc1", ["squeeze", "score", "synthesize", "evaluate"]),
    ],
)
def test_a_known_set_is_planned_without_the_data(name, stages):
    planned = plan(resolved(name), progress=QUIET)
    assert [stage.stage for stage in planned.stages] == stages
    assert all(stage.seconds > 0 for stage in planned.stages if "0 steps" not in stage.work)
    assert "sizes are those of the published set" in planned.text()
    assert json.loads(json.dumps(planned.to_json()))["seconds"] == planned.seconds


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_planned(name):
    planned = plan(resolved(name), progress=QUIET)
    assert planned.seconds > 0


def test_streamed_images_are_planned_with_their_first_pass_and_decoding():
    planned = plan(resolved("rded-imagenet-1k-ipc1"), progress=QUIET)
    first = planned.stages[0]
    assert (first.stage, first.work) == (
        "read",
        "1,331,167 images are decoded once, to survey them",
    )
    assert first.seconds > 60
    assert "streamed" in planned.data


def test_work_is_proportional_to_its_settings():
    once = plan(tiny(), progress=QUIET)
    twice = plan(
        tiny(synthesis={"steps": 24}, evaluation={"epochs": 8}, observers={"pool": 6}),
        progress=QUIET,
    )
    for one, two in zip(once.stages[:2], twice.stages[:2], strict=True):
        assert two.seconds == pytest.approx(2 * one.seconds, rel=0.1)
    assert once.stages[2].seconds < twice.stages[2].seconds


def test_a_plan_says_what_dominates_and_that_a_cpu_is_too_slow():
    text = plan(tiny(synthesis={"steps": 10**9}), progress=QUIET).text()
    assert (
        "% of the time is synthesize: 1,000,000,000 steps. It is proportional to synthesis.steps."
        in text
    )
    assert "On the CPU of this machine that is about" in text
    assert "use a GPU" in text
    assert "use a GPU" not in plan(tiny(), progress=QUIET).text()


def test_what_a_run_left_is_found_without_decoding(root, tmp_path, monkeypatch):
    """Parquet files are decoded by the run; the plan finds its results by their fingerprints, and
    decodes none.
    """
    chosen = recipe("dm", False, evaluation={"baselines": ["random", "whole"]})
    assert "0 cached" in plan(chosen, root, tmp_path / "cache", QUIET).text()
    distill(chosen, tmp_path / "run", data_root=root, cache=tmp_path / "cache", progress=QUIET)

    def refuse(*_: object) -> None:
        raise AssertionError("images were decoded")

    monkeypatch.setattr("rayd.data.formats.base.decode_images", refuse)
    monkeypatch.setattr("rayd.data.streaming.decode_images", refuse)
    planned = plan(chosen, root, tmp_path / "cache", QUIET)
    assert "3 cached" in planned.text()
    assert "2 of 2 baseline results cached" in planned.text()
    assert planned.stages[0].seconds == 0


def test_a_run_leaves_its_fingerprints_as_they_are(root, tmp_path):
    from rayd.data import load
    from rayd.data.outline import load_outline

    chosen = recipe("dm", False).data
    assert (
        load_outline(chosen, root, tmp_path).data.fingerprint
        != load(chosen, root, tmp_path).fingerprint
    )
    outline = load_outline(chosen, root, tmp_path)
    assert outline.data.fingerprint == load(chosen, root, tmp_path).fingerprint
    assert outline.data.test.fingerprint == load(chosen, root, tmp_path).test.fingerprint
    assert np.array_equal(outline.data.train.labels, load(chosen, root, tmp_path).train.labels)


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("dm-cifar10-ipc1", "data.classes=[cat, unicorn]", "unicorn"),
        ("dm-cifar10-ipc1", "ipc=6000", "ipc must not exceed the smallest class"),
        ("rded-imagenet-10-ipc1", "data.image_size=null", "'data.image_size'"),
        ("dm-cifar10-ipc1", "data.name=cifra10", "Unknown data set"),
        ("edc-cifar10-ipc10", "data.imbalance=100000", "data.imbalance"),
    ],
)
def test_what_a_run_refuses_is_refused_without_the_data(name, override, words):
    with pytest.raises((ConfigError, DataError), match=words):
        plan(resolved(name, override), progress=QUIET)


def test_counts_are_kept(tmp_path, monkeypatch):
    first = plan(tiny(), cache=tmp_path, progress=QUIET)

    def fail(*_: object) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr("rayd.engine.costs.Costs._counted_steps", fail)
    monkeypatch.setattr("rayd.engine.costs.Costs._epoch", fail)
    assert plan(tiny(), cache=tmp_path, progress=QUIET) == first


def test_workers_that_a_stage_cannot_keep_busy_are_told(tmp_path):
    one = {
        "observers": {"pool": 8, "per_step": 1},
        "resources": {"workers": 4, "cpus_per_worker": 0.25},
    }
    (remark,) = (text for text in plan(tiny(**one), cache=tmp_path).remarks if "Of 4" in text)
    assert "synthesize 1" in remark
    assert "synthesis.split=4" in remark
    split = tiny(**one, synthesis={"split": 4})
    assert not any(
        "synthesize" in text and "Of 4" in text for text in plan(split, cache=tmp_path).remarks
    )


def test_lines_of_a_plan_fit_the_terminal():
    """What is broken stands below its column, and no word is lost."""
    long = ", ".join(f"network-{number}" for number in range(40))
    stages = (StagePlan("squeeze", f"observers ({long}) learn", "0 cached", 7200.0),)
    made = Plan("name", "data", stages, memory={"data": 1}, remarks=("A remark. " * 20,))
    lines = made.text(80).splitlines()
    assert max(map(len, lines)) <= 80
    assert made.text(80).split() == made.text().split()
    first = next(line for line in lines if line.startswith("squeeze"))
    below = lines[lines.index(first) + 1]
    assert below.index("network") == first.index("observers")


def test_the_memory_of_processes_is_planned():
    """Of the driver and each worker, or of the only process; it grows with what they hold."""
    alone = plan(tiny(), progress=QUIET).memory
    assert alone["in all"] > alone["data"] + alone["step"]
    assert "driver" not in alone
    few = plan(tiny(), progress=QUIET).memory["in all"]
    wide = tiny(observers={"networks": {"name": "convnet", "width": 512, "depth": 2}})
    many = plan(wide, progress=QUIET)
    assert many.memory["in all"] > few + 10**7


def test_workers_need_less_memory_each_where_there_are_more(tmp_path):
    sizes = []
    for workers in (1, 4):
        networks = {"name": "convnet", "width": 256, "depth": 3}
        recipe = tiny(
            observers={"pool": 8, "networks": networks},
            resources={"workers": workers, "threads": 1},
        )
        sizes.append(worker_memory(Job(recipe, load(recipe.data), Store(tmp_path))))
    assert PROCESS < sizes[1] < sizes[0] - 5 * 10**6
