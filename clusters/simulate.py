"""How a run would scale, from measured costs.

    python clusters/simulate.py [COSTS.json] [KEY=VALUE ...] [--speedup X] [--shuffled]

For 1 to 256 workers, one a GPU, it prints the time of every stage, the efficiency T(1) / (n T(n)),
and what holds each stage up. Work items are those of the engine: so many of them, given out by one
driver to whoever is free, one at a time; what all workers need crosses the driver's link once a
node; results come back over that link and are taken in by the driver, which gives out nothing
meanwhile. A stage's time is the sum of these parts, of which the largest is its bottleneck:

    computing    all work, evenly over the workers (`decoding`, where images are decoded more slowly than they are used)
    items        workers that idle, as there are too few items, or some are longer than others
    broadcast    what every node needs before it begins
    results      results on their way over the driver's link
    driver       what the driver does alone: the first look at streamed data, merging statistics, stitching, writing labels

Costs are a JSON file; `simulate.json` beside this file is an example, and says where its figures
come from:

    {"source": "where the figures come from, which is printed",
     "seconds": {"decode":      of one core, an image: from its file to pixels
                 "forward":     of a worker, an image and observer: inference
                 "statistics":  the same: inference and statistics by class  (`rayd plan`: measure)
                 "step":        the same: gradient of the synthetic images   (`rayd plan`: synthesize)
                 "label":       of a worker, an image: inference of all teachers  (`rayd plan`: relabel)
                 "student":     of a worker, an image: training of a student (`rayd plan`: evaluate)
                 "merge":       of the driver, a byte of statistics: merging it into what is there
                 "optimizer":   of the driver, a byte of the synthetic set: a step, where all workers work on one block
                 "start":       until all workers of a group are there},
     "bytes":   {"statistics":  of one observer,
                 "weights":     of all observers},
     "rates":   {"network":     bytes a second of the driver's link,
                 "storage":     bytes a second that one process reads or writes of run and cache},
     "cluster": {"gpus_per_node": 8, "cores_per_worker": 12, "driver_cores": 16}}

`--speedup` makes workers compute that many times as fast as those that were measured; decoding, the
driver and the rates stay. Images lie class by class, as in ImageNet's folders, so that a shard has
statistics of few classes to send; with `--shuffled` they lie in any order, as in Parquet files, and
a shard has images of all classes. Not simulated: lost workers, squeezing (observers with given
weights are only judged on the training images), several panels.
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
"""ImageNet-1k."""


@dataclass(frozen=True)
class Stage:
    """The work of a stage."""

    name: str
    """As the run calls it."""
    items: Sequence[float] = ()
    """Seconds of each item on a worker, in the order in which they are given out."""
    kind: str = "computing"
    """What workers mostly do."""
    result: float = 0.0
    """Bytes that come back of each item."""
    taking: float = 0.0
    """Seconds that the driver takes each result in."""
    broadcast: float = 0.0
    """Bytes that every node needs first, in every round."""
    rounds: int = 1
    """How often all of it is done, one after another."""
    alone: float = 0.0
    """Seconds of the driver alone."""


@dataclass(frozen=True)
class Cluster:
    """Who works."""

    workers: int
    """How many, one a GPU."""
    per_node: int
    """Workers of a node."""
    network: float
    """Bytes a second of the driver's link. The driver is on the first node."""

    @property
    def nodes(self) -> int:
        """With workers."""
        return math.ceil(self.workers / self.per_node)


def parts(stage: Stage, cluster: Cluster) -> dict[str, float]:
    """Seconds of a stage by what takes them; their sum is its time."""
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
    """The driver gives an item to everyone who is free, waits for the next one that is done, takes
    it in, and so on.
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
    """The stages of a run on ImageNet-1k, in order."""
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
    shown = recipe.ipc * CLASSES
    image = 4 * 3 * SIDE * SIDE
    parts = shards(IMAGES)
    # what an observer's shards send of its statistics, on average
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
    block = (
        synthesis.block
        if isinstance(synthesis.block, int)
        else CLASSES
        if synthesis.block
        else shown
    )
    blocks = [min(block, shown - start) for start in range(0, shown, block)]
    asked = recipe.observers.per_step
    if len(blocks) > 1 and not methods.get(recipe.method).sequential:
        # of Adam: the images and two moments
        saves = synthesis.steps // synthesis.checkpoint_every * 3 * image / storage
        found.append(
            Stage(
                "synthesize",
                [count * (synthesis.steps * asked * step + saves) for count in blocks],
                result=block * image,
                broadcast=observers * size["statistics"] + size["weights"],
            )
        )
    else:
        found.append(
            Stage(
                "synthesize",
                [block * step] * asked,
                result=block * image,
                taking=seconds["optimizer"] * block * image / asked,
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
    """Classes that a shard holds: those that it begins, ends and lies between, or all."""
    if shuffled:
        return min(CLASSES, rows.stop - rows.start)
    return (rows.stop - 1) * CLASSES // IMAGES - rows.start * CLASSES // IMAGES + 1


def table(work: Sequence[Stage], costs: Mapping[str, Any], sizes: Sequence[int] = SIZES) -> str:
    """A line for each number of workers."""
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
