"""The measure stage: statistics of the whole real set through every observer, computed once.

The driver assigns the work; the synthesizer merges and writes the statistics
(`rayd.engine.statistic_aggregation`), of which the driver only knows the files.

Work items are observers, if there are enough of one architecture, or else (observer, shard of the
real data). Streamed shards are decoded once for a team of observers, or by separate decoders
(`rayd.engine.on_ray.data`); a worker prefers shards whose files its node has. The size of a shard
depends only on the data, so that statistics, merged in order, do not depend on the workers. A
worker holds one shard at a time, and of streamed data a few batches of it. Statistics of a shard
have rows only for the classes that it contains, which are few if files are sorted by class, as in
image folders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.artifacts import content_hash
from rayd.config import Recipe
from rayd.data import ImageSet
from rayd.data.streaming import StreamedPixels
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import RealBatch
from rayd.engine.pool import HostingPool, ObjectRef, TaskStream, WorkerPool
from rayd.engine.stage import ItemProgress, Stage
from rayd.engine.stage_cost import Part, StageCost
from rayd.engine.stages.squeeze import Squeeze, alike, random_key
from rayd.engine.statistic_aggregation import (
    MeasuredNetwork,
    Measuring,
    Shard,
    StoredStatistics,
    layers,
    statistics,
)
from rayd.engine.synthesizer import Synthesizer
from rayd.engine.work_queue import WorkQueue
from rayd.objectives import StatisticSpec
from rayd.statistics import Statistic
from rayd.statistics.frequencies import evenly_spaced

if TYPE_CHECKING:
    from rayd.engine.costs import Costs

SHARD = 4096
"""Minimum number of images per shard."""
SHARDS = 128
"""Maximum number of shards of a data set: with a handful of observers, work for several hundred
workers. The synthesizer has to merge the classes of each shard, which may be all classes.
"""
TEAM = 8
"""Maximum number of observers that share a decoded shard, as a worker holds their networks and
statistics at the same time.
"""
ITEMS = 4
"""Minimum number of work items per worker, if teams can be smaller."""
FILES = 8
"""Approximate number of files that the shards of a run need; two consecutive runs share one."""
RUN = 16
"""Maximum number of shards of a run, as results of later runs wait in the object store."""


class Measure(Stage[NetworkId, StoredStatistics]):
    """Measures the statistics that the method's terms need, for every fixed observer."""

    name = "measure"
    folder = "measure"
    unit = "shards"
    noun = "observers"
    task = "measure"

    def __init__(self, job: Job, weights: Mapping[NetworkId, ObjectRef] | None = None):
        """Measure through networks with these trained weights; random networks have none."""
        super().__init__(job)
        self.weights = weights or {}
        self._squeeze = Squeeze(job, ())

    def items(self) -> Sequence[NetworkId]:
        """The fixed observers of every group whose terms need statistics; empty if real data are
        sampled or the synthesis has no steps.
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
        """Everything that all statistics of an observer depend on; see `spec_key`."""
        recipe = self.job.recipe
        settings = recipe.network_group(item.group)
        trained = self._squeeze.stored_key(item) if settings.trained else random_key(recipe, item)
        return {
            "version": 8,
            # frequencies, fixed augmentation and interpolated weights are drawn from these, even if
            # weights are given
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
        """Kinds of device that measured at least one statistic."""
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
        """The items whose files are missing; cheaper than `missing`, which reads the files."""
        return [item for item in self.items() if not self._has_files(item)]

    def _has_files(self, item: NetworkId) -> bool:
        """Whether the store has files of all statistics of an observer, readable or not."""
        keys = [self.spec_key(item, spec) for spec in self.specs(item)]
        return all(self.job.store.has(self.folder, key, "safetensors") for key in keys)

    def save(self, item: NetworkId, result: None) -> StoredStatistics:
        """The files that the synthesizer has written (see `rayd.engine.statistic_aggregation`)."""
        for spec in self.specs(item):
            self.job.store.replace(self.folder, self.spec_key(item, spec), "safetensors")
        return self._stored(item)

    def find(self, item: NetworkId) -> StoredStatistics | None:
        """All statistics of an observer, as files that are complete."""
        store = self.job.store
        for spec in self.specs(item):
            if not store.is_sound(self.folder, self.spec_key(item, spec)):
                return None
        return self._stored(item)

    def _stored(self, item: NetworkId) -> StoredStatistics:
        store = self.job.store
        files = {
            spec.key: store.found(self.folder, self.spec_key(item, spec), "safetensors")
            for spec in self.specs(item)
        }
        # names of files are hashes of everything that the statistics depend on
        names = {key: path.name for key, path in files.items()}
        return StoredStatistics(content_hash(names), files)

    def kept(self, item: NetworkId, spec: StatisticSpec) -> tuple[Statistic, ...] | None:
        """A statistic of an observer, by layer; None if it is not in the store."""
        tensors = self.job.store.tensors(self.folder, self.spec_key(item, spec))
        return None if tensors is None else statistics(spec, layers(tensors))

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
        """Measure all observers that no other run is measuring; they share decoded shards."""
        # all at once, as they share decoded shards: their locks are held together
        mine = list(queue)
        if not mine:
            return
        assert isinstance(pool, HostingPool)
        # in an actor on the driver's node, as merged parts are lost together with its node
        synthesizer = pool.host(Synthesizer)
        measuring = self._measuring(pool, mine)
        for index, done in synthesizer.stream("measure", measuring):
            item = mine[index]
            progress.update(item, done)
            if done == len(measuring.labels):
                # the synthesizer has written the files; they are only registered here
                self.keep(item, None)
                queue.done(item)
        synthesizer.close()

    def _measuring(self, pool: WorkerPool, missing: Sequence[NetworkId]) -> Measuring:
        """The work to measure some observers on the whole training split."""
        train = self.job.data.train
        recipe = self.job.recipe
        parts = [train.part(rows) for rows in shards(len(train))]
        is_decoded_apart = train.streamed and recipe.resources.decoders > 0
        alone: list[NetworkId] = []
        if not train.streamed:
            alone = _alone(missing, recipe.resources.workers)
        items = self.items()
        return Measuring(
            recipe=recipe,
            classes=self.job.data.classes,
            root=self.job.store.root,
            folder=self.folder,
            networks=self._networks(pool, missing),
            images=() if is_decoded_apart else tuple(pool.share(_batch(part)) for part in parts),
            encoded=tuple(parts) if is_decoded_apart else (),
            labels=tuple(part.labels for part in parts),
            # by position among all observers, as for gradients, so that the worker then has the
            # network
            alone={missing.index(item): items.index(item) for item in alone},
            shards=self._shards(missing, alone, len(parts)),
        )

    def _networks(
        self, pool: WorkerPool, missing: Sequence[NetworkId]
    ) -> tuple[MeasuredNetwork, ...]:
        """The observers with their weights and the keys of their statistics."""
        first = self._glance(pool, missing)
        networks = []
        for item in missing:
            keys = {spec.key: self.spec_key(item, spec) for spec in self.specs(item)}
            networks.append(MeasuredNetwork(item, self.weights.get(item), first.get(item), keys))
        return tuple(networks)

    def _shards(
        self, missing: Sequence[NetworkId], alone: Sequence[NetworkId], parts: int
    ) -> tuple[Shard, ...]:
        """The shards for observers that several workers measure, in the order of the work."""
        train = self.job.data.train
        resources = self.job.recipe.resources
        others = [item for item in missing if item not in alone]
        groups: list[tuple[NetworkId, ...]] = [(item,) for item in others]
        if train.streamed and resources.decoders == 0:
            groups = teams(others, parts, self.job.recipe)
        if train.streamed:
            # shard after shard, so that files are read in order
            order = [(shard, team) for shard in range(parts) for team in groups]
        else:
            # observer after observer, so that one is merged at a time
            order = [(shard, team) for team in groups for shard in range(parts)]
        homes = _homes(train, order, resources.workers)
        place = {item: index for index, item in enumerate(missing)}
        found = []
        for (shard, team), home in zip(order, homes, strict=True):
            indices = tuple(place[item] for item in team)
            found.append(Shard(shard, indices, home))
        return tuple(found)

    def _glance(self, pool: WorkerPool, items: Sequence[NetworkId]) -> dict[NetworkId, ObjectRef]:
        """Images from the whole data, for observers whose statistics must be resolved."""
        first = []
        for item in items:
            if any(spec.data_dependent for spec in self.specs(item)):
                first.append(item)
        if not first:
            return {}
        train = self.job.data.train
        batch = pool.share(_batch(train.part(evenly_spaced(len(train)).numpy())))
        return dict.fromkeys(first, batch)


def shards(images: int) -> list[slice]:
    """The rows of each shard."""
    size = max(SHARD, -(-images // SHARDS))
    return [slice(start, min(start + size, images)) for start in range(0, images, size)]


def in_store(recipe: Recipe, images: ImageSet) -> int:
    """Bytes of real images in Ray's object store at a time: all images, or the decoded shards if
    they are streamed.
    """
    if not images.streamed:
        return images.images.nbytes
    shard = math.prod(images.shape) * max(rows.stop - rows.start for rows in shards(len(images)))
    # shards that are being decoded, as many that wait, and those that are being measured
    decoders = recipe.resources.decoders
    return (2 * decoders + recipe.resources.workers) * shard if decoders else 0


def teams(missing: Sequence[NetworkId], shards: int, recipe: Recipe) -> list[tuple[NetworkId, ...]]:
    """Groups of observers that share decoded shards, so that every worker has enough items."""
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


def _alone(missing: Sequence[NetworkId], workers: int) -> list[NetworkId]:
    """Observers whose shards are all measured by one worker: as many as give every worker the same
    number of observers of an architecture. Without workers there are none.
    """
    if workers == 0:
        return []
    # the rest, fewer than the workers, is split into shards, as the others would wait for a worker
    # that measures one alone
    return [item for same in alike(missing) for item in same[: len(same) // workers * workers]]


def _homes(
    images: ImageSet, order: Sequence[tuple[int, tuple[NetworkId, ...]]], workers: int
) -> list[int]:
    """The preferred worker of each item: for streamed data the one that has the files, else round
    robin.
    """
    if not isinstance(images.images, StreamedPixels):
        return [shard for shard, _ in order]
    files = sum(1 for _ in images.images.files())
    run = runs(files, len(shards(len(images))), max(1, workers))
    return [run[index] for index, _ in order]


def runs(files: int, shards: int, workers: int) -> list[int]:
    """Index of the run of consecutive shards to which each streamed shard belongs. A run goes to
    one worker, so that few files are downloaded twice.
    """
    wanted = max(-(-files // FILES), -(-shards // RUN))
    count = min(shards, -(-wanted // workers) * workers)  # equally many per worker
    return [shard * count // shards for shard in range(shards)]


def _batch(images: ImageSet) -> RealBatch:
    return images.images, images.labels
