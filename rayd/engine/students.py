"""What a worker hosts for an evaluation: students, and the teachers that they listen to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn

from rayd import devices, networks
from rayd.config import EvaluationSettings, ResourceSettings
from rayd.data import ImageSet
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import ObjectRef
from rayd.engine.stages.student_tasks import Task
from rayd.evaluation.student import StudentResult, train
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet
from rayd.training.stored import StoredLabels


class StudentTrainer:
    """Trains students in a worker; between tasks it keeps what they are tested on, and their
    teachers.
    """

    def __init__(
        self, settings: EvaluationSettings, resources: ResourceSettings, facts: DatasetInfo
    ):
        """Know the protocol and the facts of the data."""
        self._settings = settings
        self._facts = facts
        self._device = devices.choose(resources)
        devices.use_layout(resources)
        self._kept: dict[str, TrainingSet] = {}
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
        """Train and test one student; yields its progress, then a result for each entry of
        `evaluation.epoch`.

        Args:
            task: which student.
            training: an `ImageSet`, or the images and labels of a synthetic set in network input
                space.
            test: an `ImageSet`.
            validation: an `ImageSet`.
            checkpoint: where the unfinished student is kept.
            teachers: who labels online, with their weights.
            stored: directory of stored labels.
        """
        kind = task.labels.kind
        return train(
            self._training(task.set_name, training.get()),
            task.network,
            self._settings.model_copy(update={"learning_rate": task.learning_rate}),
            shape=self._facts.shape,
            classes=self._facts.classes,
            seed=task.seed,
            epochs=task.epochs,
            device=self._device,
            test=self._real(test),
            validation=None if validation is None else self._real(validation),
            labels=task.labels,
            teachers=[self._teacher(*one) for one in teachers] if kind == "online" else None,
            stored=StoredLabels(stored) if kind == "stored" and stored is not None else None,
            checkpoint=checkpoint,
        )

    def _teacher(self, network_id: NetworkId, weights: ObjectRef) -> nn.Module:
        if weights.key not in self._teachers:
            network = networks.build(
                network_id.architecture, self._facts.shape, self._facts.classes, seed=0
            )
            networks.restore(network, weights.get())
            self._teachers[weights.key] = network
        return self._teachers[weights.key]

    def _training(self, name: str, content: ImageSet | tuple[Tensor, Tensor]) -> TrainingSet:
        if isinstance(content, ImageSet):
            return TrainingSet.from_images(content.writable(), self._facts.normalization, name=name)
        return TrainingSet(*content, self._facts.normalization, name)

    def _real(self, shared: ObjectRef) -> TrainingSet:
        if shared.key not in self._kept:
            self._kept[shared.key] = self._training("test", shared.get())
        return self._kept[shared.key]
