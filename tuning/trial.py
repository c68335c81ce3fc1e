"""A trial: distil with given settings, and evaluate the set on the validation split.

Evaluation takes place at the rungs and at the end. A trial is a run in its own directory, which is
also its state: when it is restarted, by Ray or after the driver was killed, it continues from
there. Work that trials share is in the store and computed once. The test split is not used.
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

from rayd import plugins
from rayd.artifacts import content_hash, read_json, write_json
from rayd.config import Recipe, ResourceSettings
from rayd.engine.distill import distill
from rayd.engine.milestones import Callback, Milestone, WarmStart
from rayd.engine.progress import Progress
from rayd.engine.run import Run
from rayd.errors import OutputError, RaydError
from rayd.evaluation.report import Report
from tuning.domain import Point
from tuning.search import SETTINGS, milestone
from tuning.space import ResolvedSpace

PROGRESS = "progress.json"
FAILURE = "failure.json"
LOG = "log.txt"
STATE = "trial.json"
LINGER = 60.0
"""Maximum seconds to wait for the processes of a killed driver to end."""


@dataclass(frozen=True)
class SweepPlan:
    """Inputs that all trials of a sweep share."""

    directory: Path
    """Directory of the trials."""
    resolved: ResolvedSpace
    """The search space with its recipes."""
    validation: dict[str, float]
    """Fraction of the training images for validation, by recipe; 0 if the data have a validation
    split.
    """
    workers: int
    """Ray actors per trial; 0 computes in the trial's process."""
    data_root: Path | None
    """Folder of named data that is searched first."""
    cache: Path | None
    """Root of the store shared by trials; None for the default one."""
    imported: str = ""
    """Modules from outside the package that the driver has imported; see `rayd.plugins.adopt`."""

    def recipe(self, point: Point, name: str) -> Recipe:
        """Recipe of a trial."""
        recipe = self.resolved.recipe(point)
        data = recipe.data
        if data.validation_fraction == 0:
            data = data.model_copy(
                update={"validation_fraction": self.validation[self.resolved.base(point)]}
            )
        resources = own_resources(recipe, self.workers)
        evaluation = recipe.evaluation.model_copy(
            update={"seeds": self.resolved.students(), "baselines": ()}
        )
        changed = {"name": name, "data": data, "resources": resources, "evaluation": evaluation}
        return recipe.model_copy(update=changed)


def threads(recipe: Recipe) -> int:
    """Torch threads of a worker, or of a trial without workers."""
    return recipe.resources.threads or max(1, int(recipe.resources.cpus_per_worker))


def own_resources(recipe: Recipe, workers: int) -> ResourceSettings:
    """Settings of a trial's resources.

    A trial without workers computes in a Ray process, which may see GPUs that it has not reserved
    and that other trials use; so without `gpus_per_worker` it computes on the CPU.
    """
    settings = recipe.resources
    device = settings.device
    if workers == 0 and settings.gpus_per_worker == 0 and device == "auto":
        device = "cpu"
    changed = {
        "workers": workers,
        "address": None,
        "device": "auto" if workers > 0 else device,
        "threads": settings.threads or threads(recipe),
    }
    return settings.model_copy(update=changed)


def resources(recipe: Recipe, workers: int) -> tune.PlacementGroupFactory:
    """Resources that Ray reserves for a trial.

    With workers, an empty bundle for the trial and one for each worker, placed according to the
    recipe; without, a single bundle.
    """
    settings = recipe.resources
    gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker > 0 else {}
    if workers == 0:
        return tune.PlacementGroupFactory([{"CPU": float(threads(recipe)), **gpus}])
    bundles: list[dict[str, float]] = [{}] + [{"CPU": settings.cpus_per_worker, **gpus}] * workers
    return tune.PlacementGroupFactory(bundles, strategy=settings.placement.upper())


def run(config: dict[str, Any], plan: SweepPlan) -> None:
    """Run a trial; Ray Tune's function trainable."""
    identity = str(tune.get_context().get_trial_id())
    folder = plan.directory / identity
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context((folder / LOG).open("a", encoding="utf-8"))
        progress = Progress(console=Console(file=log, highlight=False, width=200))
        try:
            plugins.adopt(plan.imported)
            _Trial(plan, identity, config[SETTINGS], progress, stack).run()
        except RaydError as error:
            write_json(folder / FAILURE, {"reason": str(error)})
            progress.log(f"failed: {error}")
            raise


class _Trial:
    def __init__(
        self, plan: SweepPlan, identity: str, point: Point, progress: Progress, stack: ExitStack
    ):
        self._plan = plan
        self._identity = identity
        self._point = point
        self._progress = progress
        self._folder = plan.directory / identity
        self._rungs = plan.resolved.space.rung_fractions
        self._began = time.monotonic()
        checkpoint = tune.get_checkpoint()
        state = {}
        donor = None
        if checkpoint is not None:
            donor = Path(stack.enter_context(checkpoint.as_directory()))
            state = read_json(donor / STATE)
        self._history: list[dict[str, Any]] = state.get("history", [])
        self._since = 0.0
        self._warm_start = None
        reported: list[float] = state.get("told", [])
        if donor is not None and (state["trial"], state["settings"]) != (identity, point):
            # population-based training: continue from the state of another trial
            entry = {"fraction": state["fraction"], "settings": state["settings"]}
            self._history = [*self._history, entry]
            reported = []
        self._name = "run"
        if self._history:
            self._since = float(self._history[-1]["fraction"])
            checkpoints = (donor or self._folder) / "checkpoints"
            self._warm_start = WarmStart(checkpoints, tuple(self._history))
            key = content_hash({"history": self._history, "settings": point})
            self._name = f"run-{key[:8]}"
        self._reported = set(reported)

    def run(self) -> None:
        """Distil and evaluate, reporting each rung to Ray; a restart reports earlier ones again."""
        for record in self._records():
            if record["fraction"] < 1:
                self._report(record)
        fractions = tuple(fraction for fraction in self._rungs if fraction > self._since)
        run = self._distilled(Callback(fractions, self._reached))
        self._store(self._record(run.report, 1.0, run.synthesis_seconds))
        self._report(self._records()[-1], self._folder / self._name / "checkpoints")

    def _distilled(self, callback: Callback) -> Run:
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
                    callback=callback,
                    warm_start=self._warm_start,
                )
            except OutputError as error:
                # the process of a killed driver may still be shutting down
                if "in use" not in str(error) or time.monotonic() - tried > LINGER:
                    raise
                time.sleep(1.0)

    def _reached(self, rung: Milestone) -> None:
        fraction = min(self._rungs, key=lambda candidate: abs(candidate - rung.fraction))
        if any(record["fraction"] == fraction for record in self._records()):
            return
        self._store(self._record(rung.judge(), fraction, time.monotonic() - self._began))
        self._report(self._records()[-1], rung.checkpoints)

    def _record(self, report: Report, fraction: float, seconds: float) -> dict[str, Any]:
        judged = [result for result in report.results if result.set == "distilled"]
        runs: list[float] = []
        for result in judged:
            if result.epoch == judged[0].epoch:
                runs += result.test_accuracy.runs
        return {
            "fraction": fraction,
            "validation_accuracy": fmean(runs),
            "validation_std": stdev(runs) if len(runs) > 1 else None,
            "storage_bytes": sum(report.storage_bytes.values()),
            "seconds": round(seconds + sum(result.seconds for result in judged), 3),
        }

    def _report(self, record: dict[str, Any], checkpoints: Path | None = None) -> None:
        """Report a record to Ray once, with a checkpoint that identifies the state of the trial.

        The complete state is the run's directory.
        """
        if record["fraction"] in self._reported:
            return
        self._reported.add(record["fraction"])
        with TemporaryDirectory(prefix="rayd-trial-") as folder:
            state = {
                "trial": self._identity,
                "settings": self._point,
                "history": self._history,
                "fraction": record["fraction"],
                "told": sorted(self._reported),
            }
            write_json(Path(folder) / STATE, state)
            population_based = self._plan.resolved.space.scheduler.name == "pbt"
            if checkpoints is not None and checkpoints.is_dir() and population_based:
                shutil.copytree(checkpoints, Path(folder) / "checkpoints")
            rung = len(self._rungs)
            if record["fraction"] != 1:
                rung = self._rungs.index(record["fraction"])
            metrics = {**record, "milestone": milestone(self._plan.resolved.space, rung)}
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    def _records(self) -> list[dict[str, Any]]:
        path = self._folder / PROGRESS
        known = read_json(path) if path.exists() else {}
        records: list[dict[str, Any]] = known.get(self._name, {}).get("records", [])
        return records

    def _store(self, record: dict[str, Any]) -> None:
        path = self._folder / PROGRESS
        known = read_json(path) if path.exists() else {}
        records = [other for other in self._records() if other["fraction"] != record["fraction"]]
        entry = {"settings": self._point, "history": self._history, "records": [*records, record]}
        write_json(path, {**known, self._name: entry, "now": {"run": self._name}})
