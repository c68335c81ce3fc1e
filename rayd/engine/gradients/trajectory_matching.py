"""Trajectory matching: students trained on the synthetic set should end where experts do.

A task is one student of one step, whose expert and start epoch follow from (run seed, step, slot).
The worker reads the parameters of two epochs from the expert's file, takes the student's steps, and
returns the gradient of the loss and whether the student diverged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rayd import networks, seeding
from rayd.config import Recipe
from rayd.data import ImageShape
from rayd.engine.gradients.base import (
    GradientSource,
    SharedImages,
    Update,
    Work,
    mean,
    means,
)
from rayd.engine.pool import ObjectRef
from rayd.errors import RunError
from rayd.networks.flat import FlatNetwork
from rayd.objectives.trajectory import Segment, useful
from rayd.objectives.trajectory_matching import TrajectoryObjective
from rayd.states import under
from rayd.synthetic.learned_step_size import WithLearnedStepSize
from rayd.training.trajectories import Trajectory
from rayd.transfer import upload

KEPT_ON_DEVICE = 2**30
"""Bytes of experts' parameters that stay on a GPU."""


@dataclass(frozen=True)
class TrajectoryTask:
    """A student of one step."""

    step: int
    """The step of the synthesis, from 0."""
    slot: int
    """Number of the student in the step."""
    template: ObjectRef
    """State of the synthetic set at the start, from which workers build their copy."""
    parameters: ObjectRef
    """Current parameters of the set."""
    expert: Path
    """File of the expert."""
    start: int
    """Epoch of the expert at which the student starts."""


class TrajectoryResult(NamedTuple):
    """The loss and gradients of one student."""

    loss: Tensor
    """Loss of its final parameters, a scalar."""
    gradients: dict[str, Tensor]
    """Gradients of the loss, by parameter; meaningless if the student diverged."""
    good: Tensor
    """Whether it did not diverge; a scalar tensor, to avoid waiting for the device."""


class TrajectoryMatching(GradientSource):
    """Gradient source of trajectory matching: the mean over students that did not diverge.

    Args:
        recipe: the run.
        objective: draws experts and epochs, and determines when a student has diverged.
        experts: files of the experts.
        learned: the synthetic set, with its learned step size.
    """

    def __init__(
        self,
        recipe: Recipe,
        objective: TrajectoryObjective,
        experts: tuple[Path, ...],
        learned: WithLearnedStepSize,
    ):
        self._recipe = recipe
        self._objective = objective
        self._experts = experts
        self._learned = learned
        self._guard = DivergenceGuard(objective)

    def work(self, step: int, images: SharedImages) -> list[Work]:
        """A task for each student of the step."""
        work = []
        for slot in range(self._objective.settings.per_step):
            draws = seeding.generator(self._recipe.seed, "segment", step, slot)
            # drawn here, so that workers need not know the list of experts
            expert, start = self._objective.draw(step, draws)
            task = TrajectoryTask(
                step=step,
                slot=slot,
                template=images.template,
                parameters=images.parameters,
                expert=self._experts[expert],
                start=start,
            )
            work.append(Work(task, affinity=slot))
        return work

    def update(self, step: int, results: Sequence[TrajectoryResult]) -> Update:
        """The mean gradient; None if all students diverged."""
        good = self._guard.update(list(results), step + 1)
        metrics = {
            "step_size": self._learned.step_size.detach(),
            "skipped": torch.tensor(self._guard.skipped),
        }
        if not good:
            return Update(None, metrics)
        gradients = means([student.gradients for student in good])
        return Update(gradients, {"loss": mean([student.loss for student in good]), **metrics})

    @property
    def is_sound(self) -> bool:
        """Whether at least one student of the last step did not diverge."""
        return self._guard.steps == 0

    def state_dict(self) -> dict[str, Tensor]:
        """Counts of divergence."""
        return {f"divergence.{name}": tensor for name, tensor in self._guard.state().items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self._guard.restore(under("divergence.", tensors))


class TrajectoryWorker:
    """Trains students in a worker; keeps their network, and parameters of experts.

    Raises:
        ConfigError: the network has buffers or dropout.
    """

    def __init__(
        self,
        recipe: Recipe,
        objective: TrajectoryObjective,
        shape: ImageShape,
        classes: int,
        device: torch.device,
    ):
        # students start from an expert's parameters, so the network's own are irrelevant
        network = networks.build(recipe.experts.network, shape, classes, seed=0).to(device)
        self._student = FlatNetwork(network)
        self._recipe = recipe
        self._objective = objective
        self._rows = _Rows(device)

    def run(self, task: TrajectoryTask, replica: WithLearnedStepSize) -> TrajectoryResult:
        """The loss of one student and its gradients by the replica's parameters.

        Raises:
            ArtifactError: the expert's file is missing or damaged.
        """
        end = task.start + self._objective.settings.epochs
        start = self._rows.get(task.expert, task.start)
        segment = Segment(start, self._rows.get(task.expert, end))
        return self.gradient(segment, replica, task.step, task.slot)

    def gradient(
        self, segment: Segment, replica: WithLearnedStepSize, step: int, slot: int
    ) -> TrajectoryResult:
        """Like `run`, for a segment of a trajectory that is in memory."""
        images, labels = replica.batch()
        draws = seeding.generator(self._recipe.seed, "student steps", step, slot)
        loss = self._objective.loss(
            self._student, segment, images, labels, replica.step_size, draws
        )
        names, tensors = zip(*replica.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, tensors)
        checks = [useful(loss.detach(), self._objective.settings.loss_limit)]
        # after many steps of a student, gradients may not be finite although the loss is
        checks += [gradient.isfinite().all() for gradient in gradients]
        return TrajectoryResult(
            loss=loss.detach(),
            gradients=dict(zip(names, gradients, strict=True)),
            good=torch.stack(checks).all(),
        )


class _Rows:
    """Parameters of experts by epoch, on a device; a GPU keeps those that were used last."""

    def __init__(self, device: torch.device):
        self._device = device
        self._experts: dict[Path, Trajectory] = {}
        self._kept: OrderedDict[tuple[Path, int], Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, expert: Path, epoch: int) -> Tensor:
        """Parameters (P,) of an expert after an epoch."""
        if (expert, epoch) in self._kept:
            self._kept.move_to_end((expert, epoch))
            return self._kept[expert, epoch]
        if expert not in self._experts:
            self._experts[expert] = Trajectory(expert)
        row = upload(self._experts[expert][epoch], self._device)
        # on the CPU, the operating system's page cache does this
        if self._device.type == "cuda":
            self._kept[expert, epoch] = row
            self._bytes += row.nbytes
            while self._bytes > KEPT_ON_DEVICE and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return row


class DivergenceGuard:
    """Drops diverged students, and ends the run if all of them diverge for too many steps."""

    def __init__(self, objective: TrajectoryObjective):
        self._limit = objective.settings.loss_limit
        self._patience = objective.settings.patience
        self.skipped = 0
        """Students that were dropped so far."""
        self.steps = 0
        """Number of latest steps in a row in which all students diverged."""

    def update(self, results: list[TrajectoryResult], step: int) -> list[TrajectoryResult]:
        """The students of a step that did not diverge; steps are counted from 1.

        Raises:
            RunError: all students diverged for too many steps in a row.
        """
        # one transfer from the device for all students of the step
        flags = torch.stack([result.good for result in results]).tolist()
        good = [result for result, is_good in zip(results, flags, strict=True) if is_good]
        self.skipped += len(results) - len(good)
        # single students diverge occasionally; the run ends only after many steps in which all do
        self.steps = 0 if good else self.steps + 1
        if self.steps >= self._patience:
            limit = ""
            if self._limit is not None:
                limit = f", whose limit ('objective.loss_limit') is {self._limit:g}"
            raise RunError(
                f"Every student of the last {self.steps} steps diverged, up to step {step} with a "
                f"loss of {float(results[-1].loss):.3g}{limit}. The checkpoint from before is "
                "kept; lower 'synthesis.learning_rate', 'synthesis.learning_rates.log_step_size' or "
                "'synthetic.step_size', or set 'synthesis.clip_gradient'."
            )
        return good

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return {"counts": torch.tensor([self.skipped, self.steps])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        if "counts" in tensors:
            self.skipped, self.steps = (int(count) for count in tensors["counts"])
