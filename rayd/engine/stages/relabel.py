"""The relabel stage: soft labels of a distilled set for every epoch of its students.

Work items are chunks of epochs. Labels are stored next to the set, in a folder named by a hash of
everything that they depend on, so that labels of another protocol do not overwrite them; an
interrupted run continues with the missing chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd import remote, synthetic
from rayd.artifacts import content_hash, read_tensors
from rayd.config import Recipe, lookup
from rayd.distilled import Distilled
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, teachers
from rayd.engine.pool import ObjectRef, TaskStream
from rayd.engine.stage import TaskStage
from rayd.engine.stage_cost import Part, StageCost
from rayd.engine.stages.squeeze import Squeeze, TrainedObserver
from rayd.errors import ArtifactError, ConfigError, RaydError, RunError
from rayd.training.sets import TrainingSet
from rayd.training.stored_labels import Labelled, StoredLabels, chunk_path, chunks

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

FOLDER = "labels"


class Relabel(TaskStage[range, Path]):
    """Labels a distilled set; items are ranges of epochs, results their files."""

    name = "relabel"
    folder = FOLDER
    unit = "epochs"
    noun = "labels"
    task = "relabel"

    def __init__(
        self,
        job: Job,
        distilled: Distilled,
        observers: Mapping[NetworkId, TrainedObserver],
        beside: Path,
    ):
        """Label `distilled`, which is saved in the directory `beside`, by its trained teachers."""
        super().__init__(job)
        self.distilled = distilled
        self.observers = observers
        hashes = Squeeze(job, ()).teacher_hashes()
        training = TrainingSet.from_distilled(distilled)
        settings = job.recipe.evaluation
        self.made_for = Labelled.of(
            training, distilled.classes, settings, job.recipe.labels, hashes
        )
        inputs = {"version": 2, "made_for": asdict(self.made_for), "epochs": settings.epochs}
        # sixteen digits keep paths short, and suffice for the few such folders of a set
        self.directory = beside / FOLDER / content_hash(inputs)[:16]
        self.images: ObjectRef | None = None
        """The images as an array, where workers can reach them; None before there are tasks."""

    def items(self) -> Sequence[range]:
        """The chunks of epochs."""
        epochs = self.job.recipe.evaluation.epochs
        precision = self.job.recipe.labels.precision
        return chunks(epochs, len(self.distilled), self.distilled.classes, precision)

    def key(self, item: range) -> Mapping[str, Any]:
        """Inputs of the labels, and their epochs."""
        return {"made_for": asdict(self.made_for), "epochs": [item.start, item.stop]}

    def paths(self, item: range) -> Sequence[Path]:
        """No files, as the run's lock on its directory suffices."""
        return []

    def tasks(self, pool: TaskStream, items: Iterator[range]) -> Iterator[tuple[Any, ...]]:
        """See `Worker.relabel`."""
        networks = teachers(self.job.recipe)
        weights = tuple(pool.share(self.observers[network_id].state) for network_id in networks)
        # arrays are read in place, while tensors would be copied for every chunk
        self.images = pool.share(self.distilled.images.numpy())
        for item in items:
            yield networks, weights, self.images, item, self.directory, self.made_for

    def units(self, item: range) -> int:
        """Epochs."""
        return len(item)

    def save(self, item: range, result: Path) -> Path:
        """Check the file, which the worker has written.

        Raises:
            RunError: the file cannot be read on this machine.
        """
        if not remote.bring(result):
            raise RunError(
                f"The labels '{result}' were written by a worker but cannot be read here; across "
                "machines, --out must be a folder that all of them share, or a URL."
            )
        return result

    def find(self, item: range) -> Path | None:
        """The file of a chunk, if it can be read."""
        path = chunk_path(self.directory, item)
        try:
            read_tensors(path)
        except ArtifactError:
            return None
        return path

    def labels(self) -> StoredLabels | None:
        """The labels; None unless all of them can be read."""
        try:
            labels = StoredLabels(self.directory)
        except ArtifactError:
            return None
        # labels of more epochs can be used: students read the first ones
        return labels if labels.epochs >= self.job.recipe.evaluation.epochs else None


def relabel_cost(job: Job, costs: Costs) -> StageCost | None:
    """Cost of the labels of a future set; None if the run stores no labels."""
    recipe = job.recipe
    if recipe.labels.kind != "stored":
        return None
    images = synthetic.image_count(recipe, job.data)
    epochs = recipe.evaluation.epochs
    items = chunks(epochs, images, job.data.classes, recipe.labels.precision)
    part = Part(
        what=f"labels of {epochs:,} epochs",
        settings="evaluation.epochs",
        count=costs.labelling(images) * epochs,
        parallel=job.parallel(len(items)),
    )
    count = len(teachers(recipe))
    work = f"{count} teachers label {epochs:,} epochs of {images:,} images"
    return StageCost(Relabel.name, work, "kept beside the set", (part,))


def next_to(job: Job, distilled: Distilled) -> StoredLabels:
    """The stored labels next to a finished set that fit a recipe.

    Raises:
        ArtifactError, ConfigError: there are none; the message says how the stored ones differ.
    """
    recipe = job.recipe
    folder = lookup(distilled.card, "labels.folder")
    if distilled.directory is None or folder is None:
        raise ConfigError(
            "This distilled set holds no stored labels; set labels.kind=online to label images "
            "while students train."
        )
    hashes = Squeeze(job, ()).teacher_hashes() if _has_other_teachers(recipe, distilled) else ()
    first = distilled.directory / folder
    others = [path for path in remote.listed(distilled.directory / FOLDER) if path != first]
    training = TrainingSet.from_distilled(distilled)
    settings = recipe.evaluation
    faults: list[RaydError] = []
    for path in (first, *others):
        try:
            labels = StoredLabels(path)
            labels.check(
                training, distilled.classes, settings, recipe.labels, settings.epochs, hashes
            )
        except (ArtifactError, ConfigError) as error:
            faults.append(error)
        else:
            return labels
    raise faults[0]


def _has_other_teachers(recipe: Recipe, distilled: Distilled) -> bool:
    """Whether a recipe has other teachers than the set's card."""
    known = distilled.card["config"]["labels"]["networks"]
    named = recipe.model_dump(mode="json")["labels"]["networks"]
    return bool(named != known)
