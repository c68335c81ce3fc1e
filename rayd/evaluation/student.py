"""Training and testing of a student: a fresh network trained on one set.

With hard labels this is the protocol of Zhao and Bilen, "Dataset Condensation with Differentiable
Siamese Augmentation" (ICML 2021): SGD with momentum and weight decay, shuffled batches (the last
one may be smaller), cross-entropy, augmentation with parameters drawn per image, one decay of the
step size to a tenth, one test after the last epoch.

Differences from the released code: there, E epochs mean E + 1, and the decay follows the epoch of
index E // 2 + 1. Here E means E, and the epochs of index e <= E * `schedule.milestones` run at the
full step size; the remaining part is as long as there: 501 and 499 epochs for E = 1000, there 502
and 499. A set of a single batch is not shuffled, as its order would only affect rounding. As there,
the optimiser is rebuilt at the decay, so the momentum is lost.

With soft labels, teachers label each mixed batch (`rayd.training.teacher_labels`), online or replayed from
a directory. With `labels.seed` set, online and stored labels give the same student: bit for bit if
both are computed on one device.

Draws derive from (seed, purpose, epoch, batch) only, so a student that is resumed from its
checkpoint gives the same result as an uninterrupted one: bit for bit on the CPU with the same
number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rayd import remote
from rayd.artifacts import content_hash, tensor_hash
from rayd.config import NOT_OF_A_STUDENT, EvaluationSettings, LabelSettings, NetworkSettings
from rayd.data.images import ImageShape
from rayd.errors import ArtifactError, ConfigError
from rayd.networks import build
from rayd.seeding import derive
from rayd.training.batches import Batches, Draws, Replay
from rayd.training.judging import accuracy, hits, predictions
from rayd.training.losses import loss_of
from rayd.training.parallelism import SINGLE_PROCESS, Parallelism
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.stored_labels import StoredLabels
from rayd.training.teacher_labels import Teachers
from rayd.training.trainer import Trainer
from rayd.training.training_run import Subject, TrainingRun, resumed_together

MOST_CONFUSIONS = 400
"""Maximum number of pairs of classes in a result: all of 20 classes, the most frequent of more."""

HARD = LabelSettings()
"""Training with the images' own labels."""


@dataclass(frozen=True)
class StudentResult:
    """Result of a student."""

    network: str
    """Label of the architecture."""
    seed: int
    """Seed of initial weights, batches and augmentation."""
    test_accuracy: float
    """Test accuracy, a fraction."""
    validation_accuracy: float | None
    """Validation accuracy of the same weights, a fraction; None without a validation split."""
    per_class: tuple[float | None, ...]
    """Test accuracy of each class, a fraction; None for a class without test images."""
    train_loss: float
    """Mean training loss of the last epoch."""
    epoch: int
    """Number of epochs after which the tested weights were taken."""
    seconds: float
    """Wall-clock seconds of training and testing, including those before an interruption."""
    selection: str
    """Selection of the tested weights: `last` or `validation-best`."""
    device: str | None = None
    """Kind of device that trained it: `cpu`, `cuda` or `mps`; None if unknown."""
    confusion: tuple[tuple[int, int, float], ...] = ()
    """Mistakes on the test split, the most frequent first: true class, predicted class, and the
    share of the class's test images; at most `MOST_CONFUSIONS`. Empty in older results.
    """

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        lists = {
            "per_class": list(self.per_class),
            "confusion": [list(mistake) for mistake in self.confusion],
        }
        return asdict(self) | lists

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: a field is missing or unknown.
        """
        try:
            tuples = {
                "per_class": tuple(content["per_class"]),
                "confusion": tuple(tuple(mistake) for mistake in content.get("confusion", ())),
            }
            return cls(**{**content, **tuples})
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                "A student's result must have the fields of StudentResult. "
                f"Got {sorted(content)} instead."
            ) from error


def train(
    training: TrainingSet,
    network: NetworkSettings,
    settings: EvaluationSettings,
    shape: ImageShape,
    classes: int,
    seed: int,
    epochs: int,
    device: torch.device | str,
    validation: TrainingSet | None = None,
    *,
    test: TrainingSet,
    labels: LabelSettings = HARD,
    teachers: Sequence[nn.Module] | None = None,
    stored: StoredLabels | None = None,
    checkpoint: Path | None = None,
    parallelism: Parallelism = SINGLE_PROCESS,
) -> Iterator[EpochProgress | StudentResult]:
    """Train a student and test it.

    Yields an `EpochProgress` for each of `milestones(epochs)`, then one `StudentResult` for each
    entry of `settings.epoch`, in that order. When resumed from its checkpoint, it first yields the
    milestones that it had reached before, so that the sequence of events does not depend on
    interruptions.

    Args:
        training: training set.
        network: architecture of the student.
        settings: the protocol; `NOT_OF_A_STUDENT` are handled by the caller.
        shape: shape of an image.
        classes: number of classes.
        seed: seed of all draws, except those of batches if `labels` has a seed.
        epochs: number of passes over the set.
        device: device to train on.
        validation: images that select the epoch of `validation-best` (the latest of equal
            milestones), and whose accuracy is reported otherwise.
        test: images for a single test at the end.
        labels: label settings; `networks` are handled by the caller.
        teachers: trained networks, for `labels.kind: online`; moved to the device and put in eval
            mode.
        stored: stored labels, for `labels.kind: stored`.
        checkpoint: path of the state of an unfinished student; removed when the generator is
            resumed after the results.
        parallelism: processes that train the same student. Only the leading process tests it and
            writes checkpoints, which the others must find, or all start from the beginning.

    Raises:
        ArtifactError: the stored labels belong to other images or classes.
        ConfigError: `validation-best` without validation images, or labels that are missing or do
            not fit.
        RunError: the training loss is not finite.
    """
    student = _Student(
        training=training,
        network=network,
        settings=settings,
        labels=labels,
        shape=shape,
        classes=classes,
        seed=seed,
        epochs=epochs,
        device=torch.device(device),
        validation=validation,
        teachers=teachers,
        stored=stored,
        parallelism=parallelism,
    )
    student.check()
    training_run = resumed_together(student.training_run, checkpoint, parallelism)
    yield from training_run.run(checkpoint if parallelism.leads else None)
    # the other processes have the same weights, but do not report them
    if not parallelism.leads:
        return
    yield from student.results(training_run, test)
    if checkpoint is not None:
        remote.remove(checkpoint)


@dataclass(frozen=True, eq=False)
class _Student:
    """Arguments of `train`, and objects that are built from them."""

    training: TrainingSet
    network: NetworkSettings
    settings: EvaluationSettings
    labels: LabelSettings
    shape: ImageShape
    classes: int
    seed: int
    epochs: int
    device: torch.device
    validation: TrainingSet | None
    teachers: Sequence[nn.Module] | None
    stored: StoredLabels | None
    parallelism: Parallelism

    def check(self) -> None:
        """Reject inconsistent arguments."""
        kind = self.labels.kind
        loss = self.settings.loss
        if "validation-best" in self.settings.epoch and self.validation is None:
            raise ConfigError(
                "'evaluation.epoch: validation-best' needs validation images: "
                "set 'data.validation_fraction' above 0."
            )
        if (kind == "hard") != (loss == "cross-entropy"):
            expected = "cross-entropy" if kind == "hard" else "kl or mse"
            raise ConfigError(
                f"'labels.kind: {kind}' needs 'evaluation.loss' {expected}. Got {loss} instead."
            )
        if (kind == "online") != bool(self.teachers):
            got = "none" if kind == "online" else f"some for 'labels.kind: {kind}'"
            raise ConfigError(
                f"Teachers must be given for 'labels.kind: online', and for no other. Got {got}."
            )
        if (kind == "stored") != (self.stored is not None):
            got = "none" if kind == "stored" else f"some for 'labels.kind: {kind}'"
            raise ConfigError(
                "Stored labels must be given for 'labels.kind: stored', and for no other. "
                f"Got {got}."
            )
        if self.stored is not None:
            self.stored.check(self.training, self.classes, self.settings, self.labels, self.epochs)

    def training_run(self) -> TrainingRun:
        """Create the training before its first epoch."""
        settings = self.settings
        teachers = None
        if self.teachers:
            teachers = Teachers(
                self.teachers, self.labels.precision, settings.precision, self.device
            )
        trainer = Trainer(
            build(self.network, self.shape, self.classes, seed=derive(self.seed, "student")),
            self.training,
            settings,
            self._batches(),
            loss_of(settings),
            epochs=self.epochs,
            seed=self.seed,
            device=self.device,
            teachers=teachers,
            clean_forward=settings.clean_forward,
            parallelism=self.parallelism,
        )
        name = (
            f"student '{self.network.label}' with seed {self.seed} "
            f"on the set '{self.training.name}'"
        )
        return TrainingRun(
            trainer,
            Subject("student", name, "evaluation.learning_rate"),
            self._key,
            self.validation if "validation-best" in settings.epoch else None,
        )

    def results(self, training_run: TrainingRun, test: TrainingSet) -> Iterator[StudentResult]:
        """Test the weights of all selections in a single pass over the test images."""
        started = time.perf_counter()
        trainer = training_run.trainer
        selections = self.settings.epoch
        weights = [
            training_run.best if selection == "validation-best" else trainer.weights()
            for selection in selections
        ]
        # the test split is read here and nowhere else, once for all selections
        predicted = predictions(
            trainer.network, weights, test, self.device, self.settings.precision
        )
        validated: Sequence[Tensor | None] = [None] * len(weights)
        if self.validation is not None:
            validated = hits(
                trainer.network, weights, self.validation, self.device, self.settings.precision
            )
        seconds = training_run.seconds + time.perf_counter() - started
        for selection, classes, valid in zip(selections, predicted, validated, strict=True):
            right = classes == test.labels
            epoch = trainer.epoch
            if selection == "validation-best":
                epoch = training_run.best_epoch
            yield StudentResult(
                network=self.network.label,
                seed=self.seed,
                test_accuracy=accuracy(right),
                validation_accuracy=None if valid is None else accuracy(valid),
                per_class=_per_class(right, test.labels, self.classes),
                train_loss=training_run.history[-1].loss,
                epoch=epoch,
                seconds=seconds,
                selection=selection,
                confusion=_confusion(classes, test.labels, self.classes),
            )

    def _batches(self) -> Batches:
        if self.stored is not None:
            return Replay(self.stored, self.settings, self.shape)
        seed = self.seed
        # the seed of stored labels, so that online ones have the same order, crops and mixes
        if self.labels.kind == "online" and self.labels.seed is not None:
            seed = self.labels.seed
        return Draws(self.settings, len(self.training), self.shape, seed)

    def _key(self) -> str:
        """Hash of everything that determines the result."""
        chosen = self.settings.model_dump(mode="json", exclude=set(NOT_OF_A_STUDENT))
        return content_hash(
            {
                "set": self.training.fingerprint,
                "validation": self.validation.fingerprint if self.validation else None,
                "network": self.network.model_dump(),
                "settings": chosen,
                "seed": self.seed,
                "epochs": self.epochs,
                "labels": self.labels.model_dump(mode="json"),
                "teachers": [tensor_hash(teacher.state_dict()) for teacher in self.teachers or ()],
                "stored": self.stored.fingerprint if self.stored else None,
            }
        )


def _per_class(right: Tensor, labels: Tensor, classes: int) -> tuple[float | None, ...]:
    hits_by_class = labels[right].bincount(minlength=classes).tolist()
    counts = labels.bincount(minlength=classes).tolist()
    pairs = zip(hits_by_class, counts, strict=True)
    return tuple(correct / count if count else None for correct, count in pairs)


def _confusion(
    predicted: Tensor, labels: Tensor, classes: int
) -> tuple[tuple[int, int, float], ...]:
    """Mistakes as (true class, predicted class, share of the class's images).

    >>> _confusion(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), 2)
    ((0, 1, 0.5),)
    """
    wrong = predicted != labels
    # a pair is encoded as one number: with many classes, only few of all pairs occur
    pairs, counts = torch.unique((labels * classes + predicted)[wrong], return_counts=True)
    totals = labels.bincount(minlength=classes)
    found = []
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        label, taken_for = divmod(pair, classes)
        found.append((label, taken_for, count / int(totals[label])))
    # ties are broken by the order of classes
    found.sort(key=lambda mistake: -mistake[2])
    return tuple(found[:MOST_CONFUSIONS])
