"""Simulation of how a run scales, from measured costs.

    python clusters/simulate.py [COSTS.json] [KEY=VALUE ...] [--speedup X] [--shuffled]

For 1 to 256 workers, one per GPU, it prints the time of every stage, the efficiency
T(1) / (n T(n)), and the bottleneck of each stage. Tasks are those of the engine. One driver gives
them to free workers, one at a time; data for all workers cross the driver's link once per node;
results return over that link and are processed by the driver, which gives out no tasks meanwhile. A
stage's time is the sum of these parts, of which the largest is its bottleneck:

    computing    all work, evenly over the workers (`decoding`, where that is slower than computing)
    items        idle workers, as there are too few tasks or some are longer than others
    broadcast    sending every node what it needs before it begins
    results      sending results over the driver's link
    driver       the driver's own work: the first pass over streamed data, merging statistics,
                 assembling blocks, writing labels

Costs are a JSON file; `simulate.json` beside this file is an example with its source:

    {"source": "where the figures come from, which is printed",
     "seconds": {"decode":      per image on one core: from file to pixels
                 "forward":     per image and observer on a worker: inference
                 "statistics":  the same: inference and statistics by class  (`rayd plan`: measure)
                 "step":        the same: gradient of synthetic images  (`rayd plan`: synthesize)
                 "label":       per image on a worker: inference of all teachers (... : relabel)
                 "student":     per image on a worker: training of a student (... : evaluate)
                 "merge":       per byte of statistics on the driver: merging it
                 "optimizer":   per byte of the synthetic set on the driver: a step in which all
                                workers compute one block
                 "start":       until all workers of a pool are alive},
     "bytes":   {"statistics":  of one observer,
                 "weights":     of all observers},
     "rates":   {"network":     bytes per second of the driver's link,
                 "storage":     bytes per second that one process reads or writes},
     "cluster": {"gpus_per_node": 8, "cores_per_worker": 12, "driver_cores": 16}}

`--speedup` scales the measured speed of the workers, but not decoding, the driver and the rates.
Images are ordered by class, as in ImageNet's folders, so that a shard has statistics of few
classes; with `--shuffled` they are in random order, as in Parquet files, and a shard has images of
all classes. Not simulated: lost workers, squeezing (observers with given weights are only tested on
the training images), several network groups.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayd import methods
from rayd.config import Recipe, parse_overrides
from rayd.engine.stages.measure import shards
from rayd.recipes import resolve
from rayd.training.stored import chunks

RECIPE = "edc-imagenet-1k-ipc10"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGES = 1_281_167
TEST_IMAGES = 50_000
CLASSES = 1000
SIDE = 224
"""Side of an image in pixels. All four constants are those of ImageNet-1k."""


@dataclass(frozen=True)
class Stage:
    """The work of a stage."""

    name: str
    """Name of the stage."""
    items: Sequence[float] = ()
    """Seconds of each task on a worker, in the order in which they are given out."""
    kind: str = "computing"
    """The slower of `computing` and `decoding`."""
    result: float = 0.0
    """Bytes of a task's result."""
    taking: float = 0.0
    """Seconds of the driver to process a result."""
    broadcast: float = 0.0
    """Bytes that every node needs first, in every round."""
    rounds: int = 1
    """Number of rounds, each of which has all of the tasks."""
    alone: float = 0.0
    """Seconds of the driver's own work."""


@dataclass(frozen=True)
class Cluster:
    """Workers, nodes and network of a cluster."""

    workers: int
    """Number of workers, one per GPU."""
    per_node: int
    """Workers of a node."""
    network: float
    """Bytes per second of the driver's link. The driver is on the first node."""

    @property
    def nodes(self) -> int:
        """Number of nodes with workers."""
        return math.ceil(self.workers / self.per_node)


def parts(stage: Stage, cluster: Cluster) -> dict[str, float]:
    """Seconds of a stage by cause; their sum is its time."""
    # share of the workers that are not on the driver's node
    elsewhere = (cluster.nodes - 1) / cluster.nodes
    transfer = stage.result * elsewhere / cluster.network
    even = sum(stage.items) / cluster.workers
    free = span(stage.items, cluster.workers, 0.0)
    taken = span(stage.items, cluster.workers, stage.taking)
    whole = span(stage.items, cluster.workers, stage.taking + transfer)
    once = {
        stage.kind: even,
        "items": free - even,
        "broadcast": stage.broadcast * (cluster.nodes - 1) / cluster.network,
        "results": whole - taken,
        "driver": taken - free,
    }
    found = {name: stage.rounds * seconds for name, seconds in once.items()}
    found["driver"] += stage.alone
    return found


def span(items: Sequence[float], workers: int, taking: float) -> float:
    """Simulated seconds until all tasks are done and processed.

    The driver gives a task to every free worker, waits for the next result, and processes it.

    Args:
        items: seconds of each task.
        workers: number of workers.
        taking: seconds to process a result.
    """
    clock = 0.0
    idle = workers
    given = 0
    running = list[float]()
    while given < len(items) or running:
        while idle and given < len(items):
            heapq.heappush(running, clock + items[given])
            idle = idle - 1
            given = given + 1
        clock = max(clock, heapq.heappop(running)) + taking
        idle += 1
    return clock


def stages(
    recipe: Recipe, costs: Mapping[str, Any], speedup: float = 1.0, shuffled: bool = False
) -> list[Stage]:
    """The stages of a run on ImageNet-1k, in order.

    Args:
        recipe: the run.
        costs: see the head of the file.
        speedup: of the workers.
        shuffled: whether images are in random order instead of by class.
    """
    seconds = costs["seconds"]
    size = costs["bytes"]
    rates = costs["rates"]
    cluster = costs["cluster"]
    forward, statistics, step, label, student = (
        seconds[name] / speedup for name in ("forward", "statistics", "step", "label", "student")
    )
    decode = seconds["decode"] / cluster["cores_per_worker"]
    storage = rates["storage"]
    observers = len(recipe.observers.networks)
    shown = recipe.ipc * CLASSES  # synthetic images
    image = 4 * 3 * SIDE * SIDE
    parts = shards(IMAGES)
    # bytes of an observer's statistics of one shard, on average
    sent = size["statistics"] * sum(held(part, shuffled) for part in parts) / (len(parts) * CLASSES)
    synthesis = recipe.synthesis
    evaluation = recipe.evaluation
    synthetic = recipe.synthetic
    found = [
        Stage("start", alone=2 * seconds["start"]),
        Stage("look", alone=(IMAGES + TEST_IMAGES) * seconds["decode"] / cluster["driver_cores"]),
        Stage(
            "squeeze",
            [IMAGES * max(decode, forward)] * observers,
            kind="decoding" if decode > forward else "computing",
            result=size["weights"] / observers,
        ),
        Stage(
            "measure",
            [
                (part.stop - part.start) * max(decode, statistics)
                for part in parts
                for _ in range(observers)
            ],
            kind="decoding" if decode > statistics else "computing",
            result=sent,
            taking=seconds["merge"] * sent,
            broadcast=size["weights"],
        ),
    ]
    if synthetic.init == "rded":
        scored = synthetic.candidates * max(decode, synthetic.crops * forward)
        found.append(
            Stage(
                "score",
                [scored] * CLASSES,
                kind="decoding" if decode > synthetic.crops * forward else "computing",
                alone=CLASSES * synthetic.candidates * seconds["decode"] / cluster["driver_cores"],
            )
        )
    block = shown
    if isinstance(synthesis.block, int):
        block = synthesis.block
    elif synthesis.block:
        block = CLASSES
    blocks = [min(block, shown - start) for start in range(0, shown, block)]
    per_step = recipe.observers.per_step
    if len(blocks) > 1 and not methods.get(recipe.method).sequential:
        # a checkpoint holds the images and two moments of Adam
        saves = synthesis.steps // synthesis.checkpoint_every * 3 * image / storage
        found.append(
            Stage(
                "synthesize",
                [count * (synthesis.steps * per_step * step + saves) for count in blocks],
                result=block * image,
                broadcast=observers * size["statistics"] + size["weights"],
            )
        )
    else:
        found.append(
            Stage(
                "synthesize",
                [block * step] * per_step,
                result=block * image,
                taking=seconds["optimizer"] * block * image / per_step,
                broadcast=block * image,
                rounds=synthesis.steps * len(blocks),
            )
        )
    if recipe.labels.kind == "stored":
        numbers = 2 if recipe.labels.precision == "float16" else 4
        length = chunks(evaluation.epochs, shown, CLASSES, recipe.labels.precision)
        found.append(
            Stage(
                "relabel",
                [len(epochs) * shown * label for epochs in length],
                result=max(map(len, length)) * shown * CLASSES * numbers,
                taking=max(map(len, length)) * shown * CLASSES * numbers / storage,
                broadcast=shown * image + size["weights"],
            )
        )
        replayed = evaluation.epochs * shown * CLASSES * numbers / storage
    else:
        replayed = evaluation.epochs * shown * label
    tested = TEST_IMAGES * max(decode, forward)
    learned = evaluation.epochs * shown * student + tested
    taught = evaluation.epochs * shown * label if recipe.labels.kind != "hard" else 0.0
    students = evaluation.seeds * len(evaluation.networks)
    others = sum(name != "whole" for name in evaluation.baselines)
    found.append(
        Stage(
            "evaluate",
            [learned + (replayed if recipe.labels.kind != "hard" else 0.0)] * students
            + [learned + taught] * students * others,
            broadcast=shown * image,
        )
    )
    return found


def held(rows: slice, shuffled: bool) -> int:
    """Number of classes that a shard holds images of."""
    if shuffled:
        return min(CLASSES, rows.stop - rows.start)
    return (rows.stop - 1) * CLASSES // IMAGES - rows.start * CLASSES // IMAGES + 1


def table(work: Sequence[Stage], costs: Mapping[str, Any], sizes: Sequence[int] = SIZES) -> str:
    """A table with a line for each number of workers."""
    names = [stage.name for stage in work]
    lines = [
        " ".join(
            [
                f"{'GPUs':>5}",
                *(f"{name:>20}" for name in names),
                f"{'in all':>8} {'efficiency':>10}  bottleneck",
            ]
        )
    ]
    first = 0.0
    for workers in sizes:
        cluster = Cluster(workers, costs["cluster"]["gpus_per_node"], costs["rates"]["network"])
        split = [parts(stage, cluster) for stage in work]
        times = [sum(found.values()) for found in split]
        first = first or sum(times) * workers
        cells = [
            f"{_duration(time)} {_largest(found):<10}"
            for time, found in zip(times, split, strict=True)
        ]
        longest = times.index(max(times))
        lines.append(
            f"{workers:>5} {' '.join(f'{cell:>20}' for cell in cells)} {_duration(sum(times)):>8} "
            f"{first / (workers * sum(times)):>10.2f}  {names[longest]}: {_largest(split[longest])}"
        )
    return "\n".join(lines)


def _largest(found: Mapping[str, float]) -> str:
    return max(found, key=found.__getitem__)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} m" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "costs", nargs="?", default=str(Path(__file__).with_suffix(".json")), metavar="COSTS.json"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help=f"settings laid over {RECIPE}"
    )
    parser.add_argument(
        "--speedup", type=float, default=1.0, help="how many times as fast workers compute"
    )
    parser.add_argument("--shuffled", action="store_true", help="images do not lie class by class")
    given = parser.parse_args(arguments)
    path = given.costs
    overrides = given.overrides
    if "=" in path:
        path, overrides = str(Path(__file__).with_suffix(".json")), [path, *overrides]
    costs = json.loads(Path(path).read_text(encoding="utf-8"))
    recipe = resolve(RECIPE, parse_overrides(overrides))
    sys.stdout.write(f"{RECIPE} on ImageNet-1k. Costs: {costs['source']}\n")
    if given.speedup != 1:
        sys.stdout.write(
            f"Workers compute {given.speedup:g} times as fast as those that were measured.\n"
        )
    sys.stdout.write(
        "\n" + table(stages(recipe, costs, given.speedup, given.shuffled), costs) + "\n"
    )


if __name__ == "__main__":
    main()
