"""One student: a fresh network trained on one set and tested once.

With hard labels this is the protocol of Zhao and Bilen, "Dataset Condensation with Differentiable
Siamese Augmentation" (ICML 2021): SGD with momentum and weight decay, shuffled batches (the last
one may be smaller), cross-entropy, augmentation with parameters drawn per image, one decay of the
step size to a tenth, one test after the last epoch.

Where this differs from the released code: there, E epochs mean E + 1, and the decay comes after the
epoch of index E // 2 + 1. Here E means E, and the epochs of index e <= E * `schedule.milestones`
run at the full step size; what follows is as long as there: 501 and 499 epochs for E = 1000, there
502 and 499. A set of a single batch is not shuffled, as order then changes nothing but rounding. As
there, the optimiser is rebuilt at the decay, so the momentum is lost.

With soft labels teachers say what each mixed batch shows (`rayd.training.labels`), online or
replayed from a directory. With `labels.seed` set, online and stored labels give the same student:
bit for bit where both are made on one device.

Draws derive from (seed, purpose, epoch, batch) and never from what ran before, so a student resumed
from its checkpoint ends as the uninterrupted one: bit for bit on the CPU with the same number of
threads.
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
from rayd.config import EvaluationSettings, LabelSettings, NetworkSettings
from rayd.data.images import ImageShape
from rayd.errors import ArtifactError, ConfigError
from rayd.networks import build
from rayd.seeding import derive
from rayd.training.batches import Batches, Draws, Replay
from rayd.training.judging import accuracy, hits
from rayd.training.labels import Teachers
from rayd.training.losses import loss_of
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.stored import StoredLabels
from rayd.training.trainer import Trainer
from rayd.training.training_run import Subject, TrainingRun, resumed

HARD = LabelSettings()
"""Students learn from the images' own labels."""


@dataclass(frozen=True)
class StudentResult:
    """What became of a student."""

    network: str
    """Label of the architecture."""
    seed: int
    """Seed of initial weights, batches and augmentation."""
    test_accuracy: float
    """Fraction of the test images that are right."""
    validation_accuracy: float | None
    """The same of the validation images, for the same weights; None without a validation split."""
    per_class: tuple[float | None, ...]
    """Test accuracy of each class, a fraction; None for a class without test images."""
    train_loss: float
    """Mean training loss of the last epoch."""
    epoch: int
    """Epochs after which the tested weights were taken."""
    seconds: float
    """Wall-clock seconds of training and testing, those before an interruption included."""
    selection: str
    """Which epoch's weights were tested: `last` or `validation-best`."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"per_class": list(self.per_class)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ArtifactError: a field is missing or unknown.
        """
        try:
            return cls(**{**content, "per_class": tuple(content["per_class"])})
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"A student's result must have the fields of StudentResult. Got {sorted(content)} instead."
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
) -> Iterator[EpochProgress | StudentResult]:
    """Train a student and test it: yields a `EpochProgress` for each of `milestones(epochs)`, then
    its results.

    There is one `StudentResult` for each entry of `settings.epoch`, in that order. Resumed from its
    checkpoint it first yields the milestones that it had reached before, at once, so that the
    events and their order are the same however often it was interrupted.

    Args:
        training: what it learns from.
        network: its architecture.
        settings: the protocol; `networks`, `seeds`, `epochs`, `whole_epochs` and `baselines` are
            the caller's business.
        shape: shape of one image.
        classes: number of classes.
        seed: seed of all its draws, but those of batches that `labels` has a seed for.
        epochs: passes over the set.
        device: where it is trained.
        validation: images that choose the epoch of `validation-best` (of equal ones the latest
            milestone), and whose accuracy is reported otherwise.
        test: images that are looked at once, at the end.
        labels: what it learns from the images; `networks` are the caller's business.
        teachers: trained networks, for `labels.kind: online`; moved to the device and put in eval
            mode.
        stored: for `labels.kind: stored`.
        checkpoint: where to keep the state of an unfinished student; removed when the caller comes
            back after the results.

    Raises:
        ArtifactError: the stored labels are of other images or classes.
        ConfigError: `validation-best` without validation images, or labels that are not there or do
            not fit.
        RunError: the training loss is not finite.
    """
    student = _Student(
        training,
        network,
        settings,
        labels,
        shape,
        classes,
        seed,
        epochs,
        torch.device(device),
        validation,
        teachers,
        stored,
    )
    student.check()
    course = resumed(student.course, checkpoint)
    yield from course.run(checkpoint)
    yield from student.results(course, test)
    if checkpoint is not None:
        remote.remove(checkpoint)


@dataclass(frozen=True, eq=False)
class _Student:
    """What `train` was asked for."""

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

    def check(self) -> None:
        """Refuse what does not fit together."""
        kind = self.labels.kind
        loss = self.settings.loss
        if "validation-best" in self.settings.epoch and self.validation is None:
            raise ConfigError(
                "'evaluation.epoch: validation-best' needs validation images: set 'data.validation_fraction' above 0."
            )
        if (kind == "hard") != (loss == "cross-entropy"):
            wanted = "cross-entropy" if kind == "hard" else "kl or mse"
            raise ConfigError(
                f"'labels.kind: {kind}' needs 'evaluation.loss' {wanted}. Got {loss} instead."
            )
        if (kind == "online") != bool(self.teachers):
            got = "none" if kind == "online" else f"some for 'labels.kind: {kind}'"
            raise ConfigError(
                f"Teachers must be given for 'labels.kind: online', and for no other. Got {got}."
            )
        if (kind == "stored") != (self.stored is not None):
            got = "none" if kind == "stored" else f"some for 'labels.kind: {kind}'"
            raise ConfigError(
                f"Stored labels must be given for 'labels.kind: stored', and for no other. Got {got}."
            )
        if self.stored is not None:
            self.stored.check(self.training, self.classes, self.settings, self.labels, self.epochs)

    def course(self) -> TrainingRun:
        """The training before its first epoch."""
        settings = self.settings
        precision = self.settings.precision
        trainer = Trainer(
            build(self.network, self.shape, self.classes, seed=derive(self.seed, "student")),
            self.training,
            settings,
            self._batches(),
            loss_of(settings),
            epochs=self.epochs,
            seed=self.seed,
            device=self.device,
            teachers=Teachers(self.teachers, self.labels.precision, precision, self.device)
            if self.teachers
            else None,
            clean_forward=settings.clean_forward,
        )
        name = f"student '{self.network.label}' with seed {self.seed} on the set '{self.training.name}'"
        subject = Subject("student", name, "evaluation.learning_rate")
        return TrainingRun(
            trainer,
            subject,
            self._key,
            self.validation if "validation-best" in settings.epoch else None,
        )

    def results(self, course: TrainingRun, test: TrainingSet) -> Iterator[StudentResult]:
        """Test the last weights, or the best on the validation images, or both: all in one pass
        over the test images.
        """
        started = time.perf_counter()
        trainer = course.trainer
        selections = self.settings.epoch
        weights = [
            course.best if selection == "validation-best" else trainer.weights()
            for selection in selections
        ]
        tested = hits(trainer.network, weights, test, self.device, self.settings.precision)
        validated: Sequence[Tensor | None] = [None] * len(weights)
        if self.validation is not None:
            validated = hits(
                trainer.network, weights, self.validation, self.device, self.settings.precision
            )
        seconds = course.seconds + time.perf_counter() - started
        for selection, right, valid in zip(selections, tested, validated, strict=True):
            yield StudentResult(
                network=self.network.label,
                seed=self.seed,
                test_accuracy=accuracy(right),
                validation_accuracy=None if valid is None else accuracy(valid),
                per_class=_per_class(right, test.labels, self.classes),
                train_loss=course.history[-1].loss,
                epoch=course.best_epoch if selection == "validation-best" else trainer.epoch,
                seconds=seconds,
                selection=selection,
            )

    def _batches(self) -> Batches:
        if self.stored is not None:
            return Replay(self.stored, self.settings, self.shape)
        given = self.labels.seed if self.labels.kind == "online" else None
        return Draws(
            self.settings, len(self.training), self.shape, self.seed if given is None else given
        )

    def _key(self) -> str:
        """Hash of all that decides the outcome."""
        others = {"networks", "seeds", "epochs", "whole_epochs", "baselines", "learned_step_size"}
        chosen = self.settings.model_dump(mode="json", exclude=others)
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
    hit, counts = (some.bincount(minlength=classes).tolist() for some in (labels[right], labels))
    return tuple(h / n if n else None for h, n in zip(hit, counts, strict=True))
