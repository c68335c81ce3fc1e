"""Helpers of the timing benchmarks: rates, ratios of rates, and synthesizers that are ready to
step.

Two implementations of the same work are timed alternately, so that the load of the machine affects
both; nothing is asserted, as timed tests are unreliable on a shared machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rayd.config import Recipe
from rayd.data import ImageData, ImageSet
from rayd.engine.network_ids import NetworkId, network_ids
from rayd.engine.observer import DatasetInfo
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.open_pool import open_pool
from rayd.engine.pool import HostingPool, ObjectRef
from rayd.engine.synthesizer import BlockTask, Synthesizer
from rayd.synthetic import initial

ROUNDS = 5
"""Default number of times that a ratio is measured."""
COLUMNS = 86
"""Width of a title."""
MEASURED = 1000
"""Real images that statistics are measured on; their values do not affect the speed of a step."""
ENDLESS: dict[str, Any] = {"steps": 10**6, "log_every": 10**6, "checkpoint_every": 10**6}
"""Settings `synthesis` of steps that are only timed: nothing is logged or stored between them."""

Weights = Mapping[NetworkId, Mapping[str, Tensor]]
"""State dicts of trained networks."""


def rate(
    work: Callable[[], object], units: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Units of work per second of a clock."""
    began = clock()
    work()
    return units / (clock() - began)


def compare(
    title: str,
    wanted: str,
    left: Callable[[], float],
    right: Callable[[], float],
    rounds: int = ROUNDS,
) -> None:
    """Print the median ratio of two rates, with minimum and maximum.

    Args:
        title: description of the ratio.
        wanted: the expected ratio.
        left: measures the dividend, in work per second.
        right: measures the divisor.
        rounds: number of alternate measurements of both, after a warm-up.
    """
    left()
    right()
    ratios = sorted(left() / right() for _ in range(rounds))
    median = statistics.median(ratios)
    spread = f"{ratios[0]:.2f} .. {ratios[-1]:.2f}"
    print(f"{title:<{COLUMNS}} {median:7.2f}   ({spread}, {wanted})", flush=True)


class Steps:
    """A synthesizer that is ready to step, from the recipe's own initial images.

    Args:
        pool: the workers.
        recipe: the recipe to time, with `ENDLESS` steps.
        data: the data set.
        real: real images for the statistics, or for the batches of `real: sampled`; None for the
            whole training split.
        weights: weights of the trained networks.
    """

    def __init__(
        self,
        pool: HostingPool,
        recipe: Recipe,
        data: ImageData,
        *,
        real: ImageSet | None = None,
        weights: Weights | None = None,
    ):
        real = real or data.train
        shared = {}
        for network_id, state in (weights or {}).items():
            shared[network_id] = pool.share(dict(state))

        is_measured = recipe.real == "measured"
        self._task = BlockTask(
            recipe=recipe,
            key="benchmark",
            normalization=data.normalization,
            block=0,
            blocks=1,
            start=pool.share(dict(initial(recipe, data).state_dict())),
            checkpoints=Path("no-checkpoints-are-written"),
            weights=shared,
            accuracies={},
            measured=_measured(pool, recipe, real, shared) if is_measured else {},
            train=None if is_measured else pool.share((real.images, real.labels)),
        )
        self._synthesizer = pool.host(Synthesizer)
        self._step = 0

    def advance(self, steps: int = 1) -> None:
        """Take some steps."""
        before = self._step
        self._step = before + steps
        self._synthesizer.call("advance", self._task, before, self._step)

    def rate(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """Steps per second of a clock."""
        return rate(lambda: self.advance(steps), steps, clock)


def in_process(
    recipe: Recipe,
    data: ImageData,
    *,
    real: ImageSet | None = None,
    weights: Weights | None = None,
) -> Steps:
    """Steps that are computed in this process; arguments as those of `Steps`."""
    pool = open_pool(recipe.resources, ObserverTasks, recipe, DatasetInfo.of(data))
    return Steps(pool, recipe, data, real=real, weights=weights)


def _measured(
    pool: HostingPool, recipe: Recipe, real: ImageSet, weights: Mapping[NetworkId, ObjectRef]
) -> dict[NetworkId, ObjectRef]:
    """Statistics of some real images of all classes by the observers."""
    every = max(1, len(real) // MEASURED)
    some = pool.share((real.images[::every], real.labels[::every]))
    first = pool.share((real.images[:: 10 * every], real.labels[:: 10 * every]))
    observers = network_ids(recipe)
    tasks = [(network_id, weights.get(network_id), some, first) for network_id in observers]
    states = pool.map("measure_alone", tasks)
    return {
        network_id: pool.share(state) for network_id, state in zip(observers, states, strict=True)
    }
