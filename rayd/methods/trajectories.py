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
    """Students trained on the synthetic images should follow the trajectories of experts trained on
    the real ones.
    """

    settings_type = TrajectorySettings
    needs_experts: ClassVar[bool] = True
    # the loss is a difference between nearly equal parameters, which those of experts are part of
    least_precision: ClassVar[Mapping[str, Precision]] = {"synthesis": "tf32", "experts": "tf32"}

    @classmethod
    def objective(cls, recipe: Recipe) -> tuple[Term, ...]:
        """No terms, as images are not compared."""
        return ()

    @cached_property
    def trajectory_objective(self) -> TrajectoryObjective:
        """The objective with the settings of the recipe's `objective`."""
        from rayd.objectives.trajectory_matching import TrajectoryObjective

        settings: TrajectorySettings = self.settings
        experts = self.recipe.experts
        return TrajectoryObjective(
            settings, experts.count, experts.epochs - settings.epochs, self.recipe.synthesis.steps
        )

    def check(self) -> None:
        """Refuse settings with which students cannot follow the experts."""
        settings: TrajectorySettings = self.settings
        if self.recipe.synthetic.step_size is None:
            raise ConfigError(
                f"Method '{self.name}' learns a step size for students: set 'synthetic.step_size', e.g. to 0.01."
            )
        synthesis = self.recipe.synthesis
        if self.recipe.synthetic.labels != "hard" and "labels" not in synthesis.learning_rates:
            raise ConfigError(
                f"Labels need their own step size, not that of images ({synthesis.learning_rate:g}): set "
                "'synthesis.learning_rates.labels', e.g. to 2."
            )
        # computed here because `trajectory_objective` needs torch
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
