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
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from rayd import plugins, remote
from rayd.config import Recipe, merge, read_yaml
from rayd.data import ImageData
from rayd.data.sources import open_source
from rayd.engine.on_ray.cluster import check_resources, connect, unused_gpus
from rayd.engine.preflight import check_validation, preflight
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.rundir import check_writable
from rayd.errors import OutputError, ResourceError
from rayd.locks import locked
from rayd.synthetic.initialization import check_budget
from tuning import table
from tuning.directory import NAME, SWEEP, holds_sweep, prepare_directory
from tuning.live import Events, LiveTable
from tuning.results import best_recipe, write_results
from tuning.search import METRIC, SETTINGS, algorithm, points, scheduler
from tuning.settings import Space
from tuning.space import ResolvedSpace, load
from tuning.summaries import Summary, Sweep, summary
from tuning.trial import LOG, SweepPlan, resources, run, threads

VALIDATION = 0.2
"""Fraction of the training images used for validation if the recipe sets none aside."""
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
    """Search a space, and write the best settings, a table of trials and statistics to `out`.

    Args:
        space: a built-in name, a YAML file, or the space itself.
        out: directory of the sweep.
        samples: number of draws; by default that of the space, or of the resumed sweep.
        resume: continue the sweep in `out`; finished trials are kept. `samples` may be increased.
        overrides: settings that override the recipe of the space.
        workers: Ray actors per trial; 0 computes in the trial's process; by default the recipe's.
        concurrent: maximum number of concurrent trials; by default as many as the cluster holds.
        address: Ray cluster to join; by default the recipe's, else a private one on this machine. On
            several machines, `out`, the store and the data must be accessible to all of them.
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
    if samples is None and resume and holds_sweep(out):
        samples = int(read_yaml(out / SWEEP, "sweep")["space"]["samples"])
    if samples is not None:
        chosen = chosen.model_copy(update={"samples": samples})
    os.environ.update(CHOSEN)
    for name in ("ray.tune", "optuna"):
        logging.getLogger(name).setLevel(logging.ERROR)
    plan = prepare(chosen, out, workers, address, data_root, cache, progress)
    check_writable(out, "output")
    with locked(out):
        going_on = prepare_directory(out, plan, resume)
        grid, trials = _search(plan, out, going_on, concurrent, address, progress)
        write_results(plan, out, trials, progress)
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
    """Plan the trials of a space, and reject spaces whose trials cannot run. Does not start Ray.

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
    if _address(resolved, address) is None:
        for recipe in resolved.own.values():
            _check_machine(recipe, count)
    # all recipes of a space have the same images
    aside = _validation(first, data_root, progress)
    if aside:
        # the best settings are distilled from all images, so nothing may be selected by validation
        # images
        for recipe in (*resolved.own.values(), *(recipe for _, recipe in probed)):
            check_validation(recipe, False, first.data.title)
    validation = dict.fromkeys(resolved.own, aside)
    plan = SweepPlan(
        directory=out / "trials",
        resolved=resolved,
        validation=validation,
        workers=count,
        data_root=data_root,
        cache=cache,
        imported=plugins.imported(),
    )
    loaded: dict[str, ImageData] = {}
    # recipes differ in the normalization at most, and most of them do not
    seen: dict[str, ImageData] = {}
    for name in space.base:
        recipe = plan.recipe(resolved.own_point(name), name)
        key = f"{recipe.data.model_dump_json()} {recipe.usual_image_size}"
        if key not in seen:
            data = read(recipe.data, data_root, cache, progress, recipe.usual_image_size)
            seen[key] = data.judged_on_validation()
        loaded[name] = seen[key]
        in_process = recipe.resources.model_copy(update={"workers": 0})
        preflight(recipe.model_copy(update={"resources": in_process}), loaded[name])
    for name, recipe in probed:
        check_budget(recipe, loaded[name])
    points(resolved, min(space.samples, 3))
    return plan


def _address(resolved: ResolvedSpace, given: str | None) -> str | None:
    """The cluster to join: the given one, else that of the first recipe; None for a private one."""
    own = resolved.own[resolved.space.base[0]].resources.address
    return own if given is None else given


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
    """Fraction of the training images to set aside for validation."""
    splits = open_source(recipe.data.name, data_root, recipe.data).splits
    if recipe.data.validation_fraction > 0 or {"validation", "test"} <= splits.keys():
        return 0.0
    progress.log(
        f"{recipe.name} sets no images aside: trials use {1 - VALIDATION:.0%} of the training "
        f"images, and the other {VALIDATION:.0%} for validation (data.validation_fraction); "
        "the best settings are then distilled from all of them"
    )
    return VALIDATION


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
    address = _address(resolved, address)
    if not ray.is_initialized():
        on = "this machine" if address is None else f"the cluster at '{address}'"
        progress.log(f"{'starting' if address is None else 'joining'} Ray on {on}")
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
        # The new tuner replaces the saved one, so that paths and classes are current: the sweep may
        # have been moved, or started by an earlier version. Failed trials are retried, as the cause
        # may have been fixed: a full disk, a missing file, a device's memory.
        tuner = tune.Tuner.restore(str(out / NAME), trainable, resume_errored=True)
    expected = (
        space.samples if space.algorithm == "optuna" else len(points(resolved, space.samples))
    )
    begun = "continuing" if going_on else "starting"
    progress.log(
        f"{begun} {expected} trials, as many at a time as fit; each process first loads PyTorch "
        f"and reads the data (logs: {plan.directory}/<trial>/{LOG})"
    )
    with LiveTable(progress, resolved, expected, plan.directory):
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
            # population-based training does not use finished trials
            stop={"fraction": 1.0} if space.scheduler.name == "pbt" else None,
            callbacks=[Events(), JsonLoggerCallback(), CSVLoggerCallback()],
            verbose=0,
        ),
    )


__all__ = ["Summary", "Sweep", "best_recipe", "prepare", "summary", "sweep"]
