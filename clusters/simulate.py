"""Simulation of how a run scales, from measured costs.

    python clusters/simulate.py [COSTS.json] [KEY=VALUE ...] [--speedup X] [--network X] [--shuffled]

For 1 to 256 workers, one per GPU, it prints the time of every stage, the efficiency
T(1) / (n T(n)), and what the time that an ideal cluster would not need is lost to. Tasks are those
of the engine. One process gives them to free workers, one at a time: the driver, or beside it the
synthesizer, which merges statistics. Tasks, data and results cross the link of their node; nodes
pass on among themselves what all of them need. A stage's time is the sum of these parts, of which
the largest is named:

    computing    all work, evenly over the workers (`decoding`, where that is slower than computing)
    items        idle workers, as there are too few tasks or some are longer than others
    together     workers that train one student start together, and wait for each other in every
                 step
    broadcast    sending all nodes what they need before a stage begins
    link         workers wait while tasks and results cross the link of the driver's node, or
                 gradients that of the worker with the synthesizer
    synthesizer  workers wait until the synthesizer has merged statistics
    storage      statistics are written to the shared file system, and read from there
    driver       the driver's own work: stitching images, hashing and checking the synthetic set

Costs are a JSON file; `simulate.json` beside this file is an example. `--sources` prints where each
of its figures comes from:

    {"source": "where the figures come from, in short, which is printed",
     "sources": {"seconds.decode": "where this one comes from", ...},
     "speedup": times as fast as measured that workers compute, unless --speedup says otherwise
     "seconds": {"decode":      per image on one core: from file to pixels
                 "forward":     per image and observer on a worker: inference
                 "statistics":  the same: inference and statistics by class  (`rayd plan`: measure)
                 "step":        the same: gradient of synthetic images  (`rayd plan`: synthesize)
                 "label":       per image on a worker: inference of all teachers (... : relabel)
                 "student":     per image on a worker: training of a student (... : evaluate)
                 "launch":      the least that a step of a student takes, whatever its batch
                 "sync":        per worker together: what a step takes longer as they exchange batch
                                statistics
                 "team":        until workers that train a student together are alive
                 "merge":       per byte of statistics in the synthesizer: merging it
                 "hash":        per byte of a file or a set: hashing it
                 "check":       the same on one core: range and finiteness of a set
                 "start":       until all workers of the pool are alive},
     "bytes":   {"statistics":  of one observer,
                 "weights":     of all observers,
                 "student":     of the weights of a student},
     "rates":   {"network":     bytes per second of the link of the driver's node,
                 "nodes":       the same of the workers' nodes,
                 "gpus":        the same between the GPUs of a node,
                 "store":       the same into or out of the object store of a node,
                 "storage":     bytes per second that one process reads or writes},
     "cluster": {"gpus_per_node": 8, "cores_per_worker": 12, "driver_cores": 16}}

`--speedup` scales the measured speed of the workers, but not decoding, the driver and the rates.
Images are ordered by class, as in ImageNet's folders, so that a shard has statistics of few
classes; with `--shuffled` they are in random order, as in Parquet files, and a shard has images of
all classes. Students are trained by as many workers of a node together as end soonest
(`evaluation.workers`, unless that is set). The synthetic set is written, into the store and into
the run's directory, while labels are made and students are trained. Not simulated: lost workers, training
of observers (here their weights are given), several network groups, and the first look at all
images, which is once for a data set: its time is printed below the table.
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
from rayd.engine.network_ids import network_ids
from rayd.engine.stages.measure import shards, teams
from rayd.engine.worker import ORDER_CHECK
from rayd.errors import RaydError
from rayd.evaluation.variants import DISTILLED, variants
from rayd.recipes import resolve
from rayd.training.squeeze import JUDGED
from rayd.training.stored_labels import chunks

RECIPE = "edc-imagenet-1k-ipc10"
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGES = 1_281_167
TEST_IMAGES = 50_000
CLASSES = 1000
SIDE = 224
"""Side of an image in pixels. All four constants are those of ImageNet-1k."""
IMAGE_BYTES = 4 * 3 * SIDE * SIDE
"""Bytes of a synthetic image."""
NAMED = 3
"""Number of losses that a line of the table names."""


@dataclass(frozen=True)
class Cluster:
    """Workers, nodes and network of a cluster."""

    workers: int
    """Number of workers, one per GPU."""
    per_node: int
    """Workers of a node."""
    network: float
    """Bytes per second of the link of the driver's node, which has no workers."""
    between: float = math.inf
    """Bytes per second of the links of the other nodes."""

    @property
    def nodes(self) -> int:
        """Number of nodes with workers."""
        return math.ceil(self.workers / self.per_node)

    def broadcast(self, size: float) -> float:
        """Seconds until all nodes have what the driver has: one gets it from there, then every
        node that has it passes it on.
        """
        return size / self.network + math.ceil(math.log2(self.nodes)) * size / self.between


@dataclass(frozen=True)
class Stage:
    """The work of a stage."""

    name: str
    """Name of the stage."""
    items: Sequence[float] = ()
    """Seconds of each task on a worker, in the order in which they are given out."""
    kind: str = "computing"
    """The slower of `computing` and `decoding`."""
    sent: float = 0.0
    """Bytes that a task takes along."""
    result: float = 0.0
    """Bytes of a task's result."""
    taking: float = 0.0
    """Seconds of the synthesizer to merge a result."""
    broadcast: float = 0.0
    """Bytes that every node needs first, in every round."""
    rounds: int = 1
    """Number of rounds, each of which has all of the tasks."""
    exchange: float = 0.0
    """Seconds of every round in which parameters and gradients travel between workers."""
    storage: float = 0.0
    """Seconds in which everybody waits for the shared file system."""
    alone: float = 0.0
    """Seconds of the driver's own work."""
    together: int = 1
    """Workers that share each task."""
    shared: Sequence[float] = ()
    """Seconds of each task if its work could be shared evenly; absent: those of `items`."""

    def parts(self, cluster: Cluster) -> dict[str, float]:
        """Seconds of the stage by cause; their sum is its time."""
        groups = max(1, cluster.workers // self.together)
        work = sum(self.shared or self.items) * self.together / cluster.workers
        divided = span(self.shared or self.items, groups)
        free = span(self.items, groups)
        taken = span(self.items, groups, taking=self.taking)
        crossing = (self.sent / cluster.network, self.result / cluster.network)
        whole = span(self.items, groups, *crossing, self.taking)
        once = {
            self.kind: work,
            "items": divided - work,
            "together": free - divided,
            "broadcast": cluster.broadcast(self.broadcast),
            "link": whole - taken + self.exchange,
            "synthesizer": taken - free,
        }
        found = {name: self.rounds * seconds for name, seconds in once.items()}
        return {**found, "storage": self.storage, "driver": self.alone}


def span(
    items: Sequence[float],
    workers: int,
    sending: float = 0.0,
    returning: float = 0.0,
    taking: float = 0.0,
) -> float:
    """Simulated seconds until all tasks are done and processed.

    A free worker gets the next task over the driver's link, computes it, and returns its result
    over the link; one result is processed at a time, and only then does the worker get another
    task.

    Args:
        items: seconds of each task.
        workers: number of workers.
        sending: seconds that the link needs for a task.
        returning: seconds that the link needs for a result.
        taking: seconds to process a result.
    """
    link = 0.0
    taken = 0.0
    # workers by the time when they are free, and tasks by the time when they are computed
    idle = [0.0] * workers
    computed = list[float]()
    given = 0
    while given < len(items) or computed:
        if given < len(items) and idle and (not computed or max(idle[0], link) <= computed[0]):
            link = max(link, heapq.heappop(idle)) + sending
            heapq.heappush(computed, link + items[given])
            given += 1
            continue
        link = max(link, heapq.heappop(computed)) + returning
        taken = max(taken, link) + taking
        heapq.heappush(idle, taken)
    return taken


@dataclass(frozen=True)
class Simulation:
    """The stages of a run on ImageNet-1k.

    Args:
        recipe: the run.
        costs: see the head of the file.
        speedup: of the workers.
        shuffled: whether images are in random order instead of by class.
    """

    recipe: Recipe
    costs: Mapping[str, Any]
    speedup: float = 1.0
    shuffled: bool = False

    def stages(self, workers: int = 1) -> list[Stage]:
        """The stages, in order, on so many workers."""
        found = [
            Stage("start", alone=self.costs["seconds"]["start"]),
            self._squeeze(),
            self._measure(workers),
            *self._score(),
            self._synthesize(workers),
            self._save(),
            *self._relabel(),
            self._evaluate(workers),
        ]
        return found

    def look(self) -> float:
        """Seconds of the first look at all images, once for a data set."""
        return (IMAGES + TEST_IMAGES) * self._decode / self.costs["cluster"]["driver_cores"]

    def _file(self, size: float) -> float:
        """Seconds of a process to write or read a file, whose content is hashed."""
        seconds: float = size * (1 / self.costs["rates"]["storage"] + self.costs["seconds"]["hash"])
        return seconds

    @property
    def _decode(self) -> float:
        seconds: float = self.costs["seconds"]["decode"]
        return seconds

    def _seconds(self, name: str) -> float:
        """Seconds of a worker's work."""
        seconds: float = self.costs["seconds"][name] / self.speedup
        return seconds

    def _seen(self, seconds: float) -> tuple[float, str]:
        """Seconds of a worker for a real image, and what takes them: images are decoded ahead."""
        decode = self._decode / self.costs["cluster"]["cores_per_worker"]
        return max(decode, seconds), "decoding" if decode > seconds else "computing"

    @property
    def _shown(self) -> int:
        """Number of synthetic images."""
        return self.recipe.ipc * CLASSES

    @property
    def _observers(self) -> int:
        return len(self.recipe.observers.networks)

    def _squeeze(self) -> Stage:
        """Given weights: the order of their classes and their accuracy are looked at."""
        seconds, kind = self._seen(self._seconds("forward"))
        images = JUDGED + min(IMAGES, ORDER_CHECK * CLASSES)
        weights = self.costs["bytes"]["weights"] / self._observers
        return Stage("squeeze", [images * seconds] * self._observers, kind=kind, result=weights)

    def _measure(self, workers: int) -> Stage:
        parts = shards(IMAGES)
        resources = self.recipe.resources.model_copy(update={"workers": workers})
        recipe = self.recipe.model_copy(update={"resources": resources})
        sizes = [len(team) for team in teams(network_ids(recipe), len(parts), recipe)]
        size = self.costs["bytes"]["statistics"]
        held_in_all = sum(held(part, self.shuffled) for part in parts)
        # bytes of an observer's statistics of one shard, on average, for the observers of a team
        sent = size * held_in_all / (len(parts) * CLASSES) * self._observers / len(sizes)
        items = []
        for part in parts:
            for together in sizes:
                seconds, kind = self._seen(together * self._seconds("statistics"))
                items.append((part.stop - part.start) * seconds)
        return Stage(
            "measure",
            items,
            kind=kind,
            result=sent,
            taking=self.costs["seconds"]["merge"] * sent,
            broadcast=self.costs["bytes"]["weights"],
            # all observers end with the last shard, and then the synthesizer writes their files
            storage=self._file(size * self._observers),
        )

    def _score(self) -> list[Stage]:
        synthetic = self.recipe.synthetic
        if synthetic.init != "rded":
            return []
        seconds, kind = self._seen(synthetic.crops * self._seconds("forward"))
        # the driver decodes the images of the best crops once more
        stitched = self._shown * synthetic.patches**2
        alone = stitched * self._decode / self.costs["cluster"]["driver_cores"]
        items = [synthetic.candidates * seconds] * CLASSES
        return [Stage("score", items, kind=kind, alone=alone)]

    def _synthesize(self, workers: int) -> Stage:
        recipe = self.recipe
        synthesis = recipe.synthesis
        shown = self._shown
        block = shown
        if isinstance(synthesis.block, int):
            block = synthesis.block
        elif synthesis.block:
            block = CLASSES
        blocks = [min(block, shown - start) for start in range(0, shown, block)]
        per_step = recipe.observers.per_step
        # every worker that computes gradients reads the statistics once
        reading = self._file(self._observers * self.costs["bytes"]["statistics"])
        weights = self.costs["bytes"]["weights"]
        step = self._seconds("step")
        if len(blocks) > 1 and not methods.get(recipe.method).sequential:
            # a checkpoint holds the images and two moments of Adam
            saves = synthesis.steps // synthesis.checkpoint_every * 3 * IMAGE_BYTES
            each = synthesis.steps * per_step * step + saves / self.costs["rates"]["storage"]
            return Stage(
                "synthesize",
                [count * each for count in blocks],
                sent=block * IMAGE_BYTES,
                result=block * IMAGE_BYTES,
                broadcast=weights,
                storage=reading,
            )
        parts = synthesis.split
        return Stage(
            "synthesize",
            [block / parts * step] * (per_step * parts),
            broadcast=weights,
            rounds=synthesis.steps * len(blocks),
            exchange=self._exchange(block * IMAGE_BYTES, min(per_step * parts, workers)),
            storage=reading,
        )

    def _exchange(self, size: float, workers: int) -> float:
        """Seconds in which the synthesizer, in one of so many workers, gives the others parameters
        of `size` bytes, and takes a gradient from each.
        """
        if workers == 1:
            return 0.0
        rates = self.costs["rates"]
        each = size / rates["store"]
        if workers > self.costs["cluster"]["gpus_per_node"]:
            each += size / rates["nodes"]
        return workers * each

    def _save(self) -> Stage:
        """The set is checked and hashed: for the key of its students, and for that of its labels
        where they are stored. It is written meanwhile.
        """
        seconds = self.costs["seconds"]
        hashes = 2 if self.recipe.labels.kind == "stored" else 1
        checked = seconds["check"] / self.costs["cluster"]["driver_cores"]
        each = checked + hashes * seconds["hash"]
        return Stage("save", alone=self._shown * IMAGE_BYTES * each)

    def _relabel(self) -> list[Stage]:
        recipe = self.recipe
        if recipe.labels.kind != "stored":
            return []
        precision = recipe.labels.precision
        parts = chunks(recipe.evaluation.epochs, self._shown, CLASSES, precision)
        # workers write labels themselves
        each = self._seconds("label") + self._label_bytes / self.costs["rates"]["storage"]
        items = [len(epochs) * self._shown * each for epochs in parts]
        needed = self._shown * IMAGE_BYTES + self.costs["bytes"]["weights"]
        return [Stage("relabel", items, broadcast=needed)]

    @property
    def _label_bytes(self) -> float:
        """Bytes of the soft label of an image."""
        return CLASSES * (2 if self.recipe.labels.precision == "float16" else 4)

    def _evaluate(self, workers: int) -> Stage:
        """Students by as many workers together as end soonest, unless the recipe says how many."""
        sizes = [self.recipe.evaluation.workers]
        if sizes == [1]:
            most = min(workers, self.costs["cluster"]["gpus_per_node"])
            sizes = [2**power for power in range(most.bit_length())]
        found = [self._students(together) for together in sizes]
        return min(found, key=lambda stage: span(stage.items, workers // stage.together))

    def _students(self, together: int) -> Stage:
        """The students, each trained by so many workers."""
        evaluation = self.recipe.evaluation
        labels = self.recipe.labels.kind
        compared = variants(self.recipe, self.recipe.synthetic.labels != "hard")
        numbers = evaluation.seeds * len(evaluation.networks)
        test, _ = self._seen(self._seconds("forward"))
        steps = evaluation.epochs * math.ceil(self._shown / evaluation.batch_size)
        items = []
        shared = []
        for variant in compared:
            each = self._seconds("student")
            if variant.hard_labels or labels == "hard":
                replayed = 0.0
            elif labels == "stored" and variant.set == DISTILLED:
                replayed = self._label_bytes / self.costs["rates"]["storage"]
            else:
                replayed = 0.0
                each += self._seconds("label")
            # one worker tests, and all of them read their labels
            alone = TEST_IMAGES * test + evaluation.epochs * self._shown * replayed
            step = evaluation.batch_size * each
            start = self.costs["seconds"]["team"] if together > 1 else 0.0
            items += [start + alone + steps * self._step(step, together)] * numbers
            shared += [(alone + steps * self._step(step, 1)) / together] * numbers
        # nodes have the images since they were labelled
        needed = 0.0 if labels == "stored" else self._shown * IMAGE_BYTES
        return Stage(
            "evaluate",
            sorted(items, reverse=True),
            broadcast=needed + self.costs["bytes"]["weights"],
            together=together,
            shared=sorted(shared, reverse=True),
        )

    def _step(self, seconds: float, together: int) -> float:
        """Seconds of a step of so many workers together, that takes one of them `seconds`."""
        costs = self.costs["seconds"]
        alone = max(seconds / together, costs["launch"])
        if together == 1:
            return alone
        exchanged = 2 * (together - 1) / together * self.costs["bytes"]["student"]
        return alone + together * costs["sync"] + exchanged / self.costs["rates"]["gpus"]


def held(rows: slice, shuffled: bool) -> int:
    """Number of classes that a shard holds images of."""
    if shuffled:
        return min(CLASSES, rows.stop - rows.start)
    return (rows.stop - 1) * CLASSES // IMAGES - rows.start * CLASSES // IMAGES + 1


@dataclass(frozen=True)
class Line:
    """What was simulated for a number of workers."""

    workers: int
    """The number."""
    stages: dict[str, dict[str, float]]
    """Seconds of each stage by cause."""

    @property
    def seconds(self) -> float:
        """Seconds of the run."""
        return sum(sum(parts.values()) for parts in self.stages.values())

    def efficiency(self, one: Line) -> float:
        """T(1) / (n T(n))."""
        return one.seconds / (self.workers * self.seconds)

    def losses(self, one: Line) -> list[tuple[float, str]]:
        """Seconds that a cluster without any loss would not need, with stage and cause, the most
        first.
        """
        found = []
        for name, parts in self.stages.items():
            for cause, seconds in parts.items():
                ideal = one.stages[name].get(cause, 0.0) / self.workers
                found.append((seconds - ideal, f"{name}: {cause}"))
        return sorted(found, reverse=True)


def lines(simulation: Simulation, sizes: Sequence[int] = SIZES) -> list[Line]:
    """Simulate a run on each of several numbers of workers."""
    found = []
    for workers in sizes:
        cluster = Cluster(
            workers,
            simulation.costs["cluster"]["gpus_per_node"],
            simulation.costs["rates"]["network"],
            simulation.costs["rates"]["nodes"],
        )
        stages = {stage.name: stage.parts(cluster) for stage in simulation.stages(workers)}
        found.append(Line(workers, stages))
    return found


def sources(costs: Mapping[str, Any]) -> str:
    """A line for each cost: its value, and where it comes from."""
    found = [("speedup", costs.get("speedup", 1.0))]
    for group in ("seconds", "bytes", "rates", "cluster"):
        found += [(f"{group}.{name}", value) for name, value in costs[group].items()]
    known = costs.get("sources", {})
    return "".join(
        f"{name:<26} {value:<9.3g} {known.get(name, 'not said')}\n" for name, value in found
    )


def table(simulated: Sequence[Line]) -> str:
    """A table with a line for each number of workers; the first is compared with."""
    one = simulated[0]
    names = list(one.stages)
    rows = [
        " ".join(
            [
                f"{'GPUs':>5}",
                *(f"{name:>18}" for name in names),
                f"{'in all':>8} {'efficiency':>10}  lost to",
            ]
        )
    ]
    for line in simulated:
        cells = [
            f"{_duration(sum(parts.values()))} {_largest(parts):<9}"
            for parts in line.stages.values()
        ]
        lost = [
            f"{what} {_duration(seconds)}"
            for seconds, what in line.losses(one)[:NAMED]
            if seconds > 0.005 * line.seconds
        ]
        rows.append(
            f"{line.workers:>5} {' '.join(f'{cell:>18}' for cell in cells)} "
            f"{_duration(line.seconds):>8} {line.efficiency(one):>10.2f}  {', '.join(lost)}"
        )
    return "\n".join(rows)


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
    parser.add_argument("--speedup", type=float, help="how many times as fast workers compute")
    parser.add_argument(
        "--network", type=float, help="bytes per second of the link of the driver's node"
    )
    parser.add_argument(
        "--sources", action="store_true", help="print where each cost comes from, and end"
    )
    parser.add_argument("--shuffled", action="store_true", help="images do not lie class by class")
    given = parser.parse_args(arguments)
    path = given.costs
    overrides = given.overrides
    if "=" in path:
        path, overrides = str(Path(__file__).with_suffix(".json")), [path, *overrides]
    try:
        costs = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"'{path}' holds no costs: {error}")
    if given.network is not None:
        costs["rates"]["network"] = given.network
    if given.sources:
        sys.stdout.write(sources(costs))
        return
    speedup = given.speedup or costs.get("speedup", 1.0)
    try:
        recipe = resolve(RECIPE, parse_overrides(overrides))
    except RaydError as error:
        parser.error(str(error))
    simulation = Simulation(recipe, costs, speedup, given.shuffled)
    sys.stdout.write(
        f"{RECIPE} on ImageNet-1k. Costs: {costs['source']}\n"
        f"Workers compute {speedup:g} times as fast as those that were measured; the link of the "
        f"driver's node carries {costs['rates']['network'] / 1e6:,.0f} MB/s.\n\n"
        f"{table(lines(simulation))}\n\n"
        "The first run on a data set also decodes all of its images once, on the cores of the "
        f"driver's node: {_duration(simulation.look())}.\n"
    )


if __name__ == "__main__":
    main()
