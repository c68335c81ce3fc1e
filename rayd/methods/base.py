"""What a method declares. The engine asks for these declarations and never for a method's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, final

from rayd.config import Recipe
from rayd.errors import ConfigError, unknown
from rayd.networks import Tap
from rayd.objectives import Need, Term


class Method(ABC):
    """A paper's method: the terms of its objective, its defaults, its needs and its citation.

    Adding one is a module beside this file with a subclass, its recipes, its tests. Methods are registered by subclassing.
    """

    name: ClassVar[str]
    """What recipes call it."""
    citation: ClassVar[str]
    """BibTeX of the paper."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings that the method lays under a recipe."""
    needs_trained_observers: ClassVar[bool] = False
    """Whether observers are squeezed (trained on the real data) before they are used."""
    registry: ClassVar[dict[str, type[Method]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Method.registry[cls.name] = cls

    @final
    def __init__(self, recipe: Recipe):
        """Configure the method by a recipe.

        Raises:
            ConfigError: the recipe asks for what the method cannot do.
        """
        self.recipe = recipe
        for name in recipe.terms.keys() - {term.name for term in self.terms}:
            raise ConfigError(unknown("term", name, [term.name for term in self.terms], f"method '{self.name}'"))
        self.check()

    @abstractmethod
    def objective(self) -> tuple[Term, ...]:
        """The terms of the objective, with their default weights."""

    def check(self) -> None:
        """Refuse a recipe that the method cannot follow (a ConfigError that says what to use instead)."""
        return

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """The terms of the objective."""
        return self.objective()

    def weight(self, term: Term) -> float:
        """The factor of a term: the recipe's, else the term's own."""
        chosen = self.recipe.terms.get(term.name)
        return term.weight if chosen is None else chosen.weight

    @property
    def needs(self) -> tuple[Need, ...]:
        """Statistics of the real data that the terms ask for, each once, in a stable order."""
        return tuple(sorted({need for term in self.terms for need in term.needs}, key=lambda need: need.key))

    @property
    def taps(self) -> frozenset[Tap]:
        """Where observers are listened to."""
        return frozenset().union(*(term.taps for term in self.terms), {need.tap for need in self.needs})
