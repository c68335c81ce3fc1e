"""The evaluate stage: students trained on the distilled set and its baselines, then tested.

One task per (set, network, seed). Seeds of students and the subsets of the random baseline are
numbered from 0 in every run, so that sets are compared under common random numbers, and a baseline
that one run trained is found by all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd import synthetic
from rayd.config import NetworkSettings
from rayd.config.ranking import RANKED
from rayd.data import ImageData
from rayd.engine.cost import Part, StageCost
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId
from rayd.engine.pool import TaskStream
from rayd.engine.stage import TaskStage
from rayd.engine.stages.ranking import Rank
from rayd.engine.stages.squeeze import Squeeze, TrainedObserver
from rayd.engine.stages.student_tasks import Task, TrainingSets, tasks
from rayd.errors import ArtifactError
from rayd.evaluation.student import StudentResult
from rayd.training.progress import milestones

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

UNFINISHED = "unfinished-students"
"""Folder of the store with checkpoints of students in training."""


@dataclass(frozen=True)
class LabelSource:
    """Where soft labels come from: trained networks, or labels that they left behind."""

    teachers: Mapping[NetworkId, TrainedObserver] = field(default_factory=dict)
    """Trained networks that label online."""
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
            job: the run; its data hold the test split.
            sets: the training sets that are compared.
            tasks: the students.
            labels: where their soft labels come from.
            on_result: called with every result that is computed here.
        """
        super().__init__(job)
        self.sets = sets
        self.labels = labels
        self.on_result = on_result
        self._tasks = list(dict.fromkeys(tasks))
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
            yield (
                item,
                self.sets.share(pool, item.set_name, item.seed),
                test,
                validation,
                self.job.store.path(UNFINISHED, self.key(item), "safetensors"),
                teachers if item.labels.kind == "online" else (),
                self.labels.stored,
            )

    def units(self, item: Task) -> int:
        """Epochs."""
        return item.epochs

    def collect(self, item: Task, event: StudentResult) -> list[StudentResult] | None:
        """A student yields its results one by one."""
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
        return result

    def find(self, item: Task) -> list[StudentResult] | None:
        """The results of a student."""
        record = self.job.store.record(self.folder, self.key(item))
        with suppress(ArtifactError, KeyError, TypeError):
            if record is not None:
                return [StudentResult.from_json(result) for result in record["results"]]
        return None


class LastStudents(Students):
    """Students on the workers of earlier stages, which then drop everything else."""

    task = "train_last"


def students_cost(job: Job, costs: Costs) -> StageCost:
    """Students on a set that is not there yet, and those on baselines that are not cached."""
    recipe = job.recipe
    settings = recipe.evaluation
    # which images are selected depends on pixels: without them such baselines count as missing
    rank = Rank(job)
    ranked = not rank.missing()
    known = [
        name
        for name in settings.baselines
        if (ranked if name in RANKED else name in ("random", "whole") or _has_pixels(job.data))
    ]
    unknown = [name for name in settings.baselines if name not in known]
    sets = TrainingSets(job.data, None, recipe.ipc, rank.scores())
    baselines = tasks(recipe, known, sets, Squeeze(job, ()).teacher_hashes())
    done = Students(job, sets, baselines).results()
    kind = recipe.labels.kind
    missing = [
        (task.set_name, task.network, task.labels.kind) for task in baselines if task not in done
    ]
    for network in settings.networks:
        for _ in range(settings.seeds):
            others = [(name, network, "online" if kind == "stored" else kind) for name in unknown]
            missing += [*others, ("distilled", network, kind)]
    parallel = job.parallel(len(missing))
    parts = [
        _students_part(job, costs, one, missing.count(one), parallel)
        for one in dict.fromkeys(missing)
    ]
    names = ", ".join(network.label for network in settings.networks)
    total = len(baselines) + len(unknown) * len(settings.networks) * settings.seeds
    return StageCost(
        name=Students.name,
        work=f"{len(missing)} students ({names})",
        cached=f"{len(done)} of {total} baseline results cached",
        parts=tuple(parts),
    )


def _students_part(
    job: Job, costs: Costs, student: tuple[str, NetworkSettings, str], number: int, parallel: int
) -> Part:
    """All students of one architecture on one set."""
    set_name, network, labels = student
    settings = job.recipe.evaluation
    data = job.data
    images = job.recipe.ipc * data.classes
    if set_name == "whole":
        images = len(data.train)
    elif set_name == "distilled":
        images = synthetic.image_count(job.recipe, data)
    epochs = settings.epochs_on(set_name)
    # small sets are normalised once, so that their epochs cost the same whatever they hold
    is_whole = set_name == "whole"
    count = costs.training(network, settings, images, labels, real=is_whole) * epochs
    selections = len(settings.epoch)
    count = count + costs.testing(network, settings.precision, len(data.test)) * selections
    judged = float(len(data.test))
    if data.validation is not None:
        times = selections
        if "validation-best" in settings.epoch:
            times += len(milestones(epochs))
        images_judged = len(data.validation)
        count = count + costs.testing(network, settings.precision, images_judged) * times
        judged += images_judged * times
    trained = epochs * images if set_name == "whole" else 0
    noun = "student" if number == 1 else "students"
    setting = "evaluation.whole_epochs" if set_name == "whole" else "evaluation.epochs"
    return Part(
        what=f"{number} {noun} ({network.label}) on the {set_name} set, {epochs:,} epochs",
        settings=f"{setting} and evaluation.seeds",
        count=count * number,
        parallel=parallel,
        decoded=job.decoded(judged + trained) * number,
    )


def _has_pixels(data: ImageData) -> bool:
    """Whether the pixels are those of the data: the fingerprint of stand-ins was given."""
    return data.train.known_fingerprint is None
