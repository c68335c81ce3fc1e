"""Gradient sources: the tasks that a step computes on the workers, and the use of their results.

A step of the synthesis (`rayd.engine.synthesizer`) does

    work    = source.work(step, images)
    results = pool.map("compute", [task for task, _ in work])
    update  = source.update(step, results)

The source selects the networks of a step, and keeps state for the next one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rayd.engine.pool import ObjectRef
from rayd.methods import Method


class SharedImages(NamedTuple):
    """The synthetic images of a step, shared with the workers."""

    template: ObjectRef
    """Initial state of the block (`SyntheticSet.state_dict`), from which replicas are created."""
    parameters: ObjectRef
    """Current parameters of the block."""
    average: ObjectRef | None
    """Moving average of the parameters, if a term needs it."""


class Work(NamedTuple):
    """A task of a step."""

    task: Any
    """The argument of `ObserverTasks.compute`."""
    affinity: int
    """Tasks of equal affinity preferably go to the same worker, which keeps its caches warm."""


def tasks_per_step(method: Method) -> int:
    """Maximum number of tasks that a step computes in parallel, and thus of busy workers."""
    recipe = method.recipe
    tasks = sum(recipe.network_group(group).per_step for group in method.groups)
    tasks *= recipe.synthesis.split
    if method.trajectory_objective is not None:
        tasks += method.trajectory_objective.settings.per_step
    models = recipe.observers.model_pool
    # training on synthetic images has to wait for the step
    if models is not None and models.source == "real" and "observers" in method.groups:
        are_used = models.trained == "used"
        tasks += recipe.observers.per_step if are_used else models.trained_per_step
    return tasks


class Update(NamedTuple):
    """Combined results of a step."""

    gradients: dict[str, Tensor] | None
    """The gradient by parameter; None if no result was usable, so that the step is skipped."""
    metrics: dict[str, Tensor]
    """The loss and its terms, scalars."""


class GradientSource(ABC):
    """Interface of a source of the gradient of a block."""

    @abstractmethod
    def work(self, step: int, images: SharedImages) -> list[Work]:
        """The tasks of a step, in an order that does not depend on workers."""

    @abstractmethod
    def update(self, step: int, results: Sequence[Any]) -> Update:
        """Combine the results of a step's work into a gradient.

        Args:
            step: from 0.
            results: in the order of the work.

        Raises:
            RunError: the synthesis cannot continue.
        """

    @property
    def has_work_after(self) -> bool:
        """Whether there is work on the updated images after a step."""
        return False

    def work_after(self, step: int, images: SharedImages) -> list[Work]:
        """Tasks for the updated images after a step, if `has_work_after`."""
        return []

    def update_after(self, results: Sequence[Any]) -> None:
        """Process the results of `work_after`."""
        return

    @property
    def is_sound(self) -> bool:
        """Whether the last step's results were usable; if not, earlier checkpoints are kept."""
        return True

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that is needed to continue after an interruption."""

    @abstractmethod
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`; tensors of other names are ignored."""


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """Mean in the given order, so that its rounding does not depend on the order of arrival."""
    return total(tensors) / len(tensors) if len(tensors) > 1 else tensors[0]


def total(tensors: Sequence[Tensor]) -> Tensor:
    """Sum in the given order."""
    result = tensors[0]
    # one by one, as a reduction over a stack may add in a different order on another device
    for tensor in tensors[1:]:
        result = result + tensor
    return result


def means(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of every entry."""
    found = {}
    for name in parts[0]:
        found[name] = mean([part[name] for part in parts])
    return found


def totals(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sum of every entry."""
    found = {}
    for name in parts[0]:
        found[name] = total([part[name] for part in parts])
    return found
