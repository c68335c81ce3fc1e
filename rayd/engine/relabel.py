"""The relabel stage: soft labels of a distilled set, made once by its teachers for every epoch of a
student to come.

Work items are chunks of epochs. Labels lie beside the set in a folder named by a hash of all that
they depend on, so that those of another protocol do not overwrite them; an interrupted run goes on
with the chunks that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from rayd import remote
from rayd.artifacts import content_hash, read_tensors
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.distilled import Distilled
from rayd.engine.network_ids import NetworkId, teachers
from rayd.engine.pool import WorkerPool
from rayd.engine.squeeze import TrainedObserver, teacher_hashes
from rayd.errors import ArtifactError, ConfigError, RaydError
from rayd.training.sets import TrainingSet
from rayd.training.stored import Labelled, StoredLabels, chunk_path, chunks, write_chunk

FOLDER = "labels"


def made_for(recipe: Recipe, distilled: Distilled, hashes: tuple[str, ...]) -> Labelled:
    """What labels of a set under a recipe are made for."""
    return Labelled.of(
        _training(distilled), distilled.classes, recipe.evaluation, recipe.labels, hashes
    )


def place(recipe: Recipe, wanted: Labelled, directory: Path) -> Path:
    """Where labels lie, or would lie, under the directory of their set."""
    inputs = {"version": 2, "made_for": asdict(wanted), "epochs": recipe.evaluation.epochs}
    return directory / FOLDER / content_hash(inputs)[:16]


def found(recipe: Recipe, wanted: Labelled, directory: Path) -> StoredLabels | None:
    """The labels of a set if all of them are there and whole."""
    try:
        labels = StoredLabels(place(recipe, wanted, directory))
    except ArtifactError:
        return None
    return labels if labels.epochs >= recipe.evaluation.epochs else None


def beside(recipe: Recipe, data: ImageData, distilled: Distilled) -> StoredLabels:
    """Labels of a finished set that fit a recipe, from beside it.

    Raises:
        ArtifactError, ConfigError: there are none; the sentence says how those that there are
            differ.
    """
    folder = distilled.card.get("labels", {}).get("folder")
    if distilled.directory is None or folder is None:
        raise ConfigError(
            "This distilled set holds no stored labels; set labels.kind=online to let its teachers speak."
        )
    known = distilled.card["config"]["labels"]["networks"]
    renamed = recipe.model_dump(mode="json")["labels"]["networks"] != known
    hashes = teacher_hashes(recipe, data) if renamed else ()
    first = distilled.directory / folder
    others = [path for path in remote.listed(distilled.directory / FOLDER) if path != first]
    faults: list[RaydError] = []
    for path in (first, *others):
        try:
            labels = StoredLabels(path)
            epochs = recipe.evaluation.epochs
            labels.check(
                _training(distilled),
                distilled.classes,
                recipe.evaluation,
                recipe.labels,
                epochs,
                hashes,
            )
        except (ArtifactError, ConfigError) as error:
            faults.append(error)
        else:
            return labels
    raise faults[0]


def relabel(
    pool: WorkerPool,
    recipe: Recipe,
    data: ImageData,
    distilled: Distilled,
    squeezed: Mapping[NetworkId, TrainedObserver],
    directory: Path,
    done: Callable[[int, int], None],
) -> StoredLabels:
    """Label every epoch that is not labelled yet.

    Args:
        pool: hosts `Worker`.
        recipe: the run; its evaluation says what students will see.
        data: the real data, which the teachers were trained on.
        distilled: the set.
        squeezed: the trained teachers.
        directory: of the set.
        done: told (epochs labelled, epochs in all).
    """
    wanted = made_for(recipe, distilled, teacher_hashes(recipe, data))
    epochs = recipe.evaluation.epochs
    folder = place(recipe, wanted, directory)
    parts = chunks(epochs, len(distilled), distilled.classes, recipe.labels.precision)
    absent = [part for part in parts if not _whole(chunk_path(folder, part))]
    reached = epochs - sum(map(len, absent))
    done(reached, epochs)
    team = teachers(recipe)
    weights = tuple(pool.share(squeezed[network_id].state) for network_id in team)
    images = pool.share(distilled.images)
    items = [(team, weights, images, part.start, part.stop) for part in absent]
    for part, tensors in zip(absent, pool.map("label", items), strict=True):
        write_chunk(folder, wanted, part, tensors)
        reached += len(part)
        done(reached, epochs)
    return StoredLabels(folder)


def _whole(path: Path) -> bool:
    """Whether a chunk is there and can be read."""
    try:
        read_tensors(path)
    except ArtifactError:
        return False
    return True


def _training(distilled: Distilled) -> TrainingSet:
    return TrainingSet.from_distilled(distilled)
