"""A student follows the protocol step by step, says how far it is, and ends the same however often it is interrupted."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rayd.config import EvaluationSettings, NetworkSettings
from rayd.data import ImageSet, ImageShape, Standardization, Whitening
from rayd.data.augmentation import augmentation
from rayd.distilled import Distilled
from rayd.errors import ArtifactError, ConfigError, DataError, RunError
from rayd.evaluation import student as module
from rayd.evaluation.student import MILESTONES, Progress, StudentResult, TrainingSet, milestones, train
from rayd.networks import build
from rayd.seeding import derive, generator

SHAPE, CLASSES = ImageShape(1, 8, 8), 3
CONVNET = NetworkSettings(name="convnet", depth=2, width=8)
DSA = "color_crop_cutout_flip_scale_rotate"


def image_set(count: int, seed: int) -> ImageSet:
    """Noise with one bright quarter, which tells the class."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = draw.integers(0, 120, (count, *SHAPE), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
    return ImageSet(images, labels.astype(np.int64), ("a", "b", "c"))


REAL, HELD_OUT, TEST = image_set(30, 0), image_set(15, 1), image_set(40, 2)
NORMALIZATION = Standardization.fit(REAL.images)


def of(images: ImageSet, name: str = "training") -> TrainingSet:
    return TrainingSet.of_images(images, NORMALIZATION, name=name)


def events(epochs: int, training: TrainingSet | None = None, network: NetworkSettings = CONVNET, seed: int = 5, **changes):
    """All events of a student; `checkpoint` and `validation` go to `train`, other changes to the settings."""
    given = {name: changes.pop(name) for name in ("checkpoint", "validation", "device") if name in changes}
    settings = EvaluationSettings(**{"augmentation": None, **changes})
    given = {"device": "cpu", **given}
    return train(training or of(REAL), network, settings, SHAPE, CLASSES, seed, epochs, test=of(TEST), **given)


def timeless(happened: list[Progress | StudentResult]) -> list[object]:
    return [e.to_json() | {"seconds": 0} if isinstance(e, StudentResult) else e for e in happened]


def by_hand(epochs: int, settings: EvaluationSettings, seed: int) -> tuple[nn.Module, float]:
    """The protocol written out: the student's weights and the mean loss of its last epoch."""
    x, y = NORMALIZATION(torch.from_numpy(REAL.images)), torch.from_numpy(REAL.labels)
    model = build(CONVNET, SHAPE, CLASSES, seed=derive(seed, "student"))
    rate = settings.learning_rate
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in range(epochs):
        if epoch > settings.decay_at * epochs and rate == settings.learning_rate:
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


def test_it_learns():
    *_, result = events(30, learning_rate=0.05)
    assert result.test_accuracy > 0.9
    assert result.validation_accuracy is None


@pytest.mark.parametrize("epochs", [1, 2, 7, MILESTONES, 130])
def test_events_are_those_announced(epochs):
    *progress, result = events(epochs, TrainingSet(torch.randn(2, *SHAPE), torch.tensor([0, 1])))
    assert isinstance(result, StudentResult)
    assert tuple(p.epoch for p in progress) == milestones(epochs)
    assert [(p.index, p.total, p.epochs) for p in progress] == [(i, len(progress), epochs) for i in range(len(progress))]
    assert len(progress) == min(epochs, MILESTONES)


def test_pixels_and_network_input_train_alike(monkeypatch):
    inputs = TrainingSet(NORMALIZATION(torch.from_numpy(REAL.images)), torch.from_numpy(REAL.labels))
    results = [timeless(list(events(4, training, batch_size=8))) for training in (of(REAL), inputs)]
    monkeypatch.setattr(module, "NORMALIZED_ONCE", 0)
    results.append(timeless(list(events(4, batch_size=8))))
    assert results[0] == results[1] == results[2]


def test_sets_are_made_of_distilled_and_of_some_real_images():
    distilled = Distilled(NORMALIZATION(torch.from_numpy(REAL.images[:3])), torch.arange(3), REAL.class_names, NORMALIZATION)
    made = TrainingSet.of_distilled(distilled)
    rows = TrainingSet.of_images(REAL, NORMALIZATION, rows=[0, 1, 2], name="random")
    assert (made.name, rows.name, len(rows)) == ("distilled", "random", 3)
    assert torch.equal(made.inputs(made.images), rows.inputs(rows.images))
    assert timeless(list(events(2, made))) == timeless(list(events(2, rows)))
    with pytest.raises(DataError, match="must come with a normalisation"):
        TrainingSet(rows.images, rows.labels)
    with pytest.raises(DataError, match="Got 3 images and 2 labels"):
        TrainingSet(rows.images, rows.labels[:2], NORMALIZATION)


def test_soft_labels_train_like_the_hard_ones_that_they_equal():
    x, y = NORMALIZATION(torch.from_numpy(REAL.images)), torch.from_numpy(REAL.labels)
    *_, hard = events(4, TrainingSet(x, y))
    *_, soft = events(4, TrainingSet(x, F.one_hot(y).float()))
    assert soft.train_loss == pytest.approx(hard.train_loss, rel=1e-4)


def test_seeds_differ_and_repeat_without_touching_the_global_generator():
    before = torch.get_rng_state()
    first, again, other = (timeless(list(events(3, seed=seed, augmentation=DSA))) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert torch.equal(before, torch.get_rng_state())


def interrupted(epochs: int, at: int, checkpoint: Path, **changes) -> list[Progress]:
    """The events until just after a checkpoint was written at milestone `at`."""
    got = []
    for event in events(epochs, checkpoint=checkpoint, **changes):
        got.append(event)
        if isinstance(event, Progress) and event.index == at:
            return got
    raise AssertionError("not reached")


@pytest.mark.parametrize("at", [0, 2, 3, 4, 6])
@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": DSA, "batch_size": 12},
        {"epoch": "validation-best", "validation": of(HELD_OUT), "learning_rate": 0.05},
        {"network": NetworkSettings(name="convnet", depth=2, width=8, norm="batch"), "batch_size": 12, "momentum": 0.0},
    ],
    ids=["dsa", "validation-best", "batch-norm"],
)
def test_a_resumed_student_ends_as_the_uninterrupted_one(tmp_path, monkeypatch, at, changes):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "student.safetensors"
    whole = list(events(7, **changes))
    before = interrupted(7, at, checkpoint, **changes)
    assert checkpoint.exists()
    resumed = list(events(7, checkpoint=checkpoint, **changes))
    assert timeless(before) == timeless(whole)[: at + 1]
    assert timeless(resumed) == timeless(whole)
    assert resumed[-1].seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_is_taken_up_and_not_only_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "student.safetensors"
    interrupted(5, 3, checkpoint)
    epochs = []
    advance = module._Student.advance
    monkeypatch.setattr(module._Student, "advance", lambda self: (epochs.append(self.epoch), advance(self))[1])
    list(events(5, checkpoint=checkpoint))
    assert epochs == [4]


def test_no_checkpoint_is_written_before_its_time(tmp_path):
    interrupted(3, 2, tmp_path / "student.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "pickle", "other student", "other settings"])
def test_a_checkpoint_that_cannot_be_used_is_left_with_a_warning(tmp_path, monkeypatch, caplog, damage):
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.0)
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
    """With labels of the validation set that no image supports, its best epoch is not the last."""
    shuffled = ImageSet(HELD_OUT.images, np.roll(HELD_OUT.labels, 1), HELD_OUT.class_names)
    *progress, result = events(12, validation=of(shuffled), epoch="validation-best", learning_rate=0.05)
    accuracies = [p.validation_accuracy for p in progress]
    best = max(accuracies)
    assert result.validation_accuracy == best
    assert result.epoch == max(p.epoch for p in progress if p.validation_accuracy == best)
    assert result.epoch < 12
    *_, last = events(12, validation=of(shuffled), learning_rate=0.05)
    assert last.epoch == 12
    assert last.validation_accuracy == accuracies[-1]
    assert last.train_loss == result.train_loss
    assert last.test_accuracy > result.test_accuracy


def test_validation_best_needs_validation_images():
    with pytest.raises(ConfigError, match="needs validation images"):
        next(iter(events(2, epoch="validation-best")))


def test_divergence_names_set_network_seed_and_epoch():
    with pytest.raises(
        RunError, match=r"'convnet-d2-w8' with seed 5 on the set 'random' diverged: its loss is nan after epoch \d"
    ):
        list(events(6, of(REAL, "random"), learning_rate=1e30))


def test_a_class_without_test_images_has_no_accuracy():
    rows = TEST.subset(np.flatnonzero(TEST.labels != 1))
    *_, result = train(of(REAL), CONVNET, EvaluationSettings(augmentation=None), SHAPE, CLASSES, 0, 1, "cpu", test=of(rows))
    assert result.per_class[1] is None
    assert StudentResult.from_json(result.to_json()) == result
    with pytest.raises(ArtifactError, match="must have the fields"):
        StudentResult.from_json({"seed": 1})


def test_bfloat16_trains_too():
    *_, result = events(30, learning_rate=0.05, precision="bfloat16")
    assert result.test_accuracy > 0.8


def test_whitened_sets_are_tested_on_whitened_images():
    whitening = Whitening.fit(REAL.images)
    sets = [TrainingSet.of_images(images, whitening) for images in (REAL, TEST)]
    settings = EvaluationSettings(augmentation=None, learning_rate=0.05)
    *_, result = train(sets[0], CONVNET, settings, SHAPE, CLASSES, 0, 30, "cpu", test=sets[1])
    assert result.test_accuracy > 0.7


def test_test_batches_change_nothing(monkeypatch):
    *_, whole = events(3)
    monkeypatch.setattr(module, "TEST_BATCH", 7)
    *_, parts = events(3)
    assert parts.per_class == whole.per_class
