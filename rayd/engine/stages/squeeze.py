"""The squeeze stage: observers and teachers trained on the real data, one resumable task each.

With `squeeze.workers` above 1 each network is trained by that many workers together
(`rayd.engine.on_ray.train`), one network after another, before the pool of the later stages holds
any resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rayd import devices
from rayd.artifacts import content_hash
from rayd.config import Recipe, ResourceSettings
from rayd.engine import memory
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, teachers, trained_networks
from rayd.engine.observer import DatasetInfo
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import TaskStream
from rayd.engine.progress import Progress
from rayd.engine.stage import TaskStage
from rayd.engine.stage_cost import Part, StageCost
from rayd.networks import weights as given
from rayd.training.squeeze import JUDGED

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

UNFINISHED = "unfinished-observers"
"""Folder of the store with checkpoints of networks in training."""
WORKERS = "squeeze.workers"
"""The setting that resource errors name."""
GUESSING = 1.5
"""A network whose accuracy is below this multiple of guessing has learned nothing."""


@dataclass(frozen=True)
class TrainedObserver:
    """A trained network with its properties."""

    state: dict[str, Tensor]
    """Its weights and buffers."""
    facts: dict[str, Any]
    """Class names, training and validation accuracy (fractions; None without a validation split),
    epochs, seconds, and the kind of device that trained it.
    """

    @property
    def facts_for_card(self) -> dict[str, Any]:
        """The part of `facts` that is written into the card of a distilled set."""
        names = (
            "network",
            "copy",
            "epochs",
            "train_accuracy",
            "validation_accuracy",
            "device",
        )
        return {name: self.facts.get(name) for name in names}

    def summary(self) -> str:
        """Sentence on accuracy and epochs."""
        train_accuracy = self.facts["train_accuracy"]
        accuracy = self.facts.get("validation_accuracy")
        validated = f", {accuracy:.3f} of the validation images" if accuracy is not None else ""
        guessing = train_accuracy < GUESSING / len(self.facts["class_names"])
        advice = " (hardly better than guessing: train it longer, or leave it out)"
        return (
            f"knows {train_accuracy:.3f} of the training images{validated}"
            f"{advice if guessing else ''} after {self.facts['epochs']} epochs"
        )


class Squeeze(TaskStage[NetworkId, TrainedObserver]):
    """Trains observers, classifiers and teachers.

    A network that is in two groups with the same settings is trained once.
    """

    name = "squeeze"
    folder = "squeeze"
    unit = "epochs"
    noun = "observers"
    task = "squeeze"

    def __init__(self, job: Job, networks: Iterable[NetworkId] | None = None):
        """Train the given networks; by default all that the run trains."""
        super().__init__(job)
        self.networks = trained_networks(job.recipe) if networks is None else tuple(networks)
        self._same: dict[NetworkId, NetworkId] = {}
        by_key: dict[str, NetworkId] = {}
        for network_id in self.networks:
            # networks of two groups with equal settings have equal keys, so one training suffices
            key = content_hash(self.key(network_id))
            self._same[network_id] = by_key.setdefault(key, network_id)

    def items(self) -> Sequence[NetworkId]:
        """One network id for each network that is trained."""
        return list(dict.fromkeys(self._same.values()))

    def key(self, item: NetworkId) -> Mapping[str, Any]:
        """Settings, data and seed; weights that are used as given depend on neither seed nor
        settings of training.
        """
        recipe = self.job.recipe
        data = self.job.data
        settings = recipe.squeezing(item.group)
        made = {
            "network": item.architecture.model_dump(exclude={"weights"}),
            "weights": given.fingerprint(item.architecture),
            "data": data.fingerprint,
            "validation": None if data.validation is None else data.validation.fingerprint,
            "device": devices.choose(trainers(recipe)).type,
            "version": 3,
        }
        if settings.epochs == 0:
            # without seed and training settings, which do not affect given weights
            return made | {"epochs": 0, "precision": settings.precision}
        # several workers round differently, and each normalises its own part of a batch
        workers = trainers(recipe).workers if together(recipe) else 1
        return made | {
            "seed": recipe.network_group(item.group).seed,
            "copy": item.index,
            "squeeze": settings.model_dump(mode="json") | {"workers": workers},
        }

    def stored_key(self, item: NetworkId) -> Mapping[str, Any]:
        """The key of the network that is used, which is that of another kind of device if only that
        has trained it. Results that are computed through a network depend on this key.
        """
        return self.job.store.resolve(self.folder, self.key(item), "safetensors")

    def hash(self, item: NetworkId) -> str:
        """Hash of the key of the network that is used."""
        return content_hash(self.stored_key(item))

    def teacher_hashes(self) -> tuple[str, ...]:
        """Hashes of the networks that label images; empty if labels are hard."""
        return tuple(self.hash(network_id) for network_id in teachers(self.job.recipe))

    def tasks(self, pool: TaskStream, items: Iterator[NetworkId]) -> Iterator[tuple[Any, ...]]:
        """See `Worker.squeeze`."""
        data = self.job.data
        train = pool.share(data.train)
        validation = None if data.validation is None else pool.share(data.validation)
        for item in items:
            # in the store rather than the run's directory, so that another run can resume it
            checkpoint = self.job.store.path(UNFINISHED, self.key(item), "safetensors")
            yield item, train, validation, checkpoint

    def units(self, item: NetworkId) -> int:
        """Epochs."""
        return self.job.recipe.squeezing(item.group).epochs

    def save(self, item: NetworkId, result: dict[str, Any]) -> TrainedObserver:
        """Save weights as tensors, and everything else as metadata."""
        facts = {name: value for name, value in result.items() if name != "state"}
        facts["network"] = item.architecture.label
        facts["copy"] = item.index
        facts["class_names"] = list(self.job.data.class_names)
        self.job.store.put_tensors(self.folder, self.key(item), result["state"], facts)
        facts["device"] = self.device(item)
        return TrainedObserver(result["state"], facts)

    def find(self, item: NetworkId) -> TrainedObserver | None:
        """A trained network from the store."""
        key = self.key(item)
        state = self.job.store.tensors(self.folder, key)
        if state is None:
            return None
        facts = dict(self.job.store.note(self.folder, key))
        facts["device"] = self.device(item)
        return TrainedObserver(state, facts)

    def results(self) -> dict[NetworkId, TrainedObserver]:
        """The trained networks, under each of their ids."""
        known = super().results()
        return {network_id: known[same] for network_id, same in self._same.items() if same in known}

    def cost(self, costs: Costs) -> StageCost | None:
        """Epochs of training, and tests on training and validation images."""
        recipe = self.job.recipe
        networks = self.items()
        if not networks:
            return None
        missing = self.missing()
        workers = recipe.squeeze.workers if together(recipe) else self.job.parallel(len(missing))
        parts = [self._part(costs, same, workers) for same in alike(missing)]
        images = len(self.job.data.train)
        names = ", ".join(network_id.label for network_id in missing) or "none"
        groups = {network_id.group for network_id in networks}
        noun = groups.pop() if len(groups) == 1 else "networks"
        learned = sorted({self.units(network_id) for network_id in networks})
        epochs = " or ".join(str(number) for number in learned)
        known = [
            f"{network_id.label} {observer.facts['train_accuracy']:.3f}"
            for network_id, observer in self.results().items()
            if network_id in networks
        ]
        return StageCost(
            name=self.name,
            work=f"{len(missing)} of {len(networks)} {noun} ({names}) learn {epochs} epochs of "
            f"{images:,} images",
            cached=f"cached: {', '.join(known) or 'none'}",
            parts=tuple(parts),
        )

    def _part(self, costs: Costs, same: Sequence[NetworkId], workers: int) -> Part:
        """Some networks of one architecture and group."""
        network = same[0].architecture
        settings = self.job.recipe.squeezing(same[0].group)
        data = self.job.data
        images = len(data.train)
        judged = min(JUDGED, images)
        count = costs.testing(network, settings.precision, judged)
        if data.validation is not None:
            count = count + costs.testing(network, settings.precision, len(data.validation))
        if settings.epochs > 0:
            count = count + costs.training(network, settings, images) * settings.epochs
        return Part(
            what=f"{len(same)} x {network.label}, {settings.epochs} epochs",
            settings=f"{self.job.recipe.squeezing_key(same[0].group)}.epochs",
            count=count * len(same),
            parallel=workers,
            decoded=self.job.decoded(settings.epochs * images + judged) * len(same),
        )

    def open_pool(self) -> AbstractContextManager[TaskStream]:
        """Open a pool for this stage only.

        Raises:
            ResourceError: it needs Ray, which is missing or cannot hold the workers.
        """
        from rayd.engine.worker import Worker

        recipe = self.job.recipe
        info = DatasetInfo.of(self.job.data)
        if not together(recipe):
            return open_pool(recipe.resources, Worker, recipe, info)
        from rayd.engine.on_ray.train import TrainPool

        folder = self.job.store.root / UNFINISHED
        return TrainPool(trainers(recipe), WORKERS, folder, Worker, recipe, info)

    def ensure(self, progress: Progress) -> dict[NetworkId, TrainedObserver]:
        """All results; a pool is opened if some are missing."""
        if not self.missing():
            return self.results()
        with (
            memory.explained(self.name, self.job.recipe),
            self.open_pool() as pool,
            progress.stage(self.name, 0, self.unit) as shown,
        ):
            return self.run(pool, shown, progress.wait_logger(self.name, self.noun))

    def check(self) -> None:
        """Refuse `squeeze.workers` that the cluster can never hold.

        Raises:
            ResourceError: no cluster answers, or it cannot hold `squeeze.workers`.
        """
        if together(self.job.recipe) and self.missing():
            from rayd.engine.on_ray.cluster import check_resources, connect

            connect(self.job.recipe.resources.address)
            check_resources(trainers(self.job.recipe), WORKERS)


def alike(networks: Sequence[NetworkId]) -> list[list[NetworkId]]:
    """Networks by group and architecture."""
    groups: dict[tuple[str, str], list[NetworkId]] = {}
    for network_id in networks:
        key = (network_id.group, network_id.architecture.model_dump_json())
        groups.setdefault(key, []).append(network_id)
    return list(groups.values())


def random_key(recipe: Recipe, network_id: NetworkId) -> dict[str, Any]:
    """Key of an observer with random weights."""
    network = network_id.architecture.model_dump(exclude={"weights"})
    seed = recipe.network_group(network_id.group).seed
    return {"network": network, "seed": seed, "copy": network_id.index}


def together(recipe: Recipe) -> bool:
    """Whether each network is trained by several workers of Ray Train."""
    return recipe.squeeze.workers > 1 and any(
        recipe.squeezing(network_id.group).epochs > 0 for network_id in trained_networks(recipe)
    )


def trainers(recipe: Recipe) -> ResourceSettings:
    """Resources of the workers that train networks."""
    if not together(recipe):
        return recipe.resources
    return recipe.resources.model_copy(update={"workers": recipe.squeeze.workers, "decoders": 0})
