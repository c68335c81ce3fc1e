"""A worker pool of long-lived Ray actors.

Workers are actors that Ray restarts; `rayd.engine.on_ray.actor_tasks` gives tasks to those that are
alive.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayd import plugins
from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.on_ray import health
from rayd.engine.on_ray.actor_tasks import ActorTasks
from rayd.engine.on_ray.actors import Actor, RayActor, ready_within
from rayd.engine.on_ray.cluster import (
    amounts_text,
    capacity,
    check_resources,
    connect,
    memory_to_ask,
    sent,
)
from rayd.engine.on_ray.neighbours import WorkersByName
from rayd.engine.on_ray.watch import head_is_lost
from rayd.engine.pool import HostingPool, WorkerPool
from rayd.errors import ResourceError
from rayd.shown import quantity

log = logging.getLogger(__name__)


class RayPool(ActorTasks, HostingPool):
    """Long-lived actors, each hosting one replica of `factory(*arguments)`.

    Args:
        resources: the number of actors and what they reserve; an elastic pool waits for the first
            of them only.
        factory: creates a replica.
        arguments: of the factory.
        memory: bytes that an actor will take, an estimate; it asks for no more than its share of
            every node.

    Raises:
        ResourceError: the cluster cannot be reached, cannot hold the actors, or they do not start
            in time.
    """

    def __init__(
        self,
        resources: ResourceSettings,
        factory: Callable[..., Any],
        *arguments: Any,
        memory: int = 0,
    ):
        connect(resources.address)
        if not resources.elastic:
            check_resources(resources)
        factory = sent(factory)
        self._threads = threads(resources)
        self._replica = (factory, arguments)
        reserved = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
        options: dict[str, Any] = {**reserved, "max_task_retries": 0}
        if resources.placement == "spread" and get_current_placement_group() is None:
            # an explicit strategy would override the placement group of a trial, which spreads its
            # bundles itself
            options["scheduling_strategy"] = "SPREAD"
        # the bundles of a trial reserve no memory
        asked = 0 if get_current_placement_group() else memory_to_ask(resources, memory)
        if asked > 0:
            options["memory"] = asked
        if own := plugins.environment():
            # for a cluster that was joined before the plug-ins were imported
            options["runtime_env"] = {"env_vars": own["env_vars"]}
        # names by which hosted objects find the workers; unique, as runs may share a cluster
        self._names = [f"rayd-{uuid.uuid4().hex}" for _ in range(resources.workers)]
        self._workers = [
            Actor.options(name=name, **options).remote(self._threads, factory, arguments)
            for name in self._names
        ]
        self._hosts: list[RayActor] = []
        try:
            self._start(resources)
        # also on an interrupt, or actors would hold their resources until the driver ends
        except BaseException:
            self.close()
            raise

    def _start(self, resources: ResourceSettings) -> None:
        """Wait until enough workers are alive."""
        needed = resources.workers
        limit = health.start_limit(needed, health.crowding())
        if resources.elastic:
            needed = 1
            limit = health.NO_WORKER_LIMIT
        if resources.elastic and capacity(resources)[1] == 0:
            log.warning(
                "No worker fits into the cluster yet; waiting up to %g minutes for nodes to join.",
                limit / 60,
            )
        began = time.monotonic()
        while len(self._health.present) < needed:
            ready, _ = ready_within(self._health.pings(), timeout=health.PING_INTERVAL)
            for ping in ready:
                self._health.update(ping)
            if time.monotonic() - began > limit:
                raise ResourceError(
                    f"{quantity(needed, 'worker')} did not start within {round(limit, 1):g} s: "
                    f"free resources are {amounts_text(ray.available_resources())}; other jobs may "
                    "hold the rest."
                )

    def neighbours(self) -> WorkersByName:
        """The workers, for one of them."""
        return WorkersByName(self._names)

    def host(self, factory: Callable[..., Any], *arguments: Any) -> RayActor:
        """Host an object in an actor on this node that can call the workers."""
        host = RayActor.start(self._threads, sent(factory), WorkersByName(self._names), *arguments)
        self._hosts.append(host)
        return host

    @contextmanager
    def sharing_gpus(self, each: int) -> Iterator[WorkerPool]:
        """These workers, and `each` - 1 more on the GPU of each, which reserve nothing."""
        with SharedGPUs(self, each) as pool:
            yield pool

    def close(self) -> None:
        """Stop the actors."""
        for host in self._hosts:
            host.close()
        for worker in self._workers:
            # actors are lost with their head, and calls to a lost head take a minute to fail
            if not head_is_lost():
                ray.kill(worker)
        self._workers = []
        self._hosts = []


class SharedGPUs(RayPool):
    """The workers of a pool, and further ones on their GPUs, which end with this pool.

    The further ones run on the workers' nodes, reserve nothing, and use the GPUs that the workers
    reserved. One whose node is lost is not replaced.

    Args:
        pool: an idle pool.
        each: workers on a GPU.
    """

    def __init__(self, pool: RayPool, each: int):
        self._threads = max(1, pool._threads // each)
        self._added = []
        # only workers that are alive have reported their GPU
        for worker in sorted(pool._health.present) * (each - 1):
            info = pool._health.last_info[worker]
            node = NodeAffinitySchedulingStrategy(info.node_id, soft=False)
            options = Actor.options(num_cpus=0, max_task_retries=0, scheduling_strategy=node)
            self._added.append(options.remote(self._threads, *pool._replica, info.gpu))
        self._workers = [*pool._workers, *self._added]
        self._hosts = []

    def close(self) -> None:
        """Stop the further workers."""
        self._workers = self._added
        super().close()
