"""Speed of distribution matching, as ratios measured in one run: `python -m benchmarks.dm [--data
cifar10]`.

Each ratio compares two implementations of the same work, timed alternately so that the load of the
machine affects both; the median of the rounds' ratios is printed with minimum and maximum. Nothing
is asserted, as timed tests are unreliable on a shared machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import ENDLESS, ROUNDS, Steps, compare, in_process, rate
from rayd import networks, seeding
from rayd.config import Recipe, merge
from rayd.data import ImageData, load
from rayd.data.augmentation import augmentation
from rayd.devices import dtype
from rayd.engine.network_ids import network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import LocalRef
from rayd.recipes import assemble
from rayd.synthetic import initial


def recipe(data: str, **settings: object) -> Recipe:
    """The CIFAR-10 recipe's configuration: ConvNet of depth 3 and width 128."""
    base = {
        "method": "dm",
        "data": {"name": data},
        "observers": {"pool": 2, "precision": "bfloat16"},
        "synthesis": {**ENDLESS, "precision": "bfloat16"},
        "resources": {"threads": 1},
    }
    return assemble(base, settings)


def bare_loop(recipe_: Recipe, data: ImageData) -> Callable[[int], float]:
    """The measured step implemented by hand, with the real means as constants."""
    kind = dtype(recipe_.synthesis.precision)
    pool = []
    for network_id in range(recipe_.observers.pool):
        draws = seeding.generator(recipe_.observers.seed, "pool augmentation", network_id)
        (operation,) = augmentation(recipe_.observers.augmentation).draw(draws, 1, *data.shape[1:])
        seed = seeding.derive(recipe_.observers.seed, "pool observer", network_id)
        network = (
            networks.build(recipe_.observers.networks[0], data.shape, data.classes, seed=seed)
            .requires_grad_(False)
            .to(kind)
        )
        pool.append((operation, torch.nn.Sequential(*list(network.children())[:-1])))
    images, labels = initial(recipe_, data).batch()
    images = images.detach().requires_grad_()
    members = torch.nn.functional.one_hot(labels).float()
    with torch.no_grad():
        constants = [
            torch.randn_like(members.T @ network(images.to(kind)).flatten(1).float())
            for _, network in pool
        ]
    optimizer = torch.optim.SGD(
        [images], recipe_.synthesis.learning_rate, recipe_.synthesis.momentum
    )

    def step(index: int) -> None:
        operation, network = pool[index % len(pool)]
        features = network(operation(images).to(kind)).flatten(1).float()
        means = members.T @ features / recipe_.ipc
        loss = (constants[index % len(pool)] - means).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return lambda steps: rate(lambda: [step(index) for index in range(steps)], steps)


def main() -> None:
    """Print every ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root", type=Path, default=None)
    options = parser.parse_args()
    data = load(recipe(options.data).data, options.data_root)
    torch.set_num_threads(1)
    print(
        f"{options.data}: {len(data.train):,} images, torch {torch.__version__}, one thread unless stated, {ROUNDS} rounds"
    )

    for ipc, wanted, steps in ((1, "at least 40", 40), (10, "at least 8", 8)):
        measured = in_process(recipe(options.data, ipc=ipc), data)
        sampled = in_process(recipe(options.data, ipc=ipc, real="sampled"), data)
        compare(
            f"step rate, measured : sampled, IPC {ipc}",
            wanted,
            lambda m=measured, n=steps: m.rate(n),
            lambda s=sampled: s.rate(1),
        )

    for ipc, steps in ((1, 200), (10, 25)):
        chosen = recipe(options.data, ipc=ipc)
        ours = in_process(chosen, data)
        bare = bare_loop(chosen, data)
        compare(f"time of a measured step : bare loop with constants, IPC {ipc}", "at most 1.05",
                lambda b=bare, n=steps: b(n), lambda o=ours, n=steps: o.rate(n))  # fmt: skip

    chosen = recipe(options.data)
    observers = ObserverTasks(chosen, DatasetInfo.of(data))
    images = data.train.images[:4096]
    labels = data.train.labels[:4096]
    shard = LocalRef((images, labels))
    seed = seeding.derive(chosen.observers.seed, "pool observer", 0)
    network = networks.build(chosen.observers.networks[0], data.shape, data.classes, seed=seed).to(
        torch.bfloat16
    )
    batches = (
        data.normalization(torch.from_numpy(np.ascontiguousarray(images)))
        .bfloat16()
        .split(chosen.observers.batch_size)
    )

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            network(batch)

    compare("rate of the measuring pass : bare forward pass", "at least 0.85",
            lambda: rate(lambda: observers.measure_alone(network_ids(chosen)[0], None, shard), len(images)),
            lambda: rate(forward, len(images)))  # fmt: skip

    tenth = data.train.subset(np.arange(0, len(data.train), 10))
    few = in_process(recipe(options.data, ipc=10), data, real=tenth)
    many = in_process(recipe(options.data, ipc=10), data)
    compare(
        "step rate, 10 % : 100 % of the real set",
        "within 5 %",
        lambda: few.rate(25),
        lambda: many.rate(25),
    )

    pair = {"observers": {"per_step": 2}, "ipc": 10}
    local = recipe(options.data, **merge(pair, {"resources": {"threads": 2}}))
    remote = recipe(options.data, **merge(pair, {"resources": {"workers": 2, "threads": 1}}))
    with open_pool(remote.resources, ObserverTasks, remote, DatasetInfo.of(data)) as pool:
        spread = Steps(pool, remote, data)
        alone = in_process(local, data)
        compare("step rate, Ray with 2 one-thread workers : in process with 2 threads", "at least 0.85",
                lambda: spread.rate(8), lambda: alone.rate(8))  # fmt: skip


if __name__ == "__main__":
    main()
