"""What all stages of a run share, put together once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from rayd import devices, methods
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.engine.store import Store


@dataclass(frozen=True)
class Job:
    """A recipe with the data that it names and the store that its results are kept in."""

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
        """The type of the device that work runs on: part of every cache key."""
        return devices.choose(self.recipe.resources).type

    def with_recipe(self, recipe: Recipe) -> Job:
        """The same job under another recipe."""
        return replace(self, recipe=recipe)
