"""What is checked before any long work starts."""

from __future__ import annotations

from rayd import devices, methods, networks
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.data.augmentation import augmentation
from rayd.errors import ConfigError
from rayd.synthetic.initialization import check_budget


def preflight(recipe: Recipe, data: ImageData) -> None:
    """Refuse what cannot work before any long work starts.

    Raises:
        RaydError: the budget exceeds a class, a network does not fit the images, or the resources are not there.
    """
    check_budget(recipe, data)
    for strategy in (recipe.observers.augmentation, recipe.evaluation.augmentation):
        augmentation(strategy)
    for settings in recipe.evaluation.networks:
        networks.build(settings, data.shape, data.classes, seed=0)
    observer = networks.build(recipe.observers.network, data.shape, data.classes, seed=0)
    random = not methods.get(recipe.method).needs_trained_observers
    if recipe.real == "measured" and random and networks.uses_batch_statistics(observer):
        raise ConfigError(
            f"Random observers with batch normalisation ('{recipe.observers.network.label}') have no fixed statistics to be "
            "measured with; use real=sampled, or observers.network.norm=instance."
        )
    if recipe.evaluation.epoch == "validation-best" and data.validation is None:
        raise ConfigError(
            f"'evaluation.epoch: validation-best' needs 'data.validation_fraction' above 0: '{data.name}' has no validation "
            "split of its own."
        )
    devices.choose(recipe.resources)
    if recipe.resources.workers > 0:
        from rayd.engine.ray_group import check_resources, connect

        connect(recipe.resources.address)
        check_resources(recipe.resources)
