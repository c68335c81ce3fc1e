"""Squeeze, measure, score, synthesize, relabel, evaluate: whole runs on digits, however they are
interrupted and shared out.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rayd.artifacts import content_hash, read_tensors, write_tensors
from rayd.config import Recipe, merge
from rayd.data import load
from rayd.engine import task_draws
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled
from rayd.engine.job import Job
from rayd.engine.network_ids import network_ids
from rayd.engine.stages.score import Score
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.store import Store
from rayd.engine.synthesizer import Synthesizer
from rayd.engine.worker import Worker
from rayd.errors import ConfigError, DataError
from rayd.recipes import assemble
from tests.faults import InterruptionError, check_resumes, kill_one_in_each_stage
from tests.runs import NO_STUDENTS, QUIET, bytes_of, log_of, losses_by_step, steps_of

SMALL = [
    {"name": "convnet", "depth": 1, "width": 6, "norm": "batch"},
    {"name": "convnet", "depth": 2, "width": 6, "norm": "batch"},
]


def edc(**overrides: object) -> Recipe:
    """Every stage and every term, ending in a few seconds."""
    base = {
        "name": "tiny-edc",
        "method": "edc",
        "data": {"name": "digits"},
        "ipc": 2,
        "observers": {"networks": SMALL, "pool": 1, "per_step": 2, "batch_size": 64},
        "squeeze": {
            "epochs": 2,
            "batch_size": 64,
            "learning_rate": 0.05,
            "transform": {"shift": 1, "flip": False},
        },
        "synthesis": {"steps": 6, "log_every": 2, "checkpoint_every": 3},
        "terms": {"moments": {"drop": 0.3}},
        "evaluation": {
            "networks": [SMALL[1]],
            "seeds": 1,
            "epochs": 3,
            "batch_size": 8,
            "baselines": ["random"],
            "comparisons": [],
        },
        "resources": {"threads": 1},
    }
    return assemble(base, overrides)


def stages_of(directory: Path) -> list[str]:
    return [line["stage"] for line in log_of(directory) if line.get("finished")]


def test_a_run_goes_through_every_stage(tmp_path):
    run = distill(
        edc(labels={"kind": "stored"}, synthetic={"init": "rded"}), tmp_path / "run", progress=QUIET
    )
    assert stages_of(tmp_path / "run") == [
        "squeeze",
        "measure",
        "score",
        "synthesize",
        "relabel",
        "evaluate",
    ]
    card = json.loads((tmp_path / "run" / "distilled" / "card.json").read_text())
    assert [one["network"] for one in card["observers"]] == [
        "convnet-d1-w6-batch",
        "convnet-d2-w6-batch",
    ]
    assert all(0 < one["train_accuracy"] <= 1 for one in card["observers"])
    assert (
        run.report.storage_bytes["soft labels"]
        == card["storage"]["bytes"]["soft labels"]
        > 3 * 20 * 10 * 2
    )
    assert {result.set for result in run.report.results} == {"distilled", "random"}
    first = steps_of(tmp_path / "run")[0]
    assert {"loss", "cross_entropy", "moments", "flatness"} <= first.keys()


def test_a_second_run_squeezes_and_measures_nothing(tmp_path, monkeypatch):
    distill(edc(synthetic={"init": "rded"}), tmp_path / "first", progress=QUIET)
    for stage in ("squeeze", "measure", "score"):
        monkeypatch.setattr(Worker, stage, None)
    distill(
        edc(synthetic={"init": "rded"}, ipc=1, synthesis={"steps": 3}, **NO_STUDENTS),
        tmp_path / "other",
        progress=QUIET,
    )
    assert not {"squeeze", "score"} & set(stages_of(tmp_path / "other"))


@pytest.mark.parametrize("block", [pytest.param(None, marks=pytest.mark.slow), 7])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, block):
    results = []
    accuracies = []
    for workers in (0, 2):
        resources = {"workers": workers, "threads": 1, "cpus_per_worker": 0.5}
        recipe = edc(
            resources=resources,
            synthesis={"block": block},
            synthetic={"init": "rded"},
            labels={"kind": "stored"},
        )
        run = distill(
            recipe, tmp_path / str(workers), cache=tmp_path / f"cache{workers}", progress=QUIET
        )
        results.append(bytes_of(tmp_path / str(workers)))
        accuracies.append([result.test_accuracy for result in run.report.results])
    assert results[0] == results[1]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("at", [2, 3, 5])
def test_an_interrupted_synthesis_resumes_to_the_same_bytes(tmp_path, at, block):
    recipe = edc(synthesis={"block": block, "log_every": 1}, **NO_STUDENTS)
    check_resumes(recipe, tmp_path, at, block=0 if block is None else 1)
    assert losses_by_step(tmp_path / "whole") == losses_by_step(tmp_path / "cut")


def test_checkpoints_hold_what_terms_remember(tmp_path):
    distill(edc(**NO_STUDENTS), tmp_path / "run", progress=QUIET)
    tensors, _ = read_tensors(max((tmp_path / "run" / "checkpoints").iterdir()))
    names = set(tensors)
    assert {"set.images", "average.images", "optimizer.0.exp_avg"} <= names
    assert {name.split(".")[2] for name in names if name.startswith("memory.")} == {"0", "1"}


def test_blocks_are_images_of_each_class_in_turn_and_stay_in_place(tmp_path):
    """With nothing to pull at them images stay what they were, so a cut set and a whole one are the
    same.
    """
    still = {
        "terms": {"moments": {"weight": 0}, "flatness": {"weight": 0}},
        "synthesis": {"learning_rate": 1e-12},
    }
    distill(edc(**merge(still, NO_STUDENTS)), tmp_path / "whole", progress=QUIET)
    distill(
        edc(**merge(merge(still, NO_STUDENTS), {"synthesis": {"block": 10}})),
        tmp_path / "cut",
        progress=QUIET,
    )
    whole, cut = (
        read_tensors(tmp_path / run / "distilled" / "data.safetensors")[0]
        for run in ("whole", "cut")
    )
    torch.testing.assert_close(whole["images"], cut["images"])
    assert torch.equal(whole["labels"], cut["labels"])
    assert {path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()} == {
        "block-00000",
        "block-00001",
    }


def test_replayed_labels_give_the_student_of_online_ones(tmp_path):
    online = distill(edc(labels={"kind": "online", "seed": 0}), tmp_path / "online", progress=QUIET)
    for cache in ("cache", "other"):
        recipe = edc(labels={"kind": "stored"})
        stored = distill(
            recipe, tmp_path / f"stored-{cache}", cache=tmp_path / cache, progress=QUIET
        )
        assert [r.test_accuracy for r in online.report.results] == [
            r.test_accuracy for r in stored.report.results
        ]
        assert [r.per_class for r in online.report.results] == [
            r.per_class for r in stored.report.results
        ]


def test_stored_labels_need_no_teacher(tmp_path, monkeypatch):
    run = distill(edc(labels={"kind": "stored"}), tmp_path / "run", progress=QUIET)
    monkeypatch.setattr(Worker, "squeeze", None)
    alone = {"evaluation": {"baselines": []}}
    report = evaluate_distilled(run.distilled, alone, None, tmp_path / "empty", QUIET)
    assert [r.test_accuracy for r in report.results] == [
        r.test_accuracy for r in run.report.results if r.set == "distilled"
    ]
    with pytest.raises(ConfigError, match="last for 3 epochs"):
        evaluate_distilled(
            run.distilled,
            merge(alone, {"evaluation": {"epochs": 4}}),
            None,
            tmp_path / "empty",
            QUIET,
        )
    with pytest.raises(ConfigError, match=r"fit 'evaluation.batch_size' 8 only"):
        evaluate_distilled(
            run.distilled,
            merge(alone, {"evaluation": {"batch_size": 5}}),
            None,
            tmp_path / "empty",
            QUIET,
        )


def test_labels_of_another_protocol_are_made_beside_the_old_ones(tmp_path):
    distill(edc(labels={"kind": "stored"}), tmp_path / "run", progress=QUIET)
    distill(
        edc(labels={"kind": "stored"}, evaluation={"epochs": 2}),
        tmp_path / "run",
        resume=True,
        progress=QUIET,
    )
    folder = tmp_path / "run" / "distilled" / "labels"
    assert len(list(folder.iterdir())) == 2
    card = json.loads((tmp_path / "run" / "distilled" / "card.json").read_text())
    assert card["labels"]["epochs"] == 2


def test_an_interrupted_relabelling_goes_on(tmp_path, monkeypatch):
    from rayd.training import stored_labels

    monkeypatch.setattr(stored_labels, "CHUNK_EPOCHS", 1)
    recipe = edc(labels={"kind": "stored"})
    label = Worker.label
    made = []

    def interrupted(self: Worker, *arguments: object) -> object:
        if len(made) == 1:
            made.append(None)
            raise InterruptionError
        made.append(arguments[-1])
        return label(self, *arguments)

    monkeypatch.setattr(Worker, "label", interrupted)
    with pytest.raises(InterruptionError):
        distill(recipe, tmp_path / "run", progress=QUIET)
    distill(recipe, tmp_path / "run", resume=True, progress=QUIET)
    assert [epochs for epochs in made if epochs is not None] == [range(n, n + 1) for n in range(3)]


@pytest.mark.chaos
def test_a_killed_worker_changes_nothing(tmp_path):
    """Workers are killed by pid again and again while a whole run goes through its stages."""
    recipe = edc(
        squeeze={"epochs": 12},
        synthesis={"steps": 40, "checkpoint_every": 5},
        evaluation={"epochs": 40},
        labels={"kind": "stored"},
        synthetic={"init": "rded"},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "rayd", "distill", str(path), "--quiet", "--out"]
    whole = distill(recipe, tmp_path / "whole", cache=tmp_path / "cache", progress=QUIET)
    environment = os.environ | {"RAYD_CACHE": str(tmp_path / "other")}
    running = subprocess.Popen([*command, str(tmp_path / "cut"), "--workers", "2"], env=environment)
    killed = kill_one_in_each_stage(running, tmp_path / "cut")
    assert running.wait() == 0
    assert killed >= 3
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "cut")
    results = json.loads((tmp_path / "cut" / "evaluation.json").read_text())["results"]
    assert [tuple(r["test_accuracy"]["runs"]) for r in results] == [
        r.test_accuracy.runs for r in whole.report.results
    ]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"terms": {"moments": {"alpha": 1.5}}}, "'terms.moments.alpha'.*less than or equal to 1"),
        ({"terms": {"moments": {"alfa": 0.5}}}, "did you mean 'terms.moments.alpha'"),
        ({"synthesis": {"transform": {"crop": [0.0, 1.0]}}}, "0 < least <= most <= 1"),
        ({"synthesis": {"transform": {"crop": [0.5, 1.5]}}}, "0 < least <= most <= 1"),
        ({"observers": {"trained": False}}, "observers.trained: true"),
        ({"labels": {"kind": "hard"}}, "needs teachers"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(wrong, sentence):
    with pytest.raises(ConfigError, match=sentence):
        edc(**wrong)


def test_what_the_data_cannot_give_is_refused_before_any_work(tmp_path):
    with pytest.raises(DataError, match="RDED takes each patch from another image"):
        distill(
            edc(synthetic={"init": "rded", "patches": 6, "candidates": 20}),
            tmp_path / "run",
            progress=QUIET,
        )
    with pytest.raises(ConfigError, match="would stay untrained"):
        distill(edc(squeeze={"epochs": 0}), tmp_path / "run", progress=QUIET)
    assert not (tmp_path / "run").exists()


def test_random_and_trained_observers_of_one_architecture_are_measured_apart(tmp_path):
    """Teachers of the observers' architecture are trained; the observers themselves may still be
    random.
    """
    soft = {
        "labels": {"kind": "online"},
        "evaluation": {
            "loss": "kl",
            "augmentation": None,
            "seeds": 1,
            "epochs": 1,
            "baselines": [],
        },
    }
    base = {
        "method": "dm",
        "data": {"name": "digits"},
        "observers": {
            "networks": {"name": "convnet", "width": 6, "depth": 1},
            "pool": 1,
            "augmentation": None,
        },
        "squeeze": {"epochs": 2, "transform": {"shift": 0, "flip": False}},
        "synthesis": {"steps": 3},
        "resources": {"threads": 1},
    }
    trained = merge(base, {"observers": {"trained": True}})
    shared = tmp_path / "shared"
    alone = tmp_path / "alone"
    distill(assemble(merge(base, soft)), tmp_path / "random", cache=shared, progress=QUIET)
    distill(assemble(merge(trained, soft)), tmp_path / "trained", cache=shared, progress=QUIET)
    distill(assemble(merge(trained, soft)), tmp_path / "again", cache=alone, progress=QUIET)
    assert (
        bytes_of(tmp_path / "trained")
        == bytes_of(tmp_path / "again")
        != bytes_of(tmp_path / "random")
    )


def test_a_card_follows_the_protocol_of_the_last_run(tmp_path):
    distill(edc(), tmp_path / "run", progress=QUIET)
    run = distill(
        edc(labels={"kind": "stored"}, evaluation={"epochs": 2}),
        tmp_path / "run",
        resume=True,
        progress=QUIET,
    )
    report = evaluate_distilled(
        run.distilled, {"evaluation": {"baselines": []}}, None, tmp_path / "empty", QUIET
    )
    (result,) = report.results
    (before,) = (r for r in run.report.results if r.set == "distilled" and "2 epochs" in r.protocol)
    assert (result.protocol, result.test_accuracy) == (before.protocol, before.test_accuracy)


def test_stored_labels_of_other_teachers_are_not_replayed(tmp_path):
    run = distill(edc(labels={"kind": "stored"}), tmp_path / "run", progress=QUIET)
    other = {"labels": {"networks": [{**SMALL[0], "width": 5}]}, "evaluation": {"baselines": []}}
    with pytest.raises(ConfigError, match="made by other teachers"):
        evaluate_distilled(run.distilled, other, None, None, QUIET)


@pytest.mark.parametrize("stage", ["squeeze", "measure", "score"])
def test_what_is_damaged_in_the_store_is_made_again(tmp_path, stage):
    recipe = edc(synthetic={"init": "rded"}, **NO_STUDENTS)
    distill(recipe, tmp_path / "first", progress=QUIET)
    for path in (tmp_path / "cache" / stage).iterdir():
        path.write_bytes(path.read_bytes()[:100])
    distill(recipe, tmp_path / "second", progress=QUIET)
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


def test_a_damaged_chunk_of_labels_is_made_again(tmp_path):
    recipe = edc(labels={"kind": "stored"})
    distill(recipe, tmp_path / "run", progress=QUIET)
    (chunk,) = (tmp_path / "run" / "distilled" / "labels").rglob("*.safetensors")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:100])
    distill(recipe, tmp_path / "run", resume=True, progress=QUIET)
    assert chunk.read_bytes() == whole


def test_a_method_whose_taps_a_network_lacks_is_refused_before_it_is_squeezed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Worker, "squeeze", None)
    recipe = assemble(
        {"method": "sre2l", "data": {"name": "digits"}, "observers": {"networks": ["convnet"]}}
    )
    with pytest.raises(ConfigError, match="needs batch normalisation"):
        distill(recipe, tmp_path / "run", progress=QUIET)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"synthesis": {"curriculum": "cosine", "transform": {"crop": None}}},
            "synthesis.transform.crop",
        ),
        ({"squeeze": {"epochs": 0}, "observers": {"pool": 2}}, "used unchanged"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(wrong, sentence):
    with pytest.raises(ConfigError, match=sentence):
        edc(**wrong)


def test_observers_that_know_the_classes_in_another_order_are_refused(tmp_path):
    """By the names in our own files, and by what they say of real images where a file names no
    classes.
    """
    one = {
        "observers": {"networks": [{**SMALL[1], "width": 16}], "per_step": 1},
        "squeeze": {"epochs": 20},
    }
    distill(edc(**merge(one, NO_STUDENTS)), tmp_path / "run", progress=QUIET)
    (ours,) = (tmp_path / "cache" / "squeeze").iterdir()
    theirs = tmp_path / "theirs.pth"
    torch.save(read_tensors(ours)[0], theirs)
    reordered = {"data": {"name": "digits", "classes": list("1023456789")}}
    for path, sentence in ((ours, "order"), (theirs, "order")):
        given = {
            "observers": {
                "networks": [{**SMALL[1], "width": 16, "weights": str(path)}],
                "per_step": 1,
            },
            "squeeze": {"epochs": 0},
        }
        distill(edc(**merge(given, NO_STUDENTS)), tmp_path / f"same-{path.suffix}", progress=QUIET)
        with pytest.raises(ConfigError, match=sentence):
            distill(
                edc(**merge(merge(given, NO_STUDENTS), reordered)),
                tmp_path / f"other-{path.suffix}",
                progress=QUIET,
            )


class Witness:
    """What a synthesizer and its observers do in every step of a run, in one process."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.rates: list[float] = []
        self.images: list[torch.Tensor] = []
        self.averages: list[torch.Tensor] = []
        self.views: list[int] = []
        self.counts: set[int] = set()
        update = Synthesizer._update_images
        draw = task_draws.draw_transform

        def updated(synthesizer: Synthesizer, gradients: list[dict[str, torch.Tensor]]) -> None:
            if not self.images:
                self.images.append(synthesizer._set.images.detach().clone())
            update(synthesizer, gradients)
            self.rates.append(synthesizer._optimizer.param_groups[0]["lr"])
            self.images.append(synthesizer._set.images.detach().clone())
            self.averages.append(synthesizer._average.images.detach().clone())

        def drawn(settings: object, generator: torch.Generator, *rest: object) -> object:
            self.views.append(generator.initial_seed())
            self.counts.add(rest[0])
            return draw(settings, generator, *rest)

        patch.setattr(Synthesizer, "_update_images", updated)
        patch.setattr(task_draws, "draw_transform", drawn)


def test_a_step_follows_its_schedule_its_average_and_a_view_of_its_own(tmp_path, monkeypatch):
    witness = Witness(monkeypatch)
    recipe = edc(terms={"flatness": {"decay": 0.7}}, **NO_STUDENTS)
    distill(recipe, tmp_path / "run", progress=QUIET)
    rate = recipe.synthesis.learning_rate
    assert witness.rates == pytest.approx(
        [rate * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    )
    average = witness.images[0]
    for now, kept in zip(witness.images[1:], witness.averages, strict=True):
        average = 0.7 * average + 0.3 * now
        torch.testing.assert_close(kept, average)
    assert len(set(witness.views)) == len(witness.views) == 6 * 2


@pytest.mark.parametrize(("shared", "counts"), [(True, {1}), (False, {20})])
def test_all_images_of_a_step_may_share_a_view(tmp_path, monkeypatch, shared, counts):
    witness = Witness(monkeypatch)
    distill(edc(synthesis={"shared_view": shared}, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    assert witness.counts == counts


def test_images_and_their_average_are_seen_through_one_view(tmp_path):
    """Before the first step they are the same images, so that nothing is to be flattened."""
    distill(
        edc(synthesis={"steps": 1, "log_every": 1}, **NO_STUDENTS), tmp_path / "run", progress=QUIET
    )
    (line,) = steps_of(tmp_path / "run")
    assert abs(line["flatness"]) < 1e-6


def test_observers_remember_from_turn_to_turn(tmp_path):
    distill(edc(observers={"per_step": 1}, **NO_STUDENTS), tmp_path / "run", progress=QUIET)
    tensors, _ = read_tensors(max((tmp_path / "run" / "checkpoints").iterdir()))
    assert {name.split(".")[2] for name in tensors if name.startswith("memory.")} == {"0", "1"}


def test_keys_hold_the_content_of_weights_and_the_seed_of_crops(tmp_path):
    path = tmp_path / "weights.safetensors"
    recipe = edc(
        observers={"networks": [{**SMALL[0], "weights": str(path)}], "per_step": 1},
        synthetic={"init": "rded"},
    )
    data = load(recipe.data)
    keys = []
    for value in (0.0, 1.0):
        write_tensors(path, {"weight": torch.full((2,), value)})
        keys.append(
            content_hash(Squeeze(Job(recipe, data, Store()), ()).key(network_ids(recipe)[0]))
        )
    assert keys[0] != keys[1]
    seeds = [
        Score(Job(recipe.model_copy(update={"seed": seed}), data, Store())).key(0)
        for seed in (0, 1)
    ]
    assert content_hash(seeds[0]) != content_hash(seeds[1])


def test_flatness_of_statistics_runs_through_every_stage(tmp_path):
    recipe = edc(terms={"flatness": {"compare": "statistics", "patch": 2}}, **NO_STUDENTS)
    run = distill(recipe, tmp_path / "run", progress=QUIET)
    assert steps_of(run.directory)[-1]["flatness"] > 0
