"""The experts stage: networks trained on the real data whose every epoch is kept, one resumable
task each, made once and kept.

An expert is a file of the store (`rayd.training.trajectories`), which its worker writes and those
who follow it read: across machines, the store must lie where all of them see it, or at a URL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayd import devices, networks, remote, seeding
from rayd.config import Recipe
from rayd.data import ImageData, ImageShape
from rayd.engine.pool import TaskStream
from rayd.engine.store import Store
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.errors import ArtifactError, RunError
from rayd.networks.flat import FlatNetwork
from rayd.training.progress import EpochProgress
from rayd.training.trajectories import Trajectory

STAGE = "experts"
UNFINISHED = "unfinished-experts"
"""Where the store keeps their checkpoints."""


def initial_seed(recipe: Recipe, index: int) -> int:
    """Seed of the initial weights of an expert."""
    return seeding.derive(recipe.experts.seed, "expert network", index)


def inputs(recipe: Recipe, data: ImageData, index: int) -> dict[str, Any]:
    """All that an expert is made of; how many there are beside it is not."""
    return {
        "version": 1,
        "data": data.fingerprint,
        "experts": recipe.experts.model_dump(mode="json", exclude={"count"}),
        "index": index,
        "device": devices.choose(recipe.resources).type,
    }


def paths(recipe: Recipe, data: ImageData, store: Store) -> tuple[Path, ...]:
    """Files of all experts, there or not."""
    return tuple(
        store.path(STAGE, inputs(recipe, data, index), "safetensors")
        for index in range(recipe.experts.count)
    )


def missing(recipe: Recipe, data: ImageData, store: Store) -> list[int]:
    """Those that are not trained yet, or whose files cannot be read."""
    return [index for index, path in enumerate(paths(recipe, data, store)) if _found(path) is None]


def _found(path: Path) -> Trajectory | None:
    with suppress(ArtifactError):
        return Trajectory(path) if remote.bring(path) else None
    return None


def train(
    pool: TaskStream,
    recipe: Recipe,
    data: ImageData,
    store: Store,
    done: Callable[[int, int], None],
    waiting: Callable[[int], None] = lambda _: None,
) -> tuple[Path, ...]:
    """Files of all experts of a run: those that are not in the store are trained.

    Args:
        pool: hosts `Worker`.
        recipe: the run.
        data: the real data.
        store: where experts are kept.
        done: told (epochs done, epochs to do).
        waiting: told how many experts other runs are training, when nothing else is left to do.

    Raises:
        RunError: an expert diverged, or its file does not appear.
    """
    files = paths(recipe, data, store)
    absent = missing(recipe, data, store)
    reached = dict.fromkeys(absent, 0)
    epochs = recipe.experts.epochs

    def there(index: int) -> bool:
        return _found(files[index]) is not None

    def make(taken: WorkQueue[int]) -> None:
        for index in absent:
            reached[index] = epochs if there(index) else 0
        done(sum(reached.values()), epochs * len(absent))
        training = pool.share(data.train)

        def items() -> Iterator[tuple[Any, ...]]:
            for index in taken:
                yield (
                    index,
                    training,
                    files[index],
                    store.path(UNFINISHED, inputs(recipe, data, index), "safetensors"),
                )

        for place, event in pool.stream("expert", items()):
            index = taken.made[place]
            reached[index] = event.epoch if isinstance(event, EpochProgress) else epochs
            if not isinstance(event, EpochProgress):
                taken.done(index)
            done(sum(reached.values()), epochs * len(absent))

    run_once(absent, there, lambda index: [files[index]], make, waiting)
    for path in files:
        if _found(path) is None:
            raise RunError(
                f"The expert '{path}' was trained but cannot be read here; across machines, the cache must be a folder that "
                "all of them share, or a URL."
            )
    return files


def facts_for_card(recipe: Recipe, data: ImageData, store: Store) -> dict[str, Any] | None:
    """What the card of a distilled set says of the experts that it followed; None where they are
    not there any more.
    """
    if missing(recipe, data, store):
        return None
    known = accuracies(paths(recipe, data, store))
    settings = recipe.experts
    mean = sum(known) / len(known)
    return {
        "network": settings.network.label,
        "count": len(known),
        "epochs": settings.epochs,
        "train_accuracy": mean,
    }


def accuracies(files: tuple[Path, ...]) -> list[float]:
    """How much of the training images each expert knows, fractions."""
    return [float(Trajectory(path).facts["train_accuracy"]) for path in files]


def summary(files: tuple[Path, ...]) -> str:
    """How good experts are, on average."""
    known = accuracies(files)
    return f"{len(known)} know {sum(known) / len(known):.3f} of the training images on average"


def numbers(recipe: Recipe, shape: ImageShape, classes: int) -> int:
    """Parameters of an expert.

    Raises:
        ConfigError: its network has buffers or dropout, or does not fit the images.
    """
    return FlatNetwork(networks.build(recipe.experts.network, shape, classes, seed=0)).size


def stored_bytes(recipe: Recipe, data: ImageData) -> int:
    """Bytes of an expert's file."""
    each = 2 if recipe.experts.stored == "bfloat16" else 4
    return numbers(recipe, data.shape, data.classes) * (recipe.experts.epochs + 1) * each
