"""Training of students in a worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from rayd import devices, networks
from rayd.config import EvaluationSettings, ResourceSettings
from rayd.data import ImageSet
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import ObjectRef
from rayd.engine.stages.student_tasks import Task
from rayd.evaluation.student import StudentResult, train
from rayd.training.parallelism import SINGLE_PROCESS, Parallelism
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet, shared_tensor
from rayd.training.stored_labels import StoredLabels


class StudentTrainer:
    """Trains students; caches their test sets and teachers between tasks.

    Args:
        settings: the protocol.
        resources: decide the device.
        facts: properties of the data.
        parallelism: connects this process with others that train the same students.
        device: where to compute; None follows the resources.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        resources: ResourceSettings,
        facts: DatasetInfo,
        parallelism: Parallelism = SINGLE_PROCESS,
        device: torch.device | None = None,
    ):
        self._settings = settings
        self._facts = facts
        self._parallelism = parallelism
        self._device = device or devices.choose(resources)
        devices.use_layout(resources)
        # by key of the shared object
        self._real_sets: dict[str, TrainingSet] = {}
        self._teachers: dict[str, nn.Module] = {}

    def train(
        self,
        task: Task,
        training: ObjectRef,
        test: ObjectRef,
        validation: ObjectRef | None,
        checkpoint: Path,
        teachers: tuple[tuple[NetworkId, ObjectRef], ...] = (),
        stored: Path | None = None,
    ) -> Iterator[EpochProgress | StudentResult]:
        """Train and test one student.

        Yields progress, then a result for each entry of `evaluation.epoch`.

        Args:
            task: the student.
            training: an `ImageSet`, or the network inputs and labels of a synthetic set.
            test: an `ImageSet`.
            validation: an `ImageSet`.
            checkpoint: file of the unfinished student.
            teachers: networks that label online, with their weights.
            stored: directory of stored labels.
        """
        kind = task.labels.kind
        return train(
            self._training(task.set_name, training.get()),
            task.network,
            task.settings(self._settings),
            shape=self._facts.shape,
            classes=self._facts.classes,
            seed=task.seed,
            epochs=task.epochs,
            device=self._device,
            test=self._real(test),
            validation=None if validation is None else self._real(validation),
            labels=task.labels,
            teachers=[self._teacher(*pair) for pair in teachers] if kind == "online" else None,
            stored=StoredLabels(stored) if kind == "stored" and stored is not None else None,
            checkpoint=checkpoint,
            parallelism=self._parallelism,
        )

    def _teacher(self, network_id: NetworkId, weights: ObjectRef) -> nn.Module:
        if weights.key not in self._teachers:
            network = networks.build(
                network_id.architecture, self._facts.shape, self._facts.classes, seed=0
            )
            networks.restore(network, weights.get())
            self._teachers[weights.key] = network
        return self._teachers[weights.key]

    def _training(
        self, name: str, content: ImageSet | tuple[npt.NDArray[Any], npt.NDArray[Any]]
    ) -> TrainingSet:
        if isinstance(content, ImageSet):
            return TrainingSet.from_images(content, self._facts.normalization, name=name)
        # used in place, as a large set would be copied for every student
        images, labels = map(shared_tensor, content)
        return TrainingSet(images, labels, self._facts.normalization, name)

    def _real(self, shared: ObjectRef) -> TrainingSet:
        # test images are normalised once for all students of this worker
        if shared.key not in self._real_sets:
            self._real_sets[shared.key] = self._training("test", shared.get())
        return self._real_sets[shared.key]
