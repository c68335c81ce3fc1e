r"""Training of experts: networks whose parameters are stored after every epoch of real data.

George Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (MTT, CVPR
2022): 100 experts, 50 epochs of plain SGD (step size 0.01, batches of 256, neither momentum nor
weight decay nor a schedule) with DSA parameters drawn per image. Experts are deliberately not good
classifiers: their trajectories have to be reproducible in few large steps.

Flat trajectories (Jiawei Du et al., "Minimizing the Accumulated Trajectory Error to Improve Dataset
Distillation", FTD, CVPR 2023), also used by DATM, are those of GSAM (Juntang Zhuang et al.,
"Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022). Every step takes two
gradients of its batch, and descends

    g_p - a (g - <g, g_p> / ||g_p||^2 g_p)
    g = grad loss(theta),  g_p = grad loss(theta + rho g / ||g||)

    rho  radius, 0.01       a  weight of the surrogate gap, 1 for FTD, 0.3 for DATM; 0 is plain SAM

Only the component of g orthogonal to g_p counts, so that the loss at the perturbed parameters
decreases as in SAM, and its gap to the loss as well.

**Paper and released code differ.** The code of FTD and DATM enables adaptive SAM: it perturbs by
rho w^2 g / || |w| g ||, products elementwise with the parameters w, which is shorter than rho by
about the size of a parameter. This module uses the printed step, of length rho.

Experts are trained one at a time. Training several small ones at once
(`torch.func.stack_module_state` and `vmap`) was slower on a CPU core: 0.5 to 0.85 times the speed
for ConvNets of width 8 to 32, four or eight together, 0.9 to 1.2 for MLPs, as convolutions with
different weights become grouped ones. On a GPU, several workers can share the device instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayd import remote
from rayd.artifacts import content_hash, tensor_hash
from rayd.config import ExpertSettings
from rayd.devices import autocast, dtype
from rayd.networks import restore
from rayd.networks.flat import FlatNetwork
from rayd.training.batches import Draws
from rayd.training.judging import accuracy, hits
from rayd.training.losses import Target, cross_entropy
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.squeeze import judged_on
from rayd.training.trainer import PreparedBatch, Trainer
from rayd.training.training_run import Subject, TrainingRun, resumed
from rayd.training.trajectories import Trajectory, write_trajectory

TRAJECTORY = "trajectory"
"""Checkpoint tensor of the parameters after every epoch so far."""


def train_expert(
    network: nn.Module,
    training: TrainingSet,
    settings: ExpertSettings,
    *,
    index: int,
    seed: int,
    device: torch.device | str,
    path: Path,
    facts: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
) -> Iterator[EpochProgress | Trajectory]:
    """Train an expert and write its trajectory.

    Yields an `EpochProgress` for each of `milestones(settings.epochs)`, then the `Trajectory`. When
    resumed from its checkpoint, it first yields the milestones that it had reached before.

    Args:
        network: the expert with its initial weights, trained in place.
        training: real images with hard labels.
        settings: the protocol; `network`, `count` and `seed` are handled by the caller.
        index: index of the expert, part of the key of its draws.
        seed: seed of all draws.
        device: device to train on; the network is moved there.
        path: path of the trajectory file.
        facts: additional metadata of the file; index, seed, seconds and `train_accuracy`, the final
            accuracy on at most 10,000 training images, are added.
        checkpoint: path of the state of an unfinished expert; removed when the generator is
            resumed after the result.

    Raises:
        ConfigError: the network has buffers or dropout.
        RunError: the training loss is not finite.
    """
    device = torch.device(device)
    initial = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def key() -> str:
        protocol = settings.model_dump(mode="json", exclude={"network", "count", "seed"})
        return content_hash(
            {
                "set": training.fingerprint,
                "network": tensor_hash(initial),
                "settings": protocol,
                "index": index,
                "seed": seed,
            }
        )

    def fresh() -> TrainingRun:
        restore(network, initial)
        name = (
            f"expert {index} ('{type(network).__name__}') with seed {seed} "
            f"on the set '{training.name}'"
        )
        trainer = ExpertTrainer(network, training, settings, index, seed, device)
        return TrainingRun(trainer, Subject("expert", name, "experts.learning_rate"), key)

    training_run = resumed(fresh, checkpoint)
    yield from training_run.run(checkpoint)
    yield _written(training_run, path, {**(facts or {}), "index": index, "seed": seed})
    if checkpoint is not None:
        remote.remove(checkpoint)


def _written(training_run: TrainingRun, path: Path, facts: dict[str, Any]) -> Trajectory:
    trainer = training_run.trainer
    assert isinstance(trainer, ExpertTrainer)
    judged = judged_on(trainer.training)
    (hit,) = hits(
        trainer.network, [trainer.weights()], judged, trainer.device, trainer.settings.precision
    )
    facts |= {"train_accuracy": accuracy(hit), "seconds": training_run.seconds}
    return write_trajectory(path, torch.stack(trainer.trajectory), trainer.flat.shapes, facts)


class ExpertTrainer(Trainer):
    """Training of one expert, which stores its parameters after every epoch.

    Args:
        network: network to train, in place; moved to the device.
        training: training set.
        settings: the protocol.
        index: index of the expert.
        seed: seed of all draws.
        device: device to train on.
    """

    def __init__(
        self,
        network: nn.Module,
        training: TrainingSet,
        settings: ExpertSettings,
        index: int,
        seed: int,
        device: torch.device,
    ):
        purpose = f"expert {index}"
        draws = Draws(settings, len(training), training.shape, seed, purpose)
        self.flat = FlatNetwork(network)
        super().__init__(
            network,
            training,
            settings,
            draws,
            cross_entropy,
            epochs=settings.epochs,
            seed=seed,
            device=device,
            purpose=purpose,
        )
        self._stored = dtype(settings.stored)
        self.trajectory = [self._snapshot()]
        self._radius = settings.flat_radius
        self._gap_weight = settings.flat_weight

    def advance(self) -> Tensor:
        """Train for one epoch and return its mean loss."""
        loss = super().advance()
        self.trajectory.append(self._snapshot())
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Complete training state, as tensors and as JSON-able values."""
        tensors, note = super().state()
        return tensors | {TRAJECTORY: torch.stack(self.trajectory)}, note

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Restore the result of `state`.

        Raises:
            KeyError, TypeError, RuntimeError: it belongs to another training; the state is then
                undefined.
        """
        super().restore(tensors, note)
        self.trajectory = list(tensors[TRAJECTORY])

    def _snapshot(self) -> Tensor:
        return self.flat.vector().to("cpu", self._stored, copy=True)

    def _step(self, batch: PreparedBatch, logits: Tensor | None) -> Tensor:
        if self._radius == 0:
            return super()._step(batch, logits)
        target = Target(batch.labels, batch.partners, batch.kept, logits)
        parameters = list(self._parameters.values())

        def loss_and_gradient() -> tuple[Tensor, Tensor]:
            with autocast(self.device, self.settings.precision):
                loss = batch.part.weight * self._loss(self._joined(batch.mixed), target)
            gradients = torch.autograd.grad(loss, parameters)
            return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])

        loss, gradient = loss_and_gradient()
        position = self.flat.vector()
        norm = gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
        self.flat.load(position + self._radius * gradient / norm)
        _, perturbed = loss_and_gradient()
        self.flat.load(position)
        descent = flat_gradient(gradient, perturbed, self._gap_weight)
        for name, value in self.flat.parameters(descent).items():
            # fused optimizers read memory in order, so a gradient must be laid out as its parameter
            self._parameters[name].grad = torch.empty_like(self._parameters[name]).copy_(value)
        self._optimizer.step()
        return loss


def flat_gradient(gradient: Tensor, perturbed: Tensor, gap_weight: float) -> Tensor:
    """GSAM's descent direction (P,): g_p minus a times the component of g orthogonal to g_p.

    Args:
        gradient: gradient g at the parameters (P,).
        perturbed: gradient g_p at the perturbed parameters (P,).
        gap_weight: a.
    """
    tiny = torch.finfo(perturbed.dtype).tiny
    along = (gradient @ perturbed) / perturbed.square().sum().clamp(min=tiny)
    return perturbed - gap_weight * (gradient - along * perturbed)
