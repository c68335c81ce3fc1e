"""Efficiency of a second worker: `python -m benchmarks.scaling [--data cifar10] [--images 16384]
[--rounds 5]`.

The measuring pass over a number of training images, and a synthesis step with two observers, are
timed alternately on one and on two Ray workers of one torch thread each. Efficiency is the rate
with two workers divided by twice the rate with one; both must give the same statistics. It needs
two idle cores, which the driver uses, too, between results.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.dm import recipe
from benchmarks.timing import Steps, compare, rate
from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId
from rayd.engine.observer import DatasetInfo, States
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import WorkerPool
from rayd.engine.stages.measure import Measure
from rayd.engine.store import Store
from rayd.engine.worker import Worker

WANTED = "at least 0.85"


def spread(data: str, workers: int) -> Recipe:
    """The recipe for a number of workers. Both pools exist at the same time, so each worker
    reserves less than it uses.
    """
    return recipe(
        data,
        ipc=10,
        observers={"per_step": 2, "precision": "float32"},
        synthesis={"precision": "float32"},
        resources={"workers": workers, "threads": 1, "cpus_per_worker": 0.5},
    )


def measured(pool: WorkerPool, chosen: Recipe, data: ImageData) -> dict[NetworkId, States]:
    """The measuring pass over an empty store."""
    with tempfile.TemporaryDirectory() as folder:
        found = Measure(Job(chosen, data, Store(Path(folder))), {}).run(pool)
        return {network_id: stored.get() for network_id, stored in found.items()}


def same(left: dict[NetworkId, States], right: dict[NetworkId, States]) -> bool:
    """Whether statistics are the same, bit for bit."""
    for network_id, states in left.items():
        for key, layers in states.items():
            for one, other in zip(layers, right[network_id][key], strict=True):
                if any(not torch.equal(tensor, other[name]) for name, tensor in one.items()):
                    return False
    return True


def main() -> None:
    """Print both efficiencies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--images", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    recipes = [spread(options.data, workers) for workers in (1, 2)]
    whole = load(recipes[0].data, options.data_root)
    rows = np.linspace(
        0, len(whole.train), min(options.images, len(whole.train)), endpoint=False
    ).astype(np.int64)
    data = replace(whole, train=whole.train.part(rows))
    torch.set_num_threads(1)
    print(
        f"{options.data}: {len(data.train):,} images, torch {torch.__version__}, {options.rounds} rounds"
    )
    with (
        open_pool(recipes[0].resources, Worker, recipes[0], DatasetInfo.of(data)) as one,
        open_pool(recipes[1].resources, Worker, recipes[1], DatasetInfo.of(data)) as two,
    ):
        if not same(measured(one, recipes[0], data), measured(two, recipes[1], data)):
            raise SystemExit("One worker and two come to different statistics.")
        compare(
            "efficiency of two workers, measuring pass", WANTED,
            lambda: rate(lambda: measured(two, recipes[1], data), 1) / 2,
            lambda: rate(lambda: measured(one, recipes[0], data), 1), options.rounds,
        )  # fmt: skip
        alone = Steps(one, recipes[0], data)
        together = Steps(two, recipes[1], data)
        compare(
            "efficiency of two workers, synthesis step of two observers", WANTED,
            lambda: together.rate(options.steps) / 2, lambda: alone.rate(options.steps), options.rounds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
