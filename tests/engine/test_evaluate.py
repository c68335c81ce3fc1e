"""What a student's result depends on is in its key; what it does not is shared between runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rayd
from rayd import networks
from rayd.artifacts import content_hash, read_json, write_json
from rayd.card_text import describe
from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.distilled import Distilled
from rayd.distilled import load as load_distilled
from rayd.engine import student_trainer as module
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled, judge
from rayd.engine.job import Job
from rayd.engine.progress import Progress
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.stages.student_tasks import TrainingSets, even_counts, tasks
from rayd.engine.stages.students import Students
from rayd.engine.storage import with_labels_of
from rayd.engine.store import Store
from rayd.errors import ConfigError, OutputError
from rayd.evaluation.student import StudentResult
from rayd.evaluation.variants import Variant
from tests.conftest import tiny
from tests.engine.test_decoupled import edc


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def keys(recipe: Recipe, data: ImageData) -> list[str]:
    work = tasks(
        recipe,
        ["random"],
        TrainingSets(data, None, recipe.ipc),
        Squeeze(Job(recipe, data, Store()), ()).teacher_hashes(),
    )
    return [content_hash(task.inputs(recipe.evaluation, data, "cpu")) for task in work]


@pytest.mark.parametrize(
    "changed",
    [
        {"ipc": 2},
        {"evaluation": {"epochs": 5}},
        {"evaluation": {"learning_rate": 0.02}},
        {"evaluation": {"weight_decay": 0.0}},
        {"evaluation": {"batch_size": 3}},
        {"evaluation": {"augmentation": None}},
        {"evaluation": {"precision": "bfloat16"}},
        {"evaluation": {"networks": ["mlp"]}},
        {
            "evaluation": {"epoch": ["last", "validation-best"]},
            "data": {"validation_fraction": 0.1},
        },
        {"labels": {"kind": "online"}, "evaluation": {"loss": "kl"}},
    ],
)
def test_what_changes_the_result_changes_its_key(data, changed):
    assert not set(keys(tiny(**changed), data)) & set(keys(tiny(), data))


def test_other_test_images_make_another_result(data):
    fewer = replace(data, test=data.test.subset(range(50)))
    assert not set(keys(tiny(), fewer)) & set(keys(tiny(), data))


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("online", {"seed": 7}),
        ("stored", {"precision": "float32"}),
        ("online", {"networks": ["mlp"]}),
    ],
)
def test_soft_labels_are_part_of_the_key(data, kind, changed):
    kinds = [
        tiny(evaluation={"loss": "kl"}, labels={"kind": kind, **labels}) for labels in ({}, changed)
    ]
    assert not set(keys(kinds[0], data)) & set(keys(kinds[1], data))


@pytest.mark.parametrize(
    "shared", [{"seed": 4}, {"synthesis": {"steps": 3}}, {"evaluation": {"whole_epochs": 2}}]
)
def test_a_baseline_is_shared_by_runs_that_differ_elsewhere(data, shared):
    assert keys(tiny(**shared), data) == keys(tiny(), data)


def test_students_of_other_numbers_have_other_random_subsets(data):
    candidates = TrainingSets(data, None, 1)
    assert candidates.fingerprint("random", 0) != candidates.fingerprint("random", 1)
    assert candidates.fingerprint("herding", 0) == candidates.fingerprint("herding", 1)


def judged(recipe: Recipe, data: ImageData, store: Store) -> list[tuple[str, StudentResult]]:
    distilled = Distilled(
        torch.zeros(10, *data.shape), torch.arange(10), data.train.class_names, data.normalization
    )
    return judge(Job(recipe, data, store), distilled, Progress(quiet=True))


def test_all_selections_of_a_student_are_kept_together(tmp_path: Path, monkeypatch):
    both = {
        "networks": ["mlp"],
        "epoch": ["last", "validation-best"],
        "baselines": ["random"],
        "epochs": 3,
    }
    recipe = tiny(evaluation=both, data={"validation_fraction": 0.1})
    store = Store(tmp_path)
    data = load(recipe.data)
    put = []
    put_record = Store.put_record
    monkeypatch.setattr(
        Store,
        "put_record",
        lambda *args: (put.append(len(args[3]["results"])), put_record(*args))[1],
    )
    results = judged(recipe, data, store)
    assert put == [2] * 4
    names = [(variant.set, result.seed, result.selection) for variant, result in results]
    assert names == [
        (name, seed, chosen)
        for name in ("distilled", "random")
        for seed in (0, 1)
        for chosen in both["epoch"]
    ]
    assert len(list((tmp_path / "students").iterdir())) == 4

    trained = []
    train = module.train
    monkeypatch.setattr(
        module, "train", lambda *args, **given: (trained.append(args[1]), train(*args, **given))[1]
    )
    assert judged(recipe, data, store) == results
    assert trained == []
    broken = next((tmp_path / "students").iterdir())
    write_json(broken, {**read_json(broken), "result": {"results": [{}]}})
    again = judged(recipe, data, store)
    assert [(r.test_accuracy, r.selection) for _, r in again] == [
        (r.test_accuracy, r.selection) for _, r in results
    ]
    assert len(trained) == 1


def test_equal_storage_is_as_many_real_images_as_the_bytes_hold(data):
    """640 float32 numbers are 2,560 bytes: 40 greyscale images of 64 pixels, four of each class."""
    distilled = Distilled(
        torch.zeros(10, *data.shape), torch.arange(10), data.train.class_names, data.normalization
    )
    distilled.card["storage"] = {"bytes": {"images": 2560}}
    sets = TrainingSets(data, distilled, 1)
    assert sets.size("equal-storage") == 40
    drawn = sets._content("equal-storage", 0)
    assert drawn.counts.tolist() == [4] * 10
    assert sets.fingerprint("equal-storage", 0) != sets.fingerprint("equal-storage", 1)
    settings = tiny(evaluation={"epochs": 60, "batch_size": 10}).evaluation
    assert sets.epochs("equal-storage", settings) == 15
    distilled.card["storage"] = {"bytes": {"images": 2560, "soft labels": 10**6}}
    everything = TrainingSets(data, distilled, 1)
    assert everything.size("equal-storage") == len(data.train)
    assert everything.fingerprint("equal-storage", 0) == data.train.fingerprint


@pytest.mark.parametrize(
    ("total", "available", "counts"),
    [
        (10, [9, 2, 9], [4, 2, 4]),
        (3, [9, 2, 9], [1, 1, 1]),
        (0, [9, 2, 9], [1, 1, 1]),
        (99, [9, 2, 9], [9, 2, 9]),
        (19, [9, 2, 9], [8, 2, 8]),
        (11, [1, 2, 10], [1, 2, 8]),
    ],
)
def test_images_are_spread_evenly_over_classes(total, available, counts):
    assert even_counts(total, np.array(available)).tolist() == counts


def test_comparisons_are_trained_under_hard_labels_and_reported(tmp_path: Path):
    soft = tiny(
        **{**SOFT, "labels": {"kind": "stored"}},
        evaluation={
            "loss": "kl",
            "baselines": ["random"],
            "comparisons": ["hard-labels", "equal-storage", "no-augmentation"],
        },
    )
    run = distill(soft, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))
    found = [(r.set, r.labels, r.augmented) for r in run.report.results]
    assert found == [
        ("distilled", "soft", True),
        ("random", "soft", True),
        ("distilled", "hard", True),
        ("random", "hard", True),
        ("equal-storage", "hard", True),
        ("distilled", "soft", False),
        ("random", "soft", False),
    ]
    (scores,) = run.report.scores
    assert None not in (scores.ior, scores.hard_ior, scores.over_equal_storage, scores.ars)
    again = evaluate_distilled(
        load_distilled(tmp_path / "run"), {}, None, tmp_path / "cache", Progress(quiet=True)
    )
    accuracies = [result.test_accuracy for result in run.report.results]
    assert [result.test_accuracy for result in again.results] == accuracies


SOFT = {
    "observers": {"trained": True, "pool": 1, "per_step": 1},
    "squeeze": {"epochs": 1, "transform": {"shift": 0, "flip": False}},
    "labels": {"kind": "online"},
}


def test_teachers_count_in_the_storage_and_loading_says_that_they_are_needed(tmp_path: Path):
    soft = tiny(**SOFT, evaluation={"loss": "kl", "baselines": []})
    run = distill(soft, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))
    teacher = networks.build(soft.observers.networks[0], run.distilled.shape, 10)
    size = sum(tensor.nbytes for tensor in teacher.state_dict().values())
    assert run.report.storage_bytes["teachers"] == size
    assert run.distilled.storage.bytes["teachers"] == size
    with pytest.warns(UserWarning, match="learn from teachers' soft labels, computed while"):
        again = rayd.load(tmp_path / "run")
    assert again.storage.total_bytes == sum(run.report.storage_bytes.values())
    assert "teachers' soft labels" in describe(again).replace("\n" + " " * 15, " ")


def test_teachers_that_label_online_count_in_place_of_their_stored_labels(data):
    """Random images of equal storage have the bytes of what students need, and no others."""
    bytes_of_parts = {"images": 2560, "soft labels": 8000}
    numbers = {"images": 640, "soft labels": 4000}
    card = {"storage": {"numbers": numbers, "bytes": bytes_of_parts}}
    names = data.train.class_names
    images = torch.zeros(10, *data.shape)
    stored = Distilled(images, torch.arange(10), names, data.normalization, card)
    online = with_labels_of(stored, tiny(**SOFT, evaluation={"loss": "kl"}), data)
    assert set(online.storage.bytes) == set(online.storage.numbers) == {"images", "teachers"}
    for labelled in (stored, online):
        hard = with_labels_of(labelled, tiny(), data)
        assert hard.storage.bytes == {"images": 2560}
    kept = with_labels_of(stored, tiny(labels={"kind": "stored"}, evaluation={"loss": "kl"}), data)
    assert kept.storage.bytes == bytes_of_parts


def test_equal_storage_counts_what_the_labels_of_each_evaluation_need(tmp_path: Path):
    """Under hard labels the images alone: as many bytes of real images are fewer."""
    soft = {"loss": "kl", "baselines": ["random"], "comparisons": ["equal-storage"], "seeds": 1}
    run = distill(
        tiny(**SOFT, evaluation=soft),
        tmp_path / "run",
        cache=tmp_path / "cache",
        progress=Progress(quiet=True),
    )
    changed = {"labels": {"kind": "hard"}, "evaluation": {"loss": "cross-entropy"}}
    report = evaluate_distilled(
        run.distilled, changed, None, tmp_path / "cache", Progress(quiet=True)
    )
    images = run.distilled.storage.bytes["images"]
    teachers = run.distilled.storage.bytes["teachers"]
    assert dict(report.storage_bytes) == {"images": images}
    merged = run.report.merge(report)
    sizes = [one.bytes for one in merged.results if one.set == "equal-storage"]
    assert sizes == [images + teachers, images]
    # each is compared with its own
    assert merged.scores[0].over_equal_storage == run.report.scores[0].over_equal_storage
    assert merged.storage_bytes == run.report.storage_bytes
    text = merged.text()
    assert f"equal-storage ({images:,} B)" in text
    # a report of an older version, which does not say by how many bytes, gives way
    older = replace(
        run.report, results=tuple(replace(one, bytes=None) for one in run.report.results)
    )
    assert len(older.merge(run.report).results) == len(run.report.results)


def test_a_set_with_hard_labels_is_loaded_without_a_warning(tmp_path: Path, recwarn):
    hard = tiny(evaluation={"baselines": []})
    distill(hard, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))
    (need,) = rayd.load(tmp_path / "run").needs
    assert "normalise test images" in need
    assert not [one for one in recwarn if "teachers" in str(one.message)]


def test_rded_patches_are_a_baseline_under_hard_and_soft_labels(tmp_path: Path):
    chosen = {
        "loss": "kl",
        "baselines": ["random", "herding", "k-center", "rded"],
        "comparisons": ["hard-labels"],
        "seeds": 1,
        "epochs": 1,
    }
    recipe = tiny(**SOFT, evaluation=chosen)
    run = distill(recipe, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))
    names = ["distilled", "random", "herding", "k-center", "rded"]
    found = [(result.set, result.labels) for result in run.report.results]
    assert found == [(name, labels) for labels in ("soft", "hard") for name in names]
    assert len(list((tmp_path / "cache" / "score").iterdir())) == 10


def test_rded_patches_need_a_trained_observer(tmp_path: Path):
    recipe = tiny(evaluation={"baselines": ["rded"]})
    with pytest.raises(ConfigError, match=r"set 'observers\.trained: true'"):
        distill(recipe, tmp_path / "run", cache=tmp_path / "cache", progress=Progress(quiet=True))


def test_a_student_may_have_a_step_size_of_its_own(data):
    """It is trained as if the protocol had that step size, and the others as before."""
    own = {"evaluation": {"networks": [{"name": "mlp", "learning_rate": 0.002}, "lenet"]}}
    slow, usual = ({"evaluation": {"networks": [name]}} for name in ("mlp", "lenet"))
    slow["evaluation"]["learning_rate"] = 0.002
    expected = keys(tiny(**slow), data) + keys(tiny(**usual), data)
    assert sorted(keys(tiny(**own), data)) == sorted(expected)
    recipe = tiny(**own)
    work = tasks(recipe, ["random"], TrainingSets(data, None, recipe.ipc))
    assert {task.network.label: task.learning_rate for task in work} == {
        "mlp-lr0.002": 0.002,
        "lenet": recipe.evaluation.learning_rate,
    }


def test_a_step_size_of_its_own_wins_over_the_learned_one(data):
    recipe = tiny(evaluation={"networks": [{"name": "mlp", "learning_rate": 0.002}, "lenet"]})
    images = torch.zeros(10, *data.shape)
    distilled = Distilled(
        images, torch.arange(10), data.class_names, data.normalization, {"step_size": 0.3}
    )
    work = tasks(recipe, ["distilled"], TrainingSets(data, distilled, recipe.ipc))
    assert {task.network.name: task.learning_rate for task in work} == {"mlp": 0.002, "lenet": 0.3}


def test_the_students_that_take_longest_begin_first(tmp_path: Path, data):
    """Those whose teachers see every batch, before one whose labels are stored."""
    recipe = edc(labels={"kind": "stored"}, evaluation={"seeds": 1})
    images = torch.zeros(10, *data.shape)
    distilled = Distilled(images, torch.arange(10), data.class_names, data.normalization)
    sets = TrainingSets(data, distilled, 1)
    compared = ["distilled", Variant("random", hard_labels=True), "random"]
    work = tasks(recipe, compared, sets, ("one teacher", "another"))
    ordered = Students(Job(recipe, data, Store(tmp_path)), sets, work).items()
    assert [(task.set_name, task.labels.kind) for task in ordered] == [
        ("random", "online"),
        ("distilled", "stored"),
        ("random", "hard"),
    ]


def test_a_cache_that_cannot_be_written_is_refused_before_a_student_is_trained(
    tmp_path: Path, data
):
    """One that holds all results serves them nevertheless."""
    (tmp_path / "file").touch()
    recipe = tiny(evaluation={"seeds": 1, "epochs": 1, "baselines": []})
    sets = TrainingSets(data, None, ipc=1)
    job = Job(recipe, data, Store(tmp_path / "file" / "cache"))
    students = Students(job, sets, tasks(recipe, ["random"], sets))
    # without a pool: nothing is asked of it
    with pytest.raises(OutputError, match=r"The cache '.*' cannot be written"):
        students.run(None)
    (task,) = students.items()
    students._results[task] = []
    assert students.run(None) == {task: []}


def test_test_images_that_changed_since_are_said_and_counted(tmp_path: Path, capsys):
    """The training images decide on a set; accuracies are those on the test images of now."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 2

    def with_test(count: int) -> None:
        splits = {"x_train": images[:30], "y_train": labels[:30]}
        test = {"x_test": images[30:][:count], "y_test": labels[30:][:count]}
        np.savez(tmp_path / "data.npz", **splits, **test)

    with_test(10)
    small = tiny(
        data={"name": str(tmp_path / "data.npz")},
        evaluation={"networks": ["mlp"], "seeds": 1, "baselines": []},
    )
    run = distill(small, tmp_path / "run", cache=tmp_path / "store", progress=Progress(quiet=True))
    for count, words in ((10, ""), (30, "test images have changed since the set was distilled")):
        with_test(count)
        report = evaluate_distilled(run.distilled, {}, None, tmp_path / "store", Progress())
        assert report.real_data is not None
        assert report.real_data["splits"]["test"]["count"] == count
        printed = capsys.readouterr().err
        assert words in printed
        assert ("have changed" in printed) == bool(words)
