"""Forecasts for the progress display of a run, from the figures of `rayd.engine.plan`.

Speeds that were never measured on this machine are nominal, unless the run is so long that the time
to measure them is negligible. If a forecast fails, the run continues without one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from rayd import devices
from rayd.engine.costs import Costs
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId
from rayd.engine.speeds import Speeds
from rayd.engine.stages.student_tasks import Task

log = logging.getLogger(__name__)

LONG = 120.0
"""Duration of a run in seconds from which speeds are measured for it."""
SHORT_BUDGET = 2.0
"""Seconds spent on measuring them."""

Found = TypeVar("Found")


class Forecast:
    """The forecast of one run."""

    def __init__(self, job: Job):
        """Create a forecast; nothing is computed yet."""
        self._job = job
        self._recipe = job.recipe
        self._data = job.data
        self._store = job.store

    def stage(self, name: str) -> float | None:
        """Expected seconds of a stage; None if unknown."""
        return self._tried(lambda: self._stages.get(name), None)

    def worker_memory(self) -> int:
        """Estimate of the peak memory of a worker in bytes; 0 if unknown."""

        def estimate() -> int:
            from rayd.engine.plan import worker_memory

            return worker_memory(self._job)

        return self._tried(estimate, 0)

    def epoch(self, network_id: NetworkId) -> float:
        """Relative cost of an epoch of an observer's training."""
        settings = self._recipe.squeezing(network_id.group)

        def seconds() -> float:
            return self._speeds.seconds(
                self._costs.training(network_id.architecture, settings, len(self._data.train))
            )

        return self._tried(seconds, 1.0)

    def shard(self, network_id: NetworkId) -> float:
        """Relative cost of measuring a shard of the real images with an observer."""
        group = self._recipe.network_group(network_id.group)
        architectures = [network.model_dump() for network in group.networks]
        index = architectures.index(network_id.architecture.model_dump())
        return self._tried(
            lambda: self._speeds.seconds(self._costs.measuring(network_id.group, index)), 1.0
        )

    def student(self, task: Task) -> float:
        """Relative cost of an epoch of a student."""
        real = task.set_name != "distilled"
        settings = task.settings(self._recipe.evaluation)

        def seconds() -> float:
            epoch = self._costs.training(
                task.network, settings, task.images, task.labels.kind, real
            )
            test = self._costs.testing(task.network, settings.precision, len(self._data.test))
            # the single test, after the last epoch, is spread over all epochs
            return self._speeds.seconds(epoch + test * (1 / task.epochs))

        return self._tried(seconds, 1.0)

    @cached_property
    def _costs(self) -> Costs:
        return Costs(self._recipe, self._data, self._store)

    @cached_property
    def _speeds(self) -> Speeds:
        resources = self._recipe.resources
        device = devices.choose(resources)
        return Speeds(device)

    @cached_property
    def _stages(self) -> dict[str, float]:
        from rayd.engine.plan import stage_seconds

        return stage_seconds(self._job, self._speeds, LONG, SHORT_BUDGET)

    def _tried(self, work: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return work()
        except Exception as error:
            # a forecast must not end a run
            log.debug("No forecast: %s", error)
            return otherwise
