"""Search spaces: a recipe, and a domain for each setting that is searched; YAML, validated before
anything starts.

    base: edc-digits                                  # one recipe, or several to choose from
    overrides: {synthesis: {steps: 250}}              # laid over it
    search:
      terms.moments.alpha: {uniform: [0, 1]}
      evaluation.schedule.name: {choice: [cosine, ssrs, constant]}
      evaluation.schedule.stretch: {uniform: [1, 4], when: {evaluation.schedule.name: [cosine,
      ssrs]}}

A setting may have several domains with different conditions; the first whose condition holds is
drawn from. Conditions look at the recipe and at settings that stand above, `recipe` (which base)
and `method` included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from rayd import methods, recipes
from rayd.config import Recipe, Settings, lookup, merge, read_yaml, validate
from rayd.config.base import Listed
from rayd.errors import ConfigError, RaydError, unknown

FOLDER = Path(str(resources.files(__name__.rpartition(".")[0]))) / "spaces"
RECIPE = "recipe"
"""What the choice between several bases is called."""
FIXED = {
    "data": "all trials are judged on the same images",
    "resources": "it changes no result",
    "name": "it changes no result",
    "summary": "it changes no result",
    "paper": "it changes no result",
    "measured": "it changes no result",
    "evaluation.seeds": "'seeds' of the space says how many students judge a trial",
    "evaluation.baselines": "trials are compared with each other",
    "labels.precision": "it belongs to how trials are judged",
}
"""Settings that are not searched, and why."""
PERTURBABLE = (
    "synthesis.learning_rate", "synthesis.learning_rates", "synthesis.momentum", "synthesis.second_momentum",
    "synthesis.clip_gradient", "terms", "objective", "evaluation",
)  # fmt: skip
"""Settings that a checkpoint of a synthesis does not depend on: population-based training may
change them on the way.
"""

COMPLETIONS = 200
"""How many points are tried to find one in which a value fits."""

Point = dict[str, Any]
"""Settings of a trial by dotted key, in the order of the space; those whose condition does not hold
are missing.
"""
Kind = Literal["uniform", "loguniform", "integer", "choice", "grid"]
KINDS: tuple[Kind, ...] = ("uniform", "loguniform", "integer", "choice", "grid")


class Domain(Settings):
    """The values that a setting may take: exactly one kind of them."""

    uniform: tuple[float, float] | None = None
    """Numbers between two, evenly."""
    loguniform: tuple[float, float] | None = None
    """Positive numbers between two, evenly in their logarithm."""
    integer: tuple[int, int] | None = None
    """Whole numbers from one to another, both included."""
    choice: tuple[Any, ...] | None = None
    """Any of these."""
    grid: tuple[Any, ...] | None = None
    """All of these, one after another, with every draw of the other settings."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Settings by dotted key and the value, or list of values, that each must have for this one to
    be there at all.
    """

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a domain is exactly one of {', '.join(KINDS)}; this one is {' and '.join(given) or 'none'}"
            )
        values: tuple[Any, ...] = getattr(self, given[0])
        if not values:
            raise ValueError(f"'{given[0]}' must name at least one value")
        if given[0] in ("choice", "grid"):
            return self
        low, high = values
        if not low < high:
            raise ValueError(
                f"'{given[0]}' must rise from its first number to its second: {low:g} is not below {high:g}"
            )
        elif given[0] == "loguniform" and low <= 0:
            raise ValueError(f"'loguniform' needs numbers above 0: {low:g} has no logarithm")
        return self

    @property
    def kind(self) -> Kind:
        """Which kind of values."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """Both ends, or all values."""
        return cast("tuple[Any, ...]", getattr(self, self.kind))

    @property
    def numeric(self) -> bool:
        """Whether it is a range of numbers."""
        return self.kind in ("uniform", "loguniform", "integer")

    @property
    def probes(self) -> tuple[Any, ...]:
        """Values that stand for all: both ends and one between them, or all there are."""
        if self.kind not in ("uniform", "loguniform"):
            return self.values
        low, high = self.values
        return low, low + (high - low) * 0.318, high

    def holds(self, value: Any) -> bool:
        """Whether a value is among them."""
        if self.numeric:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = self.kind != "integer" or float(value if number else 0).is_integer()
            return number and whole and self.values[0] <= value <= self.values[1]
        return value in self.values

    def clamped(self, value: Any) -> Any:
        """The nearest value of a range; a value of a choice as it is."""
        if not self.numeric:
            return value
        nearest = min(max(value, self.values[0]), self.values[1])
        return round(nearest) if self.kind == "integer" else float(nearest)


class SchedulerSettings(Settings):
    """Who stops or changes trials on their way, at the rungs."""

    name: Literal["none", "asha", "pbt"] = "none"
    """`asha`: at each rung only the best 1 in `reduction` go on. `pbt`: at each rung the worst go
    on from where the best are, with settings near theirs.
    """
    reduction: float = Field(default=2.0, gt=1)
    """`asha`: of how many trials one goes on."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """`pbt`: share of the trials that are the worst, and that are the best."""
    resample: float = Field(default=0.25, ge=0, le=1)
    """`pbt`: probability that a setting is drawn anew instead of being moved a little."""


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Objective = Literal["validation_accuracy", "storage_bytes", "seconds"]
MODES: dict[Objective, Literal["max", "min"]] = {
    "validation_accuracy": "max",
    "storage_bytes": "min",
    "seconds": "min",
}


class Space(Settings):
    """What is searched, and how."""

    name: str = "custom"
    """Name of the space."""
    summary: str = ""
    """One line: what is looked for."""
    base: Annotated[tuple[str, ...], Listed, Field(min_length=1)]
    """A recipe, by name or as a file, or several; which of several is then a setting like any
    other, called `recipe`.
    """
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Settings laid over the recipe in all trials."""
    search: dict[str, Annotated[tuple[Domain, ...], Listed, Field(min_length=1)]]
    """Domains by dotted setting."""
    algorithm: Literal["random", "optuna"] = "random"
    """Who proposes settings: draws from the domains, or Optuna's tree-structured Parzen
    estimator.
    """
    scheduler: Annotated[SchedulerSettings, BeforeValidator(_named)] = SchedulerSettings()
    """Who stops or changes trials on their way."""
    rungs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Shares of the synthesis after which a trial's set is judged; absent: what the scheduler
    needs, (1/4, 1/2) with `reduction: 2`, (1/4, 1/2, 3/4) for `pbt`, none without one.
    """
    objectives: Annotated[tuple[Objective, ...], Listed, Field(min_length=1)] = (
        "validation_accuracy",
    )
    """What is wanted: the first decides which trial is best; with several, all trials that no other
    beats in everything are told. `seconds` are those of synthesis and students.
    """
    samples: int = Field(default=20, ge=1)
    """Draws; the first is the recipe's own settings."""
    seeds: int = Field(default=2, ge=1)
    """Students that judge a trial."""
    final_seeds: int = Field(default=5, ge=1)
    """Students of the best settings that are tested at the end."""
    confirm: int = Field(default=0, ge=0)
    """Fresh distillations of the best settings and of the recipe's own, with other seeds, that are
    compared on the validation split at the end: the best of many trials looks better than it is.
    """
    seed: int = Field(default=0, ge=0)
    """Of the draws."""
    retries: int = Field(default=1, ge=0)
    """How often a trial that failed is tried again, from where it was."""

    @model_validator(mode="after")
    def _consistent(self) -> Space:
        if not self.search and len(self.base) == 1:
            raise ValueError("'search' must name at least one setting")
        if self.rungs is not None and list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError("'rungs' must ascend")
        if self.objectives[0] != "validation_accuracy":
            raise ValueError(
                "'objectives' must begin with validation_accuracy, which decides which trial is best"
            )
        if self.scheduler.name != "none" and not self.steps_on_the_way:
            raise ValueError(f"'scheduler: {self.scheduler.name}' needs 'rungs'")
        everyone = list(chain.from_iterable(self.search.values()))
        if self.algorithm == "optuna" and any(domain.kind == "grid" for domain in everyone):
            raise ValueError(
                "'grid' goes through all values and 'algorithm: optuna' proposes them: use choice, or random"
            )
        if self.scheduler.name == "pbt":
            if self.algorithm != "random" or len(self.base) > 1:
                raise ValueError("'scheduler: pbt' needs 'algorithm: random' and a single base")
            if any(domain.when or domain.kind == "grid" for domain in everyone):
                raise ValueError(
                    "'scheduler: pbt' moves all settings together: none may have 'when' or 'grid'"
                )
        return self

    @property
    def steps_on_the_way(self) -> tuple[float, ...]:
        """The rungs, absent ones filled in."""
        if self.rungs is not None:
            return self.rungs
        by_halving = (self.scheduler.reduction**-2, self.scheduler.reduction**-1)
        return {"none": (), "asha": by_halving, "pbt": (0.25, 0.5, 0.75)}[self.scheduler.name]

    @property
    def domains(self) -> dict[str, tuple[Domain, ...]]:
        """All that is drawn, in order: the recipe where there are several, then the settings."""
        which = {RECIPE: (Domain(choice=self.base),)} if len(self.base) > 1 else {}
        return {**which, **self.search}


def names() -> list[str]:
    """Names of the built-in spaces."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Space:
    """A space by name or from a file, with settings laid over its recipe.

    A file may begin with `extends: <space>`: it is then laid over that one.

    Raises:
        ConfigError: there is none, or it does not fit.
    """
    path = _find(str(name_or_path))
    space = validate(Space, _tree(path), f"space '{path.stem}'")
    return space.model_copy(update={"overrides": merge(space.overrides, overrides or {})})


def _tree(path: Path) -> dict[str, Any]:
    tree = {"name": path.stem, **read_yaml(path)}
    under = tree.pop("extends", None)
    if under is None:
        return tree
    below = _tree(_find(str(under)))
    tree["search"] = {**below.get("search", {}), **tree.get("search", {})}
    return {**below, **tree}


def _find(text: str) -> Path:
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(text)
    path = FOLDER / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("space", text, names()) + " A file must end in .yaml.")
    return path


def nested(point: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key as a tree.

    >>> nested({"a.b": 1, "a.c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for key, value in point.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merge(tree, value)
    return tree


class ResolvedSpace:
    """A space together with the recipes that it lies on."""

    def __init__(self, space: Space):
        """Read the recipes.

        Raises:
            ConfigError: a recipe does not exist or does not fit.
        """
        self.space = space
        files = {name: _recipe_tree(name) for name in space.base}
        self.trees = {name: merge(tree, space.overrides) for name, tree in files.items()}
        self.own = {name: self._laid(name, tree) for name, tree in files.items()}
        """The recipes with their own settings."""
        self._dumps = {name: recipe.model_dump(mode="json") for name, recipe in self.own.items()}

    def _laid(self, name: str, tree: Mapping[str, Any]) -> Recipe:
        """A recipe under the space's overrides; those over several recipes may be meant for some of
        them.
        """
        over = self.space.overrides
        where = f"recipe '{name}'"
        if len(self.space.base) > 1:
            return recipes.assemble(merge(tree, over), {}, where)
        return recipes.assemble(tree, over or None, where)

    def recipe(self, point: Mapping[str, Any]) -> Recipe:
        """The recipe with the settings of a point.

        Raises:
            ConfigError: they do not fit.
        """
        name = point.get(RECIPE, self.space.base[0])
        settings = nested({key: value for key, value in point.items() if key != RECIPE})
        made = recipes.assemble(self.trees[name], settings, f"space '{self.space.name}'")
        return made.model_copy(update={"paper": None, "measured": ()})

    def own_point(self, name: str) -> Point:
        """The settings that a recipe has anyway; those that are absent there are absent here."""
        point: Point = {RECIPE: name} if len(self.space.base) > 1 else {}
        for key in self.space.search:
            value = self._own_value(name, key) if self.domain(key, point) is not None else None
            if value is not None:
                point[key] = value
        return point

    def _own_value(self, name: str, key: str) -> Any:
        kind, _, rest = key.partition(".")
        term, _, what = rest.partition(".")
        value = lookup(self._dumps[name], key)
        if value is None and kind == "terms":
            method = methods.build(self.own[name])
            for one in method.terms:
                if one.name == term:
                    return lookup(one.model_dump(mode="json"), what)
        return value

    def domain(self, key: str, point: Mapping[str, Any]) -> Domain | None:
        """What a setting is drawn from, given those above it; None where it is not there."""
        for domain in self.space.domains[key]:
            if all(
                _among(self._known(point, other), wanted) for other, wanted in domain.when.items()
            ):
                return domain
        return None

    def _known(self, point: Mapping[str, Any], key: str) -> Any:
        """The value of a setting, drawn or not."""
        name = point.get(RECIPE, self.space.base[0])
        if key == RECIPE:
            return name
        drawn = {other: value for other, value in point.items() if other != RECIPE}
        return lookup(merge(self._dumps[name], nested(drawn)), key)

    def probes(self) -> Iterator[tuple[str, Point]]:
        """For every domain and each value that stands for it, a point that has this value.

        Raises:
            ConfigError: a condition can never hold.
        """
        for key, domains in self.space.domains.items():
            for domain in domains:
                reached = False
                for name in self.space.base:
                    for value in domain.probes:
                        if key == RECIPE and value != name:
                            continue
                        point = self._with(name, key, domain, value, ())
                        if point is not None:
                            reached = True
                            yield key, point
                if not reached:
                    conditions = ", ".join(
                        f"{other}: {wanted}" for other, wanted in domain.when.items()
                    )
                    raise ConfigError(
                        f"Setting '{key}' in space '{self.space.name}' is never there: no recipe and no draw has {conditions}."
                    )

    def _with(
        self, name: str, key: str, domain: Domain, value: Any, above: tuple[str, ...]
    ) -> Point | None:
        """A point in which a setting has a value and its condition holds, with as few other draws
        as possible.
        """
        several = len(self.space.base) > 1
        point: Point = {RECIPE: name} if several else {}
        for other, wanted in domain.when.items():
            if _among(self._known(point or {RECIPE: name}, other), wanted):
                continue
            for theirs in self.space.search.get(other, ()) if other not in above else ():
                fitting = next((one for one in _listed(wanted) if theirs.holds(one)), None)
                more = (
                    None
                    if fitting is None
                    else self._with(name, other, theirs, fitting, (*above, key))
                )
                if more is not None:
                    point |= more
                    break
            else:
                return None
        point[key] = value
        return {other: point[other] for other in self.space.domains if other in point}

    def check(self) -> list[tuple[str, Recipe]]:
        """Refuse what no trial could do: every value that stands for a domain is tried on the
        recipe.

        Returns what was tried: the name of the recipe, and the recipe with the value.

        Raises:
            ConfigError: names the setting, and the nearest one that exists where it does not.
        """
        space = self.space
        first = self.own[space.base[0]]
        for name, recipe in self.own.items():
            if recipe.data != first.data:
                raise ConfigError(
                    f"All recipes of space '{space.name}' must have the same data, on which trials are judged. Got "
                    f"'{space.base[0]}' and '{name}', which differ."
                )
        for key in space.search:
            for fixed, why in FIXED.items():
                if key == fixed or key.startswith(f"{fixed}."):
                    raise ConfigError(
                        f"Setting '{key}' cannot be searched in space '{space.name}': {why}."
                    )
            for domain in space.search[key]:
                for other in domain.when:
                    self._check_order(key, other)
        made = []
        for key, point in self.probes():
            recipe = self._tried(point)
            if space.scheduler.name == "pbt":
                self._check_perturbable(key, recipe)
            made.append((str(point.get(RECIPE, space.base[0])), recipe))
        return made

    def _tried(self, point: Point) -> Recipe:
        """The recipe with a value, and where it needs them with values of the settings that depend
        on it.

        Raises:
            ConfigError: there are no such values; says what is wrong with this one alone.
        """
        try:
            return self.recipe(point)
        except ConfigError as error:
            for more in islice(self._completions(point), COMPLETIONS):
                with suppress(ConfigError):
                    return self.recipe(more)
            raise error

    def _completions(self, point: Point) -> Iterator[Point]:
        for key in self.space.search:
            domain = self.domain(key, point) if key not in point else None
            if domain is not None and domain.when:
                for value in domain.probes:
                    more = {
                        other: {**point, key: value}[other]
                        for other in self.space.domains
                        if other in point or other == key
                    }
                    yield more
                    yield from self._completions(more)
                return

    def _check_order(self, key: str, other: str) -> None:
        places = list(self.space.domains)
        if other in places and places.index(other) > places.index(key):
            raise ConfigError(
                f"Setting '{other}' must stand above '{key}' in space '{self.space.name}', whose condition it is."
            )
        if other not in (*places, RECIPE) and all(
            lookup(dump, other) is None for dump in self._dumps.values()
        ):
            known = sorted(
                {*places, *chain.from_iterable(_keys(dump) for dump in self._dumps.values())}
            )
            sentence = unknown("setting", other, known, f"the condition of '{key}'").split(
                " Known:"
            )[0]
            raise ConfigError(sentence)

    def _check_perturbable(self, key: str, recipe: Recipe) -> None:
        then = methods.build(self.own[self.space.base[0]])
        now = methods.build(recipe)
        kept = any(key == one or key.startswith(f"{one}.") for one in PERTURBABLE)
        measured = [
            (
                method.groups,
                [method.needs(group) for group in method.groups],
                method.averaging is None,
            )
            for method in (then, now)
        ]
        if not kept or measured[0] != measured[1]:
            what = "what is measured for it" if kept else "what its checkpoint holds"
            raise ConfigError(
                f"Setting '{key}' cannot be searched by 'scheduler: pbt': a synthesis that is on its way cannot go on with "
                f"another value, as {what} depends on it. Search it with 'asha' or without a scheduler."
            )


def _recipe_tree(name: str) -> dict[str, Any]:
    path = recipes.find(name)
    return merge({"name": path.stem}, read_yaml(path))


def _listed(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def _among(value: Any, wanted: Any) -> bool:
    return value in _listed(wanted)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def fitting(ground: ResolvedSpace, point: Mapping[str, Any]) -> bool:
    """Whether a recipe can have the settings of a point all together."""
    try:
        ground.recipe(point)
    except RaydError:
        return False
    return True
