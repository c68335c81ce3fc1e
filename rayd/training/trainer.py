"""One network in training: one set, one protocol, epoch after epoch.

Every step: take a batch of the set in its view, mix it, ask the teachers if there are any, and
follow the gradient of the loss. Everything that changes is in `state`, and every draw derives from
(seed, purpose, epoch, batch), so a training resumed from its state ends as the uninterrupted one:
bit for bit on the CPU with the same number of threads.

The moving average of the weights starts at the initial ones and moves after every step,

    average <- decay * average + (1 - decay) * weights,

as in the released code of EDC; as there, it covers the parameters, while batch normalisation keeps
the running statistics of the network that is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from rayd.config import TrainingSettings
from rayd.devices import autocast, convolutions, to_device
from rayd.networks import restore
from rayd.schedules import alrs, learning_rate_factor, milestone_epochs
from rayd.seeding import seeded
from rayd.training.batches import Batches, DrawnBatch, Rows
from rayd.training.labels import Teachers, gathered
from rayd.training.losses import Loss, Target
from rayd.training.parallelism import SINGLE_PROCESS, Parallelism, Part
from rayd.training.sets import TrainingSet, taken
from rayd.transfer import upload

Weights = Mapping[str, Tensor]
"""Parameters and buffers of a network, under the names of its state dict."""


@dataclass(frozen=True, eq=False)
class View:
    """A part of a batch, before a step."""

    part: Part
    images: Tensor
    """As they are seen before mixing: those of the part (n, C, H, W), followed by partners that are
    not in it.
    """
    labels: Tensor
    """Of the images."""
    mixed: Tensor
    """After mixing (n, C, H, W)."""
    partners: Tensor | None
    """Each one's partner (n,), if it has one."""
    kept: float
    """The share of the image itself."""

    def __len__(self) -> int:
        return len(self.mixed)


class Trainer:
    """One network in training.

    Args:
        network: what is trained, in place; moved to the device.
        training: what it learns from.
        settings: the protocol; how many `epochs` there are and where batches come from is said
            apart from it.
        batches: the batches of every epoch.
        loss: from logits and target to what is minimised.
        epochs: passes over the set, which the schedule is made for.
        seed: of dropout.
        device: where it is trained.
        purpose: what is trained (`student`, ...); other purposes have other draws of dropout.
        teachers: who labels batches that come without logits, if the loss needs them.
        clean_forward: let the network also see each batch before mixing, without gradient, so that
            batch statistics update twice.
        parallelism: who else trains the same network, each on a part of every batch.
    """

    def __init__(
        self,
        network: nn.Module,
        training: TrainingSet,
        settings: TrainingSettings,
        batches: Batches,
        loss: Loss,
        *,
        epochs: int,
        seed: int,
        device: torch.device,
        purpose: str = "student",
        teachers: Teachers | None = None,
        clean_forward: bool = False,
        parallelism: Parallelism = SINGLE_PROCESS,
    ):
        self.network = network
        self.training = training
        self.settings = settings
        self.device = device
        self._layout = to_device(network, device)
        self.epochs = epochs
        self.epoch = 0
        self._batches = batches
        self._loss = loss
        self._seed = seed
        self._purpose = purpose
        self._teachers = teachers
        self._clean_forward = clean_forward
        self._parallelism = parallelism
        self._images, self._labels = training.resident(device)
        self._parameters = dict(network.named_parameters())
        self._rebuilt = (
            milestone_epochs(settings.schedule, epochs)
            if settings.schedule.name == "restart"
            else ()
        )
        self._optimizer = self._new_optimizer()
        self._average = (
            None
            if settings.average is None
            else {n: p.detach().clone() for n, p in self._parameters.items()}
        )
        # what `alrs` has made of the step size, and the loss that it saw last
        self._stalled = 1.0
        self._previous: float | None = None

    def advance(self) -> Tensor:
        """One epoch; its mean loss, still on the device, so that no step waits for it."""
        self._schedule()
        # dropout can only draw from the global generator
        dropout = seeded(
            self._seed,
            f"{self._purpose} dropout",
            self.epoch,
            *self._parallelism.indices,
            device=self.device,
        )
        with dropout, convolutions(self.device, self.settings.precision):
            loss = self._pass()
        self.epoch += 1
        if self.settings.schedule.name == "alrs":
            current = float(loss)
            if alrs(self._previous, current):
                self._stalled *= self.settings.schedule.factor
            self._previous = current
        return loss

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        """What is used of the network: its weights or their moving average, and its buffers;
        training changes them in place.
        """
        return self.network.state_dict() | (self._average or {})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that changes, as tensors and as JSON-able values."""
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self._parameters.items():
            kept = self._optimizer.state[parameter]
            tensors |= {
                f"optimizer.{key}.{name}": value
                for key, value in kept.items()
                if isinstance(value, Tensor)
            }
        tensors |= {f"average.{name}": value for name, value in (self._average or {}).items()}
        return tensors, {
            "epoch": self.epoch,
            "stalled": self._stalled,
            "previous_loss": self._previous,
        }

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            KeyError, TypeError, RuntimeError: it is not of this training; the state is then
                undefined.
        """
        restore(self.network, under("model.", tensors))
        self._optimizer = self._new_optimizer()
        for name, value in under("optimizer.", tensors).items():
            key, _, parameter = name.partition(".")
            self._optimizer.state[self._parameters[parameter]][key] = _like(
                value, self._parameters[parameter]
            )
        if self._average is not None:
            kept = under("average.", tensors)
            self._average = {
                name: _like(kept[name], self._parameters[name]) for name in self._average
            }
        self.epoch = note["epoch"]
        self._stalled = note["stalled"]
        self._previous = note["previous_loss"]

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer that has gathered nothing yet; fused: a quarter of the time of foreach for
        small networks on the CPU.
        """
        chosen = self.settings
        parameters = list(self._parameters.values())
        decay = chosen.weight_decay
        if chosen.optimizer == "adamw":
            betas = (chosen.momentum, 0.999)
            return torch.optim.AdamW(
                parameters, lr=chosen.learning_rate, betas=betas, weight_decay=decay, fused=True
            )
        return torch.optim.SGD(
            parameters,
            lr=chosen.learning_rate,
            momentum=chosen.momentum,
            weight_decay=decay,
            fused=True,
        )

    def _schedule(self) -> None:
        """Set the step size of the epoch that begins."""
        if self.epoch in self._rebuilt:
            self._optimizer = self._new_optimizer()
        rate = self.settings.learning_rate * learning_rate_factor(
            self.settings.schedule, self.epoch, self.epochs
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate * self._stalled

    @cached_property
    def _joined(self) -> nn.Module:
        """The network as the crew calls it, joined once and only when it is trained."""
        return self._parallelism.joined(self.network)

    def _pass(self) -> Tensor:
        # a walk over all modules, which only a test in between makes necessary
        if not self.network.training:
            self._joined.train()
        total = torch.zeros((), device=self.device)
        count = len(self._labels)
        parts = (self._parallelism.part(batch, count) for batch in self._batches.epoch(self.epoch))
        # where a batch's rows are needed twice, they are copied to the device once
        placed = ((part, self._rows(part.batch)) for part in parts)
        read = taken(self._images, placed, lambda one: one[1], self.device)
        for view, logits in self._taught(
            self._view(part, rows, images) for (part, rows), images in read
        ):
            total += self._step(view, logits) * view.part.whole
        if self._teachers is not None:
            self._teachers.check()
        return self._parallelism.mean(total) / count

    def _rows(self, batch: DrawnBatch) -> Rows:
        return (
            batch.rows if isinstance(batch.rows, slice) else upload(batch.rows, self._labels.device)
        )

    def _view(self, part: Part, rows: Rows, images: Tensor) -> View:
        """A part of a batch, the images of which were read."""
        inputs = self.training.inputs(upload(images, self.device))
        labels = upload(self._labels[rows], self.device)
        seen = part.batch.view(inputs, self.training.normalization).contiguous(
            memory_format=self._layout
        )
        return View(part, seen, labels, *part.batch.mixed(seen))

    def _taught(self, views: Iterable[View]) -> Iterator[tuple[View, Tensor | None]]:
        """Each with its logits, stored or said by the teachers, if the loss needs them; of small
        batches several are asked.
        """
        if self._teachers is None:
            for view in views:
                stored = view.part.batch.logits
                yield view, None if stored is None else upload(stored, self.device)
            return
        for some in gathered(views):
            yield from zip(some, self._teachers.of_each([view.mixed for view in some]), strict=True)

    def _step(self, view: View, logits: Tensor | None) -> Tensor:
        """One step of the optimizer on a part of a batch; its weighted loss before it."""
        target = Target(view.labels, view.partners, view.kept, logits)
        if self._clean_forward:
            # in a context of its own: autocast would keep weights that were cast without gradient
            # for the forward pass below
            with torch.no_grad(), autocast(self.device, self.settings.precision):
                self._joined(view.images[: len(view)])
        with autocast(self.device, self.settings.precision):
            loss = view.part.weight * self._loss(self._joined(view.mixed), target)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if self._average is not None:
            self._move_average()
        return loss.detach()

    @torch.no_grad()
    def _move_average(self) -> None:
        if self._average is not None and self.settings.average is not None:
            move = get_ema_multi_avg_fn(self.settings.average)  # type: ignore[no-untyped-call]
            move(list(self._average.values()), list(self._parameters.values()), None)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A value where, and laid out as, the parameter is; scalars stay scalars."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
