"""Base of the methods that match trajectories: `mtt`, `tesla`, `datm` and `lsmtt`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from rayd.config import Precision, Recipe, TrajectorySettings, TransformSettings
from rayd.errors import ConfigError
from rayd.methods.base import Method

if TYPE_CHECKING:
    from rayd.objectives import Term
    from rayd.objectives.trajectory_matching import TrajectoryObjective


class TrajectoryMethod(Method):
    """Students that learn from the synthetic images should move as experts that learn from the real
    ones.
    """

    settings_type = TrajectorySettings
    needs_experts: ClassVar[bool] = True
    # the loss is a difference of parameters that lie close together, and experts are what it is
    # compared with
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32", "experts": "tf32"}

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """No terms of its own: images are not compared."""
        return ()

    @cached_property
    def trajectory_objective(self) -> TrajectoryObjective:
        """As the recipe's `objective` sets it."""
        from rayd.objectives.trajectory_matching import TrajectoryObjective

        settings: TrajectorySettings = self.settings
        experts = self.recipe.experts
        return TrajectoryObjective(
            settings, experts.count, experts.epochs - settings.epochs, self.recipe.synthesis.steps
        )

    def check(self) -> None:
        """Refuse settings under which students cannot follow the experts."""
        settings: TrajectorySettings = self.settings
        if self.recipe.synthetic.step_size is None:
            raise ConfigError(
                f"Method '{self.name}' learns a step size of students: set 'synthetic.step_size', e.g. to 0.01."
            )
        synthesis = self.recipe.synthesis
        if self.recipe.synthetic.labels != "hard" and "labels" not in synthesis.learning_rates:
            raise ConfigError(
                f"Labels need a step size of their own, not that of images ({synthesis.learning_rate:g}): set "
                "'synthesis.learning_rates.labels', e.g. to 2."
            )
        # not that of `trajectory_objective`, which needs torch
        last = self.recipe.experts.epochs - settings.epochs
        if last < settings.start.least:
            raise ConfigError(
                f"'objective.epochs' ({settings.epochs}) from epoch 'objective.start.least' ({settings.start.least}) on must "
                f"not exceed 'experts.epochs'. Got {self.recipe.experts.epochs} instead."
            )
        start = settings.start
        if start.schedule != "progressive" and start.most - 1 > last:
            raise ConfigError(
                f"'objective.start.most' must be at most {last + 1}, so that 'objective.epochs' "
                f"({settings.epochs}) of the {self.recipe.experts.epochs} epochs of an expert are left. Got {start.most} "
                "instead."
            )
        if not self.terms and self.recipe.synthesis.transform != TransformSettings():
            raise ConfigError(
                f"'synthesis.transform' has no effect in method '{self.name}'; students' images are augmented by "
                "'objective.augmentation'."
            )
        if self.recipe.synthesis.precision == "bfloat16":
            raise ConfigError(
                f"Method '{self.name}' needs 'synthesis.precision: float32' (or auto, tf32); the students' steps are too "
                "small for bfloat16."
            )
