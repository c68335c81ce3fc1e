"""The evaluate stage: one resumable task per (set, network, seed), each result kept in the store.

Student seeds and the subsets of the random baseline are numbered from 0 in every run, so that sets
are compared under common random numbers and a baseline that one run trained is there for all
others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayd import devices, remote
from rayd.artifacts import write_json
from rayd.config import EvaluationSettings, Recipe, lookup, prune
from rayd.data import ImageData
from rayd.distilled import Distilled
from rayd.engine import arithmetic, memory, relabel, squeeze
from rayd.engine.forecast import Forecast
from rayd.engine.network_ids import NetworkId, teachers
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import WorkerPool, open_pool
from rayd.engine.preflight import check_settings, preflight
from rayd.engine.progress import Progress
from rayd.engine.reading import read
from rayd.engine.rundir import RunDirectory
from rayd.engine.squeeze import TrainedObserver, teacher_hashes
from rayd.engine.store import Store
from rayd.engine.student_tasks import Task, TrainingSets, tasks
from rayd.engine.students import StudentTrainer
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.errors import ArtifactError, ConfigError, DataError
from rayd.evaluation.report import FILE, Report
from rayd.evaluation.student import StudentResult
from rayd.recipes import assemble
from rayd.training.progress import EpochProgress

STAGE = "students"
EVALUATION_KEYS = frozenset({"data", "evaluation", "labels", "resources"})
"""Settings that may be laid over the recipe of a finished set; its data are checked by their
fingerprint.
"""


@dataclass(frozen=True)
class LabelSource:
    """Who teaches the students of an evaluation: nobody, trained observers, or labels that they
    left behind.
    """

    teachers: Mapping[NetworkId, TrainedObserver] = field(default_factory=dict)
    """Trained networks that label online."""
    stored: Path | None = None
    """Directory of the stored labels of the distilled set."""
    hashes: tuple[str, ...] = ()
    """Of what the teachers are made of."""


def stored(
    work: Sequence[Task], recipe: Recipe, data: ImageData, store: Store
) -> dict[int, list[StudentResult]]:
    """Results that are in the store, by the index of their task; damaged ones count as absent."""
    device = devices.choose(recipe.resources).type
    found: dict[int, list[StudentResult]] = {}
    for index, task in enumerate(work):
        record = store.record(STAGE, task.inputs(recipe.evaluation, data, device))
        with suppress(ArtifactError, KeyError, TypeError):
            if record is not None:
                found[index] = [StudentResult.from_json(result) for result in record["results"]]
    return found


def train_students(
    pool: WorkerPool,
    recipe: Recipe,
    data: ImageData,
    candidates: TrainingSets,
    work: Sequence[Task],
    store: Store,
    event: Callable[[int, EpochProgress | StudentResult], None],
    classroom: LabelSource,
    waiting: Callable[[int], None] = lambda _: None,
) -> None:
    """Have the students of all tasks trained and tested, and keep the results of each when they are
    there.

    Args:
        pool: hosts `StudentTrainer`, or a `Worker`.
        recipe: the run.
        data: the real data, with the test split.
        candidates: the sets.
        work: the tasks.
        store: where results are kept.
        event: told (index of the task, progress or result) of those that are trained here; the
            others' are in the store.
        classroom: who teaches.
        waiting: told how many students other runs are training, when nothing else is left to do.
    """
    device = devices.choose(recipe.resources).type
    keys = [task.inputs(recipe.evaluation, data, device) for task in work]

    def there(index: int) -> bool:
        return bool(stored([work[index]], recipe, data, store))

    def make(taken: WorkQueue[int]) -> None:
        test = pool.share(data.test)
        validation = pool.share(data.validation) if data.validation is not None else None
        taught = tuple(
            (network_id, pool.share(one.state)) for network_id, one in classroom.teachers.items()
        )

        def items() -> Iterator[tuple[Any, ...]]:
            for index in taken:
                task = work[index]
                yield (
                    task,
                    candidates.share(pool, task.set_name, task.seed),
                    test,
                    validation,
                    store.path("unfinished-students", keys[index], "safetensors"),
                    taught if task.labels.kind == "online" else (),
                    classroom.stored,
                )

        results: dict[int, list[StudentResult]] = {}
        for place, message in pool.stream("train", items()):
            index = taken.made[place]
            if isinstance(message, StudentResult):
                results.setdefault(index, []).append(message)
                if len(results[index]) == len(recipe.evaluation.epoch):
                    store.put_record(
                        STAGE,
                        keys[index],
                        {"results": [result.to_json() for result in results[index]]},
                    )
                    taken.done(index)
            event(index, message)

    run_once(
        range(len(work)),
        there,
        lambda index: [store.path(STAGE, keys[index], "json")],
        make,
        waiting,
    )


def judge(
    recipe: Recipe,
    data: ImageData,
    distilled: Distilled,
    store: Store,
    progress: Progress,
    log: Callable[[str, int, float, dict[str, float]], None] = lambda *_: None,
    classroom: LabelSource = LabelSource(),
    pool: WorkerPool | None = None,
) -> list[tuple[str, StudentResult]]:
    """Train and test students on the distilled set and on the recipe's baselines.

    Args:
        recipe: the protocol, the architectures, the baselines, the resources.
        data: the real data.
        distilled: the set to judge.
        store: where results are kept.
        progress: where progress is shown.
        log: told (stage, number of the result, seconds, values) of every new result.
        classroom: who teaches, where labels are soft.
        pool: hosts a `Worker` that is free to train them; absent: workers of their own.
    """
    settings = recipe.evaluation
    candidates = TrainingSets(data, distilled, recipe.ipc)
    work = tasks(recipe, ["distilled", *settings.baselines], candidates, classroom.hashes)
    results = stored(work, recipe, data, store)
    absent = [index for index in range(len(work)) if index not in results]
    if absent:
        rest = [work[index] for index in absent]
        reached = [0] * len(rest)
        foresight = Forecast(recipe, data, store) if progress.followed else None
        weights = [1.0 if foresight is None else foresight.student(task) for task in rest]
        seconds = sum(weight * task.epochs for weight, task in zip(weights, rest, strict=True))
        beside = max(1, min(recipe.resources.workers, len(rest)))
        free: AbstractContextManager[WorkerPool] = (
            open_pool(
                recipe.resources, StudentTrainer, settings, recipe.resources, DatasetInfo.of(data)
            )
            if pool is None
            else nullcontext(pool)
        )
        with (
            free as trainers,
            progress.workers(trainers),
            progress.stage(
                "evaluate", sum(task.epochs for task in rest), "epochs", seconds / beside
            ) as shown,
        ):

            def event(index: int, message: EpochProgress | StudentResult) -> None:
                if isinstance(message, StudentResult):
                    task = rest[index]
                    results.setdefault(absent[index], []).append(message)
                    reached[index] = task.epochs
                    log(
                        "evaluate",
                        len(results),
                        message.seconds,
                        {_scalar(task, message, settings): message.test_accuracy},
                    )
                else:
                    reached[index] = message.epoch
                done = sum(weight * epochs for weight, epochs in zip(weights, reached, strict=True))
                shown.update(sum(reached), share=done / seconds)

            shown.update(0, share=0.0)
            waiting = progress.waiting("evaluate", "students")
            train_students(
                trainers, recipe, data, candidates, rest, store, event, classroom, waiting
            )
        others = [index for index in absent if index not in results]
        for place, found in stored([work[index] for index in others], recipe, data, store).items():
            results[others[place]] = found
    return [(task.set_name, result) for index, task in enumerate(work) for result in results[index]]


def _scalar(task: Task, result: StudentResult, settings: EvaluationSettings) -> str:
    """What a result is called in the log."""
    parts = [task.set_name, task.network.label, str(task.seed)]
    parts += [result.selection] if len(settings.epoch) > 1 else []
    return "/".join([*parts, "test_accuracy"])


def evaluate_distilled(
    distilled: Distilled,
    overrides: Mapping[str, Any],
    data_root: Path | None,
    cache: Path | None,
    progress: Progress,
) -> Report:
    """Judge a distilled set by its own recipe with overrides.

    Raises:
        ArtifactError: its card holds no recipe.
        DataError: the real data are not those that it was distilled from.
    """
    if "config" not in distilled.card:
        raise ArtifactError(
            "The card of this distilled set holds no recipe ('config'), so its data and protocol are unknown."
        )
    if other := sorted(overrides.keys() - EVALUATION_KEYS):
        raise ConfigError(
            f"An evaluation takes settings of {', '.join(sorted(EVALUATION_KEYS))} only. Got '{other[0]}' instead."
        )
    recipe = assemble(prune(Recipe, distilled.card["config"]), overrides, "the card's recipe")
    recipe = _with_threads_of_run(recipe, distilled, overrides)
    check_settings(recipe)
    data = read(recipe.data, data_root, cache, progress)
    if (known := distilled.card.get("data", {}).get("fingerprint")) not in (None, data.fingerprint):
        raise DataError(
            f"The set was distilled from other data than '{recipe.data.name}' holds now: fingerprint {known[:12]} wanted, "
            f"{data.fingerprint[:12]} found."
        )
    replayed = recipe.labels.kind == "stored" and not recipe.evaluation.baselines
    preflight(recipe, data, () if replayed else teachers(recipe))
    choice = arithmetic.choose(recipe, data.shape)
    recipe = choice.recipe
    for sentence in choice.warnings:
        progress.log(sentence)
    began = time.monotonic()
    with devices.thread_limit(devices.threads(recipe.resources)):
        room = _classroom(recipe, data, distilled, Store(cache), progress)
        with memory.explained("evaluate", recipe):
            results = judge(recipe, data, distilled, Store(cache), progress, classroom=room)
    return Report.build(
        recipe,
        results,
        distilled,
        {"evaluate": time.monotonic() - began},
        data.train.counts.tolist(),
    )


def _with_threads_of_run(
    recipe: Recipe, distilled: Distilled, overrides: Mapping[str, Any]
) -> Recipe:
    """The recipe with the number of threads that the set's run had, unless another one is asked
    for.

    Cards do not hold resources, but with other threads students round otherwise, and small ones are
    several times slower.
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


def _classroom(
    recipe: Recipe, data: ImageData, distilled: Distilled, store: Store, progress: Progress
) -> LabelSource:
    """The teachers of a finished set, trained again if the store has lost them, and the labels that
    lie beside it.
    """
    if recipe.labels.kind == "hard":
        return LabelSource()
    labels = relabel.beside(recipe, data, distilled) if recipe.labels.kind == "stored" else None
    if labels is not None and not recipe.evaluation.baselines:
        return LabelSource(stored=labels.directory, hashes=labels.made_for.teachers)
    squeezed = squeeze.ensure(recipe, data, store, progress, teachers(recipe))
    return LabelSource(
        squeezed, None if labels is None else labels.directory, teacher_hashes(recipe, data)
    )


def keep_report(report: Report, directory: Path) -> Report:
    """Add a report to the one that a directory holds; newer results win. The caller holds the
    directory's lock.
    """
    before = Report.kept(directory)
    merged = report if before is None else before.merge(report)
    write_json(remote.local(directory) / FILE, merged.to_json())
    return merged
