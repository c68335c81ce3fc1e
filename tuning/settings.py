"""Content of the file of a search space, validated as far as possible without the recipes.

Whether its values fit the recipes is checked in `tuning.space_check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rayd.config import Settings, merge, nested
from rayd.config.base import Listed
from rayd.results.papers import read_value
from tuning.domain import Domain

RECIPE = "recipe"
"""Name of the choice between several bases."""
ROW = "row"
"""Name of the choice between the rows of a study."""
SEED = "seed"
"""Setting over whose values a study averages."""


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
    """A paper's results for the values of a setting, in percent."""

    table: str
    """Table or figure of the paper."""
    conditions: str = ""
    """Conditions in the paper: data, images per class, network."""
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
        self._check_rungs()
        if self.objectives[0] != "validation_accuracy":
            raise ValueError(
                "'objectives' must begin with validation_accuracy, which decides which trial is best"
            )
        self._check_search()
        return self

    def _check_rungs(self) -> None:
        if self.rungs is not None and list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError("'rungs' must ascend")
        if self.scheduler.name != "none" and not self.rung_fractions:
            raise ValueError(f"'scheduler: {self.scheduler.name}' needs 'rungs'")

    def _check_search(self) -> None:
        """Refuse domains that the algorithm or the scheduler does not support."""
        domains = list(chain.from_iterable(self.search.values()))
        if self.algorithm == "optuna" and any(domain.kind == "grid" for domain in domains):
            raise ValueError(
                "'grid' goes through all values and 'algorithm: optuna' proposes them: "
                "use choice, or random"
            )
        if self.scheduler.name != "pbt":
            return
        if self.algorithm != "random" or len(self.base) > 1:
            raise ValueError("'scheduler: pbt' needs 'algorithm: random' and a single base")
        if any(domain.when or domain.kind == "grid" for domain in domains):
            raise ValueError(
                "'scheduler: pbt' moves all settings together: none may have 'when' or 'grid'"
            )

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
        conditional = []
        for key, domains in self.search.items():
            if any(domain.kind != "grid" or domain.when for domain in domains):
                conditional.append(key)
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
