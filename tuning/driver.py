"""Sweeps: trials over a search space by Ray Tune, and their results.

<out>/sweep.yaml        configuration: the space, its recipes, everything resolved
      trials/<trial>/   each trial: run (`run/`), results (`progress.json`), log (`log.txt`)
      tune/             Ray Tune's own files, from which a sweep resumes
      trials.csv, trials.parquet, pareto.csv, importance.png, slices.png, tensorboard/, summary.json
      study.csv, study.md, study.png  where all values are tried: results beside the paper's
      report.html       all of it as a page
      best.yaml         best settings as a recipe; best/ is its run, evaluated on the test split
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Self

import torch
import yaml
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from rayd import parts, remote, shown
from rayd.artifacts import read_json, write_bytes, write_json
from rayd.config import Recipe, merge, read_yaml
from rayd.data import ImageData
from rayd.data.sources import open_source
from rayd.distilled import load as load_distilled
from rayd.drawing import as_image
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled, keep_report
from rayd.engine.on_ray.cluster import check_resources, connect, unused_gpus
from rayd.engine.preflight import preflight
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.rundir import check_writable
from rayd.errors import OutputError, ResourceError, RunError
from rayd.evaluation.report import Accuracy, Report
from rayd.locks import LOCK, locked
from rayd.pictures import as_png
from rayd.recipes import resolve
from rayd.synthetic.initialization import check_budget
from tuning import charts, page, study, table
from tuning.live import Events, LiveTable, words
from tuning.search import METRIC, SETTINGS, algorithm, points, scheduler
from tuning.space import ResolvedSpace, Space, load
from tuning.trial import SweepPlan, own_resources, resources, run, threads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
VALIDATION = 0.2
"""Fraction of the training images used for validation if the recipe sets none aside."""
MARK = "# A sweep of rayd: its space and its recipes.\n"
SWEEP = "sweep.yaml"
"""File of the configuration of a sweep."""
RESULTS = "trials.csv"
"""File of the table of trials."""
NAME = "tune"
"""Folder of Ray Tune."""
CHOSEN = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment of Ray Tune: no terminal output, frequent checkpoints, trials in the driver's
directory.
"""


@dataclass(frozen=True)
class Summary:
    """Results of a sweep."""

    space: str
    """Name of the space."""
    trials: int
    """Number of started trials."""
    finished: int
    """Number of finished trials."""
    failed: int
    """Number of failed trials; the remaining ones were stopped at a rung."""
    best: str | None
    """The best trial."""
    settings: dict[str, Any]
    """Settings of the best trial."""
    validation_accuracy: float | None
    """Mean accuracy of the best trial's students on the validation split, a fraction."""
    own_validation_accuracy: float | None
    """Validation accuracy of the recipe's own settings, if tried."""
    test_accuracy: float | None
    """Test accuracy of the best settings, over its students, evaluated once."""
    test_std: float | None
    """Standard deviation of the test accuracy over these students."""
    importance: dict[str, float]
    """Importance of each setting for the validation accuracy (fANOVA), summing to 1."""
    pareto: list[str]
    """Pareto-optimal trials, if there are several objectives."""
    confirmed: dict[str, list[float]]
    """Validation accuracies of fresh distillations with the `best` and the recipe's `own`
    settings.
    """

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Format as text."""
        lines = [
            f"{self.space}: {self.finished} of {self.trials} trials finished, {self.failed} failed"
        ]
        if self.best is None:
            return lines[0]
        own = self.own_validation_accuracy
        against = f", the recipe's own settings {own:.3f}" if own is not None else ""
        lines.append(
            f"best on the validation split: {self.validation_accuracy:.3f} "
            f"(trial {self.best}){against}"
        )
        lines += [f"  {key}: {value}" for key, value in self.settings.items()]
        if self.importance:
            shares = ", ".join(f"{key} {share:.2f}" for key, share in self.importance.items())
            lines.append(f"importance: {shares}")
        for name, runs in self.confirmed.items():
            lines.append(
                f"distilled again, {name}: {_mean(runs)} on the validation split "
                f"({len(runs)} distillations)"
            )
        if self.test_accuracy is not None:
            spread = f" ± {self.test_std:.3f}" if self.test_std is not None else ""
            lines.append(f"test accuracy of the best: {self.test_accuracy:.3f}{spread}")
        if self.pareto:
            lines.append(
                f"{len(self.pareto)} trials that no other beats in all objectives: "
                f"{', '.join(self.pareto)}"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Sweep:
    """A finished sweep."""

    directory: Path
    """Where its tables, charts and best recipe lie."""
    space: Space
    """What was searched."""
    summary: Summary
    """Its results."""
    trials: tuple[table.Row, ...]
    """All trials."""

    @classmethod
    def of(cls, out: str | Path, grid: tune.ResultGrid) -> Self:
        """The sweep in a directory, with the results of `sweep`."""
        directory = remote.local(out).resolve()
        space = Space.model_validate(read_yaml(directory / SWEEP)["space"])
        trials = table.rows(ResolvedSpace(space), grid, directory / "trials")
        return cls(directory, space, summary(directory), tuple(trials))

    @property
    def recipe(self) -> Recipe:
        """The recipe with the best settings, which `best.yaml` in the directory holds."""
        return resolve(self.directory / "best.yaml")

    def plot(self) -> Figure:
        """Draw validation accuracies against each setting as a matplotlib `Figure`."""
        return charts.slices(self.space, self.trials, table.best(self.trials))

    def __repr__(self) -> str:
        return shown.short(
            "Sweep", self.directory, trials=self.summary.trials, best=self.summary.best
        )

    def _repr_html_(self) -> str:
        """The summary, in a notebook."""
        return shown.preformatted(self.summary.text())


def _mean(runs: Sequence[float]) -> str:
    return f"{fmean(runs):.3f}" + (f" ± {stdev(runs):.3f}" if len(runs) > 1 else "")


def sweep(
    space: str | Path | Space,
    *,
    out: str | Path,
    samples: int | None = None,
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    workers: int | None = None,
    concurrent: int | None = None,
    address: str | None = None,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tune.ResultGrid:
    """Search a space, and write best settings, table of trials and statistics to `out`.

    Args:
        space: a built-in name, a YAML file, or the space itself.
        out: directory of the sweep.
        samples: number of draws; by default that of the space, or of the resumed sweep.
        resume: continue the sweep in `out`; finished trials are kept. `samples` may be increased.
        overrides: settings that override the recipe of the space.
        workers: Ray actors per trial; 0 computes in the trial's process; by default the recipe's.
        concurrent: maximum number of concurrent trials; by default as many as the cluster holds.
        address: Ray cluster to join; by default a private one on this machine. On several machines,
            `out`, the store and the data must be accessible to all of them.
        data_root: folder of named data that is searched first.
        cache: root of the store shared by trials.
        progress: progress display.

    Returns:
        Ray Tune's results, one per trial.

    Raises:
        RaydError: any error that the user can fix, in one sentence, before Ray starts if possible.
    """
    progress = progress or Progress()
    out = remote.local(out).resolve()
    if remote.url(out) is not None:
        raise OutputError(
            "A sweep's --out must be a path that all of its machines share. "
            f"Got '{remote.shown(out)}' instead."
        )
    chosen = space if isinstance(space, Space) else load(space)
    if overrides:
        chosen = chosen.model_copy(update={"overrides": merge(chosen.overrides, overrides)})
    if samples is None and resume and _holds_sweep(out):
        samples = int(read_yaml(out / SWEEP)["space"]["samples"])
    if samples is not None:
        chosen = chosen.model_copy(update={"samples": samples})
    os.environ.update(CHOSEN)
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)
    plan = prepare(chosen, out, workers, address, data_root, cache, progress)
    check_writable(out, "output")
    with locked(out, wait=False):
        going_on = _prepare_directory(out, plan, resume)
        grid, trials = _search(plan, out, going_on, concurrent, address, progress)
        _write_results(plan, out, trials, progress)
    return grid


def prepare(
    space: Space,
    out: Path,
    workers: int | None = None,
    address: str | None = None,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> SweepPlan:
    """Plan the trials of a space, and reject what none of them could run. Does not start Ray.

    Raises:
        RaydError: a setting does not exist or a value is invalid, or this machine cannot run a
            trial.
    """
    progress = progress or Progress()
    resolved = ResolvedSpace(space)
    probed = resolved.check()
    first = resolved.own[space.base[0]]
    count = first.resources.workers if workers is None else workers
    cache = None if cache is None else remote.local(cache).resolve()
    data_root = None if data_root is None else remote.local(data_root).resolve()
    if address is None:
        for recipe in resolved.own.values():
            _check_machine(recipe, count)
    validation = {
        name: _validation(recipe, data_root, progress) for name, recipe in resolved.own.items()
    }
    plan = SweepPlan(
        directory=out / "trials",
        resolved=resolved,
        validation=validation,
        workers=count,
        data_root=data_root,
        cache=cache,
        imported=parts.imported(),
    )
    loaded: dict[str, ImageData] = {}
    for name in space.base:
        recipe = plan.recipe(resolved.own_point(name), name)
        data = read(recipe.data, data_root, cache, progress, recipe.usual_image_size)
        loaded[name] = data.judged_on_validation()
        in_process = recipe.resources.model_copy(update={"workers": 0})
        preflight(recipe.model_copy(update={"resources": in_process}), loaded[name])
    for name, recipe in probed:
        check_budget(recipe, loaded[name])
    points(resolved, min(space.samples, 3))
    return plan


def _check_machine(recipe: Recipe, workers: int) -> None:
    settings = recipe.resources
    needed = workers * settings.cpus_per_worker if workers else float(threads(recipe))
    available = os.cpu_count() or 1
    size = f"{needed:g} threads"
    if workers:
        size = f"{workers} workers of {settings.cpus_per_worker:g} CPUs each"
    if needed > available:
        raise ResourceError(
            f"A trial of {size} does not fit this machine, which has {available} CPUs; "
            "ask for fewer (--workers, resources.cpus_per_worker, resources.threads), "
            "or join a cluster with --address."
        )
    gpus = (workers or 1) * settings.gpus_per_worker
    if gpus > torch.cuda.device_count():
        raise ResourceError(
            f"A trial that reserves {gpus:g} GPUs does not fit this machine, which has "
            f"{torch.cuda.device_count()}; lower resources.gpus_per_worker, "
            "or join a cluster with --address."
        )


def _validation(recipe: Recipe, data_root: Path | None, progress: Progress) -> float:
    """Fraction of the training images to be set aside for validation."""
    splits = open_source(recipe.data.name, data_root, recipe.data).splits
    if recipe.data.validation_fraction > 0 or {"validation", "test"} <= splits.keys():
        return 0.0
    progress.log(
        f"{recipe.name} sets no images aside: trials use {1 - VALIDATION:.0%} of the training "
        f"images, and the other {VALIDATION:.0%} for validation (data.validation_fraction); "
        "the best settings are then distilled from all of them"
    )
    return VALIDATION


def _prepare_directory(out: Path, plan: SweepPlan, resume: bool) -> bool:
    """Write the configuration of the sweep; return whether there is a sweep to be continued."""
    path = out / SWEEP
    space = plan.resolved.space
    requested = {
        "space": space.model_dump(mode="json"),
        "recipes": {
            name: recipe.model_dump(mode="json", exclude={"resources"})
            for name, recipe in plan.resolved.own.items()
        },
        "validation": plan.validation,
    }
    if _holds_sweep(out):
        if not resume:
            raise OutputError(
                f"'{out}' holds a sweep already; "
                "add --resume to continue it, or choose another --out."
            )
        before = read_yaml(path)
        old_space = before.get("space", {})
        differing = {
            key for key, value in requested["space"].items() if old_space.get(key) != value
        }
        changed = sorted(differing - {"samples"})
        if not changed:
            changed = [
                name for name in ("recipes", "validation") if before.get(name) != requested[name]
            ]
        if changed:
            raise OutputError(
                f"'{out}' holds another sweep: {', '.join(changed)} differ; choose another --out."
            )
        began = _holds_search(out, plan.resolved)
        if differing:
            _extend(out, space, before["space"]["samples"])
            _write(path, requested)
        return began
    if any(entry.name != LOCK for entry in out.iterdir()):
        raise OutputError(f"'{out}' is not empty and holds no sweep of rayd; choose another --out.")
    _write(path, requested)
    return False


def _holds_sweep(out: Path) -> bool:
    return (out / SWEEP).is_file() and (out / SWEEP).read_bytes().startswith(MARK.encode())


def _holds_search(out: Path, resolved: ResolvedSpace) -> bool:
    """Whether a search has begun in the directory of a sweep.

    Ray Tune begins again if it cannot read its own files, and replaces the results. They are
    therefore read here first.

    Raises:
        OutputError: they cannot be read, or are gone although there are results.
    """
    folder = out / NAME
    if not any(folder.glob("experiment_state-*.json")):
        if (out / RESULTS).exists():
            raise OutputError(
                f"'{out}' holds results of a sweep but not the state of its search "
                f"('{folder.name}/'), without which it cannot be continued; copy that folder too, "
                "or choose another --out."
            )
        return False
    try:
        tune.ExperimentAnalysis(str(folder))
        algorithm(resolved, out).restore_from_dir(str(folder))
    except Exception as error:
        # anything can be raised where a pickle refers to classes that are no longer there
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutputError(
            f"The sweep in '{out}' cannot be continued, as '{folder.name}/' is damaged or was "
            f"written by another version of rayd or Ray: {reason}. Its results are unchanged; "
            "begin a new sweep with another --out."
        ) from error
    return True


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes(path, (MARK + yaml.safe_dump(content, sort_keys=False, width=120)).encode())


def _extend(out: Path, space: Space, before: int) -> None:
    """Prepare a sweep for more samples: rename the best results of fewer samples."""
    if space.samples < before:
        raise OutputError(
            f"'{out}' holds a sweep of {before} samples, which cannot be decreased; "
            f"set --samples {before} or more."
        )
    if space.scheduler.name == "pbt":
        raise OutputError(
            f"'{out}' holds a sweep of {before} samples by 'scheduler: pbt', which moves all of "
            "them together from their beginning, so none can join; "
            f"set --samples {before}, or choose another --out."
        )
    for name in ("best", "confirm"):
        if (out / name).exists():
            (out / name).rename(out / f"{name}-of-{before}")


def _search(
    plan: SweepPlan,
    out: Path,
    going_on: bool,
    concurrent: int | None,
    address: str | None,
    progress: Progress,
) -> tuple[tune.ResultGrid, list[table.Row]]:
    resolved = plan.resolved
    space = plan.resolved.space
    connect(address)
    for recipe in resolved.own.values():
        if plan.workers > 0:
            check_resources(recipe.resources.model_copy(update={"workers": plan.workers}))
    unused = unused_gpus()
    if unused and all(recipe.resources.gpus_per_worker == 0 for recipe in resolved.own.values()):
        progress.log(
            f"trials reserve no GPU, so they compute on CPUs and {unused:g} of the cluster's GPUs "
            "stay unused: set resources.gpus_per_worker to 1, or to a fraction to share one"
        )
    largest = max(resolved.own.values(), key=lambda recipe: threads(recipe))
    trainable = tune.with_resources(
        tune.with_parameters(run, plan=plan), resources(largest, plan.workers)
    )
    tuner = _tuner(trainable, resolved, out, concurrent)
    if going_on:
        # The new tuner has replaced the saved one, so that neither its paths nor its classes are
        # those of the beginning: the sweep may have been moved, or begun by an earlier version.
        tuner = tune.Tuner.restore(str(out / NAME), trainable)
    expected = (
        space.samples if space.algorithm == "optuna" else len(points(resolved, space.samples))
    )
    with LiveTable(progress, resolved, expected):
        grid = tuner.fit()
    return grid, table.rows(resolved, grid, plan.directory)


def _tuner(
    trainable: Any, resolved: ResolvedSpace, out: Path, concurrent: int | None
) -> tune.Tuner:
    space = resolved.space
    optuna = space.algorithm == "optuna"
    drawn = {} if optuna else {SETTINGS: tune.grid_search(points(resolved, space.samples))}
    # Ray Tune rejects a metric here if the searcher or scheduler has its own
    single = {} if optuna or space.scheduler.name != "none" else {"metric": METRIC, "mode": "max"}
    return tune.Tuner(
        trainable,
        param_space=drawn,
        tune_config=tune.TuneConfig(
            **single,
            search_alg=algorithm(resolved, out, concurrent),
            scheduler=scheduler(resolved),
            num_samples=space.samples if optuna else 1,
            reuse_actors=True,
            trial_dirname_creator=attrgetter("trial_id"),
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(out),
            failure_config=tune.FailureConfig(max_failures=space.retries),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=None if space.scheduler.name == "pbt" else 1
            ),
            # finished trials are not used by population-based training
            stop={"fraction": 1.0} if space.scheduler.name == "pbt" else None,
            callbacks=[Events(), JsonLoggerCallback(), CSVLoggerCallback()],
            verbose=0,
        ),
    )


def _write_results(plan: SweepPlan, out: Path, trials: list[table.Row], progress: Progress) -> None:
    """Write tables, charts, the best recipe and its test accuracy."""
    resolved = plan.resolved
    space = plan.resolved.space
    written = table.columns(resolved, trials)
    table.write(out / RESULTS, written)
    if space.is_study:
        study.write(out, resolved, trials)
    best = table.best(trials)
    shares = table.importance(resolved, trials)
    front = table.pareto(trials, space.objectives) if len(space.objectives) > 1 else []
    if front:
        optimal = {row.trial for row in front}
        table.write(out / "pareto", [row for row in written if row["trial"] in optimal])
    _draw(out, resolved, trials, best, shares)
    _hyperparameters(out / "tensorboard", written, list(space.domains))
    test = None
    confirmed = dict[str, list[float]]()
    if best is not None:
        recipe = best_recipe(plan, best)
        write_bytes(out / "best.yaml", (_title(plan, best) + recipe.to_yaml()).encode())
        confirmed = _confirm(plan, best, out / "confirm", progress)
        test = _test(plan, best, recipe, out / "best", progress)
    judged = _distilled_accuracy(test)
    summary = Summary(
        space=space.name,
        trials=len(trials),
        finished=len(table.finished(trials)),
        failed=sum(row.status == "failed" for row in trials),
        best=best.trial if best is not None else None,
        settings=best.settings if best is not None else {},
        validation_accuracy=best.validation_accuracy if best is not None else None,
        own_validation_accuracy=_own_accuracy(trials),
        test_accuracy=judged.mean if judged is not None else None,
        test_std=judged.std if judged is not None else None,
        importance=shares,
        pareto=[row.trial for row in front],
        confirmed=confirmed,
    )
    write_json(out / "summary.json", summary.to_json())
    _write_page(out)
    if best is None:
        reasons = "; ".join(dict.fromkeys(row.reason for row in trials if row.reason))
        reasons = reasons or "none ended."
        raise RunError(f"No trial of the sweep finished: {reasons} See {out / RESULTS}.")


def _own_accuracy(trials: Iterable[table.Row]) -> float | None:
    """Best validation accuracy of finished trials with a recipe's own settings."""
    accuracies = [
        row.validation_accuracy
        for row in trials
        if row.own and row.fraction == 1 and row.validation_accuracy is not None
    ]
    return max(accuracies, default=None)


def _distilled_accuracy(report: Report | None) -> Accuracy | None:
    """Test accuracy of the distilled set with the first network of a report."""
    if report is None:
        return None
    accuracies = (row.test_accuracy for row in report.results if row.set == "distilled")
    return next(accuracies, None)


def _draw(
    out: Path,
    resolved: ResolvedSpace,
    trials: Sequence[table.Row],
    best: table.Row | None,
    shares: Mapping[str, float],
) -> None:
    """Write the charts; results matter more, so that whatever goes wrong is a warning."""
    try:
        chart = charts.importance(shares, len(table.finished(trials)))
        write_bytes(out / "importance.png", as_png(chart))
        slices = charts.slices(resolved.space, trials, best)
        write_bytes(out / "slices.png", as_png(as_image(slices)))
        if resolved.space.is_study:
            write_bytes(out / "study.png", as_png(study.chart(resolved, trials)))
    except Exception as error:
        log.warning("The charts of the sweep could not be drawn: %s", error)


def _write_page(out: Path) -> None:
    """Write the sweep as a page; whatever goes wrong is a warning, as for charts."""
    try:
        page.write(out)
    except Exception as error:
        log.warning("The page of the sweep could not be written: %s", error)


def summary(out: str | Path) -> Summary:
    """Read the results of a finished sweep.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    return Summary(**read_json(Path(out).expanduser() / "summary.json"))


def best_recipe(plan: SweepPlan, best: table.Row) -> Recipe:
    """Recipe with the best settings, and with the recipe's own images, students and resources."""
    name = plan.resolved.base(best.settings)
    return plan.resolved.recipe(best.settings).model_copy(
        update={"name": f"{plan.resolved.own[name].name}-tuned"}
    )


def _title(plan: SweepPlan, best: table.Row) -> str:
    lines = [
        f"# The best of a sweep over '{plan.resolved.space.name}': "
        f"validation accuracy {best.validation_accuracy:.4f}."
    ]
    for entry in best.history:
        lines.append(f"# Up to {entry['fraction']:g} of the synthesis: {words(entry['settings'])}")
    if best.history:
        lines.append(
            "# A run of this recipe has the last settings throughout; "
            "best/ holds the set of the trial itself."
        )
    return "\n".join(lines) + "\n"


def _test(
    plan: SweepPlan, best: table.Row, recipe: Recipe, out: Path, progress: Progress
) -> Report:
    """Evaluate the best settings on the test split, which is not used otherwise.

    The recipe is distilled from all training images. If settings changed during the synthesis, the
    trial's own set is tested.
    """
    seeds = plan.resolved.students(final=True)
    progress.log(f"testing the best settings with {seeds} students")
    if best.history:
        distilled = load_distilled(plan.directory / best.run)
        distilled.save(out / "distilled")
        more = {"evaluation": {"seeds": seeds, "baselines": []}}
        report = evaluate_distilled(distilled, more, plan.data_root, plan.cache, progress)
        return keep_report(report, out)
    evaluation = recipe.evaluation.model_copy(update={"seeds": seeds})
    changed = {"evaluation": evaluation, "resources": _resources(plan, recipe)}
    last = recipe.model_copy(update=changed)
    done = distill(
        last, out, data_root=plan.data_root, cache=plan.cache, resume=True, progress=progress
    )
    return done.report


def _confirm(
    plan: SweepPlan, best: table.Row, out: Path, progress: Progress
) -> dict[str, list[float]]:
    """Validation accuracies of fresh distillations with the best and the recipe's own settings."""
    resolved = plan.resolved
    found = dict[str, list[float]]()
    if not resolved.space.confirm:
        return found
    own = resolved.own_point(resolved.base(best.settings))
    for name, point in (("best", best.settings), ("own", own)):
        for number in range(1, resolved.space.confirm + 1):
            recipe = plan.recipe(point, f"{name}-{number}")
            changed = {"seed": recipe.seed + number, "resources": _resources(plan, recipe)}
            again = recipe.model_copy(update=changed)
            done = distill(
                again,
                out / f"{name}-{number}",
                data_root=plan.data_root,
                cache=plan.cache,
                resume=True,
                progress=progress,
                judged_on="validation",
            )
            runs = [
                result.test_accuracy.mean
                for result in done.report.results
                if result.set == "distilled"
            ]
            found.setdefault(name, []).append(fmean(runs))
    write_json(out / "confirm.json", found)
    return found


def _resources(plan: SweepPlan, recipe: Recipe) -> Any:
    """Resources of a trial, so that results are comparable with those of trials."""
    return own_resources(recipe, plan.workers)


def _hyperparameters(out: Path, written: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Write settings and results of all trials for TensorBoard's HParams."""
    from torch.utils.tensorboard import SummaryWriter

    for row in written:
        if row["validation_accuracy"] is None or (out / row["trial"]).exists():
            continue
        values = {}
        for key in keys:
            value = row[key]
            values[key] = value if isinstance(value, int | float | str | bool) else str(value)
        results = {}
        for name in ("validation_accuracy", "storage_bytes", "seconds"):
            results[name] = float(row[name] or 0.0)
        with SummaryWriter(str(out)) as writer:
            writer.add_hparams(values, results, run_name=row["trial"])


__all__ = ["Summary", "Sweep", "best_recipe", "prepare", "summary", "sweep"]
