"""What Ray adds to a step of the synthesis: the same run in process and on workers, in turn.

    python benchmarks/step_traffic.py RECIPE [KEY=VALUE ...] [--workers N] [--pairs P]

Both have the same threads in all. It prints the processor time of a step of each run, of the driver
and its actors together, and the ratio of each pair: wall time tells more of what else the machine
does. Statistics of the real data are measured once, before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from unittest import mock

from rayd.config import Recipe, merge, parse_overrides
from rayd.engine import distill as runs
from rayd.engine.progress import Progress
from rayd.engine.stages.blocks import Blocks
from rayd.recipes import resolve
from tests.faults import workers_of


def processor_seconds() -> float:
    """Processor time of this process and its Ray actors so far."""
    ticks = 0
    for worker in workers_of(os.getpid()):
        # the fields after the name of the program, which may hold spaces
        fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


class _SynthesizedError(Exception):
    """The part that is timed is over."""


def seconds_a_step(recipe: Recipe, directory: Path, cache: Path) -> float:
    """Processor time of a step of one run, which ends after the synthesis."""
    spent = 0.0
    synthesis = Blocks.run

    def timed(self: Blocks, foreseen: float | None = None) -> None:
        nonlocal spent
        began = processor_seconds()
        synthesis(self, foreseen)
        spent = processor_seconds() - began
        raise _SynthesizedError

    with mock.patch.object(Blocks, "run", timed), suppress(_SynthesizedError):
        runs.distill(recipe, directory, cache=cache, progress=Progress(quiet=True))
    return spent / recipe.synthesis.steps


def main() -> None:
    """Print a line for every pair, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    settings = parse_overrides(given.overrides)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for pair in range(given.pairs):
            both = []
            for workers in (0, given.workers):
                threads = 1 if workers else given.workers
                resources = {"workers": workers, "threads": threads, "cpus_per_worker": 0.5}
                recipe = resolve(given.recipe, merge(settings, {"resources": resources}))
                both.append(seconds_a_step(recipe, root / f"{pair}-{workers}", root / "cache"))
            ratios.append(both[1] / both[0])
            sys.stdout.write(
                f"in process {1000 * both[0]:.1f} ms a step, on {given.workers} workers "
                f"{1000 * both[1]:.1f} ms: {ratios[-1]:.2f}\n"
            )
            sys.stdout.flush()
    sys.stdout.write(f"median ratio {statistics.median(ratios):.2f}\n")


if __name__ == "__main__":
    main()
