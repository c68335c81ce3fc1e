"""What a worker hosts: observers, and the work of every stage that needs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rayd import devices, networks
from rayd.config import Recipe
from rayd.engine.experts import initial_seed
from rayd.engine.group import LocalGroup, Shared
from rayd.engine.members import Member
from rayd.engine.observer import Facts
from rayd.engine.observers import Observers
from rayd.engine.students import Students
from rayd.engine.synthesize import Assignment, Logged, State, synthesize
from rayd.engine.tasks import Task
from rayd.errors import ConfigError
from rayd.evaluation.student import StudentResult
from rayd.networks.class_order import order_fault
from rayd.networks.flat import FlatNetwork
from rayd.networks.weights import load_weights
from rayd.seeding import derive
from rayd.synthetic.rded import Scores, score
from rayd.training.crew import ALONE, Crew
from rayd.training.experts import train_expert
from rayd.training.labels import label_epochs
from rayd.training.progress import Progress
from rayd.training.sets import TrainingSet
from rayd.training.squeeze import Squeezed, squeeze
from rayd.training.trajectories import Trajectory

ORDER_CHECK = 20
"""Real images of each class that given weights are tried on before they are used as they are."""


class Worker(Observers):
    """The observers of one worker, and what else they do than to compare. Every answer depends on the item alone."""

    def __init__(self, recipe: Recipe, facts: Facts, crew: Crew = ALONE, device: torch.device | None = None):
        """Know the recipe and the facts of the data; make nothing yet.

        Args:
            recipe: the run.
            facts: of the data.
            crew: who else trains the same observers.
            device: where to compute; absent: what the recipe's resources say.
        """
        super().__init__(recipe, facts, device)
        self._crew = crew
        self._sets: dict[str, TrainingSet] = {}
        self._teachers: list[nn.Module] | None = None
        self._students: Students | None = None

    def squeeze(
        self, member: Member, train: Shared, validation: Shared | None, checkpoint: Path
    ) -> Iterator[Progress | dict[str, Any]]:
        """Train one observer on the real data; yields its progress, then its weights and how good it is.

        Args:
            member: which observer.
            train: an `ImageSet`.
            validation: an `ImageSet`.
            checkpoint: where the unfinished observer is kept.
        """
        settings, training = self._recipe.squeezing(member.panel), self._real_set(train)
        network = networks.build(member.network, self._facts.shape, self._facts.classes, seed=member.seed(self._recipe))
        if member.network.weights is not None:
            load_weights(network, member.network, self._facts.class_names, head=settings.epochs == 0)
        devices.settle(network, self._device)
        if settings.epochs == 0:
            self._check_order(member, network, training)
        for event in squeeze(
            network,
            training,
            settings,
            seed=derive(self._recipe.panel(member.panel).seed, "squeeze", member.copy),
            device=self._device,
            classes=self._facts.classes,
            validation=None if validation is None else self._real_set(validation),
            checkpoint=checkpoint,
            crew=self._crew,
        ):
            yield vars(event) if isinstance(event, Squeezed) else event

    def expert(self, index: int, train: Shared, path: Path, checkpoint: Path) -> Iterator[Progress | dict[str, Any]]:
        """Train one expert on the real data, whose trajectory is written to a file; yields its progress, then what it became.

        Args:
            index: which expert.
            train: an `ImageSet`.
            path: of the file.
            checkpoint: where the unfinished expert is kept.
        """
        settings = self._recipe.experts
        network = networks.build(
            settings.network, self._facts.shape, self._facts.classes, seed=initial_seed(self._recipe, index)
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
            yield event if isinstance(event, Progress) else event.facts

    @torch.no_grad()
    def opinion(self, expert: Path, images: Shared) -> torch.Tensor:
        """What an expert says in the end of real images, uint8 (n, C, H, W): logits (n, classes)."""
        one, settings = Trajectory(expert), self._recipe.experts
        network = networks.build(settings.network, self._facts.shape, self._facts.classes, seed=0).to(self._device).eval()
        FlatNetwork(network).load(one[one.epochs].to(self._device))
        parts = torch.split(torch.tensor(images.get()), settings.batch_size)
        return torch.cat([network(self._facts.normalization(part.to(self._device))).cpu() for part in parts])

    def synthesize(self, assignment: Assignment, stop: int | None = None) -> Iterator[Logged | State]:
        """Optimise one block with this worker's own observers; see `rayd.engine.synthesize.synthesize`."""
        yield from synthesize(LocalGroup.around(self), assignment, stop)

    def train(self, task: Task, *arguments: Any) -> Iterator[Progress | StudentResult]:
        """Train and test one student, between two steps of a synthesis; see `rayd.engine.students.Students.train`."""
        if self._students is None:
            self._students = Students(self._recipe.evaluation, self._recipe.resources, self._facts)
        yield from self._students.train(task, *arguments)

    def score(self, member: Member, weights: Shared, label: int, images: Shared) -> Scores:
        """How realistic one observer finds random crops of a class's real images."""
        observer = self._member(member, weights, "float32")
        settings, seed = self._recipe.synthetic, self._recipe.seed
        return score(observer.logits, images.get(), label, settings, seed, self._facts.normalization, self._device)

    def label(
        self, team: tuple[Member, ...], weights: tuple[Shared, ...], images: Shared, first: int, last: int
    ) -> dict[str, torch.Tensor]:
        """Soft labels of a synthetic set for epochs `first` to `last` - 1: order, crops, mixes and logits."""
        if self._teachers is None:
            self._teachers = [self._network(member, state) for member, state in zip(team, weights, strict=True)]
        return label_epochs(
            images.get(),
            self._recipe.evaluation,
            self._recipe.labels,
            self._teachers,
            normalization=self._facts.normalization,
            seed=self._recipe.labels.stored_seed,
            epochs=range(first, last),
            device=self._device,
        )

    def _real_set(self, shared: Shared) -> TrainingSet:
        if shared.key not in self._sets:
            self._sets[shared.key] = TrainingSet.of_images(shared.get().writable(), self._facts.normalization, name="real")
        return self._sets[shared.key]

    @torch.no_grad()
    def _check_order(self, member: Member, network: nn.Module, training: TrainingSet) -> None:
        """Refuse given weights that know other classes, or know them in another order.

        Raises:
            ConfigError: says which.
        """
        rows = torch.cat([(training.labels == c).nonzero()[:ORDER_CHECK, 0] for c in range(self._facts.classes)])
        network.eval()
        logits = [network(training.inputs(training.images[some].to(self._device))).cpu() for some in torch.split(rows, 100)]
        fault = order_fault(torch.cat(logits), training.labels[rows], self._facts.class_names)
        if fault is not None:
            raise ConfigError(
                f"The weights '{member.network.weights}' of observer '{member.network.label}' do not fit: {fault}"
            )
