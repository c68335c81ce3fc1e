"""Feature matching: terms compare features of real and synthetic images through observers.

Every step uses some networks of each group, in turn. The gradient is the mean over the networks of
a group, summed over groups. Terms may keep tensors from step to step (`Memory`), and observers may
be networks of a pool that is trained alongside (`rayd.engine.gradients.model_pool`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from rayd import seeding
from rayd.config import NetworkGroup, Recipe
from rayd.engine.gradients.base import (
    GradientSource,
    SharedImages,
    Update,
    Work,
    means,
    total,
    totals,
)
from rayd.engine.gradients.model_pool import ModelPool, TrainTask
from rayd.engine.network_ids import NetworkId, network_ids, turn
from rayd.engine.observer import RealBatch
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.methods import Method
from rayd.states import under

Memory = dict[str, dict[str, Tensor]]
"""Tensors that terms keep from step to step, by term and name."""

OLD_GROUPS = {"guides": "classifiers"}
"""Names of network groups in checkpoints of the previous version."""


@dataclass(frozen=True)
class GradientTask:
    """The gradient of a group's terms through one network."""

    network_id: NetworkId
    """The network; if its weights are redrawn in each step, only group and architecture matter."""
    block: int
    """Index of the block of the synthetic set."""
    blocks: int
    """Number of blocks."""
    step: int
    """The step, from 0."""
    slot: int
    """Index among the step's networks of the group."""
    template: ObjectRef
    """Initial state of the block (`SyntheticSet.state_dict`), from which replicas are created."""
    parameters: ObjectRef
    """Current parameters of the block."""
    average: ObjectRef | None
    """Moving average of the parameters, if a term needs it."""
    weights: ObjectRef | None
    """The network's trained weights; None for a random one."""
    accuracy: float | Tensor
    """Its training accuracy, a fraction; a scalar tensor for networks of the model pool."""
    real: ObjectRef | None
    """Measured statistics (`States`), or a `RealBatch` if real data are sampled; None if no term
    needs them.
    """
    memory: ObjectRef
    """The tensors that terms kept when the network was last used, a `Memory`."""
    part: int = 0
    """Index of the part of the images."""
    parts: int = 1
    """Number of parts of the images."""
    summaries: ObjectRef | None = None
    """Summaries of all parts, a list of `PartSummary`; None if the images are not split."""


class GradientResult(NamedTuple):
    """Result of a gradient task."""

    values: dict[str, Tensor]
    """The loss and the unweighted terms, scalars."""
    gradients: dict[str, Tensor]
    """The gradient of the loss by parameter."""
    memory: Memory
    """The tensors that the terms keep."""


class FeatureMatching(GradientSource):
    """Gradient source for the terms of a method, through the networks of its groups.

    Args:
        recipe: the run.
        method: its terms and groups.
        pool: shares values with the workers.
        block: index of the block of the synthetic set.
        blocks: blocks in all.
        weights: weights of trained networks; those of random ones are missing.
        accuracies: their training accuracies, fractions.
        measured: measured statistics by network; empty when real data is sampled.
        train: the whole training split as a `RealBatch`, when real data is sampled.
        memory: initial memory of the terms.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        method: Method,
        pool: WorkerPool,
        block: int,
        blocks: int,
        weights: Mapping[NetworkId, ObjectRef],
        accuracies: Mapping[NetworkId, float],
        measured: Mapping[NetworkId, ObjectRef],
        train: ObjectRef | None,
        memory: Mapping[NetworkId, Memory],
    ):
        self.memory: dict[NetworkId, Memory] = dict(memory)
        """Memory of the terms, by network."""
        self._recipe = recipe
        self._method = method
        self._pool = pool
        self._block = block
        self._blocks = blocks
        self._weights = weights
        self._accuracies = accuracies
        self._measured = measured
        self._train = train
        # drawn here rather than in a worker, so that workers need not hold the data
        self._real_batches = None if train is None else RealBatches(train.get())
        self._groups = {group: network_ids(recipe, group) for group in method.groups}
        # positions in the order of turns
        self._places: dict[NetworkGroup, dict[NetworkId, int]] = {}
        self._shifts: dict[NetworkGroup, int] = {}
        for group, ids in self._groups.items():
            # offset by the preceding groups, so that a step's networks of two groups get different
            # workers
            self._shifts[group] = sum(recipe.network_group(one).per_step for one in self._shifts)
            self._places[group] = {network_id: place for place, network_id in enumerate(ids)}
        self._models: ModelPool | None = None
        if recipe.observers.model_pool is not None:
            self._models = ModelPool(recipe, pool)
        self._gradient_tasks: list[GradientTask] = []
        self._train_tasks: list[TrainTask] = []

    def work(self, step: int, images: SharedImages) -> list[Work]:
        """A gradient task for every network whose turn it is, and training of the model pool on
        real images, which need not wait for the gradients.
        """
        real = self._real_per_slot(step)
        self._gradient_tasks = [
            self._gradient_task(group, step, slot, images, real)
            for group in self._groups
            for slot in range(self._recipe.network_group(group).per_step)
        ]
        if self._recipe.synthesis.split > 1:
            self._gradient_tasks = self._split(self._gradient_tasks)
        self._train_tasks = []
        if self._models is not None and not self._models.synthetic:
            self._train_tasks = self._models.train_tasks(step, self._train)
        return self._with_affinity([*self._gradient_tasks, *self._train_tasks])

    def _split(self, tasks: Sequence[GradientTask]) -> list[GradientTask]:
        """Tasks for parts of the images; each gets summaries of all parts, computed first."""
        split = self._recipe.synthesis.split
        parts = [replace(task, part=part, parts=split) for task in tasks for part in range(split)]
        work = self._with_affinity(parts)
        affinity = [one.affinity for one in work]
        # a barrier: statistics of all images need all parts
        found = list(self._pool.map("summarize", [(one.task,) for one in work], affinity))
        complete = []
        for start in range(0, len(parts), split):
            of_task = slice(start, start + split)
            summaries = self._pool.share(found[of_task])
            complete += [replace(part, summaries=summaries) for part in parts[of_task]]
        return complete

    def update(self, step: int, results: Sequence[Any]) -> Update:
        """Sum over the parts of the images, mean over the networks of a group, sum over groups."""
        parts: list[GradientResult] = list(results[: len(self._gradient_tasks)])
        self._take(results[len(parts) :])
        split = self._recipe.synthesis.split
        tasks = self._gradient_tasks[::split]
        gradient_results = []
        for start in range(0, len(parts), split):
            # in the order of the parts, not of arrival; values and memory are equal in all parts
            gradients = totals([part.gradients for part in parts[start : start + split]])
            gradient_results.append(parts[start]._replace(gradients=gradients))
        for task, result in zip(tasks, gradient_results, strict=True):
            self.memory[task.network_id] = result.memory
        self._forget_replaced(step)
        of_groups = []
        values = []
        for group in self._groups:
            of_group = [
                result
                for task, result in zip(tasks, gradient_results, strict=True)
                if task.network_id.group == group
            ]
            of_groups.append(means([result.gradients for result in of_group]))
            values.append(means([result.values for result in of_group]))
        # names of terms are unique in a method, so the groups' metrics do not clash except for the
        # loss
        metrics = {name: value for terms in values for name, value in terms.items()}
        metrics["loss"] = total([terms["loss"] for terms in values])
        return Update(totals(of_groups), metrics)

    def _forget_replaced(self, step: int) -> None:
        """Drop memory of networks that have left the model pool."""
        if self._models is None:
            return
        active = self._models.active(step)
        for network_id in list(self.memory):
            if network_id.group == "observers" and network_id.index not in active:
                del self.memory[network_id]

    @property
    def has_work_after(self) -> bool:
        """Whether a model pool is trained on the synthetic images."""
        return self._models is not None and self._models.synthetic

    def work_after(self, step: int, images: SharedImages) -> list[Work]:
        """Training of the model pool on the synthetic images."""
        assert self._models is not None
        self._train_tasks = self._models.train_tasks(step, None, images.template, images.parameters)
        return self._with_affinity(self._train_tasks)

    def update_after(self, results: Sequence[Any]) -> None:
        """Keep the new states of the model pool's networks."""
        self._take(results)

    def _take(self, results: Sequence[Any]) -> None:
        if self._models is None:
            return
        for task, result in zip(self._train_tasks, results, strict=True):
            self._models.update(task, result)

    def _with_affinity(self, tasks: Sequence[GradientTask | TrainTask]) -> list[Work]:
        work = []
        for task in tasks:
            part = task.part if isinstance(task, GradientTask) else 0
            work.append(Work(task, self._affinity(task.network_id) + part))
        return work

    def _affinity(self, network_id: NetworkId) -> int:
        """The preferred worker of a network. Neighbours in the order of turns have different ones,
        and groups are shifted, so that the networks of a step run on different workers.
        """
        group = network_id.group
        place = self._places[group].get(network_id, network_id.index)
        return place + self._shifts[group]

    def _gradient_task(
        self,
        group: NetworkGroup,
        step: int,
        slot: int,
        images: SharedImages,
        real: Sequence[ObjectRef | None],
    ) -> GradientTask:
        """The gradient task of a group's network whose turn it is."""
        accuracy: float | Tensor
        if group == "observers" and self._models is not None:
            number = self._models.draw(step, slot)
            network_id = self._models.network_id(number)
            weights = self._models.weights(number)
            accuracy = self._models.accuracy(number)
        else:
            network_id = self._groups[group][turn(self._recipe, step, slot, group)]
            weights = self._weights.get(network_id)
            accuracy = self._accuracies.get(network_id, 0.0)
        return GradientTask(
            network_id=network_id,
            block=self._block,
            blocks=self._blocks,
            step=step,
            slot=slot,
            template=images.template,
            parameters=images.parameters,
            average=images.average,
            weights=weights,
            accuracy=accuracy,
            real=self._real(group, network_id, real[slot % len(real)]),
            memory=self._pool.share(self.memory.get(network_id, {})),
        )

    def _real(
        self, group: NetworkGroup, network_id: NetworkId, sampled: ObjectRef | None
    ) -> ObjectRef | None:
        """The real side of a network's comparison: measured statistics, or a mini-batch."""
        if self._train is not None:
            return sampled if self._method.samples(group) else None
        return self._measured[network_id] if self._method.specs(group) else None

    def _real_per_slot(self, step: int) -> list[ObjectRef | None]:
        """A real mini-batch for every slot, if real data are sampled and needed."""
        if self._real_batches is None:
            return [None]
        if not any(self._method.samples(group) for group in self._groups):
            return [None]
        batches: list[ObjectRef | None] = []
        for slot in range(self._recipe.observers.per_step):
            batches.append(self._pool.share(self._real_batches.draw(self._recipe, step, slot)))
        return batches

    def state_dict(self) -> dict[str, Tensor]:
        """Memory of the terms, and the model pool."""
        tensors = {}
        for network_id in sorted(self.memory, key=lambda one: (one.group, self._number(one))):
            # by number, as architectures are not suitable as tensor names
            place = f"memory.{network_id.group}.{self._number(network_id)}"
            for term, kept in self.memory[network_id].items():
                for name, tensor in kept.items():
                    tensors[f"{place}.{term}.{name}"] = tensor
        if self._models is not None:
            for name, tensor in self._models.state().items():
                # the model pool's former name, which checkpoints keep
                tensors[f"queue.{name}"] = tensor
        return tensors

    def _number(self, network_id: NetworkId) -> int:
        """Number of a network in checkpoints: its number in the model pool, or its turn."""
        if network_id.group == "observers" and self._models is not None:
            return network_id.index
        return self._places[network_id.group][network_id]

    def _numbered(self, group: NetworkGroup, number: int) -> NetworkId:
        """The inverse of `_number`."""
        if group == "observers" and self._models is not None:
            return self._models.network_id(number)
        return self._groups[group][number]

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for path, tensor in under("memory.", tensors).items():
            group, index, term, name = path.split(".", 3)
            group = OLD_GROUPS.get(group, group)
            network_id = self._numbered(cast(NetworkGroup, group), int(index))
            self.memory.setdefault(network_id, {}).setdefault(term, {})[name] = tensor
        if self._models is not None:
            self._models.restore(under("queue.", tensors))


class RealBatches:
    """Real mini-batches from a training split, sorted by class."""

    def __init__(self, train: RealBatch):
        """Index the rows of every class."""
        self._images, self._labels = train
        # stable, so that the rows of a class, and thus the draws, do not depend on numpy's version
        by_class = np.argsort(self._labels, kind="stable")
        self._rows = np.split(by_class, np.cumsum(np.bincount(self._labels))[:-1])

    def draw(self, recipe: Recipe, step: int, slot: int) -> RealBatch:
        """Draw `observers.real_batch` images of every class for one observer of one step, with
        replacement from smaller classes.
        """
        draws = seeding.generator(recipe.seed, "real batch", step, slot)
        size = recipe.observers.real_batch
        rows = np.concatenate([rows[_choice(len(rows), size, draws)] for rows in self._rows])
        return self._images[rows], self._labels[rows]


def _choice(population: int, size: int, draws: torch.Generator) -> Any:
    if population >= size:
        return torch.randperm(population, generator=draws)[:size].numpy()
    return torch.randint(population, (size,), generator=draws).numpy()
