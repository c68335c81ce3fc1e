"""A trial: distil with some settings, and judge the set on the validation split, at the rungs and
at the end.

A trial is a run of rayd in a directory of its own, which is also its state: one that is started
again, by Ray or after the driver was killed, goes on from there. What it has in common with other
trials is in the store and made once. The test split is not looked at.
"""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from ray import tune
from rich.console import Console

from rayd.artifacts import content_hash, read_json, write_json
from rayd.config import Recipe
from rayd.engine.callbacks import Callback, Milestone, WarmStart
from rayd.engine.distill import Run, distill
from rayd.engine.progress import Progress
from rayd.errors import OutputError, RaydError
from rayd.evaluation.report import Report
from tuning.search import SETTINGS, milestone
from tuning.space import Point, ResolvedSpace

PROGRESS = "progress.json"
FAILURE = "failure.json"
LOG = "log.txt"
STATE = "trial.json"
LINGER = 60.0
"""Seconds that the processes of a killed driver may take to end."""


@dataclass(frozen=True)
class Plan:
    """What all trials of a sweep have in common."""

    directory: Path
    """Of the trials."""
    ground: ResolvedSpace
    """What is searched."""
    validation: dict[str, float]
    """By recipe, the share of the training images that trials are judged on; 0 where the data have
    a validation split.
    """
    workers: int
    """Ray actors of a trial; 0 works in the trial's own process."""
    data_root: Path | None
    """Where named data are looked for first."""
    cache: Path | None
    """Root of the store that trials share; None for the default one."""

    def recipe(self, point: Point, name: str) -> Recipe:
        """What a trial runs."""
        recipe = self.ground.recipe(point)
        data = recipe.data
        if data.validation_fraction == 0:
            data = data.model_copy(
                update={"validation_fraction": self.validation[recipe_name(self.ground, point)]}
            )
        resources = recipe.resources.model_copy(
            update={
                "workers": self.workers,
                "address": None,
                "threads": recipe.resources.threads or threads(recipe),
            }
        )
        evaluation = recipe.evaluation.model_copy(
            update={"seeds": self.ground.space.seeds, "baselines": ()}
        )
        changed = {"name": name, "data": data, "resources": resources, "evaluation": evaluation}
        return recipe.model_copy(update=changed)


def recipe_name(ground: ResolvedSpace, point: Point) -> str:
    """The recipe that a point lies on."""
    return str(point.get("recipe", ground.space.base[0]))


def threads(recipe: Recipe) -> int:
    """Torch threads of a worker, or of a trial without workers."""
    return recipe.resources.threads or max(1, int(recipe.resources.cpus_per_worker))


def resources(recipe: Recipe, workers: int) -> tune.PlacementGroupFactory:
    """What Ray reserves for a trial: a bundle a worker beside its own, which is empty; without
    workers what it computes on.

    Workers stay in their bundles, which are placed as the recipe places workers.
    """
    settings = recipe.resources
    gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker > 0 else {}
    if workers == 0:
        return tune.PlacementGroupFactory([{"CPU": float(threads(recipe)), **gpus}])
    bundles: list[dict[str, float]] = [{}] + [{"CPU": settings.cpus_per_worker, **gpus}] * workers
    return tune.PlacementGroupFactory(bundles, strategy=settings.placement.upper())


def run(config: dict[str, Any], plan: Plan) -> None:
    """Ray Tune's function trainable."""
    identity = str(tune.get_context().get_trial_id())
    folder = plan.directory / identity
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as kept:
        log = kept.enter_context((folder / LOG).open("a", encoding="utf-8"))
        progress = Progress(console=Console(file=log, highlight=False, width=200))
        try:
            _Trial(plan, identity, config[SETTINGS], progress, kept).run()
        except RaydError as error:
            write_json(folder / FAILURE, {"reason": str(error)})
            progress.log(f"failed: {error}")
            raise


class _Trial:
    def __init__(
        self, plan: Plan, identity: str, point: Point, progress: Progress, kept: ExitStack
    ):
        self._plan = plan
        self._identity = identity
        self._point = point
        self._progress = progress
        self._folder = plan.directory / identity
        self._rungs = plan.ground.space.steps_on_the_way
        self._began = time.monotonic()
        checkpoint = tune.get_checkpoint()
        state = {}
        donor = None
        if checkpoint is not None:
            donor = Path(kept.enter_context(checkpoint.as_directory()))
            state = read_json(donor / STATE)
        self._history: list[dict[str, Any]] = state.get("history", [])
        self._since = 0.0
        self._warm_start = None
        told: list[float] = state.get("told", [])
        if donor is not None and (state["trial"], state["settings"]) != (identity, point):
            # population-based training: on from where another trial is
            self._history = [
                *self._history,
                {"fraction": state["fraction"], "settings": state["settings"]},
            ]
            told = []
        if self._history:
            self._since = float(self._history[-1]["fraction"])
            checkpoints = (donor or self._folder) / "checkpoints"
            self._warm_start = WarmStart(checkpoints, tuple(self._history))
        self._name = (
            f"run-{content_hash({'history': self._history, 'settings': point})[:8]}"
            if self._history
            else "run"
        )
        self._told = set(told)

    def run(self) -> None:
        """Distil and judge, telling Ray of each rung; what was judged before is told and not judged
        again.
        """
        for record in self._records():
            if record["fraction"] < 1:
                self._tell(record)
        fractions = tuple(fraction for fraction in self._rungs if fraction > self._since)
        run = self._distilled(Callback(fractions, self._reached))
        self._keep(self._record(run.report, 1.0, run.synthesis_seconds))
        self._tell(self._records()[-1], self._folder / self._name / "checkpoints")

    def _distilled(self, watch: Callback) -> Run:
        recipe = self._plan.recipe(self._point, self._identity)
        out = self._folder / self._name
        tried = time.monotonic()
        while True:
            try:
                return distill(
                    recipe,
                    out,
                    data_root=self._plan.data_root,
                    cache=self._plan.cache,
                    resume=True,
                    progress=self._progress,
                    judged_on="validation",
                    callback=watch,
                    warm_start=self._warm_start,
                )
            except OutputError as error:
                # the process that a killed driver left is still ending
                if "in use" not in str(error) or time.monotonic() - tried > LINGER:
                    raise
                time.sleep(1.0)

    def _reached(self, rung: Milestone) -> None:
        fraction = min(self._rungs, key=lambda wanted: abs(wanted - rung.fraction))
        if any(record["fraction"] == fraction for record in self._records()):
            return
        self._keep(self._record(rung.judge(), fraction, time.monotonic() - self._began))
        self._tell(self._records()[-1], rung.checkpoints)

    def _record(self, report: Report, fraction: float, seconds: float) -> dict[str, Any]:
        judged = [result for result in report.results if result.set == "distilled"]
        runs = [
            accuracy
            for result in judged
            if result.epoch == judged[0].epoch
            for accuracy in result.test_accuracy.runs
        ]
        return {
            "fraction": fraction,
            "validation_accuracy": fmean(runs),
            "validation_std": stdev(runs) if len(runs) > 1 else None,
            "storage_bytes": sum(report.storage_bytes.values()),
            "seconds": round(seconds + sum(result.seconds for result in judged), 3),
        }

    def _tell(self, record: dict[str, Any], checkpoints: Path | None = None) -> None:
        """Tell Ray, once, with a checkpoint that says where the trial is; its run's directory is
        the state itself.
        """
        if record["fraction"] in self._told:
            return
        self._told.add(record["fraction"])
        with TemporaryDirectory(prefix="rayd-trial-") as folder:
            state = {
                "trial": self._identity,
                "settings": self._point,
                "history": self._history,
                "fraction": record["fraction"],
                "told": sorted(self._told),
            }
            write_json(Path(folder) / STATE, state)
            if (
                checkpoints is not None
                and checkpoints.is_dir()
                and self._plan.ground.space.scheduler.name == "pbt"
            ):
                shutil.copytree(checkpoints, Path(folder) / "checkpoints")
            rung = (
                len(self._rungs)
                if record["fraction"] == 1
                else self._rungs.index(record["fraction"])
            )
            metrics = {**record, "milestone": milestone(self._plan.ground.space, rung)}
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    def _records(self) -> list[dict[str, Any]]:
        path = self._folder / PROGRESS
        known = read_json(path) if path.exists() else {}
        records: list[dict[str, Any]] = known.get(self._name, {}).get("records", [])
        return records

    def _keep(self, record: dict[str, Any]) -> None:
        path = self._folder / PROGRESS
        known = read_json(path) if path.exists() else {}
        records = [one for one in self._records() if one["fraction"] != record["fraction"]]
        entry = {"settings": self._point, "history": self._history, "records": [*records, record]}
        write_json(path, {**known, self._name: entry, "now": {"run": self._name}})
