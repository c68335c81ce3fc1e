"""Search spaces: a recipe, and a domain for each searched setting; YAML, validated before any run.

    base: edc-digits                                  # one recipe, or several to choose from
    overrides: {synthesis: {steps: 250}}              # override the recipe
    search:
      terms.moments.alpha: {uniform: [0, 1]}
      evaluation.schedule.name: {choice: [cosine, ssrs, constant]}
      evaluation.schedule.stretch:
        {uniform: [1, 4], when: {evaluation.schedule.name: [cosine, ssrs]}}

A setting may have several domains with different conditions; the first whose condition holds is
used. Conditions refer to the recipe and to settings listed earlier, including `recipe` (the chosen
base) and `method`.

A space that goes through all of its values is a study: grids, or rows, which are named settings that
belong together and may build on a row above. `paper` holds what a paper reports for them, as printed:

    base: iid-digits
    rows:
      neither: {terms: {centralization: {weight: 0}, covariance: {weight: 0}}}
      centralization: {base: neither, terms.centralization.weight: 0.0005}
    search: {seed: {grid: [0, 1, 2]}}  # distillations of each row, which are averaged
    paper:
      - table: IID, Table 6
        conditions: CIFAR-10, IPC 10
        values: {neither: 48.5 ± 0.2, centralization: 52.2 ± 0.3}
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
from rayd.config import Recipe, Settings, lookup, merge, nested, read_yaml, validate
from rayd.config.base import Listed
from rayd.errors import ConfigError, RaydError, unknown
from rayd.results.papers import read_value

FOLDER = Path(str(resources.files(__name__.rpartition(".")[0]))) / "spaces"
RECIPE = "recipe"
"""Name of the choice between several bases."""
ROW = "row"
"""Name of the choice between the rows of a study."""
SEED = "seed"
"""Setting over whose values a study averages."""
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

Point = dict[str, Any]
"""Settings of a trial by dotted key, in the order of the space, without inactive ones."""
Kind = Literal["uniform", "loguniform", "integer", "choice", "grid"]
KINDS: tuple[Kind, ...] = ("uniform", "loguniform", "integer", "choice", "grid")


class Domain(Settings):
    """Values of a setting, of exactly one kind."""

    uniform: tuple[float, float] | None = None
    """Lower and upper end, uniform."""
    loguniform: tuple[float, float] | None = None
    """Positive lower and upper end, uniform in the logarithm."""
    integer: tuple[int, int] | None = None
    """First and last integer, both included."""
    choice: tuple[Any, ...] | None = None
    """Values to choose from."""
    grid: tuple[Any, ...] | None = None
    """Values that are all combined with every draw of the other settings."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Condition: settings by dotted key, with the value or list of values that they must have."""

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a domain is exactly one of {', '.join(KINDS)}; "
                f"this one is {' and '.join(given) or 'none'}"
            )
        values: tuple[Any, ...] = getattr(self, given[0])
        if not values:
            raise ValueError(f"'{given[0]}' must name at least one value")
        if given[0] in ("choice", "grid"):
            return self
        low, high = values
        if not low < high:
            raise ValueError(
                f"'{given[0]}' must rise from its first number to its second: "
                f"{low:g} is not below {high:g}"
            )
        elif given[0] == "loguniform" and low <= 0:
            raise ValueError(f"'loguniform' needs numbers above 0: {low:g} has no logarithm")
        return self

    @property
    def kind(self) -> Kind:
        """Kind of the values."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> tuple[Any, ...]:
        """Both ends, or all values."""
        return cast("tuple[Any, ...]", getattr(self, self.kind))

    @property
    def numeric(self) -> bool:
        """Whether the domain is a range of numbers."""
        return self.kind in ("uniform", "loguniform", "integer")

    @property
    def probes(self) -> tuple[Any, ...]:
        """Representative values for validation: both ends and one between, or all values."""
        if self.kind not in ("uniform", "loguniform"):
            return self.values
        low, high = self.values
        return low, low + (high - low) * 0.318, high

    def holds(self, value: Any) -> bool:
        """Whether the domain contains a value."""
        if self.numeric:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            whole = self.kind != "integer" or float(value if number else 0).is_integer()
            return number and whole and self.values[0] <= value <= self.values[1]
        return value in self.values

    def clamped(self, value: Any) -> Any:
        """Nearest value of a range; values of a choice are unchanged."""
        if not self.numeric:
            return value
        nearest = min(max(value, self.values[0]), self.values[1])
        return round(nearest) if self.kind == "integer" else float(nearest)


class SchedulerSettings(Settings):
    """Scheduler that stops or changes trials at the rungs."""

    name: Literal["none", "asha", "pbt"] = "none"
    """`asha`: at each rung only the best 1 in `reduction` continue. `pbt`: at each rung the worst
    continue from the state of the best, with perturbed settings.
    """
    reduction: float = Field(default=2.0, gt=1)
    """`asha`: number of trials of which one continues."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """`pbt`: fraction of trials that are replaced, and that replace them."""
    resample: float = Field(default=0.25, ge=0, le=1)
    """`pbt`: probability of drawing a setting instead of perturbing it."""


def shown(value: object) -> str:
    """Format a value of a setting as a key of `paper`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value)


def _shown_keys(values: object) -> object:
    if not isinstance(values, Mapping):
        return values
    return {shown(key): value for key, value in values.items()}


class PaperSeries(Settings):
    """What a paper reports for the values of a setting, in percent."""

    table: str
    """Table or figure of the paper."""
    conditions: str = ""
    """What the paper distilled and tested: data, images per class, network."""
    setting: str = ROW
    """The setting, by dotted key; by default the row."""
    values: Annotated[dict[str, str | float], BeforeValidator(_shown_keys), Field(min_length=1)]
    """Accuracy by value of the setting, as printed: `54.6 ± 0.2; a remark`."""

    @model_validator(mode="after")
    def _numbers(self) -> PaperSeries:
        for key, printed in self.values.items():
            try:
                read_value(printed)
            except ValueError:
                raise ValueError(
                    f"'{key}' must be an accuracy in percent such as 54.6 ± 0.2. "
                    f"Got '{printed}' instead."
                ) from None
        return self

    def value(self, point: Mapping[str, Any]) -> tuple[float, float | None, str] | None:
        """Accuracy and deviation, as fractions, and remark; None if the paper has no value."""
        printed = self.values.get(shown(point.get(self.setting)))
        return None if printed is None else read_value(printed)


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Objective = Literal["validation_accuracy", "storage_bytes", "seconds"]
MODES: dict[Objective, Literal["max", "min"]] = {
    "validation_accuracy": "max",
    "storage_bytes": "min",
    "seconds": "min",
}


class Space(Settings):
    """A search space and the search over it."""

    name: str = "custom"
    """Name of the space."""
    summary: str = ""
    """One line: purpose of the space."""
    base: Annotated[tuple[str, ...], Listed, Field(min_length=1)]
    """A recipe, by name or as a file, or several, which become a choice called `recipe`."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Settings that override the recipe in all trials."""
    search: dict[str, Annotated[tuple[Domain, ...], Listed, Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Domains by dotted setting."""
    rows: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Settings by name of a row, all of which are tried: `base` is a row above that it changes,
    `recipe` one of the space's bases, by default the first.
    """
    paper: tuple[PaperSeries, ...] = ()
    """Results of a paper, for comparison."""
    algorithm: Literal["random", "optuna"] = "random"
    """Random search, or Optuna's tree-structured Parzen estimator."""
    scheduler: Annotated[SchedulerSettings, BeforeValidator(_named)] = SchedulerSettings()
    """Scheduler that stops or changes trials."""
    rungs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Fractions of the synthesis after which a trial's set is evaluated; by default as the
    scheduler needs, (1/4, 1/2) with `reduction: 2`, (1/4, 1/2, 3/4) for `pbt`, none without one.
    """
    objectives: Annotated[tuple[Objective, ...], Listed, Field(min_length=1)] = (
        "validation_accuracy",
    )
    """Objectives: the first decides which trial is best; with several, Pareto-optimal trials are
    reported. `seconds` are those of synthesis and students.
    """
    samples: int = Field(default=20, ge=1)
    """Number of draws; the first is the recipe's own settings."""
    seeds: int = Field(default=2, ge=1)
    """Number of students per trial; `evaluation.seeds` in `overrides` overrides it."""
    final_seeds: int = Field(default=5, ge=1)
    """Number of students of the best settings in the final test; `evaluation.seeds` in `overrides`
    overrides it.
    """
    confirm: int = Field(default=0, ge=0)
    """Number of fresh distillations, with other seeds, that compare best and own settings on the
    validation split at the end: the best of many trials is biased upwards.
    """
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""
    retries: int = Field(default=1, ge=0)
    """Number of times that a failed trial is resumed."""

    @model_validator(mode="after")
    def _consistent(self) -> Space:
        if not self.search and not self.rows and len(self.base) == 1:
            raise ValueError("'search' must name at least one setting")
        self._check_rows()
        self._check_paper()
        if self.rungs is not None and list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError("'rungs' must ascend")
        if self.objectives[0] != "validation_accuracy":
            raise ValueError(
                "'objectives' must begin with validation_accuracy, which decides which trial is best"
            )
        if self.scheduler.name != "none" and not self.rung_fractions:
            raise ValueError(f"'scheduler: {self.scheduler.name}' needs 'rungs'")
        domains = list(chain.from_iterable(self.search.values()))
        if self.algorithm == "optuna" and any(domain.kind == "grid" for domain in domains):
            raise ValueError(
                "'grid' goes through all values and 'algorithm: optuna' proposes them: "
                "use choice, or random"
            )
        if self.scheduler.name == "pbt":
            if self.algorithm != "random" or len(self.base) > 1:
                raise ValueError("'scheduler: pbt' needs 'algorithm: random' and a single base")
            if any(domain.when or domain.kind == "grid" for domain in domains):
                raise ValueError(
                    "'scheduler: pbt' moves all settings together: none may have 'when' or 'grid'"
                )
        return self

    def _check_rows(self) -> None:
        above: list[str] = []
        for name, row in self.rows.items():
            for key, known in (("base", above), (RECIPE, list(self.base))):
                if key in row and row[key] not in known:
                    raise ValueError(
                        f"'{key}' of row '{name}' must be one of: {', '.join(known) or 'no row'}. "
                        f"Got '{row[key]}' instead."
                    )
            above.append(name)
        conditional = [
            key
            for key, domains in self.search.items()
            if any(domain.kind != "grid" or domain.when for domain in domains)
        ]
        if self.rows and conditional:
            raise ValueError(
                f"'rows' are all tried: '{conditional[0]}' beside them must be a 'grid' "
                "without 'when'"
            )

    def _check_paper(self) -> None:
        if self.paper and not self.is_study:
            raise ValueError("'paper' needs a space of 'rows' or 'grid' alone")
        for series in self.paper:
            domains = self.domains.get(series.setting, ())
            tried = [shown(value) for domain in domains for value in domain.values]
            untried = [key for key in series.values if key not in tried]
            if untried:
                raise ValueError(
                    f"'paper' has '{untried[0]}', which is no value of '{series.setting}'; "
                    f"values of it are: {', '.join(tried) or 'none'}"
                )

    @property
    def is_study(self) -> bool:
        """Whether all values are tried: rows, or grids alone."""
        domains = chain.from_iterable(self.domains.values())
        return all(domain.kind == "grid" for domain in domains)

    def row(self, name: str) -> dict[str, Any]:
        """Settings of a row, with those of the rows that it builds on."""
        own = nested({key: value for key, value in self.rows[name].items() if key != "base"})
        below = self.rows[name].get("base")
        return own if below is None else merge(self.row(below), own)

    @property
    def rung_fractions(self) -> tuple[float, ...]:
        """Rungs, with defaults of the scheduler."""
        if self.rungs is not None:
            return self.rungs
        halving = (self.scheduler.reduction**-2, self.scheduler.reduction**-1)
        return {"none": (), "asha": halving, "pbt": (0.25, 0.5, 0.75)}[self.scheduler.name]

    @property
    def domains(self) -> dict[str, tuple[Domain, ...]]:
        """Domains of everything drawn, in order: the row or recipe, then settings."""
        if self.rows:
            return {ROW: (Domain(grid=tuple(self.rows)),), **self.search}
        recipe = {RECIPE: (Domain(choice=self.base),)} if len(self.base) > 1 else {}
        return {**recipe, **self.search}


def names() -> list[str]:
    """Names of the built-in spaces."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Space:
    """Load a space by name or from a file, and override settings of its recipe.

    A file may begin with `extends: <space>`: it then overrides that space. Files that it names,
    there and as `base`, are those next to it, else those of the working directory.

    Raises:
        ConfigError: the space does not exist or is invalid.
    """
    path = _find(str(name_or_path))
    space = validate(Space, _tree(path), f"space '{path.stem}'")
    return space.model_copy(update={"overrides": merge(space.overrides, overrides or {})})


def _tree(path: Path) -> dict[str, Any]:
    tree = {"name": path.stem, **read_yaml(path)}
    bases = tree.get("base")
    if isinstance(bases, str):
        tree["base"] = _next_to(path, bases)
    elif isinstance(bases, list):
        tree["base"] = [_next_to(path, base) for base in bases]
    under = tree.pop("extends", None)
    if under is None:
        return tree
    below = _tree(_find(str(_next_to(path, under))))
    tree["search"] = {**below.get("search", {}), **tree.get("search", {})}
    return {**below, **tree}


def _next_to(path: Path, reference: object) -> object:
    """What a file names: a file next to it where there is one, else what the name itself says."""
    if not isinstance(reference, str) or not recipes.is_file(reference):
        return reference
    beside = path.parent / reference
    return str(beside) if beside.is_file() else reference


def _find(text: str) -> Path:
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(text)
    path = FOLDER / f"{text}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("space", text, names()) + " A file must end in .yaml.")
    return path


class ResolvedSpace:
    """A space with its recipes."""

    def __init__(self, space: Space):
        """Read the recipes.

        Raises:
            ConfigError: a recipe does not exist or is invalid.
        """
        self.space = space
        files = {name: recipes.read(name) for name in space.base}
        self.trees = {name: merge(tree, space.overrides) for name, tree in files.items()}
        self.own = {name: self._overridden(name, tree) for name, tree in files.items()}
        """Recipes with their own settings, under the space's overrides."""
        self._dumps = {name: recipe.model_dump(mode="json") for name, recipe in self.own.items()}

    def _overridden(self, name: str, tree: Mapping[str, Any]) -> Recipe:
        over = self.space.overrides
        where = f"recipe '{name}'"
        if len(self.space.base) > 1:
            # merged without strict checks, as overrides may apply to some of the recipes only
            return recipes.assemble(merge(tree, over), {}, where)
        return recipes.assemble(tree, over or None, where)

    def recipe(self, point: Mapping[str, Any]) -> Recipe:
        """Assemble the recipe with the settings of a point.

        Raises:
            ConfigError: they are invalid.
        """
        row = self._row(point)
        drawn = {key: value for key, value in point.items() if key not in (RECIPE, ROW)}
        chosen = {key: value for key, value in row.items() if key != RECIPE}
        where = f"row '{point[ROW]}' of " if row else ""
        recipe = recipes.assemble(
            self.trees[self.base(point)],
            merge(chosen, nested(drawn)),
            f"{where}space '{self.space.name}'",
        )
        return recipe.model_copy(update={"paper": (), "measured": ()})

    def _row(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the row of a point; empty if it has none."""
        return self.space.row(point[ROW]) if ROW in point else {}

    def base(self, point: Mapping[str, Any]) -> str:
        """Name of the recipe of a point."""
        return str({**point, **self._row(point)}.get(RECIPE, self.space.base[0]))

    def students(self, *, final: bool = False) -> int:
        """Number of students of a trial, or of the final test.

        `evaluation.seeds` among the overrides, for example on the command line, sets both.
        """
        if lookup(self.space.overrides, "evaluation.seeds") is not None:
            return self.own[self.space.base[0]].evaluation.seeds
        return self.space.final_seeds if final else self.space.seeds

    def own_point(self, name: str) -> Point:
        """Point of a recipe's own settings, without those that it does not set."""
        point: Point = {RECIPE: name} if len(self.space.base) > 1 else {}
        for key in self.space.search:
            value = self._own_value(name, key) if self.domain(key, point) is not None else None
            if value is not None:
                point[key] = value
        return point

    def _own_value(self, name: str, key: str) -> Any:
        kind, _, rest = key.partition(".")
        term_name, _, field = rest.partition(".")
        value = lookup(self._dumps[name], key)
        if value is None and kind == "terms":
            method = methods.build(self.own[name])
            for one in method.terms:
                if one.name == term_name:
                    return lookup(one.model_dump(mode="json"), field)
        return value

    def domain(self, key: str, point: Mapping[str, Any]) -> Domain | None:
        """Active domain of a setting, given earlier ones; None if no condition holds."""
        for domain in self.space.domains[key]:
            conditions = domain.when.items()
            if all(_among(self._known(point, other), values) for other, values in conditions):
                return domain
        return None

    def _known(self, point: Mapping[str, Any], key: str) -> Any:
        """Value of a setting, whether drawn or not."""
        name = point.get(RECIPE, self.space.base[0])
        if key == RECIPE:
            return name
        drawn = {other: value for other, value in point.items() if other != RECIPE}
        return lookup(merge(self._dumps[name], nested(drawn)), key)

    def probes(self) -> Iterator[tuple[str, Point]]:
        """Yield points for validation: for every domain, one with each representative value.

        Raises:
            ConfigError: a condition can never hold.
        """
        if self.space.rows:
            for row in self.space.rows:
                yield ROW, {ROW: row}
                for key, domains in self.space.search.items():
                    for value in chain.from_iterable(domain.values for domain in domains):
                        yield key, {ROW: row, key: value}
            return
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
                        f"{other}: {values}" for other, values in domain.when.items()
                    )
                    raise ConfigError(
                        f"Setting '{key}' in space '{self.space.name}' is never used: "
                        f"no recipe and no draw has {conditions}."
                    )

    def _with(
        self, name: str, key: str, domain: Domain, value: Any, above: tuple[str, ...]
    ) -> Point | None:
        """Construct a point with a value whose condition holds, with as few draws as possible."""
        several = len(self.space.base) > 1
        point: Point = {RECIPE: name} if several else {}
        for other, values in domain.when.items():
            if _among(self._known(point or {RECIPE: name}, other), values):
                continue
            candidates = self.space.search.get(other, ()) if other not in above else ()
            for candidate in candidates:
                fitting_value = next((v for v in _listed(values) if candidate.holds(v)), None)
                if fitting_value is None:
                    continue
                more = self._with(name, other, candidate, fitting_value, (*above, key))
                if more is not None:
                    point |= more
                    break
            else:
                return None
        point[key] = value
        return {other: point[other] for other in self.space.domains if other in point}

    def check(self) -> list[tuple[str, Recipe]]:
        """Validate every representative value of each domain on the recipe.

        Returns:
            The validated recipes, each with the name of its base.

        Raises:
            ConfigError: a value is invalid; the message names the setting and the nearest known
                one.
        """
        space = self.space
        first = self.own[space.base[0]]
        for name, recipe in self.own.items():
            # normalisation is the method's, who looks at the same images
            alike = recipe.data.model_copy(update={"normalization": first.data.normalization})
            if alike != first.data:
                raise ConfigError(
                    f"All recipes of space '{space.name}' must have the same data but for their normalization, "
                    "because trials are validated on them. "
                    f"Got '{space.base[0]}' and '{name}', which differ."
                )
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
        for key in space.search:
            for domain in space.search[key]:
                for other in domain.when:
                    self._check_order(key, other)
        validated = []
        for key, point in self.probes():
            recipe = self._completed(point)
            if space.scheduler.name == "pbt":
                self._check_perturbable(key, recipe)
            validated.append((self.base(point), recipe))
        return validated

    def _completed(self, point: Point) -> Recipe:
        """Assemble the recipe with a value, if needed with values of dependent settings.

        Raises:
            ConfigError: there are no such values; the error is that of the value alone.
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
                    values = {**point, key: value}
                    more = {other: values[other] for other in self.space.domains if other in values}
                    yield more
                    yield from self._completions(more)
                return

    def _check_order(self, key: str, other: str) -> None:
        keys = list(self.space.domains)
        if other in keys and keys.index(other) > keys.index(key):
            raise ConfigError(
                f"Setting '{other}' must stand above '{key}' in space '{self.space.name}', "
                "whose condition it is."
            )
        dumps = self._dumps.values()
        if other not in (*keys, RECIPE) and all(lookup(dump, other) is None for dump in dumps):
            known = sorted({*keys, *chain.from_iterable(_keys(dump) for dump in dumps)})
            sentence = unknown("setting", other, known, f"the condition of '{key}'")
            # the list of all known settings would be too long
            raise ConfigError(sentence.split(" Known:")[0])

    def _check_perturbable(self, key: str, recipe: Recipe) -> None:
        own = methods.build(self.own[self.space.base[0]])
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
    """Inputs of the measurements of a method."""
    needs = [method.specs(group) for group in method.groups]
    return method.groups, needs, method.averaging is None


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) else [values]


def _among(value: Any, values: Any) -> bool:
    return value in _listed(values)


def _keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def fitting(resolved: ResolvedSpace, point: Mapping[str, Any]) -> bool:
    """Whether a recipe with all settings of a point is valid."""
    try:
        resolved.recipe(point)
    except RaydError:
        return False
    return True
