"""The initialise stage: where the synthetic set starts.

Only some starts have work for networks: RDED's, of which an item scores the patches of a class, and
labels that experts give, of which an item is what one of them says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rayd import synthetic
from rayd.config import Recipe
from rayd.data import ImageData
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.engine.squeeze import trained_inputs
from rayd.engine.store import Store
from rayd.engine.work_queue import WorkQueue, run_once
from rayd.synthetic import SyntheticSet
from rayd.synthetic.initialization import candidates as first_candidates
from rayd.synthetic.rded import candidates, most_realistic, stitched

STAGE = "score"
HANDFUL = 4
"""Classes that a worker is given to score at a time."""


def inputs(recipe: Recipe, data: ImageData, label: int) -> dict[str, Any]:
    """All that the scores of one class depend on."""
    return {
        "version": 1,
        "observer": trained_inputs(recipe, data, network_ids(recipe)[0]),
        "seed": recipe.seed,
        "class": label,
        "settings": {
            name: getattr(recipe.synthetic, name)
            for name in ("patches", "candidates", "crops", "crop")
        },
    }


def missing(recipe: Recipe, data: ImageData, store: Store) -> list[int]:
    """Classes whose patches are not scored yet."""
    if recipe.synthetic.init != "rded":
        return []
    return [
        label
        for label in range(data.classes)
        if store.tensors(STAGE, inputs(recipe, data, label)) is None
    ]


def initial(
    pool: WorkerPool,
    recipe: Recipe,
    data: ImageData,
    weights: Mapping[NetworkId, ObjectRef],
    store: Store,
    done: Callable[[int, int], None],
    experts: tuple[Path, ...] = (),
    waiting: Callable[[int], None] = lambda _: None,
) -> SyntheticSet:
    """The synthetic set before the first step.

    Args:
        pool: hosts `Worker`.
        recipe: the run.
        data: the real data.
        weights: trained weights.
        store: where scores are kept.
        done: told (classes scored, classes in all).
        experts: files of those who give labels.
        waiting: told how many classes other runs are scoring, when nothing else is left to do.
    """
    if recipe.synthetic.labels == "experts":
        images = pool.share(data.train.part(first_candidates(recipe, data)).images[:])
        said = list(pool.map("opinion", [(expert, images) for expert in experts]))
        return synthetic.initial(recipe, data, logits=torch.stack(said))
    if recipe.synthetic.init != "rded":
        return synthetic.initial(recipe, data)
    rows = [
        candidates(data.train, label, recipe.synthetic, recipe.seed)
        for label in range(data.classes)
    ]
    absent = missing(recipe, data, store)
    first = network_ids(recipe)[0]

    def there(label: int) -> bool:
        return store.tensors(STAGE, inputs(recipe, data, label)) is not None

    def make(taken: WorkQueue[int]) -> None:
        while some := taken.handful(max(1, HANDFUL * recipe.resources.workers)):
            done(sum(map(there, absent)), len(absent))
            items = [
                (first, weights[first], label, pool.share(data.train.part(rows[label]).images))
                for label in some
            ]
            for label, scores in zip(some, pool.map("score", items), strict=True):
                store.put_tensors(STAGE, inputs(recipe, data, label), scores)
                taken.done(label)

    run_once(
        absent,
        there,
        lambda label: [store.path(STAGE, inputs(recipe, data, label), "safetensors")],
        make,
        waiting,
    )
    done(len(absent), len(absent))
    stitches = []
    for label in range(data.classes):
        kept = store.tensors(STAGE, inputs(recipe, data, label))
        assert kept is not None
        best = most_realistic(kept, recipe.ipc, recipe.synthetic.patches)
        pixels = torch.from_numpy(data.train.images[rows[label][best.numpy()]])
        stitches.append(stitched(pixels, kept["box"][best], recipe.synthetic.patches))
    return synthetic.initial(recipe, data, torch.cat(stitches))
