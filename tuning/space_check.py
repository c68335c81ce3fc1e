"""Check that the values of a space fit its recipes, before any trial, by representative values.

The file itself is validated in `tuning.settings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from rayd import methods
from rayd.config import Recipe, lookup
from rayd.errors import ConfigError, unknown
from tuning.domain import Domain, Point, among, listed
from tuning.settings import RECIPE, ROW

if TYPE_CHECKING:
    from tuning.space import ResolvedSpace

FIXED = {
    "data": "all trials use the same validation images",
    "resources": "it changes no result",
    "name": "it changes no result",
    "summary": "it changes no result",
    "paper": "it changes no result",
    "measured": "it changes no result",
    "evaluation.seeds": "'seeds' of the space sets the number of students of a trial",
    "evaluation.baselines": "trials are compared with each other",
    "evaluation.comparisons": "trials are compared with each other",
    "labels.precision": "it belongs to the evaluation of trials",
}
"""Settings that are not searched, and why."""
PERTURBABLE = (
    "synthesis.learning_rate", "synthesis.learning_rates", "synthesis.momentum",
    "synthesis.second_momentum", "synthesis.clip_gradient", "terms", "objective", "evaluation",
)  # fmt: skip
"""Settings that checkpoints of a synthesis do not depend on, for population-based training."""

COMPLETIONS = 200
"""Maximum number of points tried to find one in which a value is valid."""


class SpaceCheck:
    """The check of a space.

    Args:
        resolved: the space with its recipes.
    """

    def __init__(self, resolved: ResolvedSpace):
        self._resolved = resolved
        self._space = resolved.space

    def recipes(self) -> list[tuple[str, Recipe]]:
        """Validate every representative value of each domain on the recipe.

        Returns:
            The validated recipes, each with the name of its base.

        Raises:
            ConfigError: a value is invalid; the message names the setting and the nearest known
                one.
        """
        self._check_data()
        self._check_fixed()
        for key, domains in self._space.search.items():
            for other in chain.from_iterable(domain.when for domain in domains):
                self._check_order(key, other)
        validated = []
        for key, point in self._probes():
            recipe = self._completed(point)
            if self._space.scheduler.name == "pbt":
                self._check_perturbable(key, recipe)
            validated.append((self._resolved.base(point), recipe))
        return validated

    def _check_data(self) -> None:
        """Refuse recipes on different images."""
        space = self._space
        first = self._resolved.own[space.base[0]]
        for name, recipe in self._resolved.own.items():
            # the normalisation belongs to the method; the images are the same
            alike = recipe.data.model_copy(update={"normalization": first.data.normalization})
            if alike != first.data:
                raise ConfigError(
                    f"All recipes of space '{space.name}' must have the same data but for "
                    "their normalization, because trials are validated on them. "
                    f"Got '{space.base[0]}' and '{name}', which differ."
                )

    def _check_fixed(self) -> None:
        """Refuse settings that are not searched."""
        space = self._space
        settings = [
            *space.search,
            *chain.from_iterable(_keys(space.row(row)) for row in space.rows),
        ]
        for key in settings:
            for fixed, why in FIXED.items():
                if key == fixed or key.startswith(f"{fixed}."):
                    raise ConfigError(
                        f"Setting '{key}' cannot be searched in space '{space.name}': {why}."
                    )

    def _probes(self) -> Iterator[tuple[str, Point]]:
        """Yield points for validation: for every domain, one with each representative value.

        Raises:
            ConfigError: a condition can never hold.
        """
        if self._space.rows:
            yield from self._probes_of_rows()
            return
        for key, domains in self._space.domains.items():
            for domain in domains:
                points = list(self._probes_of(key, domain))
                if not points:
                    conditions = ", ".join(
                        f"{other}: {values}" for other, values in domain.when.items()
                    )
                    raise ConfigError(
                        f"Setting '{key}' in space '{self._space.name}' is never used: "
                        f"no recipe and no draw has {conditions}."
                    )
                for point in points:
                    yield key, point

    def _probes_of_rows(self) -> Iterator[tuple[str, Point]]:
        """Points of every row alone, and with each value of a grid."""
        for row in self._space.rows:
            yield ROW, {ROW: row}
            for key, domains in self._space.search.items():
                for value in chain.from_iterable(domain.values for domain in domains):
                    yield key, {ROW: row, key: value}

    def _probes_of(self, key: str, domain: Domain) -> Iterator[Point]:
        """Points with the representative values of a domain, on each recipe that reaches it."""
        for name in self._space.base:
            for value in domain.probes:
                # a value of the choice between recipes determines the recipe
                if key == RECIPE and value != name:
                    continue
                point = self._with(name, key, domain, value, ())
                if point is not None:
                    yield point

    def _with(
        self, name: str, key: str, domain: Domain, value: Any, above: tuple[str, ...]
    ) -> Point | None:
        """Construct a point with a value whose condition holds, with as few draws as possible.

        Args:
            name: the recipe.
            key: the setting.
            domain: of the setting.
            value: in the domain.
            above: chain of settings whose conditions this one has to fulfil.
        """
        several = len(self._space.base) > 1
        point: Point = {RECIPE: name} if several else {}
        for other, values in domain.when.items():
            if among(self._resolved.known_value(point or {RECIPE: name}, other), values):
                continue
            more = None if other in above else self._with_any(name, other, values, (*above, key))
            if more is None:
                return None
            point |= more
        point[key] = value
        return {other: point[other] for other in self._space.domains if other in point}

    def _with_any(self, name: str, key: str, values: Any, above: tuple[str, ...]) -> Point | None:
        """Construct a point in which a setting has one of some values; None if impossible."""
        for domain in self._space.search.get(key, ()):
            fitting = next((value for value in listed(values) if domain.holds(value)), None)
            if fitting is None:
                continue
            point = self._with(name, key, domain, fitting, above)
            if point is not None:
                return point
        return None

    def _completed(self, point: Point) -> Recipe:
        """Assemble the recipe with a value, if needed with values of dependent settings.

        Raises:
            ConfigError: there are no such values; the error is that of the value alone.
        """
        try:
            return self._resolved.recipe(point)
        except ConfigError as error:
            for more in islice(self._completions(point), COMPLETIONS):
                with suppress(ConfigError):
                    return self._resolved.recipe(more)
            raise error

    def _completions(self, point: Point) -> Iterator[Point]:
        for key in self._space.search:
            domain = self._resolved.domain(key, point) if key not in point else None
            if domain is not None and domain.when:
                for value in domain.probes:
                    values = {**point, key: value}
                    more = {
                        other: values[other] for other in self._space.domains if other in values
                    }
                    yield more
                    yield from self._completions(more)
                return

    def _check_order(self, key: str, other: str) -> None:
        keys = list(self._space.domains)
        if other in keys and keys.index(other) > keys.index(key):
            raise ConfigError(
                f"Setting '{other}' must stand above '{key}' in space '{self._space.name}', "
                "whose condition it is."
            )
        dumps = self._resolved.dumps.values()
        if other not in (*keys, RECIPE) and all(lookup(dump, other) is None for dump in dumps):
            known = sorted({*keys, *chain.from_iterable(_keys(dump) for dump in dumps)})
            sentence = unknown("setting", other, known, f"the condition of '{key}'")
            # omit the list of all known settings, which would be too long
            raise ConfigError(sentence.split(" Known:")[0])

    def _check_perturbable(self, key: str, recipe: Recipe) -> None:
        own = methods.build(self._resolved.own[self._space.base[0]])
        changed = methods.build(recipe)
        kept = any(key == setting or key.startswith(f"{setting}.") for setting in PERTURBABLE)
        if not kept or _measured(own) != _measured(changed):
            what = "what is measured for it" if kept else "what its checkpoint holds"
            raise ConfigError(
                f"Setting '{key}' cannot be searched by 'scheduler: pbt': a synthesis cannot "
                f"continue with another value, as {what} depends on it. "
                "Search it with 'asha' or without a scheduler."
            )


def _measured(method: methods.Method) -> tuple[Any, ...]:
    """Inputs of a method's measured statistics."""
    needs = [method.specs(group) for group in method.groups]
    return method.groups, needs, method.averaging is None


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
