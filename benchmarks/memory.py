"""Peak memory of the driver for saving and evaluating a large set, for results that wait for a late
one, and for statistics measured by workers; and peak memory of whole runs compared with `rayd
plan`.

    python -m benchmarks.memory set --gigabytes 2
    python -m benchmarks.memory late --results 60 --megabytes 20
    python -m benchmarks.memory moments --megabytes 200
    python -m benchmarks.memory plan digits dm-cifar10-ipc1 [--workers 2] [--set KEY=VALUE ...]

Each line shows the growth of the process, in MB and relative to the set, to all results, or to the
statistics of an observer. Nothing is computed: workers of `late` only create arrays, the first one
late, and those of `moments` return statistics as large as those of observers with many features.
`plan` executes real runs; it prints estimated and measured MB of each process (resident memory,
including mapped parts of the object store), and their ratio.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

CLASSES = 100
SIDE = 224


@contextmanager
def growth(what: str, whole: int) -> Iterator[dict[str, float]]:
    """Print the peak growth of this process in the block, sampled every 5 ms.

    Args:
        what: description of the measurement.
        whole: bytes of all data that pass through the process.
    """
    before = _private()
    peak = before
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.005):
            peak = max(peak, _private())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    found: dict[str, float] = {}
    try:
        yield found
    finally:
        finished.set()
        watching.join()
        found["grown"] = peak - before
        print(f"{what:<36} +{(peak - before) / 1e6:7.0f} MB  {(peak - before) / whole:5.2f} x")


def _private() -> int:
    """Bytes of this process's private memory, without mapped files and object stores."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure_set(gigabytes: float) -> dict[str, float]:
    """Save, hash and share a set of a number of GB; growth in bytes by operation."""
    from rayd.config import DataSettings
    from rayd.data import load
    from rayd.data.normalization import Standardization
    from rayd.distilled import Distilled
    from rayd.engine.pool import LocalPool
    from rayd.engine.stages.student_tasks import TrainingSets

    count = int(gigabytes * 1e9 / (4 * 3 * SIDE * SIDE))
    images = torch.rand(count, 3, SIDE, SIDE)
    distilled = Distilled(
        images=images,
        labels=torch.arange(count) % CLASSES,
        class_names=[str(label) for label in range(CLASSES)],
        normalization=Standardization(torch.full((3,), 0.5), torch.ones(3)),
    )
    whole = distilled.images.nbytes
    print(f"a set of {whole / 1e9:.2f} GB")
    sets = TrainingSets(load(DataSettings(name="digits")), distilled, 1)
    grown = {}
    with growth("its range of pixels", whole) as found:
        distilled.pixel_range  # noqa: B018 (computed on access)
    grown["range"] = found["grown"]
    with TemporaryDirectory() as folder:
        with growth("saved, with its contact sheet", whole) as found:
            distilled.save(Path(folder) / "set")
        grown["save"] = found["grown"]
        with growth("saved again, with another card", whole) as found:
            distilled.save(Path(folder) / "set")
        grown["again"] = found["grown"]
    with growth("fingerprint of 10 students' sets", whole) as found:
        for seed in range(10):
            sets.fingerprint("distilled", seed)
    grown["fingerprint"] = found["grown"]
    pool = LocalPool.around(None)
    with growth("read by 10 students", whole) as found:
        for seed in range(10):
            images, _ = sets.share(pool, "distilled", seed).get()
            torch.from_numpy(images)[:10].sum()
    grown["students"] = found["grown"]
    return grown


class Late:
    """Creates arrays, the first one late."""

    def make(self, index: int, megabytes: int, seconds: float) -> np.ndarray:
        """An array of a number of MB, the first one after some seconds."""
        if index == 0:
            time.sleep(seconds)
        return np.full(megabytes * 10**6, index, np.uint8)


def measure_late(results: int, megabytes: int, seconds: float) -> float:
    """Growth in bytes while results of two workers arrive behind a late one."""
    from rayd.config import ResourceSettings
    from rayd.engine.open_pool import open_pool

    resources = ResourceSettings(workers=2, cpus_per_worker=0.5, threads=1)
    items = [(index, megabytes, seconds) for index in range(results)]
    name = f"{results} results of {megabytes} MB"
    whole = results * megabytes * 10**6
    with open_pool(resources, Late) as pool, growth(name, whole) as found:
        for index, result in enumerate(pool.map("make", items)):
            assert int(result[0]) == index
            del result
    return found["grown"]


def measure_moments(megabytes: int) -> float:
    """Growth in bytes while statistics of a number of MB each are measured by three observers."""
    from rayd.data import load
    from rayd.engine.job import Job
    from rayd.engine.observer import DatasetInfo
    from rayd.engine.open_pool import open_pool
    from rayd.engine.stages import measure
    from rayd.engine.store import Store
    from tests.conftest import tiny
    from tests.large_statistics import LargeStatistics

    recipe = tiny(
        observers={"pool": 3, "per_step": 1},
        resources={"workers": 2, "cpus_per_worker": 0.5, "threads": 1},
    )
    data = load(recipe.data)
    measure.SHARD = 500
    name = f"3 observers of {megabytes} MB, 3 shards"
    info = DatasetInfo.of(data)
    with TemporaryDirectory() as folder:
        job = Job(recipe, data, Store(Path(folder)))
        with open_pool(recipe.resources, LargeStatistics, megabytes, recipe, info) as pool:
            with growth(name, megabytes * 10**6) as found:
                measured = measure.Measure(job).run(pool)
            assert len(measured) == 3
    return found["grown"]


RUN = """
import json, sys
from pathlib import Path
from rayd.engine.distill import distill
from rayd.engine.peak import PeakMemory
from rayd.engine.progress import Progress
from rayd.recipes import restore

recipe = restore(json.loads(sys.argv[1]), {}, "the argument")
# progress is shown, as workers then ask for the memory that the plan estimates
distill(recipe, Path(sys.argv[2]), cache=Path(sys.argv[3]), progress=Progress())
print(PeakMemory.here().host)
"""


def measure_plan(name: str, overrides: list[str], workers: int) -> dict[str, tuple[float, float]]:
    """Estimated and found bytes of each kind of process in a run of a recipe, from an empty store."""
    from rayd.config import parse_overrides
    from rayd.engine.plan import plan
    from rayd.engine.status import status
    from rayd.recipes import resolve

    resources = [f"resources.workers={workers}", "resources.cpus_per_worker=0.5"]
    recipe = resolve(name, parse_overrides([*resources, "resources.threads=1", *overrides]))
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        cache = Path(folder) / "cache"
        planned = plan(recipe, cache=cache).memory
        settings = json.dumps(recipe.model_dump(mode="json"))
        arguments = [sys.executable, "-c", RUN, settings, str(out), str(cache)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = {"driver" if workers else "in all": float(done.stdout.split()[-1])}
        if workers:
            of_workers = [one["memory"] for one in status(out).workers if one["role"] == "worker"]
            found["each worker"] = float(max(of_workers))
    pairs = {kind: (float(planned[kind]), size) for kind, size in found.items()}
    for kind, (estimated, size) in pairs.items():
        print(
            f"{name:<24} {kind:<12} {estimated / 1e6:8.0f} {size / 1e6:8.0f} MB "
            f"{estimated / size:5.2f} x"
        )
    return pairs


def main() -> None:
    """Run the measurement given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["set", "late", "moments", "plan"])
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--results", type=int, default=60)
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0)
    arguments = parser.parse_args()
    if arguments.what == "set":
        measure_set(arguments.gigabytes)
    elif arguments.what == "moments":
        measure_moments(arguments.megabytes)
    elif arguments.what == "plan":
        for name in arguments.recipes:
            measure_plan(name, arguments.set, arguments.workers)
    else:
        measure_late(arguments.results, arguments.megabytes, arguments.seconds)


if __name__ == "__main__":
    main()
