"""What a run that is about to begin should take: the plan's figures, for its progress.

Speeds that were never measured on this machine are nominal ones, unless the run is long enough for
measuring them to make no difference. Whatever goes wrong here costs a run nothing but its forecast.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from rayd import devices, methods, synthetic
from rayd.engine.costs import Costs
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId
from rayd.engine.speeds import Speeds
from rayd.engine.stages.student_tasks import Task

log = logging.getLogger(__name__)

LONG = 120.0
"""Seconds of a run for which speeds are measured."""
SHORT_BUDGET = 2.0
"""Seconds of measuring them."""

Found = TypeVar("Found")


class Forecast:
    """The forecast of one run."""

    def __init__(self, job: Job):
        """Compute nothing yet."""
        self._job = job
        self._recipe = job.recipe
        self._data = job.data
        self._store = job.store

    def stage(self, name: str) -> float | None:
        """Seconds that a stage should take; None where that is not known."""
        return self._tried(lambda: self._stages.get(name), None)

    def epoch(self, network_id: NetworkId) -> float:
        """What an epoch of an observer's training takes, beside those of others."""
        settings = self._recipe.squeezing(network_id.group)

        def seconds() -> float:
            return self._speeds.seconds(
                self._costs.training(network_id.architecture, settings, len(self._data.train))
            )

        return self._tried(seconds, 1.0)

    def shard(self, network_id: NetworkId) -> float:
        """What an observer takes for a shard of the real images, beside others."""
        networks = [
            one.model_dump() for one in self._recipe.network_group(network_id.group).networks
        ]
        place = networks.index(network_id.architecture.model_dump())
        return self._tried(
            lambda: self._speeds.seconds(self._costs.measuring(network_id.group, place)), 1.0
        )

    def student(self, task: Task) -> float:
        """What an epoch of a student takes, beside those of others."""
        own = synthetic.image_count(self._recipe, self._data)
        real = task.set_name != "distilled"
        few = self._recipe.ipc * self._data.classes
        images = {"whole": len(self._data.train), "distilled": own}.get(task.set_name, few)
        settings = self._recipe.evaluation

        def seconds() -> float:
            epoch = self._costs.training(task.network, settings, images, task.labels.kind, real)
            test = self._costs.testing(task.network, settings.precision, len(self._data.test))
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

        method = methods.build(self._recipe)
        return stage_seconds(
            self._recipe, method, self._data, self._store, self._speeds, LONG, SHORT_BUDGET
        )

    def _tried(self, work: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return work()
        except Exception as error:
            # a forecast must not end a run
            log.debug("No forecast: %s", error)
            return otherwise
