"""Training of one network on one set under one protocol, epoch after epoch.

Each step takes the view of a batch, mixes it, queries the teachers if there are any, and applies
the gradient of the loss. All mutable state is in `state`, and every draw derives from (seed,
purpose, epoch, batch), so a training that is resumed gives the same result as an uninterrupted one:
bit for bit on the CPU with the same number of threads.

The moving average of the weights starts at the initial ones and is updated after every step,

    average <- decay * average + (1 - decay) * weights,

as in the released code of EDC; as there, it covers the parameters only, while batch normalisation
uses the running statistics of the trained network.
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
from rayd.data.augmentation import Rows
from rayd.devices import autocast, convolutions, to_device
from rayd.networks import restore
from rayd.schedules import alrs, learning_rate_factor, milestone_epochs
from rayd.seeding import seeded
from rayd.states import load_state_tensors, state_tensors, under
from rayd.training.batches import Batches, DrawnBatch
from rayd.training.losses import Loss, Target
from rayd.training.parallelism import SINGLE_PROCESS, BatchPart, Parallelism
from rayd.training.sets import TrainingSet, taken
from rayd.training.teacher_labels import Teachers, gathered
from rayd.transfer import upload

Weights = Mapping[str, Tensor]
"""Parameters and buffers of a network, under the names of its state dict."""


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """Images and labels of a part of a batch, before a step."""

    part: BatchPart
    images: Tensor
    """Views before mixing: those of the part (n, C, H, W), followed by partners outside it."""
    labels: Tensor
    """Labels of `images`."""
    mixed: Tensor
    """Mixed images (n, C, H, W)."""
    partners: Tensor | None
    """Index of each image's partner (n,); None without mixing."""
    kept: float
    """Share of the image itself."""

    def __len__(self) -> int:
        return len(self.mixed)


class Trainer:
    """Training of one network.

    Args:
        network: network to train, in place; moved to the device.
        training: training set.
        settings: the protocol; `epochs` and batches are given separately.
        batches: batches of every epoch.
        loss: maps logits and target to the loss.
        epochs: number of passes over the set, for the schedule.
        seed: seed of dropout.
        device: device to train on.
        purpose: kind of training (`student`, ...); part of the key of dropout's draws.
        teachers: networks that label batches without logits, if the loss needs them.
        clean_forward: also run each batch before mixing through the network, without gradient, so
            that batch statistics update twice.
        parallelism: processes that train the same network, each with a part of every batch.
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
        # `restart` creates a new optimizer at its milestones, which resets the momentum
        self._restarts: tuple[int, ...] = ()
        if settings.schedule.name == "restart":
            self._restarts = milestone_epochs(settings.schedule, epochs)
        self._optimizer = self._new_optimizer()
        self._average: dict[str, Tensor] | None = None
        if settings.average is not None:
            self._average = {n: p.detach().clone() for n, p in self._parameters.items()}
        # accumulated factor of `alrs`, and the previous loss it compares with
        self._stalled = 1.0
        self._previous: float | None = None

    def advance(self) -> Tensor:
        """Train for one epoch and return its mean loss, on the device to avoid synchronisation."""
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
        """Weights to use (their moving average if enabled) and buffers, by reference."""
        return self.network.state_dict() | (self._average or {})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Complete training state, as tensors and as JSON-able values."""
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        for name, value in state_tensors(self._optimizer, self._optimized()).items():
            tensors[f"optimizer.{name}"] = value
        tensors |= {f"average.{name}": value for name, value in (self._average or {}).items()}
        return tensors, {
            "epoch": self.epoch,
            "stalled": self._stalled,
            "previous_loss": self._previous,
        }

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Restore the result of `state`.

        Raises:
            KeyError, TypeError, RuntimeError: it belongs to another training; the state is then
                undefined.
        """
        restore(self.network, under("model.", tensors))
        self._optimizer = self._new_optimizer()
        optimizer_state = under("optimizer.", tensors)
        load_state_tensors(self._optimizer, self._optimized(), optimizer_state)
        if self._average is not None:
            averages = under("average.", tensors)
            for name, value in self._average.items():
                value.copy_(averages[name])
        self.epoch = note["epoch"]
        self._stalled = note["stalled"]
        self._previous = note["previous_loss"]

    def _optimized(self) -> list[str]:
        """Names of the parameters in the order of the optimizer, which groups them."""
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        groups = self._optimizer.param_groups
        return [names[id(parameter)] for group in groups for parameter in group["params"]]

    def _new_optimizer(self) -> torch.optim.Optimizer:
        """Create an optimizer; fused takes a quarter of foreach's time for small CPU networks."""
        settings = self.settings
        decay = settings.weight_decay
        groups = [{"params": list(self._parameters.values()), "weight_decay": decay}]
        if settings.weight_decay_of == "weights":
            decaying, exempt = _by_decay(self._parameters)
            groups = [
                {"params": decaying, "weight_decay": decay},
                {"params": exempt, "weight_decay": 0.0},
            ]
        if settings.optimizer != "sgd":
            kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
            betas = (settings.momentum, 0.999)
            return kind(groups, lr=settings.learning_rate, betas=betas, fused=True)
        return torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, fused=True
        )

    def _schedule(self) -> None:
        """Set the step size of the current epoch."""
        if self.epoch in self._restarts:
            self._optimizer = self._new_optimizer()
        rate = self.settings.learning_rate * learning_rate_factor(
            self.settings.schedule, self.epoch, self.epochs
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate * self._stalled

    @cached_property
    def _joined(self) -> nn.Module:
        """The network wrapped for data parallelism, once and only if it is trained."""
        return self._parallelism.joined(self.network)

    def _pass(self) -> Tensor:
        """One pass over the set; returns its mean loss."""
        # train() visits all modules, so call it only when needed: after a test
        if not self.network.training:
            self._joined.train()
        total = torch.zeros((), device=self.device)
        count = len(self._labels)
        parts = (self._parallelism.part(batch, count) for batch in self._batches.epoch(self.epoch))
        # rows index both images and labels, so they are copied to the device once
        with_rows = ((part, self._rows(part.batch)) for part in parts)
        read = taken(self._images, with_rows, lambda pair: pair[1], self.device)
        prepared = (self._prepared(part, rows, images) for (part, rows), images in read)
        for batch, logits in self._with_logits(prepared):
            total += self._step(batch, logits) * batch.part.whole
        if self._teachers is not None:
            self._teachers.check()
        return self._parallelism.mean(total) / count

    def _rows(self, batch: DrawnBatch) -> Rows:
        if isinstance(batch.rows, slice):
            return batch.rows
        return upload(batch.rows, self._labels.device)

    def _prepared(self, part: BatchPart, rows: Rows, images: Tensor) -> PreparedBatch:
        """Normalise, augment and mix the images of a part of a batch."""
        inputs = self.training.inputs(upload(images, self.device))
        labels = upload(self._labels[rows], self.device)
        views = part.batch.view(inputs, self.training.normalization)
        views = views.contiguous(memory_format=self._layout)
        mixed, partners, kept = part.batch.mixed(views)
        return PreparedBatch(
            part=part, images=views, labels=labels, mixed=mixed, partners=partners, kept=kept
        )

    def _with_logits(
        self, batches: Iterable[PreparedBatch]
    ) -> Iterator[tuple[PreparedBatch, Tensor | None]]:
        """Yield each batch with its stored or computed logits, if the loss needs them.

        Small batches are combined for the teachers.
        """
        if self._teachers is None:
            for batch in batches:
                stored = batch.part.batch.logits
                yield batch, None if stored is None else upload(stored, self.device)
            return
        for group in gathered(batches):
            logits = self._teachers.of_each([batch.mixed for batch in group])
            yield from zip(group, logits, strict=True)

    def _step(self, batch: PreparedBatch, logits: Tensor | None) -> Tensor:
        """One optimizer step on a part of a batch; returns its weighted loss before the step."""
        target = Target(batch.labels, batch.partners, batch.kept, logits)
        if self._clean_forward:
            # in a separate autocast context, whose cache would otherwise keep weights cast without
            # gradient
            with torch.no_grad(), autocast(self.device, self.settings.precision):
                self._joined(batch.images[: len(batch)])
        with autocast(self.device, self.settings.precision):
            loss = batch.part.weight * self._loss(self._joined(batch.mixed), target)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        if self._average is not None:
            self._update_average()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        if self._average is not None and self.settings.average is not None:
            update = get_ema_multi_avg_fn(self.settings.average)  # type: ignore[no-untyped-call]
            update(list(self._average.values()), list(self._parameters.values()), None)


def _by_decay(parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Split parameters into matrices and kernels, and all others, as in the released code of SRe2L,
    RDED and EDC.
    """
    decaying: list[Tensor] = []
    exempt: list[Tensor] = []
    for name, parameter in parameters.items():
        group = decaying if "weight" in name and parameter.ndim > 1 else exempt
        group.append(parameter)
    return decaying, exempt
