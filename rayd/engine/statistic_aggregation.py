"""Aggregation of measured statistics, in the synthesizer's process, never in the driver.

Workers measure shards of the real images. If there are enough observers of one architecture, a
worker measures all shards of one, accumulates the statistics, and sends them once; otherwise the
shards of an observer are distributed over the workers. The synthesizer's process merges statistics
in the order of the shards, and writes those of an observer into the store when its last shard is
merged. All later readers use the store (`StoredStatistics`). The driver only passes on references
and file names, so its memory does not depend on the size of the statistics.

Merging is a left fold over the shards in their order, on the host wherever they were measured, so
that its bits depend neither on the number of workers nor on the loss of any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayd import methods
from rayd.artifacts import read_tensors
from rayd.config import Recipe
from rayd.data import ImageSet
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import States
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.engine.store import Store
from rayd.errors import RunError
from rayd.objectives import StatisticSpec
from rayd.statistics import Statistic


@dataclass(frozen=True)
class StoredStatistics:
    """The measured statistics of an observer, in files of the store, read where they are needed.

    An `ObjectRef` of `States`.
    """

    key: str
    """Identity of the statistics: a hash of everything that they depend on."""
    files: Mapping[str, Path]
    """A file for each statistic, by the key of its spec."""

    def get(self) -> States:
        """Read all statistics.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        return {key: layers(read_tensors(path)[0]) for key, path in self.files.items()}


@dataclass(frozen=True)
class MeasuredNetwork:
    """An observer to be measured."""

    network_id: NetworkId
    """The network."""
    weights: ObjectRef | None
    """Its trained weights; None for a random one."""
    first: ObjectRef | None
    """Images on which its statistics are resolved, a `RealBatch`; None if they need none."""
    keys: Mapping[str, Mapping[str, Any]]
    """Key of each statistic in the store, by the key of its spec: everything that it depends on."""

    @property
    def task(self) -> tuple[NetworkId, ObjectRef | None, ObjectRef | None]:
        """The arguments that a worker needs."""
        return self.network_id, self.weights, self.first


@dataclass(frozen=True)
class Shard:
    """A shard of the real images, measured by a team of observers."""

    index: int
    """Index of the shard."""
    team: tuple[int, ...]
    """Indices of the observers."""
    home: int
    """The preferred worker (see `WorkerPool.map`)."""


@dataclass(frozen=True)
class Measuring:
    """Everything that is to be measured, with preferred workers."""

    recipe: Recipe
    """The run."""
    classes: int
    """Number of classes of the data."""
    root: Path
    """Directory of the store."""
    folder: str
    """Folder of the statistics in the store."""
    networks: tuple[MeasuredNetwork, ...]
    """The observers, to which indices refer."""
    images: tuple[ObjectRef, ...]
    """Each shard as a `RealBatch`; empty if the images are `encoded`."""
    encoded: tuple[ImageSet, ...]
    """Each shard, if `resources.decoders` decode them; else empty."""
    labels: tuple[npt.NDArray[np.int64], ...]
    """Class indices (N,) of each shard."""
    alone: Mapping[int, int]
    """Observers whose shards are all measured by one worker: the preferred worker by index."""
    shards: tuple[Shard, ...]
    """Shards for the other observers, in the order of measurement."""


def aggregate(pool: WorkerPool, measuring: Measuring) -> Iterator[tuple[int, int]]:
    """Measure everything on the workers, merge it, and write it into the store.

    Yields the index of an observer and the number of its merged shards; after the last shard, its
    files are written. Events and their order do not depend on the content of the store, so that a
    restarted actor repeats them.
    """
    merging = _Merging(measuring)
    count = len(measuring.labels)
    whole = pool.map("measure_all", *merging.tasks_alone())
    for index in measuring.alone:
        # after a restart, the files of these exist, and only the event is repeated
        if index not in merging.finished:
            merging.keep(index, next(whole))
        yield index, count
    parts = _in_shards(pool, merging)
    for shard in measuring.shards:
        missing = merging.missing(shard)
        found = next(parts) if missing else []
        for index, part in zip(missing, found, strict=True):
            merging.add(index, shard.index, part)
        for index in shard.team:
            yield index, shard.index + 1


class _Merging:
    """Statistics of the observers that are not complete yet."""

    def __init__(self, measuring: Measuring):
        self._measuring = measuring
        self._method = methods.build(measuring.recipe)
        self._store = Store(measuring.root)
        # entries are dropped after the last shard of their observer, so that few are in memory at a
        # time
        self._states: dict[int, States] = {}
        self.finished = {
            index for index, one in enumerate(measuring.networks) if self._is_kept(one)
        }
        """Observers whose files an earlier call has written."""

    def _is_kept(self, network: MeasuredNetwork) -> bool:
        return all(
            self._store.is_sound(self._measuring.folder, inputs, own=True)
            for inputs in network.keys.values()
        )

    def missing(self, shard: Shard) -> list[int]:
        """Observers of a team that are not finished."""
        return [index for index in shard.team if index not in self.finished]

    def tasks_alone(self) -> tuple[list[tuple[Any, ...]], list[int]]:
        """Arguments of `measure_all` for the observers that one worker measures, and affinities."""
        networks = self._measuring.networks
        tasks: list[tuple[Any, ...]] = []
        homes = []
        for index, home in self._measuring.alone.items():
            if index not in self.finished:
                tasks.append((networks[index].task, self._measuring.images))
                homes.append(home)
        return tasks, homes

    def task(self, shard: Shard, images: ObjectRef) -> tuple[Any, ...]:
        """Arguments of `measure` for a shard."""
        team = tuple(self._measuring.networks[index].task for index in self.missing(shard))
        # tensors that are equal for all shards, such as frequencies, are only sent with the first
        # one
        return team, images, shard.index > 0

    def add(self, index: int, shard: int, part: States) -> None:
        """Merge an observer's statistics of its next shard; write them after the last one."""
        self._states[index] = merged(
            self._method.specs(self._measuring.networks[index].network_id.group),
            self._states.get(index),
            # in process they are still on the device, where rounding may differ
            to_host(part),
            torch.tensor(self._measuring.labels[shard]),
            self._measuring.classes,
        )
        if shard == len(self._measuring.labels) - 1:
            self.keep(index, self._states.pop(index))

    def keep(self, index: int, states: States) -> None:
        """Write the statistics of an observer.

        Raises:
            RunError: they contain NaN, which a synthesis would attribute to its own step size.
        """
        network = self._measuring.networks[index]
        for key, inputs in network.keys.items():
            tensors = named(states[key])
            if any(tensor.isnan().any() for tensor in tensors.values()):
                raise RunError(self._not_a_number(network.network_id))
            self._store.put_tensors(self._measuring.folder, inputs, tensors)

    def _not_a_number(self, network_id: NetworkId) -> str:
        """Message about a network with NaN in its statistics, with remedies."""
        group = network_id.group
        settings = self._measuring.recipe.network_group(group)
        advice = (
            "" if settings.precision == "float32" else f", or set '{group}.precision' to float32"
        )
        return (
            f"Statistics of the real images through '{network_id.label}' contain NaN: check its "
            f"layers and weights, choose another by '{group}.networks'{advice}."
        )


def _in_shards(pool: WorkerPool, merging: _Merging) -> Iterator[list[States]]:
    """Statistics of single shards that teams measure, in the order of the shards."""
    measuring = merging._measuring
    shards = [shard for shard in measuring.shards if merging.missing(shard)]
    if not measuring.encoded:
        tasks = [merging.task(shard, measuring.images[shard.index]) for shard in shards]
        return pool.map("measure", tasks, [shard.home for shard in shards])
    from rayd.engine.on_ray.data import decoded

    # teams of one shard are consecutive, so that each decoded shard is in memory only once
    by_index = groupby(shards, key=lambda shard: shard.index)
    coming = enumerate(decoded(measuring.encoded, measuring.recipe.resources.decoders))

    def decoded_tasks() -> Iterator[tuple[Any, ...]]:
        for index, teams in by_index:
            images = next(images for place, images in coming if place == index)
            for shard in teams:
                yield merging.task(shard, images)

    return _in_order(pool.stream("measuring", decoded_tasks()))


def _in_order(events: Iterable[tuple[int, Any]]) -> Iterator[Any]:
    """The only event of each item, in the order of the items."""
    # sums of floats depend on their order, so early results wait for their turn
    early: dict[int, Any] = {}
    following = 0
    for index, event in events:
        early[index] = event
        while following in early:
            yield early.pop(following)
            following += 1


def merged(
    specs: Sequence[StatisticSpec],
    before: States | None,
    part: States,
    labels: Tensor,
    classes: int,
) -> States:
    """Add the statistics of a shard to those so far, in place.

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
            known = spec.spread(statistics(spec, part[spec.key]), labels, classes)
        else:
            known = statistics(spec, before[spec.key])
            # constant tensors are only sent with the first part
            new = []
            for own, one in zip(part[spec.key], known, strict=True):
                constant = {name: getattr(one, name) for name in one.constant}
                new.append(own | constant)
            spec.add(known, statistics(spec, new), labels)
        after[spec.key] = [statistic.state() for statistic in known]
    return after


def to_host(states: States) -> States:
    """Statistics in the memory of the host."""
    moved = {}
    for key, layers in states.items():
        on_host = []
        for layer in layers:
            on_host.append({name: tensor.cpu() for name, tensor in layer.items()})
        moved[key] = on_host
    return moved


def statistics(
    spec: StatisticSpec, states: Sequence[Mapping[str, Tensor]]
) -> tuple[Statistic, ...]:
    """The statistics of all layers from their tensors."""
    return tuple(spec.kind.statistic.from_state(state) for state in states)


def named(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of a statistic's layers by name, for a file."""
    tensors = {}
    for layer, state in enumerate(states):
        for name, tensor in state.items():
            tensors[f"{layer}.{name}"] = tensor
    return tensors


def layers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The inverse of `named`."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        found.setdefault(int(layer), {})[part] = tensor
    # by number, as layer 10 would sort before layer 2 as text
    return [found[layer] for layer in sorted(found)]
