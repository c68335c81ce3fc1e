"""Who proposes settings, and who stops or changes trials on their way: a space in the words of Ray
Tune and Optuna.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.search_generator import SearchGenerator

from rayd import seeding
from rayd.config import read_yaml
from rayd.errors import ConfigError
from tuning.space import MODES, Domain, Point, ResolvedSpace, Space, fitting

SETTINGS = "settings"
"""Where a trial's configuration holds its point."""
DRAWS = 1000
"""How often a point is drawn that no recipe can have before a space is given up."""
AGAIN = 20
"""How many draws there are for each that is wanted, where they come to the same points."""
METRIC = "validation_accuracy"
MILESTONE = "milestone"


def sampler(domain: Domain) -> Any:
    """A domain as one of Ray Tune's."""
    if not domain.numeric:
        return tune.choice(list(domain.values))
    low, high = domain.values
    if domain.kind == "integer":
        return tune.randint(low, high + 1)
    return tune.uniform(low, high) if domain.kind == "uniform" else tune.loguniform(low, high)


def points(ground: ResolvedSpace, samples: int) -> list[Point]:
    """The points of a random search: the recipes' own settings, then draws, each of them with all
    values of every grid.

    Point n depends on the space's seed and on n alone.

    Raises:
        ConfigError: no draw fits the recipe.
    """
    space = ground.space
    grids = [
        key
        for key, domains in space.domains.items()
        if any(domain.kind == "grid" for domain in domains)
    ]
    found: list[Point] = []
    if not grids:
        found = [ground.own_point(name) for name in space.base][:samples]
    combinations = list(product(*(_all_values(space, key) for key in grids)))
    wanted = samples * len(combinations) if len(grids) < len(space.domains) else len(combinations)
    for number in range(len(found), AGAIN * samples):
        for values in combinations if len(found) < wanted else ():
            point = _drawn(ground, number, dict(zip(grids, values, strict=True)))
            if point not in found:
                found.append(point)
    return found


def _all_values(space: Space, key: str) -> list[Any]:
    return [
        value for domain in space.domains[key] if domain.kind == "grid" for value in domain.values
    ]


def _drawn(ground: ResolvedSpace, number: int, given: Point) -> Point:
    """A point that a recipe can have."""
    for attempt in range(DRAWS):
        draws = np.random.default_rng(seeding.derive(ground.space.seed, "trial", number, attempt))
        point: Point = {}
        for key in ground.space.domains:
            domain = ground.domain(key, point)
            if domain is not None:
                known = key in given and domain.kind == "grid"
                point[key] = (
                    given[key] if known else _plain(sampler(domain).sample(random_state=draws))
                )
        if fitting(ground, point):
            return point
        if len(given) == len(ground.space.domains):
            return point
    raise ConfigError(
        f"No draw of {DRAWS} from space '{ground.space.name}' fits its recipe; its domains exclude each other."
    )


def _plain(value: Any) -> Any:
    """A number of numpy's as one of Python's."""
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class Suggested:
    """A space as Optuna walks through it: conditions hold or not as it goes."""

    ground: ResolvedSpace

    def __call__(self, trial: Any) -> dict[str, Point]:
        """Have Optuna's trial suggest a point."""
        point: Point = {}
        for key, domains in self.ground.space.domains.items():
            domain = self.ground.domain(key, point)
            if domain is not None:
                point[key] = _suggest(trial, label(key, domains.index(domain)), domain)
        return {SETTINGS: point}


def label(key: str, place: int) -> str:
    """What Optuna calls a setting: one name for each of its domains."""
    return key if place == 0 else f"{key}#{place}"


def _suggest(trial: Any, name: str, domain: Domain) -> Any:
    if domain.kind == "integer":
        return trial.suggest_int(name, *domain.values)
    if domain.numeric:
        return trial.suggest_float(name, *domain.values, log=domain.kind == "loguniform")
    by_name = {json.dumps(value): value for value in domain.values}
    return by_name[trial.suggest_categorical(name, list(by_name))]


def asked_samples(sweep: Path) -> int:
    """How many samples a sweep's file asks for."""
    return int(read_yaml(sweep)["space"]["samples"])


class Drawn(BasicVariantGenerator):  # type: ignore[misc]
    """Points that are known beforehand: those of a random search, and when it goes on those that
    are asked for by then.
    """

    def __init__(self, ground: ResolvedSpace, sweep: Path, concurrent: int | None):
        """Draw for a space, as many points as the file of the sweep says."""
        super().__init__(max_concurrent=concurrent or 0)
        self._ground = ground
        self._sweep = sweep
        self._experiment: Any = None

    def add_configurations(self, experiments: Any) -> None:
        """Remember what trials are made from."""
        (self._experiment,) = experiments
        super().add_configurations(experiments)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, with points that have been asked for since."""
        super().set_state(state)
        more = points(self._ground, asked_samples(self._sweep))[self.total_samples :]
        if more:
            experiment = copy.copy(self._experiment)
            experiment.spec = {**experiment.spec, "config": {SETTINGS: tune.grid_search(more)}}
            super().add_configurations([experiment])
            self._finished = False


class Proposed(SearchGenerator):  # type: ignore[misc]
    """Optuna's proposals, and when it goes on as many as are asked for by then."""

    def __init__(self, ground: ResolvedSpace, sweep: Path, concurrent: int | None):
        """Have Optuna propose for a space."""
        proposing = optuna(ground)
        super().__init__(
            ConcurrencyLimiter(proposing, max_concurrent=concurrent) if concurrent else proposing
        )
        self._sweep = sweep

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, up to what has been asked for since."""
        super().set_state(state)
        self._total_samples = asked_samples(self._sweep)


def algorithm(ground: ResolvedSpace, sweep: Path, concurrent: int | None) -> SearchAlgorithm:
    """Who proposes settings.

    Args:
        ground: the space on its recipes.
        sweep: the file of the sweep, which says how many samples are asked for.
        concurrent: trials at a time; None: any number.
    """
    kind = Proposed if ground.space.algorithm == "optuna" else Drawn
    return kind(ground, sweep, concurrent)


def optuna(ground: ResolvedSpace) -> OptunaSearch:
    """Optuna, which is asked for the recipes' own settings first, as far as they lie in the
    space.
    """
    space = ground.space
    first = []
    for name in space.base:
        own = ground.own_point(name)
        known = {}
        for key, value in own.items():
            domain = ground.domain(key, own)
            if domain is not None and domain.holds(value):
                known[label(key, space.domains[key].index(domain))] = (
                    value if domain.numeric else json.dumps(value)
                )
        first.append(known)
    several = len(space.objectives) > 1
    return OptunaSearch(
        Suggested(ground),
        metric=list(space.objectives) if several else METRIC,
        mode=[MODES[one] for one in space.objectives] if several else "max",
        points_to_evaluate=first,
        seed=space.seed,
    )


def scheduler(ground: ResolvedSpace) -> TrialScheduler | None:
    """Who stops or changes trials at the rungs."""
    space = ground.space
    settings = ground.space.scheduler
    if settings.name == "asha":
        rungs = len(space.steps_on_the_way)
        return ASHAScheduler(
            time_attr=MILESTONE,
            metric=METRIC,
            mode="max",
            max_t=milestone(space, rungs),
            grace_period=1,
            reduction_factor=settings.reduction,
        )
    if settings.name == "pbt":
        return PopulationBasedTraining(
            time_attr="training_iteration",
            metric=METRIC,
            mode="max",
            perturbation_interval=1,
            hyperparam_mutations={
                SETTINGS: {key: sampler(domains[0]) for key, domains in space.search.items()}
            },
            quantile_fraction=settings.quantile,
            resample_probability=settings.resample,
            custom_explore_fn=Kept(ground),
            # with fewer places than trials, those that go on from others would else be chosen again
            # and again, and others never
            synch=True,
            log_config=False,
        )
    return None


def milestone(space: Space, rung: int) -> float:
    """What asynchronous halving counts in: each rung is worth `reduction` times the one before."""
    return float(space.scheduler.reduction**rung)


@dataclass(frozen=True)
class Kept:
    """Keeps settings that population-based training moved within their domains."""

    ground: ResolvedSpace

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration with the nearest settings that the space has."""
        search = self.ground.space.search
        moved = config[SETTINGS]
        return {
            **config,
            SETTINGS: {key: search[key][0].clamped(value) for key, value in moved.items()},
        }
