"""One student: a fresh network trained on one set and tested once.

The hard-label protocol of Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (ICML 2021): SGD with
momentum and weight decay, shuffled batches (the last one may be smaller), cross-entropy, augmentation with parameters drawn per
image, one decay of the step size to a tenth, one test after the last epoch.

Where this differs from the released code: there, E epochs mean E + 1, and the decay comes after the epoch of index E // 2 + 1.
Here E means E, and the epochs of index e <= E * `decay_at` run at the full step size; what follows is as long as there: 501 and
499 epochs for E = 1000, there 502 and 499. A set of a single batch is not shuffled, as order then changes nothing but rounding.
As there, the optimiser is rebuilt at the decay, so the momentum is lost.

Draws derive from (seed, purpose, epoch, batch) and never from what ran before, so a student resumed from its checkpoint ends as
the uninterrupted one: bit for bit on the CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rayd.artifacts import content_hash, read_tensors, write_tensors
from rayd.config import EvaluationSettings, NetworkSettings
from rayd.data.augmentation import augmentation
from rayd.data.images import ImageSet, ImageShape
from rayd.data.normalization import Normalization
from rayd.devices import dtype
from rayd.distilled import Distilled
from rayd.errors import ArtifactError, ConfigError, DataError, RunError
from rayd.networks import build
from rayd.seeding import derive, generator, seeded

logger = logging.getLogger(__name__)

MILESTONES = 100
"""Most progress events of a student."""

CHECKPOINT_SECONDS = 60.0
"""Training time between checkpoints."""

TEST_BATCH = 512
"""Images of one forward pass while testing; changes speed and memory, results only by rounding."""

NORMALIZED_ONCE = 2**28
"""Bytes up to which a whole set is kept as normalised float32; a larger one stays uint8 and is normalised batch by batch."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Labelled images to train on, or to be tested on.

    Raises:
        DataError: pixels come without a normalisation, or the labels are not one an image.
    """

    images: Tensor
    """uint8 pixels (n, C, H, W), or float32 network input."""
    labels: Tensor
    """Class indices int64 (n,); for training also soft labels float32 (n, classes)."""
    normalization: Normalization | None = None
    """From pixels to network input; None if the images are network input already."""
    name: str = "training"
    """What errors call it: `distilled`, `random`, `whole`, ..."""

    def __post_init__(self) -> None:
        if self.images.dtype == torch.uint8 and self.normalization is None:
            raise DataError(f"The uint8 pixels of the set '{self.name}' must come with a normalisation. Got none instead.")
        if len(self.images) != len(self.labels) or not len(self.images):
            raise DataError(
                f"The set '{self.name}' must have at least one image, and a label for each. Got {len(self.images)} images and "
                f"{len(self.labels)} labels instead."
            )

    @classmethod
    def of_distilled(cls, distilled: Distilled, name: str = "distilled") -> Self:
        """A distilled set."""
        return cls(distilled.images, distilled.labels, distilled.normalization, name)

    @classmethod
    def of_images(
        cls, image_set: ImageSet, normalization: Normalization, rows: npt.ArrayLike | None = None, name: str = "training"
    ) -> Self:
        """Real images, all of them or those at `rows`."""
        chosen = image_set if rows is None else image_set.subset(rows)
        return cls(torch.from_numpy(chosen.images), torch.from_numpy(chosen.labels), normalization, name)

    def __len__(self) -> int:
        return len(self.images)

    def inputs(self, images: Tensor) -> Tensor:
        """Network input of images that were taken from `images`, on whatever device they are now."""
        if images.dtype == torch.uint8 and self.normalization is not None:
            return self.normalization(images)
        return images

    @property
    def fingerprint(self) -> str:
        """Hex BLAKE2b of images, labels and normalisation."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update((self.normalization.fingerprint if self.normalization else "").encode())
        for tensor in (self.images, self.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Progress:
    """A milestone of a student's training."""

    index: int
    """Which milestone, from 0."""
    total: int
    """How many there are."""
    epoch: int
    """Epochs done."""
    epochs: int
    """Epochs to do."""
    loss: float
    """Mean training loss of the last epoch."""
    validation_accuracy: float | None
    """Fraction of the validation images that are right; None unless the best epoch is chosen by it."""


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


def milestones(epochs: int) -> tuple[int, ...]:
    """The numbers of epochs after which `train` reports progress: evenly spread, at most `MILESTONES`, the last at the end.

    >>> milestones(3), len(milestones(1000)), milestones(1000)[:3]
    ((1, 2, 3), 100, (10, 20, 30))
    """
    count = min(epochs, MILESTONES)
    return tuple(epochs * (k + 1) // count for k in range(count))


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
    checkpoint: Path | None = None,
) -> Iterator[Progress | StudentResult]:
    """Train a student and test it: yields one `Progress` for each of `milestones(epochs)`, then one `StudentResult`.

    Resumed from its checkpoint it first yields the milestones that it had reached before, at once, so that the events and their
    order are the same however often it was interrupted.

    Args:
        training: what it learns from.
        network: its architecture.
        settings: the protocol; `networks`, `seeds`, `epochs`, `whole_epochs` and `baselines` are the caller's business.
        shape: shape of one image.
        classes: number of classes.
        seed: seed of all its draws.
        epochs: passes over the set.
        device: where it is trained.
        validation: images that choose the epoch with `epoch: validation-best` (of equal ones the latest milestone), and whose
            accuracy is reported otherwise.
        test: images that are looked at once, at the end.
        checkpoint: where to keep the state of an unfinished student; removed when the caller comes back after the result.

    Raises:
        ConfigError: `epoch: validation-best` without validation images.
        RunError: the training loss is not finite.
    """
    if settings.epoch == "validation-best" and not validation:
        raise ConfigError(
            "'evaluation.epoch: validation-best' needs validation images: set 'data.validation_fraction' above 0."
        )

    def fresh() -> _Student:
        return _Student(training, network, settings, shape, classes, seed, epochs, torch.device(device), validation)

    student = _resumed(fresh(), checkpoint) or fresh()
    yield from student.history
    saved = student.seconds
    while student.epoch < epochs:
        progress = student.advance()
        if checkpoint is not None and student.seconds - saved >= CHECKPOINT_SECONDS:
            student.save(checkpoint)
            saved = student.seconds
        if progress is not None:
            yield progress
    yield student.result(test)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


class _Student:
    """The state of a training: everything that changes is in a checkpoint."""

    def __init__(
        self,
        training: TrainingSet,
        network: NetworkSettings,
        settings: EvaluationSettings,
        shape: ImageShape,
        classes: int,
        seed: int,
        epochs: int,
        device: torch.device,
        validation: TrainingSet | None,
    ):
        self.training, self.network, self.settings, self.validation = training, network, settings, validation
        self.classes, self.seed, self.epochs, self.device = classes, seed, epochs, device
        self.milestones = milestones(epochs)
        self.decay_epoch = math.floor(epochs * settings.decay_at + 1e-9) + 1
        self.images, self.labels = _resident(training, device)
        self.augment = augmentation(settings.augmentation)

        self.model = build(network, shape, classes, seed=derive(seed, "student")).to(device)
        self.epoch = 0
        self.optimizer = self._optimizer()
        self.history: list[Progress] = []
        self.best: dict[str, Tensor] = {}
        self.best_accuracy, self.best_epoch = -1.0, 0
        self.seconds = 0.0

    def advance(self) -> Progress | None:
        """One epoch; its progress if it ends in a milestone."""
        started = time.perf_counter()
        if self.epoch == self.decay_epoch:
            self.optimizer = self._optimizer()
        # dropout can only draw from the global generator
        with seeded(self.seed, "student dropout", self.epoch):
            loss = self._pass()
        self.epoch += 1
        progress = self._milestone(float(loss)) if self.epoch == self.milestones[len(self.history)] else None
        self.seconds += time.perf_counter() - started
        return progress

    def result(self, test: TrainingSet) -> StudentResult:
        """Test the last weights, or the best on the validation images."""
        started = time.perf_counter()
        epoch = self.epoch
        if self.best:
            self.model.load_state_dict(self.best)
            epoch = self.best_epoch
        hits = self._hits(test)
        right = test.labels[hits].bincount(minlength=self.classes).tolist()
        counts = test.labels.bincount(minlength=self.classes).tolist()
        return StudentResult(
            network=self.network.label,
            seed=self.seed,
            test_accuracy=_fraction(hits),
            validation_accuracy=_fraction(self._hits(self.validation)) if self.validation else None,
            per_class=tuple(r / n if n else None for r, n in zip(right, counts, strict=True)),
            train_loss=self.history[-1].loss,
            epoch=epoch,
            seconds=self.seconds + time.perf_counter() - started,
        )

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        momentum = {name: self.optimizer.state[p].get("momentum_buffer") for name, p in self.model.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"momentum.{name}": value for name, value in momentum.items() if value is not None}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        note = {
            "student": self._key(),
            "epoch": self.epoch,
            "history": [asdict(progress) for progress in self.history],
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        write_tensors(path, tensors, note)

    def restore(self, path: Path) -> None:
        """Take over the state that `save` wrote.

        Raises:
            ArtifactError: the file is damaged or of another student.
            KeyError, TypeError, RuntimeError: it does not hold what it should; the state is then undefined.
        """
        tensors, note = read_tensors(path)
        if note["student"] != self._key():
            raise ArtifactError(f"'{path}' is the checkpoint of another student.")
        self.model.load_state_dict(_under("model.", tensors))
        self.epoch, self.seconds = note["epoch"], note["seconds"]
        self.optimizer = self._optimizer()
        parameters = dict(self.model.named_parameters())
        for name, value in _under("momentum.", tensors).items():
            self.optimizer.state[parameters[name]]["momentum_buffer"] = value.to(self.device)
        self.history = [Progress(**progress) for progress in note["history"]]
        self.best = _under("best.", tensors)
        self.best_accuracy, self.best_epoch = note["best_accuracy"], note["best_epoch"]

    def _optimizer(self) -> torch.optim.SGD:
        """SGD without momentum gathered yet, at the step size of the current epoch."""
        chosen = self.settings
        rate = chosen.learning_rate if self.epoch < self.decay_epoch else chosen.learning_rate / 10
        # fused: a quarter of the time of foreach for small networks on the CPU
        return torch.optim.SGD(
            self.model.parameters(), lr=rate, momentum=chosen.momentum, weight_decay=chosen.weight_decay, fused=True
        )

    def _pass(self) -> Tensor:
        """One pass over the set; the mean loss, still on the device, so that no step waits for it."""
        self.model.train()
        total = torch.zeros((), device=self.device)
        for index, rows in enumerate(self._batches()):
            images, labels = self._batch(rows)
            if self.augment.operations:
                images = self.augment(images, generator(self.seed, "student augmentation", self.epoch, index))
            with self._precision():
                loss = F.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.detach() * len(labels)
        return total / len(self.labels)

    def _batches(self) -> Iterator[Tensor | slice]:
        count, size = len(self.labels), self.settings.batch_size
        if count <= size:
            yield slice(None)
            return
        order = torch.randperm(count, generator=generator(self.seed, "student batches", self.epoch)).to(self.labels.device)
        yield from (order[start : start + size] for start in range(0, count, size))

    def _batch(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        images = self.images[rows].to(self.device, non_blocking=True)
        return self.training.inputs(images), self.labels[rows].to(self.device, non_blocking=True)

    def _precision(self) -> torch.autocast:
        precision = dtype(self.settings.precision)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision is not torch.float32)

    def _milestone(self, loss: float) -> Progress:
        if not math.isfinite(loss):
            raise RunError(
                f"The student '{self.network.label}' with seed {self.seed} on the set '{self.training.name}' diverged: "
                f"its loss is {loss} after epoch {self.epoch} of {self.epochs}; a smaller 'evaluation.learning_rate' may help."
            )
        accuracy = None
        if self.settings.epoch == "validation-best" and self.validation:
            accuracy = _fraction(self._hits(self.validation))
            if accuracy >= self.best_accuracy:
                self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
                self.best_accuracy, self.best_epoch = accuracy, self.epoch
        progress = Progress(len(self.history), len(self.milestones), self.epoch, self.epochs, loss, accuracy)
        self.history.append(progress)
        return progress

    @torch.no_grad()
    def _hits(self, judged: TrainingSet) -> Tensor:
        """Whether each image is classified rightly, bool (n,), on the CPU."""
        self.model.eval()
        predicted = []
        for start in range(0, len(judged), TEST_BATCH):
            images = judged.images[start : start + TEST_BATCH].to(self.device, non_blocking=True)
            with self._precision():
                predicted.append(self.model(judged.inputs(images)).argmax(1))
        return torch.cat(predicted).cpu() == judged.labels

    def _key(self) -> str:
        """Hash of all that decides the outcome."""
        chosen = self.settings.model_dump(mode="json", exclude={"networks", "seeds", "epochs", "whole_epochs", "baselines"})
        validation = self.validation.fingerprint if self.validation else None
        return content_hash(
            {
                "set": self.training.fingerprint,
                "validation": validation,
                "network": self.network.model_dump(),
                "settings": chosen,
                "seed": self.seed,
                "epochs": self.epochs,
            }
        )


def _resumed(student: _Student, checkpoint: Path | None) -> _Student | None:
    """The student with the state of its checkpoint; as it is if there is none; None, with a warning, if it cannot be used."""
    if checkpoint is None or not checkpoint.exists():
        return student
    try:
        student.restore(checkpoint)
    except (ArtifactError, KeyError, TypeError, RuntimeError) as error:
        logger.warning("A student starts anew, as its checkpoint cannot be used: %s", error)
        return None
    return student


def _resident(training: TrainingSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels where batches are taken from: on the device if they fill at most half of what is free there."""
    images = training.images
    once = images.dtype == torch.uint8 and 4 * images.numel() <= NORMALIZED_ONCE
    needed = 4 * images.numel() if once else images.nbytes
    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0] / 2:
        return images, training.labels
    images = images.to(device)
    return training.inputs(images) if once else images, training.labels.to(device)


def _fraction(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
