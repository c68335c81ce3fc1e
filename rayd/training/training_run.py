"""A complete training: milestones, the best epoch on held-out images, checkpoints.

A checkpoint (`TrainingRun.save`) is a file with the complete state of the training, written every
`CHECKPOINT_SECONDS`: observers, teachers and students are resumed from it. Checkpoints of the
synthetic set are in `rayd.engine.checkpoint`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd import remote
from rayd.artifacts import read_tensors, write_tensors
from rayd.errors import ArtifactError, RunError
from rayd.states import under
from rayd.training import single_images
from rayd.training.judging import accuracy, hits
from rayd.training.parallelism import Parallelism
from rayd.training.progress import EpochProgress, milestones
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
"""Seconds of training between checkpoints."""


@dataclass(frozen=True)
class Subject:
    """Names in messages about a training."""

    kind: str
    """`student`, ..."""
    name: str
    """Identifies the training, as in `The <name> diverged`."""
    learning_rate: str
    """Name of the setting of its step size."""


class TrainingRun:
    """A training from its first epoch to its last, with its complete state in checkpoints.

    Args:
        trainer: trainer of the network.
        subject: names for messages.
        key: computes a hash of everything that determines the result; called at most once, and
            only if there are checkpoints.
        choosing: images that select the best milestone (the latest of equal ones), if given.
    """

    def __init__(
        self,
        trainer: Trainer,
        subject: Subject,
        key: Callable[[], str],
        choosing: TrainingSet | None = None,
    ):
        self.trainer = trainer
        self.subject = subject
        self._choosing = choosing
        self._make_key = key
        self.milestones = milestones(trainer.epochs)
        self.history: list[EpochProgress] = []
        self.best: dict[str, Tensor] = {}
        self.best_accuracy = -1.0
        self.best_epoch = 0
        self.seconds = 0.0

    def run(self, checkpoint: Path | None) -> Iterator[EpochProgress]:
        """Train to the end; yield an `EpochProgress` per milestone, starting with earlier ones.

        Args:
            checkpoint: path of the state while unfinished.

        Raises:
            RunError: the training loss is not finite.
        """
        yield from self.history
        saved = self.seconds
        while self.trainer.epoch < self.trainer.epochs:
            progress = self.advance()
            if checkpoint is not None and self.seconds - saved >= CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = self.seconds
            if progress is not None:
                yield progress

    def advance(self) -> EpochProgress | None:
        """Train for one epoch; return its progress if it ends in a milestone.

        Raises:
            RunError: the training loss is not finite, or a batch of one image cannot be normalised.
        """
        started = time.perf_counter()
        section = self.subject.learning_rate.rpartition(".")[0]
        images = len(self.trainer.training)
        with single_images.explained(self.subject.name, images, f"{section}.batch_size"):
            loss = self.trainer.advance()
        reached = self.trainer.epoch == self.milestones[len(self.history)]
        progress = self._milestone(float(loss)) if reached else None
        self.seconds += time.perf_counter() - started
        return progress

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        tensors, note = self.trainer.state()
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        note |= {
            self.subject.kind: self._key,
            "history": [asdict(progress) for progress in self.history],
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        write_tensors(path, tensors, note)

    def restore(self, path: Path) -> None:
        """Restore the state written by `save`.

        Raises:
            ArtifactError: the file is damaged or of another training; the state is then undefined.
        """
        tensors, note = read_tensors(path)
        if note.get(self.subject.kind) != self._key:
            raise ArtifactError(f"'{path}' is the checkpoint of another {self.subject.kind}.")
        try:
            self._restore(tensors, note)
        except (KeyError, TypeError, RuntimeError) as error:
            raise ArtifactError(
                f"'{path}' lacks state that the {self.subject.name} needs: {error}."
            ) from error

    def _restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        self.trainer.restore(tensors, note)
        self.history = [EpochProgress(**progress) for progress in note["history"]]
        self.best = {
            name: value.to(self.trainer.device) for name, value in under("best.", tensors).items()
        }
        self.best_accuracy = note["best_accuracy"]
        self.best_epoch = note["best_epoch"]
        self.seconds = note["seconds"]

    @cached_property
    def _key(self) -> str:
        return self._make_key()

    def _milestone(self, loss: float) -> EpochProgress:
        trainer = self.trainer
        if not math.isfinite(loss):
            raise RunError(
                f"The {self.subject.name} diverged: its loss is {loss} after epoch "
                f"{trainer.epoch} of {trainer.epochs}; "
                f"a smaller '{self.subject.learning_rate}' may help."
            )
        selection_accuracy = None
        if self._choosing is not None:
            weights = trainer.weights()
            (hit,) = hits(
                trainer.network,
                [weights],
                self._choosing,
                trainer.device,
                trainer.settings.precision,
            )
            selection_accuracy = accuracy(hit)
            if selection_accuracy >= self.best_accuracy:
                self.best = {name: value.clone() for name, value in weights.items()}
                self.best_accuracy = selection_accuracy
                self.best_epoch = trainer.epoch
        progress = EpochProgress(
            index=len(self.history),
            total=len(self.milestones),
            epoch=trainer.epoch,
            epochs=trainer.epochs,
            loss=loss,
            validation_accuracy=selection_accuracy,
        )
        self.history.append(progress)
        return progress


def resumed_together(
    make: Callable[[], TrainingRun], checkpoint: Path | None, parallelism: Parallelism
) -> TrainingRun:
    """Resume in all processes that train a network together; if some of them do not find its
    checkpoint, all start from the beginning.
    """
    training_run = resumed(make, checkpoint)
    if parallelism.agree(training_run.trainer.epoch):
        return training_run
    logger.warning(
        "The %s restarts from the beginning, as not all of its workers find its checkpoint '%s'.",
        training_run.subject.name,
        checkpoint,
    )
    return make()


def resumed(make: Callable[[], TrainingRun], checkpoint: Path | None) -> TrainingRun:
    """Create a training run, with the state of its checkpoint if that can be used."""
    training_run = make()
    if checkpoint is None or not remote.bring(checkpoint):
        return training_run
    try:
        training_run.restore(checkpoint)
    except ArtifactError as error:
        logger.warning(
            "The %s restarts from the beginning, as its checkpoint cannot be used: %s",
            training_run.subject.name,
            error,
        )
        return make()
    return training_run
