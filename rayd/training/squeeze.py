"""Training of observers on real data, which "squeezes" it into their weights.

Source: SRe2L (Yin et al., NeurIPS 2023).

Cross-entropy on views of the training split, by default as SRe2L does on CIFAR: SGD with momentum,
cosine step size.
"""

from __future__ import annotations

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
from rayd.training.training_run import Subject, TrainingRun, resumed_together

JUDGED = 10_000
"""Maximum number of training images for the final training accuracy."""


@dataclass(frozen=True, eq=False)
class Squeezed:
    """Result of training an observer."""

    state: dict[str, Tensor]
    """State dict, on the CPU, floating-point entries as float32."""
    train_accuracy: float
    """Accuracy on at most `JUDGED` training images, evenly spaced and not augmented; a fraction."""
    validation_accuracy: float | None
    """Accuracy on the validation images, a fraction; None without a validation split."""
    epochs: int
    """Number of passes over the training split."""
    seconds: float
    """Wall-clock seconds of training and evaluation, including those before an interruption."""


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
    settings_key: str = "squeeze",
) -> Iterator[EpochProgress | Squeezed]:
    """Train an observer.

    Yields an `EpochProgress` for each of `milestones(settings.epochs)`, then a `Squeezed`. When
    resumed from its checkpoint, it first yields the milestones that it had reached before.

    Args:
        network: the observer with its initial weights, trained in place; with `epochs: 0` it is
            only evaluated.
        training: real images with hard labels.
        settings: the protocol; `workers` is handled by the caller, which sets `parallelism`.
        seed: seed of all draws.
        device: device to train on; the network is moved there.
        classes: number of classes.
        validation: images for a final evaluation.
        checkpoint: path of the state of an unfinished observer; removed when the generator is
            resumed after the result.
        parallelism: processes that train the same observer. Only the leading process writes
            checkpoints and yields a `Squeezed`; the others must find its checkpoint, or all start
            from the beginning.
        settings_key: key of the settings in a recipe, for messages.

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
        return TrainingRun(trainer, Subject("observer", name, f"{settings_key}.learning_rate"), key)

    training_run = resumed_together(fresh, checkpoint, parallelism)
    yield from training_run.run(checkpoint if parallelism.leads else None)
    if parallelism.leads:
        yield _judged(training_run, validation)
        if checkpoint is not None:
            remote.remove(checkpoint)


def _judged(training_run: TrainingRun, validation: TrainingSet | None) -> Squeezed:
    started = time.perf_counter()
    trainer = training_run.trainer
    weights = trainer.weights()
    precision = trainer.settings.precision

    def accuracy_on(judged: TrainingSet) -> float:
        (hit,) = hits(trainer.network, [weights], judged, trainer.device, precision)
        return accuracy(hit)

    train_accuracy = accuracy_on(judged_on(trainer.training))
    validation_accuracy = None if validation is None else accuracy_on(validation)
    state = {
        name: value.detach().to("cpu", _stored_type(value), copy=True)
        for name, value in weights.items()
    }
    seconds = training_run.seconds + time.perf_counter() - started
    return Squeezed(state, train_accuracy, validation_accuracy, trainer.epochs, seconds)


def judged_on(training: TrainingSet) -> TrainingSet:
    """Select at most `JUDGED` of the images, evenly spaced."""
    count = min(len(training), JUDGED)
    return training.part(torch.arange(count) * len(training) // count)


def _stored_type(value: Tensor) -> torch.dtype:
    return torch.float32 if value.is_floating_point() else value.dtype
