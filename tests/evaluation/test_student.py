"""A student follows the protocol step by step, says how far it is, and ends the same however often
it is interrupted.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rayd.artifacts import read_tensors, write_tensors
from rayd.config import EvaluationSettings, NetworkSettings
from rayd.data import ImageSet, ImageShape, Whitening
from rayd.data.augmentation import augmentation
from rayd.distilled import Distilled
from rayd.errors import ArtifactError, ConfigError, DataError, RunError
from rayd.evaluation.student import StudentResult, train
from rayd.networks import build
from rayd.seeding import derive, generator
from rayd.training import judging, sets, training_run
from rayd.training.progress import MILESTONES, EpochProgress, milestones
from rayd.training.sets import TrainingSet
from tests.training.toys import (
    BATCH_NORM,
    CLASSES,
    CONVNET,
    DSA,
    HELD_OUT,
    NORMALIZATION,
    REAL,
    SHAPE,
    TEST,
    of,
)


def events(
    epochs: int,
    training: TrainingSet | None = None,
    network: NetworkSettings = CONVNET,
    seed: int = 5,
    **changes,
):
    """All events of a student; `checkpoint` and `validation` go to `train`, other changes to the
    settings.
    """
    given = {
        name: changes.pop(name)
        for name in ("checkpoint", "validation", "device")
        if name in changes
    }
    settings = EvaluationSettings(**{"augmentation": None, **changes})
    given = {"device": "cpu", **given}
    return train(
        training or of(REAL),
        network,
        settings,
        SHAPE,
        CLASSES,
        seed,
        epochs,
        test=of(TEST),
        **given,
    )


SHUFFLED = ImageSet(HELD_OUT.images, np.roll(HELD_OUT.labels, 1), HELD_OUT.class_names)
"""With labels that no image supports, on which the best epoch is an early one."""


def timeless(happened: list[EpochProgress | StudentResult]) -> list[object]:
    return [e.to_json() | {"seconds": 0} if isinstance(e, StudentResult) else e for e in happened]


def by_hand(epochs: int, settings: EvaluationSettings, seed: int) -> tuple[nn.Module, float]:
    """The protocol written out: the student's weights and the mean loss of its last epoch."""
    x = NORMALIZATION(torch.from_numpy(REAL.images))
    y = torch.from_numpy(REAL.labels)
    model = build(CONVNET, SHAPE, CLASSES, seed=derive(seed, "student"))
    rate = settings.learning_rate
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in range(epochs):
        if epoch > settings.schedule.milestones[0] * epochs and rate == settings.learning_rate:
            rate /= 10
            velocity = [torch.zeros_like(p) for p in model.parameters()]
        order = torch.randperm(30, generator=generator(seed, "student batches", epoch))
        losses = []
        for index, rows in enumerate([order[:12], order[12:24], order[24:]]):
            draws = generator(seed, "student augmentation", epoch, index)
            images = augmentation(settings.augmentation)(x[rows], draws)
            loss = F.cross_entropy(model(images), y[rows])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            losses += [loss.item()] * len(rows)
            with torch.no_grad():
                for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                    v.mul_(settings.momentum).add_(g + settings.weight_decay * p)
                    p.sub_(rate * v)
    return model, float(np.mean(losses))


@pytest.mark.parametrize("strategy", [None, DSA])
def test_protocol_against_one_written_out(strategy):
    settings = EvaluationSettings(augmentation=strategy, batch_size=12, learning_rate=0.05)
    *_, result = train(of(REAL), CONVNET, settings, SHAPE, CLASSES, 5, 7, "cpu", test=of(TEST))
    model, loss = by_hand(7, settings, 5)
    with torch.no_grad():
        predicted = model.eval()(NORMALIZATION(torch.from_numpy(TEST.images))).argmax(1).numpy()
    hits = predicted == TEST.labels
    assert result.train_loss == pytest.approx(loss, rel=1e-4)
    assert result.test_accuracy == hits.mean()
    assert result.per_class == tuple(hits[TEST.labels == c].mean() for c in range(CLASSES))
    assert (result.network, result.seed, result.epoch) == ("convnet-d2-w8", 5, 7)


def to_the_bit(epochs: int, settings: EvaluationSettings, seed: int) -> list[float]:
    """The same with torch's own optimizer: the losses of all epochs, with no difference left but a
    bug.
    """
    x = NORMALIZATION(torch.from_numpy(REAL.images))
    y = torch.from_numpy(REAL.labels)
    model = build(CONVNET, SHAPE, CLASSES, seed=derive(seed, "student"))
    means = []
    for epoch in range(epochs):
        late = epoch >= epochs // 2 + 1
        if epoch in (0, epochs // 2 + 1):
            rate = settings.learning_rate * (0.1 if late else 1)
            optimizer = torch.optim.SGD(
                model.parameters(), rate, settings.momentum, weight_decay=5e-4, fused=True
            )
        order = torch.randperm(30, generator=generator(seed, "student batches", epoch))
        total = torch.zeros(())
        for index, rows in enumerate(
            order.split(settings.batch_size) if settings.batch_size < 30 else [slice(None)]
        ):
            images = augmentation(settings.augmentation)(
                x[rows], generator(seed, "student augmentation", epoch, index)
            )
            loss = F.cross_entropy(model(images), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(y[rows])
        means.append((total / 30).item())
    return means


@pytest.mark.parametrize("size", [12, 256])
def test_losses_are_those_of_the_protocol_to_the_last_bit(size):
    settings = EvaluationSettings(augmentation=DSA, batch_size=size, learning_rate=0.05)
    *progress, _ = train(of(REAL), CONVNET, settings, SHAPE, CLASSES, 5, 7, "cpu", test=of(TEST))
    assert [event.loss for event in progress] == to_the_bit(7, settings, 5)


@pytest.mark.parametrize(
    ("changes", "losses", "accuracy"),
    [
        ({"batch_size": 12}, [0.04514633119106293, 0.46756014227867126, 0.04478185623884201], 1.0),
        ({}, [0.5798035264015198, 0.6162905097007751, 0.5525494813919067], 1.0),
    ],
    ids=["shuffled", "one batch"],
)
def test_losses_and_accuracies_are_those_that_were_recorded(changes, losses, accuracy):
    """Of revision 7e2572a; other processors may round otherwise."""
    *progress, result = events(7, augmentation=DSA, learning_rate=0.05, **changes)
    assert [event.loss for event in progress[-3:]] == pytest.approx(losses, rel=1e-4)
    assert result.test_accuracy == accuracy


def test_the_best_epoch_is_that_which_was_recorded():
    changes = {
        "batch_size": 12,
        "momentum": 0.0,
        "validation": of(HELD_OUT),
        "epoch": "validation-best",
    }
    *progress, result = events(7, network=BATCH_NORM, **changes)
    assert [event.loss for event in progress[-2:]] == pytest.approx(
        [0.8317201137542725, 0.8184099197387695], rel=1e-4
    )
    assert (result.test_accuracy, result.validation_accuracy, result.epoch) == (0.925, 0.8, 4)


def test_it_learns():
    *_, result = events(30, learning_rate=0.05)
    assert result.test_accuracy > 0.9
    assert result.validation_accuracy is None


@pytest.mark.parametrize("epochs", [1, 2, 7, MILESTONES, 130])
def test_events_are_those_announced(epochs):
    *progress, result = events(epochs, TrainingSet(torch.randn(2, *SHAPE), torch.tensor([0, 1])))
    assert isinstance(result, StudentResult)
    assert tuple(p.epoch for p in progress) == milestones(epochs)
    assert [(p.index, p.total, p.epochs) for p in progress] == [
        (i, len(progress), epochs) for i in range(len(progress))
    ]
    assert len(progress) == min(epochs, MILESTONES)


def test_pixels_and_network_input_train_alike(monkeypatch):
    inputs = TrainingSet(
        NORMALIZATION(torch.from_numpy(REAL.images)), torch.from_numpy(REAL.labels)
    )
    results = [timeless(list(events(4, training, batch_size=8))) for training in (of(REAL), inputs)]
    monkeypatch.setattr(sets, "NORMALIZED_ONCE", 0)
    results.append(timeless(list(events(4, batch_size=8))))
    assert results[0] == results[1] == results[2]


def test_sets_are_made_of_distilled_and_of_some_real_images():
    distilled = Distilled(
        NORMALIZATION(torch.from_numpy(REAL.images[:3])),
        torch.arange(3),
        REAL.class_names,
        NORMALIZATION,
    )
    made = TrainingSet.from_distilled(distilled)
    rows = TrainingSet.from_images(REAL, NORMALIZATION, rows=[0, 1, 2], name="random")
    assert (made.name, rows.name, len(rows)) == ("distilled", "random", 3)
    assert torch.equal(made.inputs(made.images), rows.inputs(rows.images))
    assert timeless(list(events(2, made))) == timeless(list(events(2, rows)))
    with pytest.raises(DataError, match="must come with a normalisation"):
        TrainingSet(rows.images, rows.labels)
    with pytest.raises(DataError, match="Got 3 images and 2 labels"):
        TrainingSet(rows.images, rows.labels[:2], NORMALIZATION)


def test_soft_labels_train_like_the_hard_ones_that_they_equal():
    x = NORMALIZATION(torch.from_numpy(REAL.images))
    y = torch.from_numpy(REAL.labels)
    *_, hard = events(4, TrainingSet(x, y))
    *_, soft = events(4, TrainingSet(x, F.one_hot(y).float()))
    assert soft.train_loss == pytest.approx(hard.train_loss, rel=1e-4)


def test_seeds_differ_and_repeat_without_touching_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (
        timeless(list(events(3, seed=seed, augmentation=DSA))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert torch.equal(before, torch.get_rng_state())


def interrupted(epochs: int, at: int, checkpoint: Path, **changes) -> list[EpochProgress]:
    """The events until just after a checkpoint was written at milestone `at`."""
    got = []
    for event in events(epochs, checkpoint=checkpoint, **changes):
        got.append(event)
        if isinstance(event, EpochProgress) and event.index == at:
            return got
    raise AssertionError("not reached")


@pytest.mark.parametrize("at", [0, 2, 3, 4, 6])
@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": DSA, "batch_size": 12},
        {"epoch": "validation-best", "validation": of(HELD_OUT), "learning_rate": 0.05},
        {"epoch": "validation-best", "validation": of(SHUFFLED), "learning_rate": 0.05},
        {
            "network": NetworkSettings(name="convnet", depth=2, width=8, norm="batch"),
            "batch_size": 12,
            "momentum": 0.0,
        },
    ],
    ids=["dsa", "validation-best", "early best", "batch-norm"],
)
def test_a_resumed_student_ends_as_the_uninterrupted_one(tmp_path, monkeypatch, at, changes):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "student.safetensors"
    whole = list(events(7, **changes))
    before = interrupted(7, at, checkpoint, **changes)
    assert checkpoint.exists()
    resumed = list(events(7, checkpoint=checkpoint, **changes))
    assert timeless(before) == timeless(whole)[: at + 1]
    assert timeless(resumed) == timeless(whole)
    assert resumed[-1].seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_seconds_before_an_interruption_count(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "student.safetensors"
    interrupted(5, 3, checkpoint)
    tensors, note = read_tensors(checkpoint)
    write_tensors(checkpoint, tensors, note | {"seconds": 1000.0})
    *_, result = events(5, checkpoint=checkpoint)
    assert 1000 < result.seconds < 1100


def test_the_checkpoint_is_taken_up_and_not_only_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "student.safetensors"
    interrupted(5, 3, checkpoint)
    epochs = []
    advance = training_run.TrainingRun.advance
    monkeypatch.setattr(
        training_run.TrainingRun,
        "advance",
        lambda self: (epochs.append(self.trainer.epoch), advance(self))[1],
    )
    list(events(5, checkpoint=checkpoint))
    assert epochs == [4]


def test_no_checkpoint_is_written_before_its_time(tmp_path):
    interrupted(3, 2, tmp_path / "student.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "pickle", "other student", "other settings"])
def test_a_checkpoint_that_cannot_be_used_is_left_with_a_warning(
    tmp_path, monkeypatch, caplog, damage
):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "student.safetensors"
    interrupted(
        4,
        2,
        checkpoint,
        seed=6 if damage == "other student" else 5,
        **({"momentum": 0.1} if damage == "other settings" else {}),
    )
    if damage == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    if damage == "pickle":
        torch.save({"epoch": 4}, checkpoint)
    assert timeless(list(events(4, checkpoint=checkpoint))) == timeless(list(events(4)))
    assert len(caplog.records) == 1
    assert str(checkpoint) in caplog.text
    assert not checkpoint.exists()


def test_validation_chooses_the_epoch_and_the_test_set_does_not(tmp_path):
    *progress, result = events(
        12, validation=of(SHUFFLED), epoch="validation-best", learning_rate=0.05
    )
    accuracies = [p.validation_accuracy for p in progress]
    best = max(accuracies)
    assert result.validation_accuracy == best
    assert result.epoch == max(p.epoch for p in progress if p.validation_accuracy == best)
    assert result.epoch < 12
    *_, last = events(12, validation=of(SHUFFLED), learning_rate=0.05)
    assert last.epoch == 12
    assert last.validation_accuracy == accuracies[-1]
    assert last.train_loss == result.train_loss
    assert last.test_accuracy > result.test_accuracy


@pytest.mark.parametrize("order", [("last", "validation-best"), ("validation-best", "last")])
def test_both_selections_are_those_of_two_students_and_read_the_test_set_once(monkeypatch, order):
    changes = {"validation": of(SHUFFLED), "learning_rate": 0.05, "average": 0.5}
    alone = {name: list(events(12, epoch=name, **changes))[-1] for name in order}
    assert alone["last"].test_accuracy != alone["validation-best"].test_accuracy
    read = []
    inputs = TrainingSet.inputs
    monkeypatch.setattr(
        TrainingSet,
        "inputs",
        lambda self, images: (read.append(len(images)), inputs(self, images))[1],
    )
    *progress, first, second = events(12, epoch=order, **changes)
    assert timeless([first, second]) == timeless([alone[name] for name in order])
    assert (first.selection, second.selection) == order
    assert len(progress) == 12
    assert read.count(len(TEST)) == 1


def test_the_best_epoch_is_that_of_the_averaged_weights():
    *plain, _ = events(12, validation=of(HELD_OUT), epoch="validation-best", learning_rate=0.05)
    *slow, _ = events(
        12, validation=of(HELD_OUT), epoch="validation-best", learning_rate=0.05, average=0.9999999
    )
    assert [p.loss for p in slow] == [p.loss for p in plain]
    assert len({p.validation_accuracy for p in plain}) > 1
    initial = build(CONVNET, SHAPE, CLASSES, seed=derive(5, "student")).eval()
    with torch.no_grad():
        hits = initial(NORMALIZATION(torch.from_numpy(HELD_OUT.images))).argmax(
            1
        ) == torch.from_numpy(HELD_OUT.labels)
    assert {p.validation_accuracy for p in slow} == {int(hits.sum()) / len(HELD_OUT)}


def test_validation_best_needs_validation_images():
    with pytest.raises(ConfigError, match="needs validation images"):
        next(iter(events(2, epoch="validation-best")))


def test_divergence_names_set_network_seed_and_epoch():
    with pytest.raises(
        RunError,
        match=r"'convnet-d2-w8' with seed 5 on the set 'random' diverged: its loss is nan after epoch \d",
    ):
        list(events(6, of(REAL, "random"), learning_rate=1e30))


def test_a_class_without_test_images_has_no_accuracy():
    rows = TEST.subset(np.flatnonzero(TEST.labels != 1))
    *_, result = train(
        of(REAL),
        CONVNET,
        EvaluationSettings(augmentation=None),
        SHAPE,
        CLASSES,
        0,
        1,
        "cpu",
        test=of(rows),
    )
    assert result.per_class[1] is None
    assert StudentResult.from_json(result.to_json()) == result
    with pytest.raises(ArtifactError, match="must have the fields"):
        StudentResult.from_json({"seed": 1})


def test_bfloat16_trains_too():
    *_, result = events(30, learning_rate=0.05, precision="bfloat16")
    assert result.test_accuracy > 0.8


def test_whitened_sets_are_tested_on_whitened_images():
    whitening = Whitening.fit(REAL.images)
    whitened = [TrainingSet.from_images(images, whitening) for images in (REAL, TEST)]
    settings = EvaluationSettings(augmentation=None, learning_rate=0.05)
    *_, result = train(
        whitened[0], CONVNET, settings, SHAPE, CLASSES, 0, 30, "cpu", test=whitened[1]
    )
    assert result.test_accuracy > 0.7


def test_test_batches_change_nothing(monkeypatch):
    *_, whole = events(3)
    monkeypatch.setattr(judging, "TEST_BATCH", 7)
    *_, parts = events(3)
    assert parts.per_class == whole.per_class


def test_a_batch_of_one_image_that_cannot_be_normalised_is_a_sentence():
    """Five images in batches of four leave one, whose maps shrink to a single value."""
    draws = torch.Generator().manual_seed(0)
    five = TrainingSet(torch.randn(5, 1, 8, 8, generator=draws), torch.arange(5) % 2)
    # not narrower: PyTorch 2.14's AVX2 kernels for channels last write out of bounds with 4 channels
    network = NetworkSettings(name="resnet18", norm="batch", width=8)
    settings = EvaluationSettings(augmentation=None, batch_size=4)
    student = train(five, network, settings, ImageShape(1, 8, 8), 2, 0, 1, "cpu", test=five)
    with pytest.raises(
        RunError, match=r"its 5 images leave .* set another 'evaluation\.batch_size'"
    ):
        list(student)
