"""From a recipe to a run: reads the data, checks everything, and starts the driver."""

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
    """Distil a data set as a recipe says, judge the result, and leave both in `out`.

    Args:
        recipe: the run.
        out: the run's directory.
        data_root: where named data are looked for first.
        cache: root of the store that runs share; see `rayd.engine.store`.
        resume: continue the run that `out` holds.
        overwrite: replace the run that `out` holds.
        progress: where progress is shown; standard error unless given.
        judged_on: `validation` looks at the validation split in place of the test split, which is
            then not looked at.
        callback: called with the set at some steps of the synthesis.
        warm_start: what the synthesis goes on from.
        callbacks: called through the run; see `rayd.callbacks`.

    Raises:
        RaydError: anything that a user can mend, in one sentence, before long work starts where
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
    # a resumed run keeps its precisions: on other hardware 'auto' would make it another run
    choice = arithmetic.choose(recipe, data.shape, before)
    job, reused = with_stored_precisions(Job(choice.recipe, data, Store(cache)), choice)
    # before the directory is opened: a refused run leaves none behind
    Squeeze(job).check()
    check_writable(job.store.root, "cache")
    # trials belong to their sweep: continued by hand, their students would see the test split
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
