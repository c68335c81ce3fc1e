"""The objective of methods that match trajectories: students that follow experts, each from its own
start epoch.

In every step of the synthesis, some students follow an expert each (`TrajectorySettings.per_step`).
This module draws the expert, the start epoch and the batches of a student;
`rayd.objectives.trajectory` computes its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rayd.config import TrajectorySettings
from rayd.data.augmentation import augmentation
from rayd.objectives.trajectory import Segment, Student, inner_steps, trajectory_loss
from rayd.schedules import progressive_start, rising_start


@dataclass(frozen=True)
class TrajectoryObjective:
    """Students that follow experts for some epochs."""

    settings: TrajectorySettings
    """How."""
    experts: int
    """Number of experts."""
    last: int
    """The latest epoch from which an expert can be followed for `settings.epochs`."""
    total: int
    """Number of steps of the synthesis, for curricula."""

    def starts(self, step: int) -> range:
        """The epochs from which students may start in a step of the synthesis, from 0."""
        chosen = self.settings.start
        match chosen.schedule:
            case "rising":
                return rising_start(
                    step, chosen.first, chosen.most, chosen.rise, chosen.least, self.last
                )
            case "progressive":
                return progressive_start(
                    step, self.total, chosen.most, chosen.offset, chosen.window, self.last
                )
            case "uniform":
                return rising_start(0, chosen.most, chosen.most, 1, chosen.least, self.last)

    def draw(self, step: int, draws: Generator) -> tuple[int, int]:
        """Draw the expert and the start epoch of a student, both uniformly."""
        starts = self.starts(step)
        expert, place = (
            int(torch.randint(count, (1,), generator=draws))
            for count in (self.experts, len(starts))
        )
        return expert, starts[place]

    def loss(
        self,
        student: Student,
        segment: Segment,
        images: Tensor,
        labels: Tensor,
        step_size: Tensor,
        draws: Generator,
    ) -> Tensor:
        """Final distance of a student from its expert, a scalar that is differentiable once in
        images, labels and step size.

        Args:
            student: the network.
            segment: segment of the expert's trajectory.
            images: images of the synthetic set (n, C, H, W).
            labels: of the images, class indices (n,) or rows of probabilities (n, classes).
            step_size: step size of the student, a positive scalar.
            draws: generator of its batches and their views.
        """
        chosen = self.settings
        size = (images.shape[2], images.shape[3])
        view = augmentation(chosen.augmentation)
        steps = inner_steps(
            len(images),
            chosen.batch_size,
            chosen.steps,
            size,
            draws,
            view if view.operations else None,
        )
        return trajectory_loss(student, segment, steps, images, labels, step_size, way=chosen.way)
