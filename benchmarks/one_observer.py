"""Number of workers that one observer can keep busy, with simulated work.

    python -m benchmarks.one_observer [--seconds-per-image S] [--steps N] [--workers N ...]

A worker sleeps for every image (`tests.slow_worker`), so that results depend on idle workers and
not on this machine's cores. For a recipe with one observer per step, it prints the seconds of a
step with `synthesis.split=4` on 1, 2 and 4 workers, the speedup over one worker, each worker's
share of the results, and the hash of the set, which equals that of a run in process. The first
steps, in which workers build networks and read statistics, are not timed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.step_traffic import Steps
from rayd.data import load
from tests.conftest import tiny
from tests.slow_worker import SlowWorker, shares

SPLIT = 4
FIRST = 5
"""Number of steps before timing starts."""


def run(workers: int, steps: int, seconds: float, directory: Path) -> tuple[float, list[int], str]:
    """Seconds of a step, number of results of each process, and the hash of the set."""
    recipe = tiny(
        ipc=4,
        observers={"pool": 2, "per_step": 1},
        synthesis={"steps": 10**6, "split": SPLIT, "log_every": 10**6, "checkpoint_every": 10**6},
        resources={"workers": workers, "threads": 1, "cpus_per_worker": 0.25},
    )
    log = directory / "answers"
    worker = partial(SlowWorker, log=log, seconds=seconds)
    stepping = Steps(recipe, load(recipe.data), directory / "checkpoints", worker)
    stepping.advance(FIRST)
    log.unlink()
    began = time.monotonic()
    stepping.advance(steps)
    spent = (time.monotonic() - began) / steps
    answers = sorted(shares(log).values())
    digest = stepping.hash()
    stepping.close()
    return spent, answers, digest


def main() -> None:
    """Print a line for every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds-per-image", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    given = parser.parse_args()
    alone = 0.0
    for workers in given.workers:
        with tempfile.TemporaryDirectory() as directory:
            seconds, answers, digest = run(
                workers, given.steps, given.seconds_per_image, Path(directory)
            )
        if workers == 1:
            alone = seconds
        faster = f"{alone / seconds:.2f} times as fast as one" if workers > 1 else ""
        percent = ", ".join(f"{answer / sum(answers):.0%}" for answer in answers)
        sys.stdout.write(
            f"{workers} workers: {seconds:.3f} s a step {faster}; shares {percent}; set {digest}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
