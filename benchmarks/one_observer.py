"""How many workers one observer keeps busy, with simulated work.

    python benchmarks/one_observer.py [--seconds-per-image S] [--steps N]

A worker sleeps for every image (`tests.slow_worker`), so that the figures tell of idle workers and
not of this machine's cores. For a recipe with one observer a step it prints the seconds of a step
with `synthesis.split=4` on 1, 2 and 4 workers, how many times as fast that is as one worker, each
worker's share of the answers, and whether the bytes are those of a run in process.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

from rayd.engine import distill as runs
from rayd.engine.progress import Progress
from rayd.engine.stages.blocks import Blocks
from tests.conftest import tiny
from tests.slow_worker import SlowWorker, shares

SPLIT = 4


def run(workers: int, steps: int, seconds: float, directory: Path) -> tuple[float, list[int], str]:
    """Seconds of the synthesis, answers of each process, and the hash of the set."""
    recipe = tiny(
        ipc=4,
        observers={"pool": 2, "per_step": 1},
        synthesis={"steps": steps, "split": SPLIT},
        evaluation={"seeds": 1, "epochs": 1, "baselines": []},
        resources={"workers": workers, "threads": 1, "cpus_per_worker": 0.25},
    )
    log = directory / "answers"
    synthesis = Blocks.run
    spent = 0.0

    def timed(self: Blocks, foreseen: float | None = None) -> None:
        nonlocal spent
        began = time.monotonic()
        synthesis(self, foreseen)
        spent = time.monotonic() - began

    with (
        mock.patch.object(Blocks, "run", timed),
        mock.patch.object(runs, "Worker", partial(SlowWorker, log=log, seconds=seconds)),
    ):
        runs.distill(recipe, directory / "run", cache=directory, progress=Progress(quiet=True))
    made = (directory / "run" / "distilled" / "data.safetensors").read_bytes()
    return spent, sorted(shares(log).values()), hashlib.sha256(made).hexdigest()[:12]


def main() -> None:
    """Print a line for every number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds-per-image", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    alone = 0.0
    for workers in (0, 1, 2, 4):
        with tempfile.TemporaryDirectory() as directory:
            seconds, answers, digest = run(
                workers, given.steps, given.seconds_per_image, Path(directory)
            )
        if workers == 1:
            alone = seconds
        faster = f"{alone / seconds:.2f} times as fast as one" if workers > 1 else ""
        percent = ", ".join(f"{answer / sum(answers):.0%}" for answer in answers)
        sys.stdout.write(
            f"{workers} workers: {seconds / given.steps:.3f} s a step {faster}; "
            f"shares {percent}; set {digest}\n"
        )


if __name__ == "__main__":
    main()
