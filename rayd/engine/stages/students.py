"""The evaluate stage: students trained on the distilled set and its baselines, then tested.

One task per (set, network, seed). Seeds of students and the subsets of the random baseline are
numbered from 0 in every run, so that sets are compared under common random numbers, and runs share
the students of baselines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rayd import synthetic
from rayd.config import Recipe, ResourceSettings, StudentNetworkSettings
from rayd.config.ranking import RANKED
from rayd.data import ImageData
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId
from rayd.engine.pool import TaskStream
from rayd.engine.stage import TaskStage
from rayd.engine.stage_cost import Part, StageCost
from rayd.engine.stages.rank import Rank
from rayd.engine.stages.squeeze import Squeeze, TrainedObserver
from rayd.engine.stages.student_tasks import Task, TrainingSets, labels_on, tasks
from rayd.engine.storage import planned_storage
from rayd.errors import ArtifactError
from rayd.evaluation.student import StudentResult
from rayd.evaluation.variants import DISTILLED, EQUAL_STORAGE, Variant, variants
from rayd.shown import quantity
from rayd.training.progress import milestones

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

COMPARISONS = "evaluation.comparisons"
"""Setting that adds students for comparison; plans name it."""
WORKERS = "evaluation.workers"
"""Setting of the workers that train a student together; errors name it."""
UNFINISHED = "unfinished-students"
"""Folder of the store with checkpoints of students in training."""


@dataclass(frozen=True)
class LabelSource:
    """Source of soft labels: trained networks, or labels that they have stored."""

    teachers: Mapping[NetworkId, TrainedObserver] = field(default_factory=dict)
    """Trained networks for online labels."""
    stored: Path | None = None
    """Directory of the stored labels of the distilled set."""
    hashes: tuple[str, ...] = ()
    """Hashes of the teachers' keys."""


NO_TEACHERS = LabelSource()
"""For hard labels."""


class Students(TaskStage[Task, list[StudentResult]]):
    """Trains and tests students; an item's result has one entry for each of `evaluation.epoch`."""

    name = "evaluate"
    folder = "students"
    unit = "epochs"
    noun = "students"
    task = "train"

    def __init__(
        self,
        job: Job,
        sets: TrainingSets,
        tasks: Sequence[Task],
        labels: LabelSource = NO_TEACHERS,
        on_result: Callable[[Task, StudentResult], None] = lambda *_: None,
    ):
        """Train students of some tasks.

        Args:
            job: the run, whose data include the test split.
            sets: the training sets.
            tasks: the students.
            labels: source of their soft labels.
            on_result: called with every result that is computed here.
        """
        super().__init__(job)
        self.sets = sets
        self.labels = labels
        self.on_result = on_result
        # the longest first, so that workers finish at about the same time
        self._tasks = sorted(dict.fromkeys(tasks), key=effort, reverse=True)
        self._parts: dict[Task, list[StudentResult]] = {}

    def items(self) -> Sequence[Task]:
        """The students."""
        return self._tasks

    def key(self, item: Task) -> Mapping[str, Any]:
        """See `Task.inputs`."""
        return item.inputs(self.job.recipe.evaluation, self.job.data, self.job.device)

    def paths(self, item: Task) -> Sequence[Path]:
        """A JSON record."""
        return [self.job.store.path(self.folder, self.key(item), "json")]

    def tasks(self, pool: TaskStream, items: Iterator[Task]) -> Iterator[tuple[Any, ...]]:
        """See `StudentTrainer.train`."""
        data = self.job.data
        test = pool.share(data.test)
        validation = None if data.validation is None else pool.share(data.validation)
        teachers = tuple(
            (network_id, pool.share(teacher.state))
            for network_id, teacher in self.labels.teachers.items()
        )
        for item in items:
            # drop partial results: the student restarts if a pool ran out of memory in between
            self._parts.pop(item, None)
            yield (
                item,
                self.sets.share(pool, item.set_name, item.seed, item.variant.hard_labels),
                test,
                validation,
                self.job.store.path(UNFINISHED, self.key(item), "safetensors"),
                # students with stored or hard labels need no teachers, which are large and loaded
                # by each worker
                teachers if item.labels.kind == "online" else (),
                self.labels.stored,
            )

    def units(self, item: Task) -> int:
        """Epochs."""
        return item.epochs

    def collect(self, item: Task, event: StudentResult) -> list[StudentResult] | None:
        """Collect the results of a student, which it yields one by one."""
        self.on_result(item, event)
        parts = self._parts.setdefault(item, [])
        parts.append(event)
        if len(parts) < len(self.job.recipe.evaluation.epoch):
            return None
        return self._parts.pop(item)

    def save(self, item: Task, result: list[StudentResult]) -> list[StudentResult]:
        """A JSON record."""
        record = {"results": [part.to_json() for part in result]}
        self.job.store.put_record(self.folder, self.key(item), record)
        return self._with_device(item, result)

    def find(self, item: Task) -> list[StudentResult] | None:
        """The results of a student."""
        record = self.job.store.record(self.folder, self.key(item))
        with suppress(ArtifactError, KeyError, TypeError):
            if record is not None:
                found = [StudentResult.from_json(result) for result in record["results"]]
                return self._with_device(item, found)
        return None

    def device(self, item: Task) -> str | None:
        """Kind of device that trained, or would train, a student."""
        device: str = self.job.store.resolve(self.folder, self.key(item), "json")["device"]
        return device

    def _with_device(self, item: Task, results: list[StudentResult]) -> list[StudentResult]:
        device = self.device(item)
        # not part of the record, as records of another kind of device are found under that device's
        # key
        return [replace(result, device=device) for result in results]


def effort(task: Task) -> int:
    """Relative duration of a student's training, by the images that its network and its teachers
    process; a backward pass counts twice.
    """
    asked = len(task.teachers) if task.labels.kind == "online" else 0
    return task.images * task.epochs * (3 + asked)


class LastStudents(Students):
    """Students on the workers of earlier stages, which first drop everything else."""

    task = "train_last"


def team_of_student(recipe: Recipe) -> ResourceSettings:
    """Resources of the workers that train one student together."""
    changed = {"workers": recipe.evaluation.workers, "decoders": 0, "device": "auto"}
    return recipe.resources.model_copy(update=changed)


def students_at_a_time(job: Job, students: int) -> int:
    """Maximum speed-up of training a number of students over training them one after another."""
    together = job.recipe.evaluation.workers
    workers = max(together, job.recipe.resources.workers)
    return max(1, min(workers // together, students) * together)


def student_bytes(costs: Costs, recipe: Recipe, task: Task) -> float:
    """Memory that the training of a student takes on its device, in bytes."""
    # small sets are kept in normalised form, like network input
    is_large = task.set_name in ("whole", EQUAL_STORAGE)
    settings = task.settings(recipe.evaluation)
    return costs.training_bytes(
        task.network, settings, task.images, task.labels.kind, real=is_large
    )


def students_cost(job: Job, costs: Costs) -> StageCost:
    """Cost of students on a future set, and of those on baselines that are not cached."""
    recipe = job.recipe
    settings = recipe.evaluation
    compared = variants(recipe, learned_labels=recipe.synthetic.labels != "hard")
    rank = Rank(job)
    sets = _PlannedSets(job, costs, rank.scores())
    # selections depend on pixels; without these, such baselines count as missing
    known = [one for one in compared if _is_known(one, job.data, ranked=not rank.missing())]
    baselines = tasks(recipe, known, sets, Squeeze(job, ()).teacher_hashes())
    done = Students(job, sets, baselines).results()
    missing = [_Work.of(task) for task in baselines if task not in done]
    unknown = [one for one in compared if one not in known]
    for one in unknown:
        for network in settings.networks:
            work = _Work(
                variant=one,
                network=network,
                labels=labels_on(recipe.labels, one).kind,
                images=sets.size(one.set),
                epochs=sets.epochs(one.set, settings),
            )
            missing += [work] * settings.seeds * max(1, len(settings.learning_rates))
    parallel = students_at_a_time(job, len(missing))
    parts = [
        _students_part(job, costs, one, missing.count(one), parallel)
        for one in dict.fromkeys(missing)
    ]
    names = ", ".join(network.label for network in settings.networks)
    extra = sum(work.variant.is_comparison for work in missing)
    compares = f", {extra} of them for {COMPARISONS}" if extra else ""
    own = sum(one.set == DISTILLED for one in compared)
    rates = max(1, len(settings.learning_rates))
    total = (len(compared) - own) * len(settings.networks) * settings.seeds * rates
    return StageCost(
        name=Students.name,
        work=f"{quantity(len(missing), 'student')} ({names}){compares}",
        cached=f"{len(done)} of {total} baseline results cached",
        parts=tuple(parts),
    )


class _PlannedSets(TrainingSets):
    """The training sets of a run that has no distilled set yet."""

    def __init__(self, job: Job, costs: Costs, scores: Mapping[str, Tensor] | None = None):
        storage = None
        if "equal-storage" in job.recipe.evaluation.comparisons:
            storage = planned_storage(job.recipe, job.data, costs)
        super().__init__(job.data, None, job.recipe.ipc, storage, scores=scores)
        self._planned = synthetic.image_count(job.recipe, job.data)

    def size(self, set_name: str) -> int:
        """Number of images of a set; for the distilled one, the planned number."""
        return self._planned if set_name == DISTILLED else super().size(set_name)


@dataclass(frozen=True)
class _Work:
    """Properties of a student that determine its cost."""

    variant: Variant
    network: StudentNetworkSettings
    labels: str
    images: int
    epochs: int

    @classmethod
    def of(cls, task: Task) -> _Work:
        return cls(task.variant, task.network, task.labels.kind, task.images, task.epochs)


def _students_part(job: Job, costs: Costs, work: _Work, number: int, parallel: int) -> Part:
    """Cost of all students of one architecture on one set."""
    data = job.data
    settings = work.variant.applied(job.recipe.evaluation)
    epochs = work.epochs
    # small sets are kept in normalised form, so that their epochs cost the same for any content
    is_large = work.variant.set in ("whole", EQUAL_STORAGE)
    count = costs.training(work.network, settings, work.images, work.labels, real=is_large)
    count = count * epochs
    selections = len(settings.epoch)
    count = count + costs.testing(work.network, settings.precision, len(data.test)) * selections
    judged = float(len(data.test))
    if data.validation is not None:
        times = selections
        if "validation-best" in settings.epoch:
            times += len(milestones(epochs))
        images_judged = len(data.validation)
        count = count + costs.testing(work.network, settings.precision, images_judged) * times
        judged += images_judged * times
    trained = epochs * work.images if is_large else 0
    noun = "student" if number == 1 else "students"
    setting = "evaluation.whole_epochs" if work.variant.set == "whole" else "evaluation.epochs"
    if work.variant.is_comparison:
        setting = f"{COMPARISONS}, {setting}"
    on = "" if work.variant == Variant(work.variant.set) else f" ({work.variant.words})"
    return Part(
        what=f"{number} {noun} ({work.network.label}) on the {work.variant.set} set{on}, "
        f"{epochs:,} epochs",
        settings=f"{setting} and evaluation.seeds",
        count=count * number,
        parallel=parallel,
        decoded=job.decoded(judged + trained) * number,
    )


def _is_known(variant: Variant, data: ImageData, ranked: bool) -> bool:
    """Whether the images of a set are known before the run.

    Args:
        variant: the set.
        data: the real images.
        ranked: whether the scores of real images are cached.
    """
    if variant.set in ("random", "whole", EQUAL_STORAGE):
        return True
    if variant.set in RANKED:
        return ranked
    return variant.set not in (DISTILLED, "rded") and _has_pixels(data)


def _has_pixels(data: ImageData) -> bool:
    """Whether the pixels are real ones: placeholders come with a given fingerprint."""
    return data.train.known_fingerprint is None
