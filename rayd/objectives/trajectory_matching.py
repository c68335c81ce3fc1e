"""The objective of methods that match trajectories: students that follow experts, each from an
epoch of its own.

In every step of the synthesis some students are sent after an expert each
(`TrajectorySettings.per_step`). Whom a student follows, from which epoch, and on which batches it
learns, is drawn here; how its gradient is found is the business of `rayd.objectives.trajectory`.
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
    """Steps of the synthesis, for curricula."""

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
        """Whom a student of a step follows, from which epoch: both uniformly."""
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
        """Final distance of a student from its expert: a scalar, differentiable once in images,
        labels and step size.

        Args:
            student: the network.
            segment: of the expert's trajectory.
            images: of the synthetic set (n, C, H, W).
            labels: of the images, class indices (n,) or rows of probabilities (n, classes).
            step_size: of the student, a positive scalar.
            draws: of its batches and their views.
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
