"""Speed and memory of characteristic functions: `python -m benchmarks.csdm [--data cifar10]
[--rounds 5]`.

As in `timing.py`, results are ratios of two implementations of the same work, timed alternately,
with minimum and maximum over the rounds; nothing is asserted. Everything runs in one thread of this
process, so that it can be timed by processor time (`--clock cpu`), which depends less on the load
of the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import COLUMNS, ENDLESS, compare, in_process, rate
from rayd.config import Recipe
from rayd.data import load
from rayd.engine.network_ids import network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.pool import LocalRef
from rayd.objectives.characteristic_function_distance import characteristic_function_gaps
from rayd.recipes import assemble
from rayd.statistics import CharacteristicFunction

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
FEATURES = 2048
CLASSES = 10


def recipe(data: str, **settings: object) -> Recipe:
    """The recipes' configuration on CIFAR-10: ConvNet of depth 3 and width 128, 1,024 frequencies;
    1,024 real images per class.
    """
    base = {
        "method": "csdm",
        "data": {"name": data},
        "observers": {"pool": 2, "precision": "bfloat16", "real_batch": 1024},
        "synthesis": {**ENDLESS, "precision": "bfloat16"},
        "resources": {"threads": 1},
    }
    return assemble(base, settings)


def term(images: int, number: int) -> Callable[[], Tensor]:
    """The distance of images from measured functions at a number of frequencies, and its gradient
    with respect to their features.
    """
    features = torch.randn(images, 1, FEATURES, requires_grad=True)
    frequencies = torch.randn(number, FEATURES) / FEATURES**0.5
    labels = torch.arange(images) % CLASSES
    weights = torch.full((CLASSES,), 0.5)
    with torch.no_grad():
        real = CharacteristicFunction.of(
            torch.randn(100, 1, FEATURES), torch.arange(100) % CLASSES, CLASSES, frequencies
        )

    def step() -> Tensor:
        ours = CharacteristicFunction.of(features, labels, CLASSES, frequencies)
        (gradient,) = torch.autograd.grad(
            characteristic_function_gaps(real, ours, weights).mean(), features
        )
        return gradient

    return step


def peak(images: int, number: int, found: multiprocessing.SimpleQueue[float]) -> None:
    """Peak memory of a separate process in GB, excluding its memory after imports."""
    torch.set_num_threads(1)
    before = kilobytes("VmRSS")
    term(images, number)()
    found.put((kilobytes("VmHWM") - before) * 1024 / 1e9)


def in_a_process(work: Callable[..., None], *arguments: Any) -> float:
    """Value that `work(*arguments, found)` puts into `found`, in a separate process."""
    spawned = multiprocessing.get_context("spawn")
    found = spawned.SimpleQueue()
    process = spawned.Process(target=work, args=(*arguments, found))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"A process ended with code {process.exitcode}.")
    return float(found.get())


def kilobytes(name: str) -> int:
    """A line of this process's status; `getrusage` would include the peak of the parent."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{name}:")
    )
    return int(line.split()[1])


def main() -> None:
    """Print every figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    data = load(recipe(options.data).data, options.data_root)
    clock = CLOCKS[options.clock]
    timed = partial(compare, rounds=options.rounds)
    torch.set_num_threads(1)
    print(
        f"{options.data}: {len(data.train):,} images, torch {torch.__version__}, one thread, {options.clock} time, "
        f"{options.rounds} rounds"
    )

    for images in (100, 2000):
        most = in_a_process(peak, images, 4096)
        print(
            f"{f'peak memory of 4,096 frequencies, {images:,} images, GB':<{COLUMNS}} {most:7.2f}   (under 1)",
            flush=True,
        )

    tenth = data.train.subset(np.arange(0, len(data.train), 10))
    for ipc, wanted, steps in ((1, "at least 40", 40), (10, "at least 8", 8)):
        measured = in_process(recipe(options.data, ipc=ipc), data, real=tenth)
        sampled = in_process(recipe(options.data, ipc=ipc, real="sampled"), data)
        timed(f"step rate, measured : sampled, IPC {ipc}", wanted,
              lambda m=measured, n=steps: m.rate(n, clock), lambda s=sampled: s.rate(1, clock))  # fmt: skip

    few = in_process(recipe(options.data, ipc=10), data, real=tenth)
    many = in_process(recipe(options.data, ipc=10), data)
    timed(
        "step rate, 10 % : 100 % of the real set",
        "within 5 %",
        lambda: few.rate(8, clock),
        lambda: many.rate(8, clock),
    )

    for ipc, steps in ((1, 40), (10, 8)):
        plain = in_process(recipe(options.data, ipc=ipc, method="dm"), data, real=tenth)
        ours = in_process(recipe(options.data, ipc=ipc), data, real=tenth)
        timed(f"time of a measured step, csdm : dm, IPC {ipc}", "", lambda p=plain, n=steps: p.rate(n, clock),
              lambda o=ours, n=steps: o.rate(n, clock))  # fmt: skip

    for images in (10, 100):
        for fewer, more in ((512, 1024), (1024, 4096), (4096, 16384)):
            small = term(images, fewer)
            large = term(images, more)
            timed(f"time of the term, {more} : {fewer} frequencies, {images} images", f"linear is {more // fewer}",
                  lambda step=small: rate(step, 1, clock), lambda step=large: rate(step, 1, clock))  # fmt: skip

    batch = data.train.images[:2048], data.train.labels[:2048]
    shard = LocalRef(batch)
    first = LocalRef((batch[0][:512], batch[1][:512]))
    looks = {
        method: ObserverTasks(recipe(options.data, method=method), DatasetInfo.of(data))
        for method in ("csdm", "dm")
    }
    (network_id, *_) = network_ids(recipe(options.data))
    timed("rate of the measuring pass, csdm : dm", "",
          lambda: rate(lambda: looks["csdm"].measure_alone(network_id, None, shard, first), 2048, clock),
          lambda: rate(lambda: looks["dm"].measure_alone(network_id, None, shard), 2048, clock))  # fmt: skip


if __name__ == "__main__":
    main()
