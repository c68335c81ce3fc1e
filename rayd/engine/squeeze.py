"""The squeeze stage: observers and teachers trained on the real data, one resumable task each, made once and kept.

With `squeeze.workers` above 1 each of them is trained by that many workers together (`rayd.engine.on_ray.train`), one observer
after another, before the group of the later stages holds any resources.
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
from rayd.engine.claims import Taken, exactly_once
from rayd.engine.group import Streams, open_group
from rayd.engine.members import Member, teachers, team
from rayd.engine.observer import Facts
from rayd.engine.progress import Reporter
from rayd.engine.store import Store
from rayd.networks import weights as given
from rayd.training.progress import Progress

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
    """Class names, training and validation accuracy (fractions; None without a validation split), epochs, seconds."""

    @property
    def facts_for_card(self) -> dict[str, Any]:
        """What a distilled set's card says of it."""
        names = ("network", "copy", "epochs", "train_accuracy", "validation_accuracy")
        return {name: self.facts.get(name) for name in names}


def random_inputs(recipe: Recipe, member: Member) -> dict[str, Any]:
    """All that an observer with random weights is made of."""
    network = member.network.model_dump(exclude={"weights"})
    return {"network": network, "seed": recipe.panel(member.panel).seed, "copy": member.copy}


def trained_inputs(recipe: Recipe, data: ImageData, member: Member) -> dict[str, Any]:
    """All that a trained observer is made of; one that is used as it is given does not depend on how others are trained."""
    settings = recipe.squeezing(member.panel)
    made = {
        "network": member.network.model_dump(exclude={"weights"}),
        "weights": given.fingerprint(member.network),
        "data": data.fingerprint,
        "validation": data.validation.fingerprint if data.validation is not None else None,
        "device": devices.choose(trainers(recipe)).type,
        "version": 2,
    }
    if settings.epochs == 0:
        return made | {"epochs": 0, "precision": settings.precision}
    squeezing = settings.model_dump(mode="json") | {"workers": trainers(recipe).workers if together(recipe) else 1}
    return made | {"seed": recipe.panel(member.panel).seed, "copy": member.copy, "squeeze": squeezing}


def teacher_hashes(recipe: Recipe, data: ImageData) -> tuple[str, ...]:
    """Hashes of what the teachers of a run are made of."""
    return tuple(content_hash(trained_inputs(recipe, data, member)) for member in teachers(recipe))


def together(recipe: Recipe) -> bool:
    """Whether each observer is trained by several workers of Ray Train."""
    return recipe.squeeze.workers > 1 and any(recipe.squeezing(member.panel).epochs > 0 for member in team(recipe))


def trainers(recipe: Recipe) -> ResourceSettings:
    """Who trains observers."""
    resources = recipe.resources
    return resources.model_copy(update={"workers": recipe.squeeze.workers, "decoders": 0}) if together(recipe) else resources


def check(recipe: Recipe, data: ImageData, store: Store) -> None:
    """Refuse at once what the cluster can never train together.

    Raises:
        ResourceError: no cluster answers, or it cannot hold `squeeze.workers`.
    """
    if together(recipe) and missing(recipe, data, store):
        from rayd.engine.on_ray.cluster import check_resources, connect

        connect(recipe.resources.address)
        check_resources(trainers(recipe), WORKERS)


def missing(recipe: Recipe, data: ImageData, store: Store, wanted: Iterable[Member] | None = None) -> list[Member]:
    """Those of the wanted observers (absent: of all) that are not trained yet, who sits in both panels once."""
    return [member for member in distinct(recipe, data, wanted) if found(recipe, data, store, member) is None]


def distinct(recipe: Recipe, data: ImageData, wanted: Iterable[Member] | None = None) -> list[Member]:
    """One of the wanted observers (absent: of all) for each that is trained: who sits in both panels is trained once."""
    wanted = team(recipe) if wanted is None else wanted
    return list({content_hash(trained_inputs(recipe, data, member)): member for member in wanted}.values())


def found(recipe: Recipe, data: ImageData, store: Store, member: Member) -> TrainedObserver | None:
    """A trained observer from the store, or None."""
    inputs = trained_inputs(recipe, data, member)
    tensors = store.tensors(STAGE, inputs)
    return None if tensors is None else TrainedObserver(tensors, store.note(STAGE, inputs))


def everyone(
    recipe: Recipe, data: ImageData, store: Store, wanted: Iterable[Member] | None = None
) -> dict[Member, TrainedObserver]:
    """Those of the wanted observers (absent: of all) that are in the store."""
    there = {member: found(recipe, data, store, member) for member in (team(recipe) if wanted is None else wanted)}
    return {member: one for member, one in there.items() if one is not None}


def in_words(one: TrainedObserver) -> str:
    """How good an observer is."""
    accuracy = one.facts.get("validation_accuracy")
    validated = f", {accuracy:.3f} of the validation images" if accuracy is not None else ""
    guessing = one.facts["train_accuracy"] < GUESSING / len(one.facts["class_names"])
    doubt = " (hardly better than guessing: train it longer, or leave it out)" if guessing else ""
    return (
        f"knows {one.facts['train_accuracy']:.3f} of the training images{validated}{doubt} after {one.facts['epochs']} epochs"
    )


def squeeze(
    group: Streams,
    recipe: Recipe,
    data: ImageData,
    store: Store,
    done: Callable[..., None],
    wanted: Iterable[Member] | None = None,
    waiting: Callable[[int], None] = lambda _: None,
    weight: Callable[[Member], float] | None = None,
) -> dict[Member, TrainedObserver]:
    """The trained observers of a run: from the store where they are, else trained and stored.

    Args:
        group: hosts `Worker`, as `open_workers` does.
        recipe: the run.
        data: the real data.
        store: where observers are kept.
        done: called with (epochs done, epochs to do), and with `weight` (None, share of the work) after these.
        wanted: which observers; absent: all.
        waiting: told how many observers other runs are training, when nothing else is left to do.
        weight: work of an epoch of an observer.
    """
    wanted = team(recipe) if wanted is None else tuple(wanted)
    absent = missing(recipe, data, store, wanted)
    weights = {} if weight is None else {member: weight(member) for member in absent}
    reached, epochs = dict.fromkeys(absent, 0), {member: recipe.squeezing(member.panel).epochs for member in absent}

    def make(taken: Taken[Member]) -> None:
        for member in absent:
            reached[member] = epochs[member] if there(member) else 0
        report()
        train = group.share(data.train)
        validation = group.share(data.validation) if data.validation is not None else None

        def items() -> Iterator[tuple[Any, ...]]:
            for member in taken:
                unfinished = store.path(UNFINISHED, trained_inputs(recipe, data, member), "safetensors")
                yield member, train, validation, unfinished

        for index, event in group.stream("squeeze", items()):
            member = taken.made[index]
            if isinstance(event, Progress):
                reached[member] = event.epoch
            else:
                reached[member] = epochs[member]
                _keep(recipe, data, store, member, event)
                taken.done(member)
            report()

    def report() -> None:
        work = sum(weights[member] * epochs[member] for member in weights)
        spent = sum(weights[member] * reached[member] for member in weights)
        shares = [None, spent / work] if work else []
        done(sum(reached.values()), sum(epochs.values()), *shares)

    def there(member: Member) -> bool:
        return found(recipe, data, store, member) is not None

    def paths(member: Member) -> list[Path]:
        return [store.path(STAGE, trained_inputs(recipe, data, member), "safetensors")]

    exactly_once(absent, there, paths, make, waiting)
    return everyone(recipe, data, store, wanted)


def open_workers(recipe: Recipe, data: ImageData, store: Store) -> AbstractContextManager[Streams]:
    """Workers of their own for `squeeze`.

    Raises:
        ResourceError: they need Ray, and there is none, or it cannot hold them.
    """
    from rayd.engine.worker import Worker

    if not together(recipe):
        return open_group(recipe.resources, Worker, recipe, Facts.of(data))
    from rayd.engine.on_ray.train import TrainGroup

    return TrainGroup(trainers(recipe), WORKERS, store.root / UNFINISHED, Worker, recipe, Facts.of(data))


def ensure(
    recipe: Recipe, data: ImageData, store: Store, reporter: Reporter, wanted: Sequence[Member]
) -> dict[Member, TrainedObserver]:
    """Trained observers, with workers of their own for those that the store has not."""
    if not missing(recipe, data, store, wanted):
        return everyone(recipe, data, store, wanted)
    with (
        memory.explained("squeeze", recipe),
        open_workers(recipe, data, store) as group,
        reporter.stage("squeeze", 0, "epochs") as shown,
    ):
        return squeeze(group, recipe, data, store, shown.update, wanted, reporter.waiting("squeeze", "observers"))


def _keep(recipe: Recipe, data: ImageData, store: Store, member: Member, event: dict[str, Any]) -> None:
    facts = {name: value for name, value in event.items() if name != "state"}
    facts |= {"network": member.network.label, "copy": member.copy, "class_names": list(data.class_names)}
    store.put_tensors(STAGE, trained_inputs(recipe, data, member), event["state"], facts)
