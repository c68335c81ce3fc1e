"""Random draws for a worker's tasks.

Every draw has its own generator, seeded by its purpose and by the block, step and slot of the task,
so that it does not depend on which worker runs the task, or how often.

Two augmentations are applied to images before an observer:

    synthesis.transform       the random view of the synthetic images in a step, as in SRe2L: crops
                              and flips. Real images have none (`TaskDraws.view`)
    observers.augmentation    the Siamese augmentation of DSA: one draw for the real and the
                              synthetic images, after the view. Of observers with measured
                              statistics it is fixed (`fixed_augment`); otherwise it is drawn in every
                              step for each class (`by_class`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rayd import schedules, seeding
from rayd.config import NetworkGroup, Recipe
from rayd.data.augmentation import ByClass, Operation, Rows, augmentation, draw_transform
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import Augment, DatasetInfo, unchanged
from rayd.objectives import StatisticSpec


class TaskDraws:
    """Draws views, augmentations and frequencies.

    Args:
        recipe: the run.
        facts: properties of the data.
        groups: network groups of the tasks.
        device: where the images are.
    """

    def __init__(
        self,
        recipe: Recipe,
        facts: DatasetInfo,
        groups: Sequence[NetworkGroup],
        device: torch.device,
    ):
        self._recipe = recipe
        self._facts = facts
        self._device = device
        self._augmentations = {
            group: augmentation(recipe.network_group(group).augmentation) for group in groups
        }

    def of_step(self, task: GradientTask, purpose: str) -> torch.Generator:
        """The generator for a term's draws in a step, with its own purpose."""
        return seeding.generator(self._recipe.seed, purpose, task.block, task.step, task.slot)

    def step_frequencies(self, task: GradientTask, spec: StatisticSpec) -> torch.Generator:
        """The generator of frequencies for one step."""
        # without the block, so that all blocks use the same frequencies in a step
        return seeding.generator(self._recipe.seed, f"frequencies {spec.key}", task.step, task.slot)

    def fixed_frequencies(self, network_id: NetworkId, spec: StatisticSpec) -> torch.Generator:
        """The generator of frequencies for all steps of a network.

        It is independent of the run's seed, so that runs share the statistics measured at them.
        """
        seed = self._recipe.network_group(network_id.group).seed
        # the purpose includes the spec's key, as two statistics of a network must not share draws
        return seeding.generator(
            seed, f"frequencies {spec.key} {network_id.architecture.label}", network_id.index
        )

    def view(self, task: GradientTask, count: int) -> Callable[[Tensor], Tensor]:
        """The random transform of the synthetic images in a step.

        Args:
            task: the step and slot.
            count: number of images.
        """
        settings = self._recipe.synthesis
        (_, height, width) = self._facts.shape
        draws = self.of_step(task, "synthetic view")
        least = None
        if settings.transform.crop is not None:
            # a fraction of the steps, so that a longer synthesis has the same curriculum
            progress = task.step / settings.steps
            least = schedules.crop_floor(
                settings.curriculum, settings.transform.crop[0], progress, settings.curriculum_end
            )
        # the parameters of one image are used for all images of a batch
        drawn = 1 if settings.shared_view else count
        view = draw_transform(settings.transform, draws, drawn, height, width, least)
        return partial(view, normalization=self._facts.normalization)

    def augment_for_all(self, network_id: NetworkId, is_measured: bool) -> Augment | None:
        """The augmentation of all images of a network in a step.

        Args:
            network_id: which network.
            is_measured: whether the real side was measured by it, and under which augmentation.

        Returns:
            None if every class has its own draw; see `by_class`.
        """
        if is_measured:
            # synthetic images must be augmented like the real ones were
            return self.fixed_augment(network_id)
        return None if self._augmentations[network_id.group].operations else unchanged

    def fixed_augment(self, network_id: NetworkId) -> Augment:
        """The fixed draw of the augmentation of all images of a network."""
        _, height, width = self._facts.shape
        draws = seeding.generator(
            self._recipe.network_group(network_id.group).seed, "pool augmentation", network_id.index
        )
        return partial(_apply, self._augmentations[network_id.group].draw(draws, 1, height, width))

    def by_class(
        self, task: GradientTask, classes: Tensor, drawn: dict[int, Sequence[Operation]]
    ) -> Augment:
        """The augmentation of a batch of classes (N,), on the CPU, as in the released code of DM.

        Each class draws one operation and its parameters, which its real and its synthetic images
        share.

        Args:
            task: the network, step and slot.
            classes: of the images.
            drawn: operations by class; those that are missing are drawn and added.
        """
        strategy = self._augmentations[task.network_id.group]
        _, height, width = self._facts.shape
        # a generator per class, so that draws do not depend on which other classes are in the batch
        for label in np.unique(classes.numpy()).tolist():
            if label not in drawn:
                draws = seeding.generator(
                    self._recipe.seed, "siamese augmentation", task.step, task.slot, label
                )
                drawn[label] = strategy.draw(draws, 1, height, width)
        return ByClass(drawn, classes, self._device)


def _apply(operations: Sequence[Operation], images: Tensor, rows: Rows) -> Tensor:
    for operation in operations:
        images = operation(images)
    return images
