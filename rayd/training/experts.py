r"""Experts: networks trained on the real data whose parameters are kept after every epoch, for
trajectory matching.

George Cazenavette et al., "Dataset Distillation by Matching Training Trajectories" (MTT, CVPR
2022): 100 experts, 50 epochs of plain SGD (step size 0.01, batches of 256, neither momentum nor
weight decay nor a schedule) on views of DSA with parameters of their own for every image. Experts
are no good classifiers, on purpose: what counts is a path that few large steps can follow.

Flat trajectories (Jiawei Du et al., "Minimizing the Accumulated Trajectory Error to Improve Dataset
Distillation", FTD, CVPR 2023), which DATM uses too, are those of GSAM (Juntang Zhuang et al.,
"Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022). Every step takes two
gradients of its batch, and descends

    g_p - a (g - <g, g_p> / ||g_p||^2 g_p)        g = grad loss(theta),  g_p = grad loss(theta + rho g / ||g||)

    rho  radius, 0.01       a  weight of the surrogate gap, 1 for FTD, 0.3 for DATM; 0 is plain SAM

Of g only the part across g_p counts, so that the loss at the perturbed place falls as in SAM, and
its gap to the loss as well.

Each expert is trained by itself. Training several small ones at once
(`torch.func.stack_module_state` and `vmap`) was slower on a core of a CPU: 0.5 to 0.85 times the
speed for ConvNets of width 8 to 32, four or eight together, 0.9 to 1.2 for MLPs, as convolutions of
different weights become one with groups. On a GPU, let several workers share it.
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
from rayd.training.trainer import Trainer, View
from rayd.training.training_run import Subject, TrainingRun, resumed
from rayd.training.trajectories import Trajectory, write_trajectory

KEPT = "trajectory"
"""The tensor of a checkpoint that has the epochs so far."""


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
    """Train an expert: yields a `EpochProgress` for each of `milestones(settings.epochs)`, then the
    `Trajectory` that it wrote.

    Resumed from its checkpoint it first yields the milestones that it had reached before, at once.

    Args:
        network: the expert with its initial weights, trained in place.
        training: real images with hard labels.
        settings: the protocol; `network`, `count` and `seed` are the business of the caller.
        index: which of the experts: others have other draws.
        seed: of all draws.
        device: where it is trained; the network is moved there.
        path: of the file to write.
        facts: what its metadata shall say of it, beside index, seed, seconds and `train_accuracy`,
            the fraction of at most 10,000 training images that are right in the end.
        checkpoint: where to keep the state of an unfinished expert; removed when the caller comes
            back after the result.

    Raises:
        ConfigError: the network has buffers or dropout.
        RunError: the training loss is not finite.
    """
    device = torch.device(device)
    initial = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def key() -> str:
        protocol = settings.model_dump(mode="json", exclude={"network", "count", "seed"})
        made = {
            "set": training.fingerprint,
            "network": tensor_hash(initial),
            "settings": protocol,
            "index": index,
            "seed": seed,
        }
        return content_hash(made)

    def fresh() -> TrainingRun:
        restore(network, initial)
        name = f"expert {index} ('{type(network).__name__}') with seed {seed} on the set '{training.name}'"
        trainer = ExpertTrainer(network, training, settings, index, seed, device)
        return TrainingRun(trainer, Subject("expert", name, "experts.learning_rate"), key)

    course = resumed(fresh, checkpoint)
    yield from course.run(checkpoint)
    yield _written(course, path, {**(facts or {}), "index": index, "seed": seed})
    if checkpoint is not None:
        remote.remove(checkpoint)


def _written(course: TrainingRun, path: Path, facts: dict[str, Any]) -> Trajectory:
    trainer = course.trainer
    assert isinstance(trainer, ExpertTrainer)
    judged = judged_on(trainer.training)
    (hit,) = hits(
        trainer.network, [trainer.weights()], judged, trainer.device, trainer.settings.precision
    )
    facts |= {"train_accuracy": accuracy(hit), "seconds": course.seconds}
    return write_trajectory(path, torch.stack(trainer.trajectory), trainer.flat.shapes, facts)


class ExpertTrainer(Trainer):
    """One expert in training, which keeps what it was after every epoch.

    Args:
        network: what is trained, in place; moved to the device.
        training: what it learns from.
        settings: the protocol.
        index: which of the experts.
        seed: of all draws.
        device: where it is trained.
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
        self.trajectory = [self._now()]
        self._radius = settings.flat_radius
        self._gap_weight = settings.flat_weight

    def advance(self) -> Tensor:
        """One epoch; its mean loss."""
        loss = super().advance()
        self.trajectory.append(self._now())
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that changes, as tensors and as JSON-able values."""
        tensors, note = super().state()
        return tensors | {KEPT: torch.stack(self.trajectory)}, note

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            KeyError, TypeError, RuntimeError: it is not of this training; the state is then
                undefined.
        """
        super().restore(tensors, note)
        self.trajectory = list(tensors[KEPT])

    def _now(self) -> Tensor:
        return self.flat.vector().to("cpu", self._stored, copy=True)

    def _step(self, view: View, logits: Tensor | None) -> Tensor:
        if self._radius == 0:
            return super()._step(view, logits)
        target = Target(view.labels, view.partners, view.kept, logits)
        parameters = list(self._parameters.values())

        def loss_and_gradient() -> tuple[Tensor, Tensor]:
            with autocast(self.device, self.settings.precision):
                loss = view.part.weight * self._loss(self._joined(view.mixed), target)
            return loss.detach(), torch.cat(
                [each.flatten() for each in torch.autograd.grad(loss, parameters)]
            )

        loss, here = loss_and_gradient()
        place = self.flat.vector()
        self.flat.load(
            place + self._radius * here / here.norm().clamp(min=torch.finfo(here.dtype).tiny)
        )
        _, there = loss_and_gradient()
        self.flat.load(place)
        for name, gradient in self.flat.parameters(
            flat_gradient(here, there, self._gap_weight)
        ).items():
            # fused optimizers read memory in order, so a gradient must be laid out as its parameter
            self._parameters[name].grad = torch.empty_like(self._parameters[name]).copy_(gradient)
        self._optimizer.step()
        return loss


def flat_gradient(here: Tensor, there: Tensor, gap_weight: float) -> Tensor:
    """What GSAM descends (P,): the perturbed gradient, less the part of the plain one across it.

    Args:
        here: gradient g at the parameters (P,).
        there: gradient g_p at the perturbed parameters (P,).
        gap_weight: a.
    """
    along = (here @ there) / there.square().sum().clamp(min=torch.finfo(there.dtype).tiny)
    return there - gap_weight * (here - along * there)
