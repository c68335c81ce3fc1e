"""Entry point of a run: reads the data, checks everything, and starts the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rayd import devices
from rayd.callbacks import Callbacks
from rayd.callbacks import build as build_callbacks
from rayd.config import Recipe
from rayd.engine import arithmetic
from rayd.engine.driver import Driver
from rayd.engine.job import Job
from rayd.engine.milestones import Callback, WarmStart
from rayd.engine.preflight import check_early_stopping, check_settings, preflight
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.run import Run
from rayd.engine.rundir import RunDirectory, check_writable, continuation
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.store import Store
from rayd.engine.stored_precisions import with_stored_precisions

__all__ = ["Run", "distill"]


def distill(
    recipe: Recipe,
    out: Path,
    *,
    data_root: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    judged_on: Literal["test", "validation"] = "test",
    callback: Callback | None = None,
    warm_start: WarmStart | None = None,
    callbacks: Callbacks | None = None,
) -> Run:
    """Distil a data set according to a recipe, evaluate the result, and write both to `out`.

    Args:
        recipe: the run.
        out: the run's directory.
        data_root: folder of named data that is searched first.
        cache: root of the store that runs share; see `rayd.engine.store`.
        resume: continue the run that `out` holds.
        overwrite: replace the run that `out` holds.
        progress: where progress is shown; standard error unless given.
        judged_on: `validation` evaluates on the validation split instead of the test split, which
            is then not used.
        callback: called with the unfinished set at milestones of the synthesis.
        warm_start: state of another synthesis to start from.
        callbacks: called throughout the run; see `rayd.callbacks`.

    Raises:
        RaydError: any error that the user can fix, in one sentence, before long work starts where
            that is possible.
    """
    progress = progress or Progress()
    # before the data are read, which may take minutes
    check_settings(recipe)
    all_callbacks = Callbacks([*build_callbacks(recipe.callbacks), *(callbacks or ())])
    data = read(recipe.data, data_root, cache, progress, recipe.usual_image_size)
    for line in data.summary.lines() if data.summary is not None else ():
        progress.log(f"data  {line}")
    data = data.judged_on_validation() if judged_on == "validation" else data
    preflight(recipe, data)
    check_early_stopping(recipe, data, all_callbacks)
    earlier = RunDirectory(out) if resume and RunDirectory(out).holds_run() else None
    before = None if earlier is None else earlier.recipe()
    # a resumed run keeps its precisions: on other hardware, 'auto' might resolve differently
    choice = arithmetic.choose(recipe, data.shape, before)
    job, reused = with_stored_precisions(Job(choice.recipe, data, Store(cache)), choice)
    # before the directory is opened, so that a refused run does not leave one behind
    Squeeze(job).check()
    check_writable(job.store.root, "cache")
    # trials belong to their sweep: resumed by hand, their students would be tested on the test
    # split
    alone = judged_on == "test" and warm_start is None
    command = continuation(out, data_root, cache) if alone else None
    with (
        RunDirectory(out).opened(job.recipe, resume, overwrite, command) as directory,
        progress.attached(directory.status),
        devices.thread_limit(devices.threads(job.recipe.resources)),
        all_callbacks.around(directory.path, job.recipe) as finished,
    ):
        for sentence in (choice.summary, *reused, *choice.warnings):
            progress.log(sentence)
        driver = Driver(
            job=job,
            hardware=choice.hardware,
            directory=directory,
            progress=progress,
            judged_on=judged_on,
            callback=callback,
            warm_start=warm_start,
            callbacks=all_callbacks,
        )
        finished.append(driver.run())
    return finished[0]
