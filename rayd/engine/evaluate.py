"""Evaluation of a set: runs the evaluate stage (`rayd.engine.stages.students`) and reports.

`judge` evaluates the set of a run, `evaluate_distilled` one that was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayd import devices, remote
from rayd.artifacts import write_bytes, write_json
from rayd.config import EvaluationSettings, Recipe, lookup
from rayd.data import ImageData
from rayd.distilled import Distilled
from rayd.engine import arithmetic, memory
from rayd.engine.costs import Costs
from rayd.engine.gpu_sharing import run_sharing_gpus
from rayd.engine.job import Job
from rayd.engine.network_ids import teachers
from rayd.engine.observer import DatasetInfo
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import ObjectRef, TaskStream
from rayd.engine.preflight import check_settings, preflight
from rayd.engine.progress import Progress
from rayd.engine.progress_forecast import Forecast
from rayd.engine.reading import normalized_as, read
from rayd.engine.rundir import RunDirectory
from rayd.engine.stages.rank import Rank
from rayd.engine.stages.relabel import next_to
from rayd.engine.stages.score import baseline_images
from rayd.engine.stages.squeeze import Squeeze
from rayd.engine.stages.student_tasks import Task, TrainingSets, tasks, with_best_rates
from rayd.engine.stages.students import (
    NO_TEACHERS,
    UNFINISHED,
    WORKERS,
    LabelSource,
    LastStudents,
    Students,
    student_bytes,
    students_at_a_time,
    team_of_student,
)
from rayd.engine.storage import with_labels_of
from rayd.engine.store import Store
from rayd.engine.student_trainer import StudentTrainer
from rayd.errors import ArtifactError, ConfigError
from rayd.evaluation.matrix import FILE as CHART
from rayd.evaluation.report import FILE, Report
from rayd.evaluation.student import StudentResult
from rayd.evaluation.variants import Variant, needs_teachers, variants
from rayd.pictures import as_file
from rayd.recipes import restore

EVALUATION_KEYS = frozenset({"data", "evaluation", "labels", "ranking", "resources"})
"""Settings of a finished set's recipe that may be overridden; data are checked by fingerprint."""


def judge(
    job: Job,
    distilled: Distilled,
    progress: Progress,
    log: Callable[[str, int, float, dict[str, float]], None] = lambda *_: None,
    labels: LabelSource = NO_TEACHERS,
    pool: TaskStream | None = None,
    is_last: bool = False,
    images: ObjectRef | None = None,
) -> list[tuple[Variant, StudentResult]]:
    """Train and test students on the distilled set, the recipe's baselines and its comparisons.

    Args:
        job: the protocol, the architectures, the baselines, the real data.
        distilled: the set to evaluate.
        progress: where progress is shown.
        log: called with (stage, number of the result, seconds, values) for every new result.
        labels: source of soft labels.
        pool: idle, and hosts `Worker`; None opens one.
        is_last: whether no later stage uses the pool, so that its workers can drop networks and
            statistics.
        images: the set's images as an array, if an earlier stage has shared them with the same
            workers.
    """
    recipe = job.recipe
    patches = (
        baseline_images(job, progress, pool) if "rded" in recipe.evaluation.baselines else None
    )
    scores = Rank(job).ensure(progress)
    sets = TrainingSets(
        job.data, distilled, recipe.ipc, patches=patches, scores=scores, images=images
    )
    compared = variants(recipe, distilled.labels.is_floating_point())
    work = tasks(recipe, compared, sets, labels.hashes)
    known: set[Task] = set()

    def on_result(task: Task, result: StudentResult) -> None:
        known.add(task)
        scalars = {_scalar(task, result, recipe.evaluation): result.test_accuracy}
        log(Students.name, len(known), result.seconds, scalars)

    kind = LastStudents if is_last and pool is not None else Students
    students = kind(job, sets, work, labels, on_result)
    if missing := students.missing():
        known.update(task for task in work if task not in missing)
        with ExitStack() as stack:
            if pool is None:
                pool = _open_pool(job, stack, progress)
            _train(students, missing, job, progress, pool)
    results = students.results()
    # after all are trained, as the selection is by the mean over seeds
    work = with_best_rates(work, results)
    return [(task.variant, result) for task in work for result in results[task]]


def _open_pool(job: Job, stack: ExitStack, progress: Progress) -> TaskStream:
    """A pool for students only, until the stack is closed."""
    recipe = job.recipe
    arguments = (recipe.evaluation, recipe.resources, DatasetInfo.of(job.data))
    if recipe.evaluation.workers > 1:
        from rayd.engine.on_ray.train import TrainPool

        team = team_of_student(recipe)
        teams = max(1, recipe.resources.workers // team.workers)
        scratch = job.store.root / UNFINISHED
        return stack.enter_context(
            TrainPool(team, WORKERS, scratch, StudentTrainer, *arguments, teams=teams)
        )
    pool = stack.enter_context(open_pool(recipe.resources, StudentTrainer, *arguments))
    stack.enter_context(progress.workers(pool))
    return pool


def _train(
    students: Students, missing: list[Task], job: Job, progress: Progress, pool: TaskStream
) -> None:
    """Run the stage, with a forecast of its duration."""
    weight = Forecast(job).student if progress.is_shown else None
    epochs = sum(task.epochs for task in missing)
    expected_seconds = None
    if weight is not None:
        parallel = students_at_a_time(job, len(missing))
        expected_seconds = sum(weight(task) * task.epochs for task in missing) / parallel
    costs = Costs(job.recipe, job.data, job.store)
    on_wait = progress.wait_logger(students.name, students.noun)
    with progress.stage(students.name, epochs, students.unit, expected_seconds) as shown:
        run_sharing_gpus(
            pool,
            job.recipe.resources,
            len(missing),
            lambda: max(student_bytes(costs, job.recipe, task) for task in missing),
            lambda workers: students.run(workers, shown, on_wait, weight),
        )


def _scalar(task: Task, result: StudentResult, settings: EvaluationSettings) -> str:
    """Name of a result in the log."""
    parts = [task.variant.words, task.network.label, str(task.seed)]
    parts += [result.selection] if len(settings.epoch) > 1 else []
    return "/".join([*parts, "test_accuracy"])


def evaluate_distilled(
    distilled: Distilled,
    overrides: Mapping[str, Any],
    data_root: Path | None,
    cache: Path | None,
    progress: Progress,
) -> Report:
    """Evaluate a distilled set by its own recipe with overrides.

    Raises:
        ArtifactError: the card of the set holds no recipe.
        DataError: the set was distilled from other real data.
    """
    if "config" not in distilled.card:
        raise ArtifactError(
            "The card of this distilled set holds no recipe ('config'), so its data and protocol "
            "are unknown."
        )
    if other := sorted(overrides.keys() - EVALUATION_KEYS):
        raise ConfigError(
            f"An evaluation takes settings of {', '.join(sorted(EVALUATION_KEYS))} only. Got "
            f"'{other[0]}' instead."
        )
    recipe = restore(distilled.card["config"], overrides, "the card's recipe")
    recipe = _with_threads_of_run(recipe, distilled, overrides)
    check_settings(recipe)
    before = lookup(distilled.card, "config.data.validation_fraction")
    wants_more = lookup(overrides, "data.validation_fraction") not in (None, before)
    data = read(recipe.data, data_root, cache, progress)
    selects = "validation-best" in recipe.evaluation.epoch or recipe.evaluation.learning_rates
    if wants_more or (selects and data.validation is None):
        raise ConfigError(
            "Images that select an epoch or a step size are set aside before a set is distilled "
            f"from the others, and this one was distilled with data.validation_fraction={before or 0}; distil again "
            "with data.validation_fraction=0.1, or evaluate with evaluation.epoch=last "
            "evaluation.learning_rates=[]."
        )
    # the set is network input: real images must be normalised as they were for its observers
    data = normalized_as(distilled, data)
    if sentence := _other_test_images(distilled, data):
        progress.log(sentence)
    preflight(recipe, data, teachers(recipe) if needs_teachers(recipe) else ())
    choice = arithmetic.choose(recipe, data.shape)
    recipe = choice.recipe
    for sentence in choice.warnings:
        progress.log(sentence)
    job = Job(recipe, data, Store(cache))
    distilled = with_labels_of(distilled, recipe, data)
    began = time.monotonic()
    with devices.thread_limit(devices.threads(recipe.resources)):
        labels = _label_source(job, distilled, progress)
        with memory.explained("evaluate", recipe):
            results = judge(job, distilled, progress, labels=labels)
    report = Report.build(
        recipe,
        results,
        distilled,
        {"evaluate": time.monotonic() - began},
        data.train.counts.tolist(),
    )
    if data.summary is None:
        return report
    # of what was tested on now; the card says what was there when the set was distilled
    return replace(report, real_data=data.summary.to_json())


def _other_test_images(distilled: Distilled, data: ImageData) -> str | None:
    """Sentence on test images that are not those of the set's run, by their numbers of each class.

    A card has no fingerprint of the test images: others in equal numbers are not noticed.
    """
    then = lookup(distilled.card, "data.read.splits.test.classes")
    now = data.test.counts.tolist()
    if not isinstance(then, list) or then == now:
        return None
    return (
        f"The test images have changed since the set was distilled ({sum(then):,} then, "
        f"{sum(now):,} now): accuracies do not compare with earlier ones."
    )


def _with_threads_of_run(
    recipe: Recipe, distilled: Distilled, overrides: Mapping[str, Any]
) -> Recipe:
    """The recipe with the number of threads of the set's run, unless the overrides set another.

    Cards do not contain resources, but a different number of threads changes the rounding of
    students, and can make small ones several times slower.
    """
    if distilled.directory is None or lookup(overrides, "resources.threads") is not None:
        return recipe
    run = RunDirectory(distilled.directory.parent)
    if not run.holds_run():
        return recipe
    threads = run.recipe().resources.threads
    return recipe.model_copy(
        update={"resources": recipe.resources.model_copy(update={"threads": threads})}
    )


def _label_source(job: Job, distilled: Distilled, progress: Progress) -> LabelSource:
    """Teachers of a finished set, retrained if they are not in the store, and its stored labels."""
    recipe = job.recipe
    if recipe.labels.kind == "hard":
        return NO_TEACHERS
    labels = next_to(job, distilled) if recipe.labels.kind == "stored" else None
    if labels is not None and not needs_teachers(recipe):
        return LabelSource(stored=labels.directory, hashes=labels.made_for.teachers)
    squeeze = Squeeze(job, teachers(recipe))
    observers = squeeze.ensure(progress)
    stored = None if labels is None else labels.directory
    return LabelSource(observers, stored, squeeze.teacher_hashes())


def keep_report(report: Report, directory: Path) -> Report:
    """Merge a report into that of a directory, whose lock the caller holds; newer results win."""
    before = Report.kept(directory)
    merged = report if before is None else before.merge(report)
    write_json(remote.local(directory) / FILE, merged.to_json())
    return merged


def keep_chart(report: Report, directory: Path) -> Path | None:
    """Write a chart of several architectures into a directory; None if there is only one."""
    matrix = report.matrix()
    if len(matrix.networks) < 2:
        return None
    path = remote.local(directory) / CHART
    title = f"{report.recipe}: {report.method} on {report.data}"
    write_bytes(path, as_file(matrix.chart(title), "PNG"))
    return path
