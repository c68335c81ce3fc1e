"""The measure stage: statistics of the whole real set, seen by every observer of the pool, made once and kept.

Work items are (observer, shard of the real data). Shards have a fixed size, so that the parts, merged in order, do not depend
on who made them; a worker holds one shard at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from rayd import devices
from rayd.config import Recipe
from rayd.data import ImageData, ImageSet
from rayd.engine.group import Group
from rayd.engine.observer import States
from rayd.engine.store import Store
from rayd.methods import Method
from rayd.objectives import Need

STAGE = "measure"
SHARD = 4096
"""Images of a shard."""


def inputs(recipe: Recipe, data: ImageData, need: Need, member: int) -> dict[str, Any]:
    """All that one measured statistic depends on."""
    settings = recipe.observers
    return {
        "version": 1,
        "data": data.fingerprint,
        "network": settings.network.model_dump(),
        "seed": settings.seed,
        "member": member,
        "augmentation": settings.augmentation,
        "need": need.key,
        "precision": settings.precision,
        "batch_size": settings.batch_size,
        "device": devices.choose(recipe.resources).type,
    }


def missing(recipe: Recipe, method: Method, data: ImageData, store: Store) -> list[int]:
    """Members of the pool that are not measured yet."""
    return [
        member
        for member in range(recipe.observers.pool)
        if not all(store.has(STAGE, inputs(recipe, data, need, member), "safetensors") for need in method.needs)
    ]


def shards(images: ImageSet) -> list[slice]:
    """The rows of each shard."""
    return [slice(start, start + SHARD) for start in range(0, len(images), SHARD)]


def measure(
    group: Group, recipe: Recipe, method: Method, data: ImageData, store: Store, done: Callable[[int, int], None]
) -> list[States]:
    """Statistics of the training split for every member of the pool: from the store where they are, else measured and stored.

    Args:
        group: hosts `Observers`.
        recipe: the run.
        method: says what is needed.
        data: the real data.
        store: where results are kept.
        done: told (work items finished, work items in all).

    Returns:
        The statistics, one element a member.
    """
    states = {member: _stored(recipe, method, data, store, member) for member in range(recipe.observers.pool)}
    absent = [member for member, state in states.items() if state is None]
    parts = shards(data.train)
    done(0, len(absent) * len(parts))
    if absent:
        shared = [group.share((data.train.images[rows], data.train.labels[rows])) for rows in parts]
        items = [(member, shard) for member in absent for shard in shared]
        results = group.map("measure", items, [member for member, _ in items])
        for count, (member, _) in enumerate(items):
            part = next(results)
            before = states[member]
            states[member] = part if before is None else _merged(method.needs, before, part)
            done(count + 1, len(items))
            if (count + 1) % len(parts) == 0:
                _keep(recipe, method, data, store, member, states[member] or {})
    return [state for state in states.values() if state is not None]


def _merged(needs: Sequence[Need], left: States, right: States) -> States:
    def merge(need: Need, a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
        kind: Any = need.statistic
        return dict(kind.from_state(a).merge(kind.from_state(b)).state())

    return {need.key: [merge(need, a, b) for a, b in zip(left[need.key], right[need.key], strict=True)] for need in needs}


def _keep(recipe: Recipe, method: Method, data: ImageData, store: Store, member: int, states: States) -> None:
    for need in method.needs:
        tensors = {f"{layer}.{name}": t for layer, state in enumerate(states[need.key]) for name, t in state.items()}
        store.put_tensors(STAGE, inputs(recipe, data, need, member), tensors)


def _stored(recipe: Recipe, method: Method, data: ImageData, store: Store, member: int) -> States | None:
    states: States = {}
    for need in method.needs:
        tensors = store.tensors(STAGE, inputs(recipe, data, need, member))
        if tensors is None:
            return None
        layers: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            layer, _, part = name.partition(".")
            layers.setdefault(int(layer), {})[part] = tensor
        states[need.key] = [layers[layer] for layer in sorted(layers)]
    return states
