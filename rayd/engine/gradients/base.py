"""Gradient sources: what a step computes on the workers, and what becomes of the results.

A step of the synthesis (`rayd.engine.synthesizer`) reads

    work    = source.work(step, images)
    results = pool.map("compute", [task for task, _ in work])
    update  = source.update(step, results)

The source knows which networks take part in a step, and keeps what the next step needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rayd.engine.pool import ObjectRef
from rayd.methods import Method


class SharedImages(NamedTuple):
    """The synthetic images of a step, where workers can reach them."""

    template: ObjectRef
    """State of the block at the start (`SyntheticSet.state_dict`): replicas are made of it."""
    parameters: ObjectRef
    """Its parameters now."""
    average: ObjectRef | None
    """Their moving average, where a term needs it."""


class Work(NamedTuple):
    """A task of a step."""

    task: Any
    """The argument of `ObserverTasks.compute`."""
    affinity: int
    """Work of equal affinity goes to the same worker by preference, which keeps its caches warm."""


def tasks_per_step(method: Method) -> int:
    """Number of tasks that are computed side by side in a step, at most: as many workers can be
    busy.
    """
    recipe = method.recipe
    tasks = sum(recipe.network_group(group).per_step for group in method.groups)
    tasks *= recipe.synthesis.split
    if method.trajectory_objective is not None:
        tasks += method.trajectory_objective.settings.per_step
    models = recipe.observers.model_pool
    # networks that are trained on synthetic images wait for the step
    if models is not None and models.source == "real" and "observers" in method.groups:
        are_used = models.trained == "used"
        tasks += recipe.observers.per_step if are_used else models.trained_per_step
    return tasks


class Update(NamedTuple):
    """What a step's results amount to."""

    gradients: dict[str, Tensor] | None
    """The gradient by parameter; None where no result was usable, and the step is skipped."""
    metrics: dict[str, Tensor]
    """The loss and its terms, scalars."""


class GradientSource(ABC):
    """One source of the gradient of a block of the synthetic set."""

    @abstractmethod
    def work(self, step: int, images: SharedImages) -> list[Work]:
        """The tasks of a step, in an order that does not depend on workers."""

    @abstractmethod
    def update(self, step: int, results: Sequence[Any]) -> Update:
        """The gradient that the results of a step's work amount to.

        Args:
            step: from 0.
            results: in the order of the work.

        Raises:
            RunError: the synthesis cannot go on.
        """

    @property
    def has_work_after(self) -> bool:
        """Whether there is work on the images as they are after a step."""
        return False

    def work_after(self, step: int, images: SharedImages) -> list[Work]:
        """Tasks for the images as they are after a step, where `has_work_after`."""
        return []

    def update_after(self, results: Sequence[Any]) -> None:
        """Take the results of `work_after`."""
        return

    @property
    def is_sound(self) -> bool:
        """Whether the last step's results were usable: if not, checkpoints from before are kept."""
        return True

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that must be kept to go on after an interruption."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`; tensors of other names are ignored."""


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Mean in the given order: a sum whose rounding does not depend on which worker was first."""
    return total(tensors) / len(tensors) if len(tensors) > 1 else tensors[0]


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Sum in the given order."""
    result = tensors[0]
    # one after another: a reduction over a stack may add in another order on another device
    for tensor in tensors[1:]:
        result = result + tensor
    return result


def means(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of every entry."""
    return {name: mean([part[name] for part in parts]) for name in parts[0]}


def totals(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sum of every entry."""
    return {name: total([part[name] for part in parts]) for name in parts[0]}
