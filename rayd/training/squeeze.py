"""Observers trained on the real data, which "squeezes" the data into their weights (SRe2L; Yin et
al., NeurIPS 2023).

Cross-entropy on views of the training split, by default as SRe2L does it on CIFAR: SGD with
momentum, cosine step size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rayd import remote
from rayd.artifacts import content_hash, tensor_hash
from rayd.config import SqueezeSettings
from rayd.networks import restore
from rayd.training.batches import Draws
from rayd.training.judging import accuracy, hits
from rayd.training.losses import cross_entropy
from rayd.training.parallelism import SINGLE_PROCESS, Parallelism
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer
from rayd.training.training_run import Subject, TrainingRun, resumed

logger = logging.getLogger(__name__)

JUDGED = 10_000
"""Most training images on which a trained observer is judged."""


@dataclass(frozen=True, eq=False)
class Squeezed:
    """What became of an observer."""

    state: dict[str, Tensor]
    """Its state dict, on the CPU, floating-point entries as float32."""
    train_accuracy: float
    """Fraction of at most `JUDGED` training images, evenly spaced and not augmented, that are
    right.
    """
    validation_accuracy: float | None
    """Fraction of the validation images that are right; None without a validation split."""
    epochs: int
    """Passes over the training split."""
    seconds: float
    """Wall-clock seconds of training and judging, those before an interruption included."""


def squeeze(
    network: nn.Module,
    training: TrainingSet,
    settings: SqueezeSettings,
    *,
    seed: int,
    device: torch.device | str,
    classes: int,
    validation: TrainingSet | None = None,
    checkpoint: Path | None = None,
    parallelism: Parallelism = SINGLE_PROCESS,
) -> Iterator[EpochProgress | Squeezed]:
    """Train an observer: yields a `EpochProgress` for each of `milestones(settings.epochs)`, then a
    `Squeezed`.

    Resumed from its checkpoint it first yields the milestones that it had reached before, at once.

    Args:
        network: the observer with its initial weights, trained in place; with `epochs: 0` it is
            judged as it is.
        training: real images with hard labels.
        settings: the protocol; `workers` is the business of the caller, who names the crew.
        seed: of all draws.
        device: where it is trained; the network is moved there.
        classes: number of classes.
        validation: images on which it is judged at the end.
        checkpoint: where to keep the state of an unfinished observer; removed when the caller comes
            back after the result.
        parallelism: who else trains the same observer. Only the process that leads keeps
            checkpoints and yields a `Squeezed`; the others must find its checkpoint, or all of them
            start anew.

    Raises:
        RunError: the training loss is not finite.
    """
    device = torch.device(device)
    initial = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def key() -> str:
        return content_hash(
            {
                "set": training.fingerprint,
                "network": tensor_hash(initial),
                "settings": settings.model_dump(mode="json", exclude={"workers"}),
                "classes": classes,
                "seed": seed,
            }
        )

    def fresh() -> TrainingRun:
        restore(network, initial)
        draws = Draws(settings, len(training), training.shape, seed, "observer")
        trainer = Trainer(
            network,
            training,
            settings,
            draws,
            cross_entropy,
            epochs=settings.epochs,
            seed=seed,
            device=device,
            purpose="observer",
            parallelism=parallelism,
        )
        name = f"observer '{type(network).__name__}' with seed {seed} on the set '{training.name}'"
        return TrainingRun(trainer, Subject("observer", name, "squeeze.learning_rate"), key)

    course = resumed(fresh, checkpoint)
    if not parallelism.agree(course.trainer.epoch):
        logger.warning(
            "An observer starts anew, as not all of its workers find its checkpoint '%s'.",
            checkpoint,
        )
        course = fresh()
    yield from course.run(checkpoint if parallelism.leads else None)
    if parallelism.leads:
        yield _judged(course, validation)
        if checkpoint is not None:
            remote.remove(checkpoint)


def _judged(course: TrainingRun, validation: TrainingSet | None) -> Squeezed:
    started = time.perf_counter()
    trainer = course.trainer
    weights = trainer.weights()

    def of(judged: TrainingSet) -> float:
        return accuracy(
            hits(trainer.network, [weights], judged, trainer.device, trainer.settings.precision)[0]
        )

    train_accuracy = of(judged_on(trainer.training))
    validation_accuracy = None if validation is None else of(validation)
    state = {
        name: value.detach().to("cpu", _kept(value), copy=True) for name, value in weights.items()
    }
    seconds = course.seconds + time.perf_counter() - started
    return Squeezed(state, train_accuracy, validation_accuracy, trainer.epochs, seconds)


def judged_on(training: TrainingSet) -> TrainingSet:
    """At most `JUDGED` of the images, evenly spaced."""
    count = min(len(training), JUDGED)
    return training.part(torch.arange(count) * len(training) // count)


def _kept(value: Tensor) -> torch.dtype:
    return torch.float32 if value.is_floating_point() else value.dtype
