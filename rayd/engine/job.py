"""Inputs that all stages of a run share, assembled once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rayd import devices, methods
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.engine.store import Store


@dataclass(frozen=True)
class Job:
    """A recipe, with its data and the store for its results."""

    recipe: Recipe
    """The run, with every setting resolved."""
    data: ImageData
    """The real data."""
    store: Store
    """Results that runs share."""

    @cached_property
    def method(self) -> methods.Method:
        """The method, with the recipe's settings."""
        return methods.build(self.recipe)

    @cached_property
    def device(self) -> str:
        """Type of the device that computes results; part of every cache key."""
        return devices.choose(self.recipe.resources).type

    def parallel(self, items: int) -> int:
        """Number of workers that can share a number of work items."""
        return max(1, min(self.recipe.resources.workers, items))

    def decoded(self, images: float) -> float:
        """Number of images, out of `images`, to be decoded: all if they are streamed, else 0."""
        return images if self.data.train.streamed else 0.0

    def with_recipe(self, recipe: Recipe) -> Job:
        """The same job under another recipe."""
        return replace(self, recipe=recipe)
