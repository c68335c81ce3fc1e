"""Planned against measured times of a run, stage by stage.

    python -m benchmarks.plan digits
    python -m benchmarks.plan dm-cifar10-ipc1 synthesis.steps=20 observers.pool=2
    evaluation.epochs=20

Plan and run start with an empty cache; speeds of the machine are those of the user's cache. In addition
to wall-clock time, the table has the processor time of this process, which depends less on other
programs. It still depends on them, as they share caches and memory. So a piece of reference work is
timed at both ends of every stage, and the processor time is divided by its slowdown relative to the
best case (`busy`). With one thread and no workers, the result estimates the wall-clock time on a
quiet machine (`quiet`), which is what a plan estimates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rayd import devices, recipes
from rayd.config import parse_overrides
from rayd.engine.distill import distill
from rayd.engine.plan import plan
from rayd.engine.pool import WorkerPool
from rayd.engine.progress import Progress, StageProgress
from rayd.seeding import generator


class Reference:
    """Reference work similar to that of runs: calls, convolutions and memory access."""

    def __init__(self) -> None:
        draws = generator(0, "reference")
        self._images = torch.randn(64, 3, 32, 32, generator=draws)
        self._small = torch.randn(10, 3, 8, 8, generator=draws)
        self._network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3, padding=1),
            torch.nn.GroupNorm(64, 64),
            torch.nn.ReLU(),
            torch.nn.AvgPool2d(2),
        )
        self._best = min(self._times(40))

    def _times(self, repeats: int) -> list[float]:
        return [self._time() for _ in range(repeats)]

    def _time(self) -> float:
        began = time.thread_time()
        self._network(self._images).sum().backward()
        for _ in range(10):
            self._network(self._small).sum().backward()
        return time.thread_time() - began

    def busy(self) -> float:
        """Current slowdown relative to the best case, at least 1."""
        return max(1.0, statistics.mean(self._times(12)) / self._best)


class Clock:
    """Progress listener that measures wall-clock, processor and quiet seconds of each stage, from
    its beginning to that of the next one.
    """

    def __init__(self, reference: Reference) -> None:
        self.seconds: dict[str, tuple[float, float, float]] = {}
        self._reference = reference
        self._stage: str | None = None
        self._began = (0.0, 0.0)
        self._busy = 1.0

    def stage(self, meter: StageProgress) -> None:
        """A stage begins."""
        self.end()
        self._stage = meter.stage
        self._busy = self._reference.busy()
        self._began = (time.monotonic(), time.process_time())

    def end(self) -> None:
        """Finish the last stage."""
        if self._stage is not None:
            wall = time.monotonic() - self._began[0]
            cpu = time.process_time() - self._began[1]
            busy = (self._busy + self._reference.busy()) / 2
            before = self.seconds.get(self._stage, (0.0, 0.0, 0.0))
            self.seconds[self._stage] = (before[0] + wall, before[1] + cpu, before[2] + cpu / busy)
        self._stage = None

    @contextmanager
    def pool(self, pool: WorkerPool) -> Iterator[None]:
        """A group of workers comes and goes."""
        yield


def say(line: str) -> None:
    """A line of the result."""
    sys.stdout.write(line + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Plan and run a recipe, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument(
        "--calibrate", action="store_true", help="measure the speeds of this machine again"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_intermixed_args(arguments)
    recipe = recipes.resolve(given.recipe, parse_overrides(given.overrides))
    torch.set_num_threads(devices.threads(recipe.resources))
    reference = Reference()
    began = (time.monotonic(), time.process_time())
    clock = Clock(reference)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        planned = plan(
            recipe, given.data_root, cache, Progress(quiet=True), calibrate=given.calibrate
        )
        planning = (time.monotonic() - began[0], time.process_time() - began[1])
        progress = Progress(quiet=not sys.stderr.isatty())
        with progress.attached(clock):
            distill(
                recipe,
                Path(folder) / "run",
                data_root=given.data_root,
                cache=cache,
                progress=progress,
            )
        clock.end()
    rows = [
        (stage.stage, stage.seconds, *clock.seconds.get(stage.stage, (0.0, 0.0, 0.0)))
        for stage in planned.stages
    ]
    found = [sum(row[column] for row in rows) for column in (2, 3, 4)]
    rows.append(("in all", planned.seconds, found[0], found[1], found[2]))
    if given.json:
        names = ("planned", "wall", "cpu", "quiet")
        table = {stage: dict(zip(names, row, strict=True)) for stage, *row in rows}
        content = {
            "recipe": recipe.name,
            "overrides": given.overrides,
            "planning": planning,
            "stages": table,
        }
        say(json.dumps(content, indent=2))
        return
    took = f"{planning[0]:.1f} s ({planning[1]:.1f} s of processor time)"
    say(f"{recipe.name} {' '.join(given.overrides)}: planned in {took}")
    say(
        f"{'stage':<12} {'planned':>10} {'found':>10} {'cpu':>10} {'quiet':>10} {'quiet / planned':>17}"
    )
    for stage, expected, wall, cpu, quiet in rows:
        ratio = f"{quiet / expected:>17.2f}" if expected > 0 else ""
        say(f"{stage:<12} {expected:>10.2f} {wall:>10.2f} {cpu:>10.2f} {quiet:>10.2f} {ratio}")


if __name__ == "__main__":
    main()
