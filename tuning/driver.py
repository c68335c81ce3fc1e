"""A sweep: trials over a search space by Ray Tune, and what is left of it.

<out>/sweep.yaml        what was asked for: the space, its recipes, everything resolved
      trials/<trial>/   the run of each trial (`run/`), how it was judged (`progress.json`), what it said (`log.txt`)
      tune/             Ray Tune's own files, from which a sweep goes on
      trials.csv, trials.parquet, pareto.csv, importance.png, slices.png, tensorboard/, summary.json
      best.yaml         the best settings as a recipe; best/ is its run, judged on the test split
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import yaml
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from rayd import remote
from rayd.artifacts import read_json, write_bytes, write_json
from rayd.config import Recipe, merge, read_yaml
from rayd.data import ImageData
from rayd.data.sources import open_source
from rayd.distilled import as_png
from rayd.distilled import load as load_distilled
from rayd.engine.distill import distill
from rayd.engine.evaluate import evaluate_distilled, keep_report
from rayd.engine.on_ray.cluster import check_resources, connect
from rayd.engine.preflight import preflight
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.rundir import check_writable, locked
from rayd.errors import OutputError, ResourceError, RunError
from rayd.evaluation.report import Report
from rayd.synthetic.initialization import check_budget
from tuning import charts, table
from tuning.live import Board, Events, words
from tuning.search import METRIC, SETTINGS, algorithm, asked_samples, points, scheduler
from tuning.space import ResolvedSpace, Space, load
from tuning.trial import Plan, recipe_name, resources, run, threads

VALIDATION = 0.2
"""Share of the training images that trials are judged on where the recipe sets none aside."""
MARK = "# A sweep of rayd: its space and its recipes.\n"
SWEEP = "sweep.yaml"
"""The file that says what was asked for."""
NAME = "tune"
"""Of Ray Tune's own folder."""
CHOSEN = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Ray Tune is to leave the terminal to us, keep its state often, and leave trials in the driver's
directory.
"""


@dataclass(frozen=True)
class Summary:
    """What came of a sweep."""

    space: str
    """Name of the space."""
    trials: int
    """Trials that were begun."""
    finished: int
    """Of these, those that came to their end."""
    failed: int
    """Of these, those that failed for good; the others were stopped at a rung."""
    best: str | None
    """The best trial."""
    settings: dict[str, Any]
    """Its settings."""
    validation_accuracy: float | None
    """Mean accuracy of the best trial's students on the validation split, a fraction."""
    own_validation_accuracy: float | None
    """Of the recipe's own settings, where they were tried."""
    test_accuracy: float | None
    """Of the best settings, over `final_seeds` students, read once."""
    test_std: float | None
    """Its standard deviation over these students."""
    importance: dict[str, float]
    """Share of each setting in what a random forest can tell of the validation accuracy; they add
    up to 1.
    """
    pareto: list[str]
    """Trials that no other beats in all objectives, where there are several."""
    confirmed: dict[str, list[float]]
    """Validation accuracies of fresh distillations, of the `best` settings and of the recipe's
    `own`.
    """

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def text(self) -> str:
        """In words."""
        lines = [
            f"{self.space}: {self.finished} of {self.trials} trials finished, {self.failed} failed"
        ]
        if self.best is None:
            return lines[0]
        own = self.own_validation_accuracy
        against = f", the recipe's own settings {own:.3f}" if own is not None else ""
        lines.append(
            f"best on the validation split: {self.validation_accuracy:.3f} (trial {self.best}){against}"
        )
        lines += [f"  {key}: {value}" for key, value in self.settings.items()]
        if self.importance:
            lines.append(
                "what mattered: "
                + ", ".join(f"{key} {share:.2f}" for key, share in self.importance.items())
            )
        for name, runs in self.confirmed.items():
            lines.append(
                f"distilled anew, {name}: {_mean(runs)} on the validation split ({len(runs)} distillations)"
            )
        if self.test_accuracy is not None:
            spread = f" ± {self.test_std:.3f}" if self.test_std is not None else ""
            lines.append(f"test accuracy of the best: {self.test_accuracy:.3f}{spread}")
        if self.pareto:
            lines.append(
                f"{len(self.pareto)} trials that no other beats in all objectives: {', '.join(self.pareto)}"
            )
        return "\n".join(lines)


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
    """Search a space, and leave the best settings, the table of trials and what was learned from it
    in `out`.

    Args:
        space: a built-in name, a YAML file, or the space itself.
        out: directory of the sweep.
        samples: draws; absent: as the space says, or the sweep that is resumed.
        resume: go on with the sweep that `out` holds; finished trials are not touched. More
            `samples` than it had are added.
        overrides: settings laid over the recipe of the space.
        workers: Ray actors of each trial; 0 works in the trial's own process; absent: as the recipe
            says.
        concurrent: trials at a time; absent: as many as the cluster holds.
        address: Ray cluster to join; absent: a private one on this machine. On several machines
            `out`, the store and the data must lie where all of them see them.
        data_root: where named data are looked for first.
        cache: root of the store that trials share.
        progress: where progress is shown.

    Returns:
        Ray Tune's results, one a trial.

    Raises:
        RaydError: anything that a user can mend, in one sentence, before Ray starts where that is
            possible.
    """
    progress = progress or Progress()
    out = remote.local(out).resolve()
    if remote.url(out) is not None:
        raise OutputError(
            f"A sweep's --out must be a path that all of its machines share. Got '{remote.shown(out)}' instead."
        )
    chosen = space if isinstance(space, Space) else load(space)
    if overrides:
        chosen = chosen.model_copy(update={"overrides": merge(chosen.overrides, overrides)})
    if samples is None and resume and _holds_sweep(out):
        samples = asked_samples(out / SWEEP)
    if samples is not None:
        chosen = chosen.model_copy(update={"samples": samples})
    plan = prepare(chosen, out, workers, address, data_root, cache, progress)
    check_writable(out, "output")
    with locked(out, wait=False):
        going_on = _claim(out, plan, resume)
        grid, trials = _search(plan, out, going_on, concurrent, address, progress)
        _leave(plan, out, trials, progress)
    return grid


def prepare(
    space: Space,
    out: Path,
    workers: int | None = None,
    address: str | None = None,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """What the trials of a space will be; refuses what none of them could do. Ray is not started.

    Raises:
        RaydError: a setting does not exist or its values do not fit, or this machine cannot hold a
            trial.
    """
    progress = progress or Progress()
    ground = ResolvedSpace(space)
    probed = ground.check()
    first = ground.own[space.base[0]]
    count = first.resources.workers if workers is None else workers
    cache = None if cache is None else remote.local(cache).resolve()
    data_root = None if data_root is None else remote.local(data_root).resolve()
    if address is None:
        for recipe in ground.own.values():
            _check_machine(recipe, count)
    validation = {
        name: _validation(recipe, data_root, progress) for name, recipe in ground.own.items()
    }
    plan = Plan(out / "trials", ground, validation, count, data_root, cache)
    loaded: dict[str, ImageData] = {}
    for name in space.base:
        recipe = plan.recipe(ground.own_point(name), name)
        data = read(recipe.data, data_root, cache, progress, recipe.usual_image_size)
        loaded[name] = data.judged_on_validation()
        preflight(
            recipe.model_copy(
                update={"resources": recipe.resources.model_copy(update={"workers": 0})}
            ),
            loaded[name],
        )
    for name, recipe in probed:
        check_budget(recipe, loaded[name])
    points(ground, min(space.samples, 3))
    return plan


def _check_machine(recipe: Recipe, workers: int) -> None:
    settings = recipe.resources
    wanted = workers * settings.cpus_per_worker if workers else float(threads(recipe))
    there = os.cpu_count() or 1
    who = (
        f"{workers} workers of {settings.cpus_per_worker:g} CPUs each"
        if workers
        else f"{wanted:g} threads"
    )
    if wanted > there:
        raise ResourceError(
            f"A trial of {who} does not fit this machine, which has {there} CPUs; ask for fewer (--workers, "
            "resources.cpus_per_worker, resources.threads), or join a cluster with --address."
        )
    gpus = (workers or 1) * settings.gpus_per_worker
    if gpus > torch.cuda.device_count():
        raise ResourceError(
            f"A trial that reserves {gpus:g} GPUs does not fit this machine, which has {torch.cuda.device_count()}; lower "
            "resources.gpus_per_worker, or join a cluster with --address."
        )


def _validation(recipe: Recipe, data_root: Path | None, progress: Progress) -> float:
    """The share of the training images that must be set aside for trials to be judged on."""
    splits = open_source(recipe.data.name, data_root).splits
    if recipe.data.validation_fraction > 0 or {"validation", "test"} <= splits.keys():
        return 0.0
    progress.log(
        f"{recipe.name} sets no images aside: trials learn from {1 - VALIDATION:.0%} of the training images and are judged on "
        f"the other {VALIDATION:.0%} (data.validation_fraction); the best settings are then distilled from all of them"
    )
    return VALIDATION


def _claim(out: Path, plan: Plan, resume: bool) -> bool:
    """Take the directory for this sweep; whether it holds the beginning of it."""
    path = out / SWEEP
    space = plan.ground.space
    asked = {
        "space": space.model_dump(mode="json"),
        "recipes": {
            name: recipe.model_dump(mode="json", exclude={"resources"})
            for name, recipe in plan.ground.own.items()
        },
        "validation": plan.validation,
    }
    if _holds_sweep(out):
        if not resume:
            raise OutputError(
                f"'{out}' holds a sweep already; add --resume to go on with it, or choose another --out."
            )
        before = read_yaml(path)
        differing = {
            key for key in asked["space"] if before.get("space", {}).get(key) != asked["space"][key]
        }
        changed = sorted(differing - {"samples"})
        changed += [
            name
            for name in ("recipes", "validation")
            if not changed and before.get(name) != asked[name]
        ]
        if changed:
            raise OutputError(
                f"'{out}' holds another sweep: {', '.join(changed)} differ; choose another --out."
            )
        if differing:
            _grow(out, space, before["space"]["samples"])
            _write(path, asked)
        return bool(tune.Tuner.can_restore(str(out / NAME)))
    if any(entry.name != ".lock" for entry in out.iterdir()):
        raise OutputError(f"'{out}' is not empty and holds no sweep of rayd; choose another --out.")
    _write(path, asked)
    return False


def _holds_sweep(out: Path) -> bool:
    return (out / SWEEP).is_file() and (out / SWEEP).read_bytes().startswith(MARK.encode())


def _write(path: Path, asked: Mapping[str, Any]) -> None:
    write_bytes(path, (MARK + yaml.safe_dump(asked, sort_keys=False, width=120)).encode())


def _grow(out: Path, space: Space, before: int) -> None:
    """Make room for what more samples will find: what was best of fewer is kept under another
    name.
    """
    if space.samples < before:
        raise OutputError(
            f"'{out}' holds a sweep of {before} samples, which may grow but not shrink; set --samples {before} or more."
        )
    if space.scheduler.name == "pbt":
        raise OutputError(
            f"'{out}' holds a sweep of {before} samples by 'scheduler: pbt', which moves all of them together from their "
            f"beginning, so none can join; set --samples {before}, or choose another --out."
        )
    for name in ("best", "confirm"):
        if (out / name).exists():
            (out / name).rename(out / f"{name}-of-{before}")


def _search(
    plan: Plan,
    out: Path,
    going_on: bool,
    concurrent: int | None,
    address: str | None,
    progress: Progress,
) -> tuple[tune.ResultGrid, list[table.Row]]:
    ground = plan.ground
    space = plan.ground.space
    os.environ.update(CHOSEN)
    connect(address)
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for recipe in ground.own.values():
        if plan.workers > 0:
            check_resources(recipe.resources.model_copy(update={"workers": plan.workers}))
    largest = max(ground.own.values(), key=lambda recipe: threads(recipe))
    trainable = tune.with_resources(
        tune.with_parameters(run, plan=plan), resources(largest, plan.workers)
    )
    tuner = (
        tune.Tuner.restore(str(out / NAME), trainable)
        if going_on
        else _tuner(trainable, ground, out, concurrent)
    )
    expected = space.samples if space.algorithm == "optuna" else len(points(ground, space.samples))
    with Board(progress, ground, expected):
        grid = tuner.fit()
    return grid, table.rows(ground, grid, plan.directory)


def _tuner(trainable: Any, ground: ResolvedSpace, out: Path, concurrent: int | None) -> tune.Tuner:
    space = ground.space
    proposed = space.algorithm == "optuna"
    drawn = {} if proposed else {SETTINGS: tune.grid_search(points(ground, space.samples))}
    # a searcher or scheduler that has its own metric must be the only one that says so
    single = {} if proposed or space.scheduler.name != "none" else {"metric": METRIC, "mode": "max"}
    return tune.Tuner(
        trainable,
        param_space=drawn,
        tune_config=tune.TuneConfig(
            **single,
            search_alg=algorithm(ground, out / SWEEP, concurrent),
            scheduler=scheduler(ground),
            num_samples=space.samples if proposed else 1,
            reuse_actors=True,
            trial_dirname_creator=_folder,
        ),
        run_config=tune.RunConfig(
            name=NAME,
            storage_path=str(out),
            failure_config=tune.FailureConfig(max_failures=space.retries),
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=None if space.scheduler.name == "pbt" else 1
            ),
            # nobody learns from a trial that is at its end
            stop={"fraction": 1.0} if space.scheduler.name == "pbt" else None,
            callbacks=[Events(), JsonLoggerCallback(), CSVLoggerCallback()],
            verbose=0,
        ),
    )


def _folder(trial: Any) -> str:
    return str(trial.trial_id)


def _leave(plan: Plan, out: Path, trials: list[table.Row], progress: Progress) -> None:
    """Everything that a sweep leaves: tables, charts, the best recipe and its test accuracy."""
    ground = plan.ground
    space = plan.ground.space
    written = table.columns(ground, trials)
    table.write(out / "trials", written)
    best = table.best(trials)
    shares = table.importance(ground, trials)
    front = table.pareto(trials, space.objectives) if len(space.objectives) > 1 else []
    if front:
        table.write(
            out / "pareto", [one for one in written if one["trial"] in {row.trial for row in front}]
        )
    write_bytes(
        out / "importance.png", as_png(charts.importance(shares, len(table.finished(trials))))
    )
    write_bytes(out / "slices.png", as_png(charts.slices(ground, trials, best)))
    _hyperparameters(out / "tensorboard", written, list(space.domains))
    test = None
    confirmed = dict[str, list[float]]()
    if best is not None:
        recipe = best_recipe(plan, best)
        write_bytes(out / "best.yaml", (_title(plan, best) + recipe.to_yaml()).encode())
        confirmed = _confirm(plan, best, out / "confirm", progress)
        test = _test(plan, best, recipe, out / "best", progress)
    own = [
        row.validation_accuracy
        for row in trials
        if row.own and row.validation_accuracy is not None and row.fraction == 1
    ]
    judged = (
        next((one.test_accuracy for one in test.results if one.set == "distilled"), None)
        if test is not None
        else None
    )
    summary = Summary(
        space=space.name,
        trials=len(trials),
        finished=len(table.finished(trials)),
        failed=sum(row.status == "failed" for row in trials),
        best=best.trial if best is not None else None,
        settings=best.settings if best is not None else {},
        validation_accuracy=best.validation_accuracy if best is not None else None,
        own_validation_accuracy=max(own, default=None),
        test_accuracy=judged.mean if judged is not None else None,
        test_std=judged.std if judged is not None else None,
        importance=shares,
        pareto=[row.trial for row in front],
        confirmed=confirmed,
    )
    write_json(out / "summary.json", summary.to_json())
    if best is None:
        reasons = (
            "; ".join(dict.fromkeys(row.reason for row in trials if row.reason))
            or "none came to its end"
        )
        raise RunError(f"No trial of the sweep finished: {reasons} See {out / 'trials.csv'}.")


def summary(out: str | Path) -> Summary:
    """What a finished sweep left.

    Raises:
        ArtifactError: it is not there, or damaged.
    """
    return Summary(**read_json(Path(out).expanduser() / "summary.json"))


def best_recipe(plan: Plan, best: table.Row) -> Recipe:
    """The recipe with the best settings; images, students and resources are those of the recipe
    itself.
    """
    name = recipe_name(plan.ground, best.settings)
    return plan.ground.recipe(best.settings).model_copy(
        update={"name": f"{plan.ground.own[name].name}-tuned"}
    )


def _title(plan: Plan, best: table.Row) -> str:
    lines = [
        f"# The best of a sweep over '{plan.ground.space.name}': validation accuracy {best.validation_accuracy:.4f}."
    ]
    for entry in best.history:
        lines.append(f"# Up to {entry['fraction']:g} of the synthesis: {words(entry['settings'])}")
    if best.history:
        lines.append(
            "# A run of this recipe has the last settings throughout; best/ holds the set of the trial itself."
        )
    return "\n".join(lines) + "\n"


def _test(plan: Plan, best: table.Row, recipe: Recipe, out: Path, progress: Progress) -> Report:
    """The test accuracy of the best settings: the only look at the test split.

    The recipe is distilled from all training images. Of settings that changed on the way it is the
    trial's own set that is tested.
    """
    seeds = plan.ground.space.final_seeds
    progress.log(f"testing the best settings with {seeds} students")
    if best.history:
        distilled = load_distilled(plan.directory / best.run)
        distilled.save(out / "distilled")
        more = {"evaluation": {"seeds": seeds, "baselines": []}}
        report = evaluate_distilled(distilled, more, plan.data_root, plan.cache, progress)
        return keep_report(report, out)
    evaluation = recipe.evaluation.model_copy(update={"seeds": seeds})
    last = recipe.model_copy(
        update={"evaluation": evaluation, "resources": _resources(plan, recipe)}
    )
    done = distill(
        last, out, data_root=plan.data_root, cache=plan.cache, resume=True, progress=progress
    )
    return done.report


def _confirm(plan: Plan, best: table.Row, out: Path, progress: Progress) -> dict[str, list[float]]:
    """Validation accuracies of fresh distillations of the best settings and of the recipe's own."""
    ground = plan.ground
    found = dict[str, list[float]]()
    if not ground.space.confirm:
        return found
    own = ground.own_point(recipe_name(ground, best.settings))
    for name, point in (("best", best.settings), ("own", own)):
        for number in range(1, ground.space.confirm + 1):
            recipe = plan.recipe(point, f"{name}-{number}")
            again = recipe.model_copy(
                update={"seed": recipe.seed + number, "resources": _resources(plan, recipe)}
            )
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


def _resources(plan: Plan, recipe: Recipe) -> Any:
    """As a trial has them: results are compared with those of trials."""
    return recipe.resources.model_copy(
        update={
            "workers": plan.workers,
            "address": None,
            "threads": recipe.resources.threads or threads(recipe),
        }
    )


def _hyperparameters(out: Path, written: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Settings and results of all trials for TensorBoard's HParams."""
    from torch.utils.tensorboard import SummaryWriter

    for row in written:
        if row["validation_accuracy"] is None or (out / row["trial"]).exists():
            continue
        values = {
            key: row[key] if isinstance(row[key], int | float | str | bool) else str(row[key])
            for key in keys
        }
        results = {
            name: float(row[name] or 0.0)
            for name in ("validation_accuracy", "storage_bytes", "seconds")
        }
        with SummaryWriter(str(out)) as writer:
            writer.add_hparams(values, results, run_name=row["trial"])


__all__ = ["Summary", "best_recipe", "prepare", "summary", "sweep"]
