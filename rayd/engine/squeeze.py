"""The squeeze stage: observers and teachers trained on the real data, one resumable task each, made
once and kept.

With `squeeze.workers` above 1 each of them is trained by that many workers together
(`rayd.engine.on_ray.train`), one observer after another, before the group of the later stages holds
any resources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd import devices
from rayd.artifacts import content_hash
from rayd.config import Recipe, ResourceSettings
from rayd.data import ImageData
from rayd.engine import memory
from rayd.engine.network_ids import NetworkId, teachers, trained_networks
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import TaskStream, open_pool
from rayd.engine.progress import Progress
from rayd.engine.store import Store
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.networks import weights as given
from rayd.training.progress import EpochProgress

STAGE = "squeeze"
UNFINISHED = "unfinished-observers"
"""Where the store keeps their checkpoints."""
WORKERS = "squeeze.workers"


GUESSING = 1.5
"""Accuracy, in units of guessing, below which an observer is said to know nothing."""


@dataclass(frozen=True)
class TrainedObserver:
    """A trained observer."""

    state: dict[str, Tensor]
    """Its weights."""
    facts: dict[str, Any]
    """Class names, training and validation accuracy (fractions; None without a validation split),
    epochs, seconds.
    """

    @property
    def facts_for_card(self) -> dict[str, Any]:
        """What a distilled set's card says of it."""
        names = ("network", "copy", "epochs", "train_accuracy", "validation_accuracy")
        return {name: self.facts.get(name) for name in names}


def random_inputs(recipe: Recipe, network_id: NetworkId) -> dict[str, Any]:
    """All that an observer with random weights is made of."""
    network = network_id.architecture.model_dump(exclude={"weights"})
    return {
        "network": network,
        "seed": recipe.network_group(network_id.group).seed,
        "copy": network_id.index,
    }


def trained_inputs(recipe: Recipe, data: ImageData, network_id: NetworkId) -> dict[str, Any]:
    """All that a trained observer is made of; one that is used as it is given does not depend on
    how others are trained.
    """
    settings = recipe.squeezing(network_id.group)
    made = {
        "network": network_id.architecture.model_dump(exclude={"weights"}),
        "weights": given.fingerprint(network_id.architecture),
        "data": data.fingerprint,
        "validation": data.validation.fingerprint if data.validation is not None else None,
        "device": devices.choose(trainers(recipe)).type,
        "version": 2,
    }
    if settings.epochs == 0:
        return made | {"epochs": 0, "precision": settings.precision}
    squeezing = settings.model_dump(mode="json") | {
        "workers": trainers(recipe).workers if together(recipe) else 1
    }
    return made | {
        "seed": recipe.network_group(network_id.group).seed,
        "copy": network_id.index,
        "squeeze": squeezing,
    }


def teacher_hashes(recipe: Recipe, data: ImageData) -> tuple[str, ...]:
    """Hashes of what the teachers of a run are made of."""
    return tuple(
        content_hash(trained_inputs(recipe, data, network_id)) for network_id in teachers(recipe)
    )


def together(recipe: Recipe) -> bool:
    """Whether each observer is trained by several workers of Ray Train."""
    return recipe.squeeze.workers > 1 and any(
        recipe.squeezing(network_id.group).epochs > 0 for network_id in trained_networks(recipe)
    )


def trainers(recipe: Recipe) -> ResourceSettings:
    """Who trains observers."""
    resources = recipe.resources
    return (
        resources.model_copy(update={"workers": recipe.squeeze.workers, "decoders": 0})
        if together(recipe)
        else resources
    )


def check(recipe: Recipe, data: ImageData, store: Store) -> None:
    """Refuse at once what the cluster can never train together.

    Raises:
        ResourceError: no cluster answers, or it cannot hold `squeeze.workers`.
    """
    if together(recipe) and missing(recipe, data, store):
        from rayd.engine.on_ray.cluster import check_resources, connect

        connect(recipe.resources.address)
        check_resources(trainers(recipe), WORKERS)


def missing(
    recipe: Recipe, data: ImageData, store: Store, wanted: Iterable[NetworkId] | None = None
) -> list[NetworkId]:
    """Those of the wanted observers (absent: of all) that are not trained yet, who sits in both
    panels once.
    """
    return [
        network_id
        for network_id in distinct(recipe, data, wanted)
        if found(recipe, data, store, network_id) is None
    ]


def distinct(
    recipe: Recipe, data: ImageData, wanted: Iterable[NetworkId] | None = None
) -> list[NetworkId]:
    """One of the wanted observers (absent: of all) for each that is trained: who sits in both
    panels is trained once.
    """
    wanted = trained_networks(recipe) if wanted is None else wanted
    return list(
        {
            content_hash(trained_inputs(recipe, data, network_id)): network_id
            for network_id in wanted
        }.values()
    )


def found(
    recipe: Recipe, data: ImageData, store: Store, network_id: NetworkId
) -> TrainedObserver | None:
    """A trained observer from the store, or None."""
    inputs = trained_inputs(recipe, data, network_id)
    tensors = store.tensors(STAGE, inputs)
    return None if tensors is None else TrainedObserver(tensors, store.note(STAGE, inputs))


def everyone(
    recipe: Recipe, data: ImageData, store: Store, wanted: Iterable[NetworkId] | None = None
) -> dict[NetworkId, TrainedObserver]:
    """Those of the wanted observers (absent: of all) that are in the store."""
    there = {
        network_id: found(recipe, data, store, network_id)
        for network_id in (trained_networks(recipe) if wanted is None else wanted)
    }
    return {network_id: one for network_id, one in there.items() if one is not None}


def summary(one: TrainedObserver) -> str:
    """How good an observer is."""
    accuracy = one.facts.get("validation_accuracy")
    validated = f", {accuracy:.3f} of the validation images" if accuracy is not None else ""
    guessing = one.facts["train_accuracy"] < GUESSING / len(one.facts["class_names"])
    doubt = " (hardly better than guessing: train it longer, or leave it out)" if guessing else ""
    return (
        f"knows {one.facts['train_accuracy']:.3f} of the training images{validated}{doubt} "
        f"after {one.facts['epochs']} epochs"
    )


def squeeze(
    pool: TaskStream,
    recipe: Recipe,
    data: ImageData,
    store: Store,
    done: Callable[..., None],
    wanted: Iterable[NetworkId] | None = None,
    waiting: Callable[[int], None] = lambda _: None,
    weight: Callable[[NetworkId], float] | None = None,
) -> dict[NetworkId, TrainedObserver]:
    """The trained observers of a run: from the store where they are, else trained and stored.

    Args:
        pool: hosts `Worker`, as `open_workers` does.
        recipe: the run.
        data: the real data.
        store: where observers are kept.
        done: called with (epochs done, epochs to do), and with `weight` (None, share of the work)
            after these.
        wanted: which observers; absent: all.
        waiting: told how many observers other runs are training, when nothing else is left to do.
        weight: work of an epoch of an observer.
    """
    wanted = trained_networks(recipe) if wanted is None else tuple(wanted)
    absent = missing(recipe, data, store, wanted)
    weights = {} if weight is None else {network_id: weight(network_id) for network_id in absent}
    reached = dict.fromkeys(absent, 0)
    epochs = {network_id: recipe.squeezing(network_id.group).epochs for network_id in absent}

    def make(taken: WorkQueue[NetworkId]) -> None:
        for network_id in absent:
            reached[network_id] = epochs[network_id] if there(network_id) else 0
        report()
        train = pool.share(data.train)
        validation = pool.share(data.validation) if data.validation is not None else None

        def items() -> Iterator[tuple[Any, ...]]:
            for network_id in taken:
                unfinished = store.path(
                    UNFINISHED, trained_inputs(recipe, data, network_id), "safetensors"
                )
                yield network_id, train, validation, unfinished

        for index, event in pool.stream("squeeze", items()):
            network_id = taken.made[index]
            if isinstance(event, EpochProgress):
                reached[network_id] = event.epoch
            else:
                reached[network_id] = epochs[network_id]
                _keep(recipe, data, store, network_id, event)
                taken.done(network_id)
            report()

    def report() -> None:
        work = sum(weights[network_id] * epochs[network_id] for network_id in weights)
        spent = sum(weights[network_id] * reached[network_id] for network_id in weights)
        shares = [None, spent / work] if work else []
        done(sum(reached.values()), sum(epochs.values()), *shares)

    def there(network_id: NetworkId) -> bool:
        return found(recipe, data, store, network_id) is not None

    def paths(network_id: NetworkId) -> list[Path]:
        return [store.path(STAGE, trained_inputs(recipe, data, network_id), "safetensors")]

    run_once(absent, there, paths, make, waiting)
    return everyone(recipe, data, store, wanted)


def open_workers(
    recipe: Recipe, data: ImageData, store: Store
) -> AbstractContextManager[TaskStream]:
    """Workers of their own for `squeeze`.

    Raises:
        ResourceError: they need Ray, and there is none, or it cannot hold them.
    """
    from rayd.engine.worker import Worker

    if not together(recipe):
        return open_pool(recipe.resources, Worker, recipe, DatasetInfo.of(data))
    from rayd.engine.on_ray.train import TrainPool

    return TrainPool(
        trainers(recipe), WORKERS, store.root / UNFINISHED, Worker, recipe, DatasetInfo.of(data)
    )


def ensure(
    recipe: Recipe, data: ImageData, store: Store, progress: Progress, wanted: Sequence[NetworkId]
) -> dict[NetworkId, TrainedObserver]:
    """Trained observers, with workers of their own for those that the store has not."""
    if not missing(recipe, data, store, wanted):
        return everyone(recipe, data, store, wanted)
    with (
        memory.explained("squeeze", recipe),
        open_workers(recipe, data, store) as pool,
        progress.stage("squeeze", 0, "epochs") as shown,
    ):
        return squeeze(
            pool,
            recipe,
            data,
            store,
            shown.update,
            wanted,
            progress.waiting("squeeze", "observers"),
        )


def _keep(
    recipe: Recipe, data: ImageData, store: Store, network_id: NetworkId, event: dict[str, Any]
) -> None:
    facts = {name: value for name, value in event.items() if name != "state"}
    facts |= {
        "network": network_id.architecture.label,
        "copy": network_id.index,
        "class_names": list(data.class_names),
    }
    store.put_tensors(STAGE, trained_inputs(recipe, data, network_id), event["state"], facts)
