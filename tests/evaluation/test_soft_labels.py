"""Students that learn from teachers: online and stored labels make the same student, to the last
bit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayd.artifacts import read_tensors
from rayd.config import EvaluationSettings, LabelSettings
from rayd.errors import ArtifactError, ConfigError
from rayd.evaluation.student import StudentResult, train
from rayd.training import training_run
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.stored_labels import Labelled, StoredLabels, write_chunk
from rayd.training.teacher_labels import label_epochs
from tests.training.toys import (
    BATCH_NORM,
    CLASSES,
    DSA,
    HELD_OUT,
    NORMALIZATION,
    REAL,
    SHAPE,
    TEST,
    VIEWS,
    of,
    teachers,
)

EPOCHS = 5
INPUTS = TrainingSet(
    NORMALIZATION(torch.from_numpy(REAL.images)),
    torch.from_numpy(REAL.labels),
    NORMALIZATION,
    "distilled",
)
Events = Iterator[EpochProgress | StudentResult]

PROTOCOLS = {
    "kl, cutmix": {"loss": "kl", "mix": "cutmix", "transform": VIEWS},
    "mse, mixup": {
        "loss": "mse",
        "mix": "mixup",
        "hard_weight": 0.1,
        "learning_rate": 0.005,
        "transform": VIEWS,
    },
    "kl, dsa, one batch": {"loss": "kl", "temperature": 2.0, "augmentation": DSA, "batch_size": 30},
    "mse, all": {
        "loss": "mse",
        "mix": "cutmix",
        "transform": {**VIEWS, "shift": 1, "roll": 2},
        "augmentation": "color_rotate",
        "optimizer": "adamw",
        "average": 0.9,
        "precision": "bfloat16",
        "clean_forward": True,
        "learning_rate": 0.001,
    },
}


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate(
        {"batch_size": 12, "augmentation": None, "learning_rate": 0.05, **changes}
    )


def student(
    chosen: EvaluationSettings, labels: LabelSettings, seed: int = 5, **given: Any
) -> Events:
    fixed = (INPUTS, BATCH_NORM, chosen, SHAPE, CLASSES, seed, EPOCHS, "cpu")
    return train(*fixed, validation=of(HELD_OUT), test=of(TEST), labels=labels, **given)


def online(
    chosen: EvaluationSettings, precision: str = "float16", seed: int | None = 3, **given: Any
) -> Events:
    return student(
        chosen,
        LabelSettings(kind="online", precision=precision, seed=seed),
        teachers=teachers(),
        **given,
    )


def store(
    directory: Path, chosen: EvaluationSettings, precision: str = "float16", seed: int | None = 3
) -> LabelSettings:
    labels = LabelSettings(kind="stored", precision=precision, seed=seed)
    made_for = Labelled.of(INPUTS, CLASSES, chosen, labels)
    for epochs in (range(0, 2), range(2, 4), range(4, 5)):
        args = (
            INPUTS.images,
            chosen,
            labels,
            teachers(),
            NORMALIZATION,
            made_for.seed,
            epochs,
            "cpu",
        )
        write_chunk(directory, made_for, epochs, label_epochs(*args))
    return labels


def final(happening: Events, checkpoint: Path) -> tuple[list[object], dict[str, torch.Tensor]]:
    """All events, without the time they took, and the state after the last epoch."""
    got = []
    tensors = {}
    for event in happening:
        got.append(event.to_json() | {"seconds": 0} if isinstance(event, StudentResult) else event)
        if isinstance(event, EpochProgress) and event.epoch == event.epochs:
            tensors, _ = read_tensors(checkpoint)
    return got, tensors


def same(
    first: tuple[list[object], dict[str, torch.Tensor]],
    second: tuple[list[object], dict[str, torch.Tensor]],
) -> bool:
    (events, tensors) = first
    (others, values) = second
    equal = tensors.keys() == values.keys() and all(
        torch.equal(tensor, values[name]) for name, tensor in tensors.items()
    )
    return bool(tensors) and equal and events == others


@pytest.fixture(autouse=True)
def _checkpoint_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
def test_online_and_stored_labels_make_the_same_student(tmp_path, protocol, precision):
    chosen = settings(**protocol)
    one = tmp_path / "online.safetensors"
    other = tmp_path / "stored.safetensors"
    labels = store(tmp_path / "labels", chosen, precision)
    stored = StoredLabels(tmp_path / "labels")
    at_once = final(online(chosen, precision, checkpoint=one), one)
    replayed = final(student(chosen, labels, stored=stored, checkpoint=other), other)
    assert same(at_once, replayed)


@pytest.mark.parametrize("kind", ["online", "stored"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_resumed_student_ends_as_the_uninterrupted_one(tmp_path, kind, at):
    chosen = settings(**PROTOCOLS["mse, all"], epoch=["last", "validation-best"])
    labels = store(tmp_path / "labels", chosen)

    def run(checkpoint: Path) -> Events:
        if kind == "online":
            return online(chosen, checkpoint=checkpoint)
        return student(
            chosen, labels, stored=StoredLabels(tmp_path / "labels"), checkpoint=checkpoint
        )

    whole = final(run(tmp_path / "whole.safetensors"), tmp_path / "whole.safetensors")
    checkpoint = tmp_path / "part.safetensors"
    for event in run(checkpoint):
        if isinstance(event, EpochProgress) and event.index == at:
            break
    assert checkpoint.exists()
    assert same(final(run(checkpoint), checkpoint), whole)
    assert not checkpoint.exists()


def losses(happening: Events) -> list[float]:
    return [event.loss for event in happening if isinstance(event, EpochProgress)]


def test_rounding_of_labels_is_felt():
    chosen = settings(**PROTOCOLS["mse, mixup"])
    assert losses(online(chosen, "float16")) != losses(online(chosen, "float32"))


def test_without_a_label_seed_each_student_has_its_own_batches_online_and_seed_0_stored(tmp_path):
    chosen = settings(**PROTOCOLS["kl, cutmix"])
    assert losses(online(chosen, seed=None)) == losses(online(chosen, seed=5))
    assert losses(online(chosen, seed=None)) != losses(online(chosen, seed=3))
    labels = store(tmp_path, chosen, seed=None)
    assert losses(student(chosen, labels, stored=StoredLabels(tmp_path))) == losses(
        online(chosen, seed=0)
    )


def test_students_of_one_label_seed_differ_in_their_weights_only(tmp_path):
    chosen = settings(**PROTOCOLS["kl, cutmix"])
    labels = store(tmp_path, chosen)
    stored = StoredLabels(tmp_path)
    assert losses(student(chosen, labels, seed=1, stored=stored)) != losses(
        student(chosen, labels, seed=2, stored=stored)
    )


def test_it_learns_from_teachers_what_labels_would_tell():
    """Teachers that know the classes, and images whose own labels are wrong."""

    class Knows(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            quarters = [
                images[:, 0, 4 * (c // 2) :, 4 * (c % 2) :][:, :4, :4].mean((1, 2))
                for c in range(CLASSES)
            ]
            return 4 * torch.stack(quarters, 1)

    wrong = TrainingSet(INPUTS.images, INPUTS.labels.roll(1), NORMALIZATION)
    for loss, rate in (("kl", 0.5), ("mse", 0.05)):
        chosen = settings(loss=loss, temperature=2.0, learning_rate=rate)
        fixed = (wrong, BATCH_NORM, chosen, SHAPE, CLASSES, 0, 30, "cpu")
        *_, result = train(
            *fixed, test=of(TEST), labels=LabelSettings(kind="online"), teachers=[Knows()]
        )
        assert result.test_accuracy > 0.9


@pytest.mark.parametrize(
    ("labels", "loss", "given", "sentence"),
    [
        (
            {"kind": "online"},
            "kl",
            {},
            "Teachers must be given for 'labels.kind: online'.*Got none",
        ),
        (
            {"kind": "stored"},
            "kl",
            {},
            "Stored labels must be given for 'labels.kind: stored'.*Got none",
        ),
        (
            {"kind": "hard"},
            "cross-entropy",
            {"teachers": teachers()},
            "Got some for 'labels.kind: hard'",
        ),
        (
            {"kind": "hard"},
            "mse",
            {},
            "'labels.kind: hard' needs 'evaluation.loss' cross-entropy. Got mse",
        ),
        (
            {"kind": "online"},
            "cross-entropy",
            {"teachers": teachers()},
            "needs 'evaluation.loss' kl or mse",
        ),
    ],
)
def test_labels_must_come_from_somewhere(labels, loss, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        next(student(settings(loss=loss), LabelSettings(**labels), **given))


def test_stored_labels_that_do_not_fit_are_refused_before_training(tmp_path):
    labels = store(tmp_path, settings(**PROTOCOLS["kl, cutmix"]))
    stored = StoredLabels(tmp_path)
    with pytest.raises(ConfigError, match=r"fit 'evaluation.batch_size' 12 only"):
        next(student(settings(**PROTOCOLS["kl, cutmix"], batch_size=10), labels, stored=stored))
    chosen = settings(**PROTOCOLS["kl, cutmix"])
    fixed = (of(TEST), BATCH_NORM, chosen, SHAPE, CLASSES, 0, EPOCHS, "cpu")
    with pytest.raises(ArtifactError, match="belong to other images than the set 'training'"):
        next(train(*fixed, test=of(TEST), labels=labels, stored=stored))


def begin(happening: Events) -> None:
    for event in happening:
        if isinstance(event, EpochProgress) and event.index == 2:
            return


@pytest.mark.parametrize("other", ["labels", "teachers"])
def test_a_checkpoint_of_other_labels_is_not_taken_up(tmp_path, caplog, other):
    chosen = settings(**PROTOCOLS["kl, cutmix"])
    checkpoint = tmp_path / "student.safetensors"
    labels = LabelSettings(kind="online", seed=4 if other == "labels" else 3)
    begin(
        student(
            chosen,
            labels,
            teachers=teachers()[:1] if other == "teachers" else teachers(),
            checkpoint=checkpoint,
        )
    )
    assert losses(online(chosen, checkpoint=checkpoint)) == losses(online(chosen))
    assert "is the checkpoint of another student" in caplog.text


def test_a_checkpoint_of_labels_that_were_made_again_is_not_taken_up(tmp_path, caplog):
    chosen = settings(**PROTOCOLS["kl, cutmix"])
    checkpoint = tmp_path / "student.safetensors"
    labels = store(tmp_path / "labels", chosen)
    begin(student(chosen, labels, stored=StoredLabels(tmp_path / "labels"), checkpoint=checkpoint))
    path = tmp_path / "labels" / "epochs-00000-00001.safetensors"
    tensors, note = read_tensors(path)
    tensors["labels.images.logits"] += 1
    write_chunk(tmp_path / "labels", Labelled.from_json(note["made_for"]), range(0, 2), tensors)
    list(student(chosen, labels, stored=StoredLabels(tmp_path / "labels"), checkpoint=checkpoint))
    assert "is the checkpoint of another student" in caplog.text


def test_a_seed_of_labels_changes_nothing_without_teachers():
    chosen = settings(mix="cutmix")
    assert losses(student(chosen, LabelSettings(seed=9))) == losses(
        student(chosen, LabelSettings())
    )


def test_the_clean_forward_reaches_the_student(tmp_path):
    ends = []
    for clean in (True, False):
        checkpoint = tmp_path / f"{clean}.safetensors"
        ends.append(
            final(
                online(
                    settings(mix="mixup", loss="kl", clean_forward=clean), checkpoint=checkpoint
                ),
                checkpoint,
            )[1]
        )
    tracked = [
        name
        for name in ends[0]
        if name.endswith("num_batches_tracked") and name.startswith("model.")
    ]
    assert [(int(ends[0][name]), int(ends[1][name])) for name in tracked] == [
        (2 * 3 * EPOCHS, 3 * EPOCHS)
    ] * 2
