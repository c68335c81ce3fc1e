"""Overhead of Ray in a step of the synthesis: the same steps in process and on workers,
alternately.

    python -m benchmarks.step_traffic RECIPE [KEY=VALUE ...] [--workers N] [--pairs P] [--steps S]

It prints the processor time of a step in process (one thread), and that of a step on workers of one
thread each, summed over driver, workers and synthesizer, with the ratio of each pair; wall-clock
time would depend more on other load on the machine. Statistics are those of a few real images, as
their values do not affect the speed.

With `--wall`, both use the same cores, in process with as many threads as there are workers, and
times are wall-clock times; this needs an otherwise idle machine. Busy cores share caches and
memory, so that the processor time of two workers exceeds that of one for the same work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rayd import methods
from rayd.artifacts import tensor_hash
from rayd.config import Recipe, merge, parse_overrides
from rayd.data import ImageData, load
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import ObjectRef, WorkerPool
from rayd.engine.stages.blocks import place_synthesizer
from rayd.engine.synthesizer import BlockTask
from rayd.engine.worker import Worker
from rayd.recipes import resolve
from rayd.synthetic import initial
from tests.faults import workers_of

FEW = 100
"""Number of real images whose statistics replace those of all."""


def processor_seconds(workers: list[int]) -> float:
    """Processor time of this process and of some others so far."""
    ticks = 0
    for worker in workers:
        # the fields after the name of the program, which may contain spaces
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


class Steps:
    """A synthesizer that is ready to step."""

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        checkpoints: Path,
        worker: Callable[..., Worker] = Worker,
        wall: bool = False,
    ):
        self._wall = wall
        self._pool: WorkerPool = open_pool(recipe.resources, worker, recipe, DatasetInfo.of(data))
        pool = self._pool
        self._task = BlockTask(
            recipe=recipe,
            key="benchmark",
            normalization=data.normalization,
            block=0,
            blocks=1,
            start=pool.share(dict(initial(recipe, data).state_dict())),
            checkpoints=checkpoints,
            weights={},
            accuracies={},
            measured=_measured(pool, recipe, data),
            train=None,
        )
        self._synthesizer = place_synthesizer(pool, methods.build(recipe))
        self._step = 0
        self._workers: list[int] = []

    def advance(self, steps: int) -> float:
        """Seconds per step of further steps: processor or wall-clock time."""
        began = self._seconds()
        self._synthesizer.call("advance", self._task, self._step, self._step + steps)
        self._step += steps
        return (self._seconds() - began) / steps

    def _seconds(self) -> float:
        if self._wall:
            return time.perf_counter()
        workers = self._task.recipe.resources.workers
        return processor_seconds(workers_of(os.getpid()) if workers else [])

    def hash(self) -> str:
        """Hash of the current set."""
        return tensor_hash(self._synthesizer.call("state", self._task, self._step))[:12]

    def close(self) -> None:
        """Free the workers."""
        self._pool.close()


def _measured(pool: WorkerPool, recipe: Recipe, data: ImageData) -> dict[NetworkId, ObjectRef]:
    """Statistics of a few real images, for all observers."""
    ids = network_ids(recipe)
    rows = slice(None, None, max(1, len(data.train) // FEW))
    part = pool.share((data.train.images[rows], data.train.labels[rows]))
    states = pool.map("measure_alone", [(network_id, None, part, part) for network_id in ids])
    return {network_id: pool.share(state) for network_id, state in zip(ids, states, strict=True)}


def main() -> None:
    """Print a line for every pair, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--wall", action="store_true", help="seconds of a clock, on the same cores")
    given = parser.parse_args()
    threads = given.workers if given.wall else 1
    torch.set_num_threads(threads)
    settings = parse_overrides(given.overrides)
    ratios = []
    both = []
    with TemporaryDirectory() as folder:
        for workers in (0, given.workers):
            own = 1 if workers else threads
            resources = {"workers": workers, "threads": own, "cpus_per_worker": 0.5}
            quiet = {"checkpoint_every": 10**9, "steps": 10**6}
            made = {"resources": resources, "synthesis": quiet}
            recipe = resolve(given.recipe, merge(settings, made))
            checkpoints = Path(folder) / str(workers)
            both.append(Steps(recipe, load(recipe.data), checkpoints, wall=given.wall))
        # every network must have been used before
        for one in both:
            one.advance(recipe.observers.pool)
        for _ in range(given.pairs):
            alone, spread = (one.advance(given.steps) for one in both)
            ratios.append(spread / alone)
            sys.stdout.write(
                f"in process {1000 * alone:.1f} ms a step, on {given.workers} workers "
                f"{1000 * spread:.1f} ms: {ratios[-1]:.2f}\n"
            )
            sys.stdout.flush()
        for one in both:
            one.close()
    sys.stdout.write(f"median ratio {statistics.median(ratios):.2f}\n")


if __name__ == "__main__":
    main()
