"""The object that workers host, with the tasks of all stages.

On Ray it lives in an actor (`rayd.engine.on_ray.actors`), else in this process. Gradients of observers
are computed by its base, `rayd.engine.observer_tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayd import devices, networks
from rayd.config import Recipe
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.pool import LocalPool, Neighbours, ObjectRef, free_memory
from rayd.engine.stages.experts import initial_seed
from rayd.engine.stages.student_tasks import Task
from rayd.engine.student_trainer import StudentTrainer
from rayd.engine.synthesizer import BlockTask, Logged, State, Synthesizer, synthesize
from rayd.errors import ConfigError
from rayd.evaluation.student import StudentResult
from rayd.networks.class_order import order_fault
from rayd.networks.flat import FlatNetwork
from rayd.networks.weights import load_weights
from rayd.seeding import derive
from rayd.synthetic.rded import Scores, score
from rayd.training.experts import train_expert
from rayd.training.image_ranking import Scores as Ranks
from rayd.training.image_ranking import rank
from rayd.training.parallelism import SINGLE_PROCESS, Parallelism
from rayd.training.progress import EpochProgress
from rayd.training.sets import TrainingSet, shared_tensor
from rayd.training.squeeze import Squeezed, squeeze
from rayd.training.stored_labels import Labelled, write_chunk
from rayd.training.teacher_labels import label_epochs
from rayd.training.trajectories import Trajectory

ORDER_CHECK = 20
"""Real images of each class on which given weights are tested before they are used unchanged."""


class Worker(ObserverTasks):
    """The networks of a worker, and the tasks of all stages. Results only depend on their task.

    Args:
        recipe: the run.
        facts: properties of the data.
        parallelism: connects this process with others that train the same observers.
        device: where to compute; None follows the recipe's resources.
    """

    def __init__(
        self,
        recipe: Recipe,
        facts: DatasetInfo,
        parallelism: Parallelism = SINGLE_PROCESS,
        device: torch.device | None = None,
    ):
        super().__init__(recipe, facts, device)
        self._parallelism = parallelism
        self._students: StudentTrainer | None = None
        self._is_freed = False

    def forget(self) -> None:
        """Drop networks, statistics, replicas, training sets and teachers."""
        super().forget()
        self._sets: dict[str, TrainingSet] = {}
        self._teachers: list[nn.Module] | None = None
        self._synthesizer: Synthesizer | None = None

    def squeeze(
        self,
        network_id: NetworkId,
        train: ObjectRef,
        validation: ObjectRef | None,
        checkpoint: Path,
    ) -> Iterator[EpochProgress | dict[str, Any]]:
        """Train one observer on the real data; yields progress, then its weights and accuracies.

        Args:
            network_id: the observer.
            train: an `ImageSet`.
            validation: an `ImageSet`.
            checkpoint: file of the unfinished observer.
        """
        settings = self._recipe.squeezing(network_id.group)
        training = self._real_set(train)
        network = networks.build(
            network_id.architecture,
            self._facts.shape,
            self._facts.classes,
            seed=network_id.seed(self._recipe),
        )
        if network_id.architecture.weights is not None:
            load_weights(
                network, network_id.architecture, self._facts.class_names, head=settings.epochs == 0
            )
        devices.to_device(network, self._device)
        if settings.epochs == 0:
            self._check_order(network_id, network, training)
        for event in squeeze(
            network,
            training,
            settings,
            seed=derive(
                self._recipe.network_group(network_id.group).seed, "squeeze", network_id.index
            ),
            device=self._device,
            classes=self._facts.classes,
            validation=None if validation is None else self._real_set(validation),
            checkpoint=checkpoint,
            parallelism=self._parallelism,
            settings_key=self._recipe.squeezing_key(network_id.group),
        ):
            yield vars(event) if isinstance(event, Squeezed) else event

    def expert(
        self, index: int, train: ObjectRef, path: Path, checkpoint: Path
    ) -> Iterator[EpochProgress | dict[str, Any]]:
        """Train one expert on the real data and write its trajectory to a file.

        Yields its progress, then its facts (see `rayd.training.experts`).

        Args:
            index: which expert.
            train: an `ImageSet`.
            path: of the file.
            checkpoint: file of the unfinished expert.
        """
        settings = self._recipe.experts
        network = networks.build(
            settings.network,
            self._facts.shape,
            self._facts.classes,
            seed=initial_seed(self._recipe, index),
        )
        facts = {"network": settings.network.label, "class_names": list(self._facts.class_names)}
        for event in train_expert(
            network,
            self._real_set(train),
            settings,
            index=index,
            seed=derive(settings.seed, "expert"),
            device=self._device,
            path=path,
            facts=facts,
            checkpoint=checkpoint,
        ):
            yield event if isinstance(event, EpochProgress) else event.facts

    @torch.no_grad()
    def predict(self, expert: Path, images: ObjectRef) -> torch.Tensor:
        """Logits (n, classes) of a fully trained expert for real images, uint8 (n, C, H, W)."""
        trajectory = Trajectory(expert)
        settings = self._recipe.experts
        network = networks.build(settings.network, self._facts.shape, self._facts.classes, seed=0)
        network = network.to(self._device).eval()
        FlatNetwork(network).load(trajectory[trajectory.epochs].to(self._device))
        logits = []
        with devices.convolutions(self._device, settings.precision):
            for batch in torch.split(torch.tensor(images.get()), settings.batch_size):
                inputs = self._facts.normalization(batch.to(self._device))
                logits.append(network(inputs).cpu())
        return torch.cat(logits)

    def synthesize(self, task: BlockTask, stop: int | None = None) -> Iterator[Logged | State]:
        """Optimise a block with the networks of this worker only; see `rayd.engine.synthesizer`."""
        yield from synthesize(LocalPool.around(self), task, stop)

    def synthesizer(self, neighbours: Neighbours | None, method: str, *arguments: Any) -> Any:
        """Call the synthesizer of this worker, which distributes its tasks over all workers.

        Results of this worker leave neither the process nor its device.

        Args:
            neighbours: all workers; None to compute everything here.
            method: of the synthesizer.
            arguments: of the method.
        """
        if self._synthesizer is None:
            pool = LocalPool.around(self) if neighbours is None else neighbours.around(self)
            self._synthesizer = Synthesizer(pool)
        return getattr(self._synthesizer, method)(*arguments)

    def train(self, task: Task, *arguments: Any) -> Iterator[EpochProgress | StudentResult]:
        """Train and test one student; see `rayd.engine.student_trainer.StudentTrainer.train`."""
        if self._students is None:
            self._students = StudentTrainer(
                self._recipe.evaluation, self._recipe.resources, self._facts
            )
        yield from self._students.train(task, *arguments)

    def train_last(self, task: Task, *arguments: Any) -> Iterator[EpochProgress | StudentResult]:
        """Like `train`, when no other stage follows: the memory of all others is freed first."""
        # only once, as freeing takes time and later students have nothing to free
        if self._students is None or not self._is_freed:
            self._is_freed = True
            self.forget()
            free_memory()
        yield from self.train(task, *arguments)

    def score(
        self, network_id: NetworkId, weights: ObjectRef, label: int, images: ObjectRef
    ) -> Iterator[Scores]:
        """Score random crops of a class's real images by one observer; yields one event."""
        observer = self._networks.trained(network_id, weights)
        with devices.convolutions(self._device, "float32"):
            scores = score(
                observer.logits,
                images.get(),
                label,
                self._recipe.synthetic,
                self._recipe.seed,
                self._facts.normalization,
                self._device,
            )
        yield scores

    def rank(self, index: int, train: ObjectRef) -> Iterator[EpochProgress | Ranks]:
        """Train one of the networks that rank the real images.

        Yields its progress, then the scores of all training images.

        Args:
            index: number of the network.
            train: an `ImageSet`.
        """
        settings = self._recipe.ranking
        network = networks.build(
            settings.network,
            self._facts.shape,
            self._facts.classes,
            seed=derive(settings.seed, "ranking network", index),
        )
        yield from rank(
            network,
            self._real_set(train),
            settings,
            seed=derive(settings.seed, "ranking", index),
            device=self._device,
        )

    def label(
        self,
        team: tuple[NetworkId, ...],
        weights: tuple[ObjectRef, ...],
        images: ObjectRef,
        epochs: range,
    ) -> dict[str, torch.Tensor]:
        """Soft labels of a synthetic set for some epochs: the order, crops, mixes and logits.

        `images` is network input as an array, which the workers of a machine share.
        """
        if self._teachers is None:
            self._teachers = [
                self._networks.build(network_id, state)
                for network_id, state in zip(team, weights, strict=True)
            ]
        return label_epochs(
            shared_tensor(images.get()),
            self._recipe.evaluation,
            self._recipe.labels,
            self._teachers,
            normalization=self._facts.normalization,
            seed=self._recipe.labels.stored_seed,
            epochs=epochs,
            device=self._device,
        )

    def relabel(
        self,
        team: tuple[NetworkId, ...],
        weights: tuple[ObjectRef, ...],
        images: ObjectRef,
        epochs: range,
        directory: Path,
        made_for: Labelled,
    ) -> Iterator[Path]:
        """Write the soft labels of some epochs into a directory; yields one event, the file.

        Labels are too large to be sent through the driver.
        """
        yield write_chunk(directory, made_for, epochs, self.label(team, weights, images, epochs))

    def _real_set(self, shared: ObjectRef) -> TrainingSet:
        if shared.key not in self._sets:
            self._sets[shared.key] = TrainingSet.from_images(
                shared.get(), self._facts.normalization, name="real"
            )
        return self._sets[shared.key]

    @torch.no_grad()
    def _check_order(
        self, network_id: NetworkId, network: nn.Module, training: TrainingSet
    ) -> None:
        """Refuse given weights that were trained on other classes, or on classes in another order.

        Raises:
            ConfigError: names the classes.
        """
        by_class = []
        for label in range(self._facts.classes):
            # some images of every class: a wrong order shows in classes that are mistaken for one
            # another
            by_class.append((training.labels == label).nonzero()[:ORDER_CHECK, 0])
        rows = torch.cat(by_class)
        network.eval()
        logits = []
        for batch in torch.split(rows, 100):
            inputs = training.inputs(training.images[batch].to(self._device))
            logits.append(network(inputs).cpu())
        fault = order_fault(torch.cat(logits), training.labels[rows], self._facts.class_names)
        if fault is not None:
            raise ConfigError(
                f"The weights '{network_id.architecture.weights}' of observer "
                f"'{network_id.architecture.label}' do not fit: {fault}"
            )
