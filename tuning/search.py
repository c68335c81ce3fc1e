"""Search algorithms and schedulers: mapping of a space to Ray Tune and Optuna."""

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
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.search_generator import SearchGenerator

from rayd import seeding
from rayd.errors import ConfigError
from tuning.domain import Domain, Point
from tuning.settings import MODES, Space
from tuning.space import ResolvedSpace, fitting

SETTINGS = "settings"
"""Key of a trial's point in its configuration."""
DRAWS = 1000
"""Maximum number of attempts to draw a point that is valid for a recipe."""
AGAIN = 20
"""Maximum number of draws per sample, as draws may repeat points."""
METRIC = "validation_accuracy"
MILESTONE = "milestone"


def sampler(domain: Domain) -> Any:
    """Convert a domain to Ray Tune's."""
    if not domain.numeric:
        return tune.choice(list(domain.values))
    low, high = domain.values
    if domain.kind == "integer":
        return tune.randint(low, high + 1)
    return tune.uniform(low, high) if domain.kind == "uniform" else tune.loguniform(low, high)


def points(resolved: ResolvedSpace, samples: int) -> list[Point]:
    """Points of a random search: the recipes' own settings, then draws.

    Each draw is combined with all values of every grid. Point n depends only on the space's seed
    and on n. Own settings that population-based training cannot perturb are left out.

    Raises:
        ConfigError: no draw is valid for the recipe.
    """
    space = resolved.space
    grids = []
    for key, domains in space.domains.items():
        if any(domain.kind == "grid" for domain in domains):
            grids.append(key)
    found: list[Point] = []
    if not grids:
        own = [resolved.own_point(name) for name in space.base]
        found = [point for point in own if _can_begin(space, point)][:samples]
    combinations = list(product(*(_all_values(space, key) for key in grids)))
    # if all domains are grids, a second draw would repeat the first
    requested = samples if len(grids) < len(space.domains) else 1
    draws = len(found)
    for number in range(len(found), AGAIN * samples):
        if draws >= requested:
            break
        before = len(found)
        for values in combinations:
            point = _drawn(resolved, number, dict(zip(grids, values, strict=True)))
            if point is not None and point not in found:
                found.append(point)
        draws += len(found) > before
    return found


def _can_begin(space: Space, point: Point) -> bool:
    """Whether a recipe's own settings can be a trial: `pbt` must be able to perturb each."""
    if space.scheduler.name != "pbt":
        return True
    for key, domains in space.search.items():
        is_number = isinstance(point.get(key), int | float)
        if key not in point or (domains[0].numeric and not is_number):
            return False
    return True


def _all_values(space: Space, key: str) -> list[Any]:
    values: list[Any] = []
    for domain in space.domains[key]:
        if domain.kind == "grid":
            values += domain.values
    return values


def _drawn(resolved: ResolvedSpace, number: int, given: Point) -> Point | None:
    """Draw a point that is valid for a recipe.

    Args:
        resolved: the space with its recipes.
        number: number of the draw.
        given: values of all settings that have a grid.

    Returns:
        The point; None if a given value belongs to a grid whose condition does not hold.
    """
    for attempt in range(DRAWS):
        draws = np.random.default_rng(seeding.derive(resolved.space.seed, "trial", number, attempt))
        point: Point = {}
        for key in resolved.space.domains:
            domain = resolved.domain(key, point)
            if domain is None:
                continue
            if key in given and domain.kind == "grid":
                if given[key] not in domain.values:
                    return None
                point[key] = given[key]
            else:
                point[key] = _plain(sampler(domain).sample(random_state=draws))
        if fitting(resolved, point):
            return point
        if len(given) == len(resolved.space.domains):
            return point
    raise ConfigError(
        f"No draw of {DRAWS} from space '{resolved.space.name}' fits its recipe; "
        "its domains exclude each other."
    )


def _plain(value: Any) -> Any:
    """Convert a NumPy number to Python's."""
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class DefineByRun:
    """A space as Optuna's define-by-run function, in which conditions depend on earlier values."""

    resolved: ResolvedSpace

    def __call__(self, trial: Any) -> dict[str, Point]:
        """Suggest a point with Optuna's trial."""
        point: Point = {}
        for key, domains in self.resolved.space.domains.items():
            domain = self.resolved.domain(key, point)
            if domain is not None:
                point[key] = _suggest(trial, label(key, domains.index(domain)), domain)
        return {SETTINGS: point}


def label(key: str, index: int) -> str:
    """Optuna's name of a setting, different for each of its domains."""
    return key if index == 0 else f"{key}#{index}"


def _suggest(trial: Any, name: str, domain: Domain) -> Any:
    if domain.kind == "integer":
        return trial.suggest_int(name, *domain.values)
    if domain.numeric:
        return trial.suggest_float(name, *domain.values, log=domain.kind == "loguniform")
    by_name = {json.dumps(value): value for value in domain.values}
    return by_name[trial.suggest_categorical(name, list(by_name))]


UNLIMITED = 10**6
"""Concurrent trials if no number is given: more than any cluster holds."""


class RandomSearch(BasicVariantGenerator):  # type: ignore[misc]
    """Points of a random search, including those added when a sweep is resumed.

    Args:
        resolved: the space with its recipes.
        out: directory of the sweep.
        concurrent: maximum number of concurrent trials; None for unlimited.
    """

    def __init__(self, resolved: ResolvedSpace, out: Path, concurrent: int | None):
        super().__init__(max_concurrent=concurrent or 0)
        self._resolved = resolved
        self._out = out
        self._experiment: Any = None

    def add_configurations(self, experiments: Any) -> None:
        """Store the experiment that trials are generated from."""
        (self._experiment,) = experiments
        super().add_configurations(experiments)

    def next_trial(self) -> Any:
        """Return the next trial; None if there is none now."""
        return _stored_in(self._out, super().next_trial())

    def get_state(self) -> dict[str, Any] | bool:
        """Return the state that Ray saves, without parts that depend on the version and call."""
        state: dict[str, Any] | bool = super().get_state()
        if isinstance(state, dict):
            for name in self._own():
                del state[name]
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state, and add points requested since."""
        super().set_state({**state, **self._own()})
        more = points(self._resolved, self._resolved.space.samples)[self.total_samples :]
        if more:
            experiment = copy.copy(self._experiment)
            experiment.spec = {**experiment.spec, "config": {SETTINGS: tune.grid_search(more)}}
            super().add_configurations([experiment])
            self._finished = False

    def _own(self) -> dict[str, Any]:
        names = ("_resolved", "_out", "max_concurrent")
        return {name: getattr(self, name) for name in names}


class ConcurrencyLimiter(tune.search.ConcurrencyLimiter):  # type: ignore[misc]
    """Limits concurrent trials to the number of this call, overriding that of a saved state."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state, except for the limit."""
        most: int = self.max_concurrent  # type: ignore[has-type]
        super().set_state(state)
        self.max_concurrent = most


class OptunaProposals(SearchGenerator):  # type: ignore[misc]
    """Optuna's proposals, with a number of samples that may increase when a sweep is resumed.

    Args:
        resolved: the space with its recipes.
        out: directory of the sweep.
        concurrent: maximum number of concurrent trials; None for unlimited.
    """

    def __init__(self, resolved: ResolvedSpace, out: Path, concurrent: int | None):
        # always with a limiter, so that a sweep can be continued with another limit
        most = concurrent or UNLIMITED
        super().__init__(ConcurrencyLimiter(optuna(resolved), max_concurrent=most))
        self._samples = resolved.space.samples
        self._out = out

    def next_trial(self) -> Any:
        """Return the next trial; None if there is none now."""
        return _stored_in(self._out, super().next_trial())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state, with the number of samples requested since."""
        super().set_state(state)
        self._total_samples = self._samples


def _stored_in(out: Path, trial: Any) -> Any:
    """Let a new trial write into the sweep's directory, which may have been moved since its start.

    Ray Tune does that for trials that it restores, but not for those that a restored search
    algorithm adds.
    """
    if trial is not None:
        trial.storage.storage_fs_path = str(out)
    return trial


def algorithm(resolved: ResolvedSpace, out: Path, concurrent: int | None = None) -> SearchAlgorithm:
    """Create the search algorithm.

    Args:
        resolved: the space with its recipes.
        out: directory of the sweep.
        concurrent: maximum number of concurrent trials; None for unlimited.
    """
    kind = OptunaProposals if resolved.space.algorithm == "optuna" else RandomSearch
    return kind(resolved, out, concurrent)


class _Optuna(OptunaSearch):  # type: ignore[misc]
    """Optuna's search, whose saved state excludes the space, as that refers to rayd's classes."""

    _space: Any

    def save(self, checkpoint_path: str) -> None:
        space = self._space
        self._space = None
        try:
            super().save(checkpoint_path)
        finally:
            self._space = space

    def restore(self, checkpoint_path: str) -> None:
        space = self._space
        super().restore(checkpoint_path)
        self._space = space


def optuna(resolved: ResolvedSpace) -> OptunaSearch:
    """Create Optuna's search, which first evaluates the recipes' own settings if in the space."""
    space = resolved.space
    first = []
    for name in space.base:
        own = resolved.own_point(name)
        known = {}
        for key, value in own.items():
            domain = resolved.domain(key, own)
            if domain is not None and domain.holds(value):
                name_in_optuna = label(key, space.domains[key].index(domain))
                known[name_in_optuna] = value if domain.numeric else json.dumps(value)
        first.append(known)
    several = len(space.objectives) > 1
    return _Optuna(
        DefineByRun(resolved),
        metric=list(space.objectives) if several else METRIC,
        mode=[MODES[objective] for objective in space.objectives] if several else "max",
        points_to_evaluate=first,
        seed=space.seed,
    )


def scheduler(resolved: ResolvedSpace) -> TrialScheduler | None:
    """Create the scheduler that stops or changes trials at the rungs; None if there is none."""
    space = resolved.space
    settings = resolved.space.scheduler
    if settings.name == "asha":
        rungs = len(space.rung_fractions)
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
                SETTINGS: {key: _mutation(domains[0]) for key, domains in space.search.items()}
            },
            quantile_fraction=settings.quantile,
            resample_probability=settings.resample,
            custom_explore_fn=ClampToDomains(resolved),
            # with more trials than concurrent slots, asynchronous exploitation would keep choosing
            # the same trials
            synch=True,
            log_config=False,
        )
    return None


def _mutation(domain: Domain) -> Any:
    """Values from which `pbt` draws and perturbs a setting: a range, or the values of a choice.

    In a list, perturbation moves to a neighbour; Ray Tune's `choice` would be multiplied like a
    number.
    """
    return sampler(domain) if domain.numeric else list(domain.values)


def milestone(space: Space, rung: int) -> float:
    """Time attribute of asynchronous halving: each rung is `reduction` times the previous one."""
    return float(space.scheduler.reduction**rung)


@dataclass(frozen=True)
class ClampToDomains:
    """Keeps settings that population-based training perturbs within their domains."""

    resolved: ResolvedSpace

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        """Replace the settings of a configuration by the nearest ones in the space."""
        search = self.resolved.space.search
        perturbed = config[SETTINGS]
        clamped = {key: search[key][0].clamped(value) for key, value in perturbed.items()}
        return {**config, SETTINGS: clamped}
