"""The measure stage: statistics of the whole real set through every observer, computed once.

Work items are (observer, shard of the real data). Streamed shards are decoded once for a team of
observers, or by decoders that run apart from the workers (`rayd.engine.on_ray.data`); a worker
prefers shards whose files its node has. The size of a shard depends on the data alone, so that the
parts, merged in order, do not depend on which worker computed them. A worker holds one shard at a
time, and of streamed data a few batches of it. Statistics of a shard have rows only for the classes
that it contains: few, where files are sorted by class, as image folders are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rayd.config import Recipe
from rayd.data import ImageSet
from rayd.data.streaming import StreamedPixels
from rayd.engine.cost import Part, StageCost
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import RealBatch, States
from rayd.engine.pool import ObjectRef, TaskStream, WorkerPool
from rayd.engine.stage import ItemProgress, Stage
from rayd.engine.stages.squeeze import Squeeze, alike, random_key
from rayd.engine.work_queue import WorkQueue
from rayd.objectives import StatisticSpec
from rayd.statistics import Statistic
from rayd.statistics.frequencies import evenly_spaced

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

SHARD = 4096
"""Images of a shard, at least."""
SHARDS = 128
"""Shards of a data set, at most: with a handful of observers, work for several hundred workers.
Each costs the driver the merging of its classes, which may be all of them.
"""
TEAM = 8
"""Observers that share a decoded shard, at most: their networks and statistics are in a worker at
once.
"""
ITEMS = 4
"""Work items for each worker, at least, where teams can be smaller."""
FILES = 8
"""Files that the shards of a run need, about: two consecutive runs both need the one between."""
RUN = 16
"""Shards of a run, at most: results of later runs wait for their turn in the driver."""


class Measure(Stage[NetworkId, States]):
    """Measures the statistics that the method's terms need, for every fixed observer."""

    name = "measure"
    folder = "measure"
    unit = "shards"
    noun = "observers"
    task = "measure"

    def __init__(self, job: Job, weights: Mapping[NetworkId, ObjectRef] | None = None):
        """Measure through networks with these trained weights; those of random ones are missing."""
        super().__init__(job)
        self.weights = weights or {}
        self._squeeze = Squeeze(job, ())

    def items(self) -> Sequence[NetworkId]:
        """The fixed observers of every group whose terms need statistics; none where real data is
        sampled or no step follows.
        """
        recipe = self.job.recipe
        if recipe.real == "sampled" or recipe.synthesis.steps == 0:
            return []
        return [
            network_id
            for group in self.job.method.groups
            if self.job.method.specs(group)
            for network_id in network_ids(self.job.recipe, group)
        ]

    def specs(self, network_id: NetworkId) -> tuple[StatisticSpec, ...]:
        """The statistics that are measured through a network."""
        return self.job.method.specs(network_id.group)

    def key(self, item: NetworkId) -> Mapping[str, Any]:
        """What all statistics of an observer depend on; see `spec_key`."""
        recipe = self.job.recipe
        settings = recipe.network_group(item.group)
        trained = self._squeeze.stored_key(item) if settings.trained else random_key(recipe, item)
        return {
            "version": 8,
            # frequencies, fixed augmentation and interpolated weights are drawn from these, also
            # where weights are given
            "seed": settings.seed,
            "copy": item.index,
            "data": self.job.data.fingerprint,
            "observer": trained,
            "augmentation": settings.augmentation,
            "interpolate": settings.interpolate,
            "precision": settings.precision,
            "batch_size": settings.batch_size,
            "device": self.job.device,
        }

    def spec_key(self, item: NetworkId, spec: StatisticSpec) -> dict[str, Any]:
        """Everything that one measured statistic depends on."""
        own = {"source": spec.sources} if spec.sources else {}
        return {**self.key(item), "need": spec.key, **own}

    def paths(self, item: NetworkId) -> Sequence[Path]:
        """A file for each statistic."""
        store = self.job.store
        specs = self.specs(item)
        return [store.path(self.folder, self.spec_key(item, spec), "safetensors") for spec in specs]

    def devices(self) -> list[str]:
        """Kinds of device that measured any statistic."""
        store = self.job.store
        made = {
            store.resolve(self.folder, self.spec_key(item, spec), "safetensors")["device"]
            for item in self.items()
            for spec in self.specs(item)
        }
        return sorted(made)

    def units(self, item: NetworkId) -> int:
        """Shards."""
        return len(shards(len(self.job.data.train)))

    def unmeasured(self) -> list[NetworkId]:
        """The items whose files are not there; cheaper than `missing`, which reads them."""
        store = self.job.store
        return [
            item
            for item in self.items()
            if not all(
                store.has(self.folder, self.spec_key(item, spec), "safetensors")
                for spec in self.specs(item)
            )
        ]

    def save(self, item: NetworkId, result: States) -> States:
        """A file for each statistic, with the layers' tensors."""
        for spec in self.specs(item):
            tensors = {}
            for layer, state in enumerate(result[spec.key]):
                for name, tensor in state.items():
                    tensors[f"{layer}.{name}"] = tensor
            self.job.store.put_tensors(self.folder, self.spec_key(item, spec), tensors)
        return result

    def find(self, item: NetworkId) -> States | None:
        """All statistics of an observer."""
        states: States = {}
        for spec in self.specs(item):
            tensors = self.job.store.tensors(self.folder, self.spec_key(item, spec))
            if tensors is None:
                return None
            states[spec.key] = _layers(tensors)
        return states

    def kept(self, item: NetworkId, spec: StatisticSpec) -> tuple[Statistic, ...] | None:
        """One statistic, by layer; None if it is not in the store."""
        tensors = self.job.store.tensors(self.folder, self.spec_key(item, spec))
        return None if tensors is None else _statistics(spec, _layers(tensors))

    def cost(self, costs: Costs) -> StageCost | None:
        """Passes over the real images."""
        networks = self.items()
        if not networks:
            return None
        recipe = self.job.recipe
        images = len(self.job.data.train)
        missing = self.unmeasured()
        parallel = self.job.parallel(len(missing) * len(shards(images)))
        parts = []
        for same in alike(missing):
            group = same[0].group
            architectures = [one.model_dump() for one in recipe.network_group(group).networks]
            index = architectures.index(same[0].architecture.model_dump())
            part = Part(
                what=f"{len(same)} x {same[0].architecture.label} on all {images:,} images",
                settings=f"{group}.pool",
                count=costs.measuring(group, index) * len(same),
                parallel=parallel,
                # streamed images are decoded once for several observers
                decoded=self.job.decoded(images) * math.ceil(len(same) / TEAM),
            )
            parts.append(part)
        groups = dict.fromkeys(network_id.group for network_id in networks)
        labels = [one.label for group in groups for one in recipe.network_group(group).networks]
        return StageCost(
            name=self.name,
            work=f"{len(missing)} of {len(networks)} observers ({', '.join(labels)}) see "
            f"{images:,} images",
            cached=f"{len(networks) - len(missing)} cached",
            parts=tuple(parts),
        )

    def compute(
        self, pool: TaskStream, queue: WorkQueue[NetworkId], progress: ItemProgress[NetworkId]
    ) -> None:
        """Measure all observers that no other run measures: they share decoded shards."""
        mine = list(queue)
        if not mine:
            return
        assert isinstance(pool, WorkerPool)

        def finished(item: NetworkId, states: States) -> None:
            self.keep(item, states)
            queue.done(item)

        self._measure(pool, mine, progress, finished)

    def _measure(
        self,
        pool: WorkerPool,
        missing: Sequence[NetworkId],
        progress: ItemProgress[NetworkId],
        finished: Callable[[NetworkId, States], None],
    ) -> None:
        """Measure some observers on the whole training split."""
        train = self.job.data.train
        recipe = self.job.recipe
        parts = [train.part(rows) for rows in shards(len(train))]
        labels = [torch.tensor(part.labels) for part in parts]
        decoders = recipe.resources.decoders if train.streamed else 0
        decoded_elsewhere = decoders > 0 or not train.streamed
        groups = (
            [(item,) for item in missing]
            if decoded_elsewhere
            else teams(missing, len(parts), recipe)
        )
        first = self._glance(pool, missing)

        def arguments(team: tuple[NetworkId, ...], shard: ObjectRef, lean: bool) -> tuple[Any, ...]:
            networks = tuple((one, self.weights.get(one), first.get(one)) for one in team)
            return networks, shard, lean

        # shard after shard: results come back in this order, so that few wait for their turn
        order = [(index, team) for index in range(len(parts)) for team in groups]
        results: Iterator[list[States]]
        if decoders > 0:
            from rayd.engine.on_ray.data import decoded

            coming = enumerate(decoded(parts, decoders))
            items = (arguments(team, shard, i > 0) for i, shard in coming for team in groups)
            results = _in_order(pool.stream("measuring", items))
        else:
            shared = [pool.share(_batch(part)) for part in parts]
            listed = [arguments(team, shared[index], index > 0) for index, team in order]
            affinity = _homes(train, order, self.items(), recipe.resources.workers)
            results = pool.map("measure", listed, affinity)
        states: dict[NetworkId, States] = {}
        for (index, team), found in zip(order, results, strict=True):
            for item, part in zip(team, found, strict=True):
                states[item] = merged(
                    self.specs(item), states.get(item), part, labels[index], self.job.data.classes
                )
                progress.update(item, progress.done(item) + 1)
                if index == len(parts) - 1:
                    # merged where they were measured; from here on they are only kept
                    finished(item, _on_host(states.pop(item)))

    def _glance(self, pool: WorkerPool, items: Sequence[NetworkId]) -> dict[NetworkId, ObjectRef]:
        """Images from all over the data, for observers with a statistic that needs some first."""
        first = [item for item in items if any(spec.data_dependent for spec in self.specs(item))]
        if not first:
            return {}
        train = self.job.data.train
        batch = pool.share(_batch(train.part(evenly_spaced(len(train)).numpy())))
        return dict.fromkeys(first, batch)


def shards(images: int) -> list[slice]:
    """The rows of each shard of so many images."""
    size = max(SHARD, -(-images // SHARDS))
    return [slice(start, min(start + size, images)) for start in range(0, images, size)]


def in_store(recipe: Recipe, images: ImageSet) -> int:
    """Bytes of real images in Ray's object store at a time: all of them, or of streamed ones the
    shards that are decoded.
    """
    if not images.streamed:
        return images.images.nbytes
    shard = math.prod(images.shape) * max(rows.stop - rows.start for rows in shards(len(images)))
    # those that are being decoded, as many that wait, and those that are measured
    decoders = recipe.resources.decoders
    return (2 * decoders + recipe.resources.workers) * shard if decoders else 0


def _in_order(events: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """The only event of each item, in the order of the items."""
    early: dict[int, Any] = {}
    following = 0
    for index, event in events:
        early[index] = event
        while following in early:
            yield early.pop(following)
            following += 1


def teams(missing: Sequence[NetworkId], shards: int, recipe: Recipe) -> list[tuple[NetworkId, ...]]:
    """Observers that share decoded shards: as many as leave every worker enough items."""
    workers = recipe.resources.workers
    size = TEAM
    if workers >= 2:
        size = max(1, min(TEAM, len(missing) * shards // (ITEMS * workers)))
    by_group: dict[str, list[NetworkId]] = {}
    for network_id in missing:
        by_group.setdefault(network_id.group, []).append(network_id)
    return [
        tuple(ids[start : start + size])
        for ids in by_group.values()
        for start in range(0, len(ids), size)
    ]


def _homes(
    images: ImageSet,
    order: Sequence[tuple[int, tuple[NetworkId, ...]]],
    items: Sequence[NetworkId],
    workers: int,
) -> list[int]:
    """The preferred worker of each item: for streamed data the one that has the files, else the
    one that has the network.
    """
    if not isinstance(images.images, StreamedPixels):
        return [items.index(team[0]) for _, team in order]
    files = sum(1 for _ in images.images.files())
    run = runs(files, len(shards(len(images))), max(1, workers))
    return [run[index] for index, _ in order]


def runs(files: int, shards: int, workers: int) -> list[int]:
    """The run of each streamed shard: consecutive ones go to one worker, so that few files are
    fetched by two.
    """
    wanted = max(-(-files // FILES), -(-shards // RUN))
    count = min(shards, -(-wanted // workers) * workers)  # as many for each worker
    return [shard * count // shards for shard in range(shards)]


def _batch(images: ImageSet) -> RealBatch:
    return images.images, images.labels


def merged(
    specs: Sequence[StatisticSpec],
    before: States | None,
    part: States,
    labels: Tensor,
    classes: int,
) -> States:
    """Statistics so far with those of a shard added in place.

    Args:
        specs: which statistics.
        before: those so far; None before the first shard.
        part: those of the shard, with rows for its classes alone.
        labels: class indices (N,) of the shard.
        classes: number of all classes.
    """
    after: States = {}
    for spec in specs:
        if before is None:
            known = spec.spread(_statistics(spec, part[spec.key]), labels, classes)
        else:
            known = _statistics(spec, before[spec.key])
            # tensors that no sample changes came with the first part alone
            constant = [{name: getattr(one, name) for name in one.constant} for one in known]
            new = [own | same for own, same in zip(part[spec.key], constant, strict=True)]
            spec.add(known, _statistics(spec, new), labels)
        after[spec.key] = [statistic.state() for statistic in known]
    return after


def _on_host(states: States) -> States:
    return {
        key: [{name: t.cpu() for name, t in layer.items()} for layer in layers]
        for key, layers in states.items()
    }


def _statistics(
    spec: StatisticSpec, states: Sequence[Mapping[str, Tensor]]
) -> tuple[Statistic, ...]:
    return tuple(spec.kind.statistic.from_state(state) for state in states)


def _layers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Stored tensors by layer."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        layers.setdefault(int(layer), {})[part] = tensor
    return [layers[layer] for layer in sorted(layers)]
