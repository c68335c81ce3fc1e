"""Published numbers for comparison with results that have the recipe's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field

from rayd import recipes
from rayd.config import Recipe, flat

IMMATERIAL = (
    "name",
    "summary",
    "paper",
    "measured",
    "resources",
    "seed",
    "observers.seed",
    "experts.seed",
    "data.stream",
    "synthesis.log_every",
    "synthesis.checkpoint_every",
    "evaluation.baselines",
    "evaluation.comparisons",
    "evaluation.networks",
    "evaluation.protocol",
    "evaluation.whole_epochs",
)
"""Settings that may differ from the recipe's: they only repeat a result, or add other results."""


@dataclass(frozen=True)
class Published:
    """Published result for comparison."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    accuracy: Annotated[float, Field(ge=0, le=1)]
    """Test accuracy, a fraction."""
    std: Annotated[float, Field(ge=0, le=1)] | None
    """Standard deviation, a fraction."""
    source: str
    """Paper and table."""

    @classmethod
    def beside(cls, recipe: Recipe, network: str) -> Self | None:
        """The paper's number to show with a result of a recipe and a network.

        None if the recipe has none, if the run departs from the recipe, or if the network is not
        the paper's, which is the recipe's first.
        """
        paper = recipe.published
        if paper is None or departures(recipe):
            return None
        if own_recipe(recipe).evaluation.networks[0].label != network:
            return None
        return cls(paper.value, paper.std, paper.table)

    def text(self) -> str:
        """Format as `0.260 ± 0.008 (Table 1)`.

        >>> Published(0.26, 0.008, "Table 1").text()
        '0.260 ± 0.008 (Table 1)'
        """
        std = f" ± {self.std:.3f}" if self.std else ""
        return f"{self.accuracy:.3f}{std} ({self.source})"


def own_recipe(recipe: Recipe) -> Recipe:
    """The built-in recipe that a run is based on, or the run's own if there is none.

    User files and sweeps rename their runs but keep the paper's number.
    """
    if recipe.name in recipes.names():
        return recipes.resolve(recipe.name)
    if not recipe.paper:
        return recipe
    for headline in recipes.headlines():
        cell = (headline.method, headline.data, headline.ipc, headline.paper)
        if cell == (recipe.method, recipe.data.name, recipe.ipc, recipe.paper):
            return recipes.resolve(headline.name)
    return recipe


def departures(recipe: Recipe) -> tuple[str, ...]:
    """Settings, by dotted key, in which a run differs from its built-in recipe.

    Immaterial ones are left out (`IMMATERIAL`), as are precisions that the machine chose, and more
    students than the recipe's.
    """
    ours = flat(recipe.model_dump(mode="json"))
    theirs = flat(own_recipe(recipe).model_dump(mode="json"))
    return tuple(key for key in {**theirs, **ours} if _departs(key, ours, theirs))


def is_immaterial(key: str) -> bool:
    """Whether results of different values of a setting, by dotted key, are comparable."""
    return any(key == name or key.startswith(f"{name}.") for name in IMMATERIAL)


def _departs(key: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    if is_immaterial(key):
        return False
    mine = ours.get(key)
    own = theirs.get(key)
    if mine == own or own == "auto":
        return False
    return not (key == "evaluation.seeds" and mine is not None and mine > own)
