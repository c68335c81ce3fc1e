"""Costs of training, testing and labelling with networks."""

from __future__ import annotations

import math
from typing import Any

import torch

from rayd import networks
from rayd.config import (
    NOT_OF_A_STUDENT,
    EvaluationSettings,
    ExpertSettings,
    NetworkSettings,
    TrainingSettings,
)
from rayd.engine.costs.kept import MANY, KeptCounts
from rayd.engine.costs.stand_ins import FirstBatches, stand_in
from rayd.engine.counting import Count, Counting
from rayd.engine.network_ids import teachers
from rayd.engine.pool import LocalRef
from rayd.engine.worker import Worker
from rayd.training.batches import Draws
from rayd.training.experts import ExpertTrainer
from rayd.training.judging import TEST_BATCH, hits
from rayd.training.losses import Loss, cross_entropy, loss_of
from rayd.training.teacher_labels import MIN_TEACHER_BATCH, Teachers
from rayd.training.trainer import Trainer

WHOLE = 4
"""Number of batches up to which an epoch is counted whole, in units of a batch of the teachers."""


class TrainingCosts(KeptCounts):
    """Costs of networks that are trained, tested, or label images."""

    def training(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str = "hard",
        real: bool = True,
    ) -> Count:
        """The cost of an epoch of a network's training.

        Args:
            network: its architecture.
            settings: the protocol.
            images: number of images.
            labels: `hard`, `online` or `stored`; soft labels that are part of the set cost the same
                as hard ones.
            real: whether images are pixels, or network input as in synthetic sets.
        """
        batch = min(settings.batch_size, images)
        # number of batches that teachers label at once
        together = -(-MIN_TEACHER_BATCH // batch) if labels == "online" else 1
        batches = -(-images // batch)

        not_counted = {"learning_rate", *NOT_OF_A_STUDENT}

        def epoch(limit: int | None) -> Count:
            inputs = {
                "network": network.model_dump(mode="json", exclude={"weights", "learning_rate"}),
                "settings": settings.model_dump(mode="json", exclude=not_counted),
                "teachers": self._teacher_inputs(),
                "labels": [labels, self.recipe.labels.precision],
                "images": images if limit is None else [limit, batch, self._resident(images, real)],
                "real": real,
            }
            return self._count(
                "training",
                inputs,
                lambda: self._epoch(network, settings, images, labels, real, limit),
            )

        if batches <= WHOLE * together:
            return epoch(None)
        few = epoch(together)
        if few.number > MANY:
            # apart from its batches, the work per epoch is negligible
            return few * (images / (batch * together))
        # otherwise two counts separate it from that of the batches
        more = epoch(2 * together)
        each = (more - few) * (1 / together)
        return few + each * (images / batch - together)

    def training_bytes(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str = "hard",
        real: bool = True,
    ) -> float:
        """Memory that a network's training takes on its device, in bytes: weights, gradients and
        moments, tensors saved for the backward pass, and the training set. The arguments are those
        of `training`.
        """
        saved = self.training(network, settings, images, labels, real).saved_bytes
        with Counting():
            weights = sum(parameter.nbytes for parameter in self._built(network).parameters())
            labelling = [self._built(one.architecture) for one in teachers(self.recipe)]
            if labels == "online":
                # teachers save nothing, but process several batches at a time
                saved *= 2
                saved += sum(one.nbytes for net in labelling for one in net.parameters())
        # weights and gradients; momentum, or Adam's two moments; the moving average
        copies = 2 + (1 if settings.optimizer == "sgd" else 2) + (settings.average is not None)
        # float32 once it is normalised, bytes before
        each = math.prod(self.data.shape) * (4 if self._resident(images, real) else 1)
        held = 0 if real and self.data.train.streamed else images * each
        return float(saved + copies * weights + held)

    def testing(self, network: NetworkSettings, precision: str, images: int) -> Count:
        """The cost of testing a network on some images."""
        batch = min(images, TEST_BATCH)
        inputs = {
            "network": network.model_dump(mode="json", exclude={"weights"}),
            "precision": precision,
            "batch": batch,
        }

        def work() -> Count:
            with Counting() as counting:
                built = self._built(network)
                judged = stand_in(self.data, batch, real=True)
                counting.take()
                hits(built, [built.state_dict()], judged, self._device, precision)
                return counting.take()

        return self._count("testing", inputs, work) * (images / batch)

    def labelling(self, images: int) -> Count:
        """The cost of stored labels for one epoch of a set."""
        settings = self.recipe.evaluation
        batch = min(images, settings.batch_size)
        count = min(images, batch * -(-MIN_TEACHER_BATCH // batch))
        inputs = {
            "settings": settings.model_dump(mode="json", exclude=set(NOT_OF_A_STUDENT)),
            "teachers": self._teacher_inputs(),
            "labels": self.recipe.labels.precision,
            "images": count,
        }

        def work() -> Count:
            with Counting() as counting:
                worker = Worker(self.recipe, self._facts, device=self._device)
                worker._teachers = [
                    self._built(teacher.architecture) for teacher in teachers(self.recipe)
                ]
                shared = LocalRef(torch.zeros(count, *self.data.shape))
                counting.take()
                worker.label((), (), shared, range(1))
                return counting.take()

        return self._count("labelling", inputs, work) * (images / count)

    def _epoch(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str,
        real: bool,
        limit: int | None,
    ) -> Count:
        with Counting() as counting:
            trainer = self._trainer(network, settings, images, labels, real, limit)
            counting.take()
            trainer.advance()
            return counting.take()

    def _trainer(
        self,
        network: NetworkSettings,
        settings: TrainingSettings,
        images: int,
        labels: str,
        real: bool,
        limit: int | None,
    ) -> Trainer:
        training = stand_in(self.data, images, real)
        if isinstance(settings, ExpertSettings):
            built = networks.build(network, self.data.shape, self.data.classes, seed=0)
            expert = ExpertTrainer(built, training, settings, 0, 0, self._device)
            expert._batches = FirstBatches(expert._batches, limit)
            return expert
        draws = Draws(settings, images, self.data.shape, 0)
        labellers = None
        loss: Loss = cross_entropy
        clean = False
        if isinstance(settings, EvaluationSettings):
            loss = loss_of(settings)
            clean = settings.clean_forward
        if labels == "online":
            labellers = Teachers(
                [self._built(teacher.architecture) for teacher in teachers(self.recipe)],
                self.recipe.labels.precision,
                settings.precision,
                self._device,
            )
        return Trainer(
            self._built(network),
            training,
            settings,
            FirstBatches(draws, limit, self.data.classes if labels == "stored" else None),
            loss,
            epochs=max(2, settings.epochs),
            seed=0,
            device=self._device,
            teachers=labellers,
            clean_forward=clean,
        )

    def _resident(self, images: int, real: bool) -> bool:
        """Whether a set is normalised once, instead of batch by batch."""
        return not real or (
            not self.data.train.streamed and 4 * images * math.prod(self.data.shape) <= 2**28
        )

    def _teacher_inputs(self) -> list[dict[str, Any]]:
        """Architectures of the teachers, for the key of a count."""
        return [
            teacher.architecture.model_dump(mode="json", exclude={"weights"})
            for teacher in teachers(self.recipe)
        ]
