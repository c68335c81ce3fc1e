"""The measure stage: statistics of the whole real set, seen by every observer of the pool, made
once and kept.

Work items are (observer, shard of the real data). Observers look at a streamed shard in teams, for
which it is decoded once, or at one that others have decoded (`rayd.engine.on_ray.data`); a worker
prefers shards whose files its node has. The size of a shard depends on the data alone, so that the
parts, merged in order, do not depend on who made them; a worker holds one shard at a time, and of
streamed data a few batches of it. Of a part the classes that its shard holds travel and are merged:
few, where files lie class by class, as those of image folders do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayd import devices
from rayd.config import Recipe
from rayd.data import ImageData, ImageSet
from rayd.data.streaming import StreamedPixels
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import RealBatch, States
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.engine.squeeze import random_inputs, trained_inputs
from rayd.engine.store import Store
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.methods import Method
from rayd.objectives import StatisticSpec
from rayd.statistics import Statistic
from rayd.statistics.frequencies import evenly_spaced

STAGE = "measure"
SHARD = 4096
"""Images of a shard, at least."""
SHARDS = 128
"""Shards of a data set, at most: with a handful of observers, work for several hundred workers.
Each costs the driver the merging of its classes, which may be all of them.
"""
TEAM = 8
"""Observers that look at a streamed shard together, at most: their networks and statistics are in a
worker at once.
"""
ITEMS = 4
"""Work items for each worker, at least, where teams can be smaller."""
FILES = 8
"""Files that the shards of a run need, about: of two runs that follow each other, both need the one
between them.
"""
RUN = 16
"""Shards of a run, at most: what workers have seen of later runs waits for its turn in the
driver.
"""


def inputs(
    recipe: Recipe, data: ImageData, need: StatisticSpec, network_id: NetworkId
) -> dict[str, Any]:
    """All that one measured statistic depends on."""
    settings = recipe.network_group(network_id.group)
    return {
        "version": 7,
        # frequencies, fixed augmentation and interpolated weights are drawn from these, also where
        # weights are given
        "seed": settings.seed,
        "copy": network_id.index,
        "data": data.fingerprint,
        "observer": trained_inputs(recipe, data, network_id)
        if settings.trained
        else random_inputs(recipe, network_id),
        "augmentation": settings.augmentation,
        "need": need.key,
        "interpolate": settings.interpolate,
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "device": devices.choose(recipe.resources).type,
    }


def missing(recipe: Recipe, method: Method, data: ImageData, store: Store) -> list[NetworkId]:
    """Those who look and are not measured yet."""
    return [
        network_id
        for group in method.groups
        for network_id in network_ids(recipe, group)
        if not all(
            store.has(STAGE, inputs(recipe, data, need, network_id), "safetensors")
            for need in method.needs(group)
        )
    ]


def shards(images: int) -> list[slice]:
    """The rows of each shard of so many images."""
    size = max(SHARD, -(-images // SHARDS))
    return [slice(start, min(start + size, images)) for start in range(0, images, size)]


def in_store(recipe: Recipe, images: ImageSet) -> int:
    """Bytes of real images that are in Ray's object store at a time: all, or of streamed ones the
    shards that are decoded.
    """
    if not images.streamed:
        return images.images.nbytes
    shard = math.prod(images.shape) * max(rows.stop - rows.start for rows in shards(len(images)))
    # those that are being decoded, as many that wait, and those that are looked at
    return (
        (2 * recipe.resources.decoders + recipe.resources.workers) * shard
        if recipe.resources.decoders
        else 0
    )


def measure(
    pool: WorkerPool,
    recipe: Recipe,
    method: Method,
    data: ImageData,
    store: Store,
    weights: Mapping[NetworkId, ObjectRef],
    done: Callable[..., None],
    waiting: Callable[[int], None] = lambda _: None,
    weight: Callable[[NetworkId], float] | None = None,
) -> dict[NetworkId, States]:
    """Statistics of the training split for all who look: from the store where they are, else
    measured and stored.

    Args:
        pool: hosts `Worker`.
        recipe: the run.
        method: says what is needed.
        data: the real data.
        store: where results are kept.
        weights: trained weights; those of random networks are missing.
        done: called with (work items finished, work items in all), and with `weight` (None, share
            of the work) after these.
        waiting: told of how many observers other runs measure what they see, when nothing else is
            left to do.
        weight: work of a shard for an observer.
    """
    everyone = [network_id for group in method.groups for network_id in network_ids(recipe, group)]
    states = {
        network_id: _stored(recipe, method, data, store, network_id) for network_id in everyone
    }
    absent = [network_id for network_id, state in states.items() if state is None]
    parts = shards(len(data.train))
    effort = {} if weight is None else {network_id: weight(network_id) for network_id in absent}
    whole = sum(effort.values()) * len(parts)
    done(0, len(absent) * len(parts))

    def there(network_id: NetworkId) -> bool:
        states[network_id] = _stored(recipe, method, data, store, network_id)
        return states[network_id] is not None

    def paths(network_id: NetworkId) -> list[Path]:
        return [
            store.path(STAGE, inputs(recipe, data, need, network_id), "safetensors")
            for need in method.needs(network_id.group)
        ]

    def make(taken: WorkQueue[NetworkId]) -> None:
        # all that are free at once: whoever decodes a shard shows it to all of them
        if mine := list(taken):
            known = [network_id for network_id in absent if states[network_id] is not None]
            before = len(known) * len(parts)
            spent = [sum(effort.get(network_id, 0.0) for network_id in known) * len(parts)]

            def told(items: int, network_id: NetworkId) -> None:
                spent[0] += effort.get(network_id, 0.0)
                shares = [None, spent[0] / whole] if whole else []
                done(before + items, len(absent) * len(parts), *shares)

            def seen(network_id: NetworkId) -> None:
                _keep(recipe, method, data, store, network_id, states[network_id] or {})
                taken.done(network_id)

            _measure(pool, recipe, method, data, mine, everyone, weights, states, told, seen)

    run_once(absent, there, paths, make, waiting)
    return {network_id: state for network_id, state in states.items() if state is not None}


def _measure(
    pool: WorkerPool,
    recipe: Recipe,
    method: Method,
    data: ImageData,
    absent: Sequence[NetworkId],
    everyone: Sequence[NetworkId],
    weights: Mapping[NetworkId, ObjectRef],
    states: dict[NetworkId, States | None],
    done: Callable[[int, NetworkId], None],
    seen: Callable[[NetworkId], None],
) -> None:
    """Let some observers see the whole training split; what they saw goes to `states`, and `seen`
    is told when it is there.
    """
    parts = [data.train.part(rows) for rows in shards(len(data.train))]
    labels = [torch.tensor(part.labels) for part in parts]
    decoders = recipe.resources.decoders if data.train.streamed else 0
    alone = decoders > 0 or not data.train.streamed
    looking = (
        [(network_id,) for network_id in absent] if alone else teams(absent, len(parts), recipe)
    )
    glances = {
        network_id: any(need.looks_first for need in method.needs(network_id.group))
        for network_id in absent
    }
    # from all over the data
    some = (
        data.train.part(evenly_spaced(len(data.train)).numpy()) if any(glances.values()) else None
    )
    first = pool.share(_batch(some)) if some is not None else None

    def item(team: tuple[NetworkId, ...], shard: ObjectRef, lean: bool) -> tuple[Any, ...]:
        return (
            tuple((one, weights.get(one), first if glances[one] else None) for one in team),
            shard,
            lean,
        )

    # shard after shard: results come back in this order, so that few wait for their turn
    looks = [(index, team) for index in range(len(parts)) for team in looking]
    results: Iterator[list[States]]
    if decoders > 0:
        from rayd.engine.on_ray.data import decoded

        coming = enumerate(decoded(parts, decoders))
        results = _in_order(
            pool.stream(
                "measuring", (item(team, shard, i > 0) for i, shard in coming for team in looking)
            )
        )
    else:
        shared = [pool.share(_batch(part)) for part in parts]
        items = [item(team, shared[index], index > 0) for index, team in looks]
        results = pool.map(
            "measure", items, _homes(data.train, looks, everyone, recipe.resources.workers)
        )
    count = 0
    for (index, team), told in zip(looks, results, strict=True):
        for network_id, part in zip(team, told, strict=True):
            states[network_id] = merged(
                method.needs(network_id.group),
                states[network_id],
                part,
                labels[index],
                data.classes,
            )
            count += 1
            done(count, network_id)
            if index == len(parts) - 1:
                # merged where they were measured; from here on they are kept, not computed with
                states[network_id] = _on_host(states[network_id] or {})
                seen(network_id)


def _in_order(events: Iterator[tuple[int, Any]]) -> Iterator[Any]:
    """The only event of each item, in the order of the items."""
    early = dict[int, Any]()
    following = 0
    for index, event in events:
        early[index] = event
        while following in early:
            yield early.pop(following)
            following += 1


def teams(absent: Sequence[NetworkId], shards: int, recipe: Recipe) -> list[tuple[NetworkId, ...]]:
    """Observers who are shown a shard together, so that it is decoded once: as many as leave every
    worker enough items.
    """
    workers = recipe.resources.workers
    size = TEAM if workers < 2 else max(1, min(TEAM, len(absent) * shards // (ITEMS * workers)))
    groups = [
        [network_id for network_id in absent if network_id.group == group]
        for group in dict.fromkeys(m.group for m in absent)
    ]
    return [
        tuple(them[start : start + size]) for them in groups for start in range(0, len(them), size)
    ]


def _homes(
    images: ImageSet,
    looks: Sequence[tuple[int, tuple[NetworkId, ...]]],
    everyone: Sequence[NetworkId],
    workers: int,
) -> list[int]:
    """Who should do each item: of streamed data who has the files, else who has the network."""
    if not isinstance(images.images, StreamedPixels):
        return [everyone.index(team[0]) for _, team in looks]
    files = sum(1 for _ in images.images.files())
    run = runs(files, len(shards(len(images))), max(1, workers))
    return [run[index] for index, _ in looks]


def runs(files: int, shards: int, workers: int) -> list[int]:
    """The run of each streamed shard: those that follow each other go to one worker, so that few
    files are fetched by two.
    """
    wanted = max(-(-files // FILES), -(-shards // RUN))
    count = min(shards, -(-wanted // workers) * workers)  # as many for each worker
    return [shard * count // shards for shard in range(shards)]


def _batch(images: ImageSet) -> RealBatch:
    return images.images, images.labels


def merged(
    needs: Sequence[StatisticSpec],
    before: States | None,
    part: States,
    labels: Tensor,
    classes: int,
) -> States:
    """What is known, with a shard's statistics added in place; labels (N,) are those of the
    shard.
    """
    after: States = {}
    for need in needs:
        if before is None:
            known = need.spread(_statistics(need, part[need.key]), labels, classes)
        else:
            known = _statistics(need, before[need.key])
            # what no sample changes came with the first part alone
            constant = [{name: getattr(one, name) for name in one.constant} for one in known]
            new = [own | same for own, same in zip(part[need.key], constant, strict=True)]
            need.add(known, _statistics(need, new), labels)
        after[need.key] = [statistic.state() for statistic in known]
    return after


def _on_host(states: States) -> States:
    return {
        key: [{name: t.cpu() for name, t in layer.items()} for layer in layers]
        for key, layers in states.items()
    }


def _statistics(
    need: StatisticSpec, states: Sequence[Mapping[str, Tensor]]
) -> tuple[Statistic, ...]:
    return tuple(need.kind.statistic.from_state(state) for state in states)


def _keep(
    recipe: Recipe,
    method: Method,
    data: ImageData,
    store: Store,
    network_id: NetworkId,
    states: States,
) -> None:
    for need in method.needs(network_id.group):
        tensors = {
            f"{layer}.{name}": t
            for layer, state in enumerate(states[need.key])
            for name, t in state.items()
        }
        store.put_tensors(STAGE, inputs(recipe, data, need, network_id), tensors)


def kept(
    recipe: Recipe, data: ImageData, store: Store, need: StatisticSpec, network_id: NetworkId
) -> tuple[Statistic, ...] | None:
    """What one observer measured for one need, or None if the store does not have it."""
    tensors = store.tensors(STAGE, inputs(recipe, data, need, network_id))
    return None if tensors is None else _statistics(need, _layers(tensors))


def _layers(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Stored tensors by layer."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        layers.setdefault(int(layer), {})[part] = tensor
    return [layers[layer] for layer in sorted(layers)]


def _stored(
    recipe: Recipe, method: Method, data: ImageData, store: Store, network_id: NetworkId
) -> States | None:
    states: States = {}
    for need in method.needs(network_id.group):
        tensors = store.tensors(STAGE, inputs(recipe, data, need, network_id))
        if tensors is None:
            return None
        states[need.key] = _layers(tensors)
    return states
