"""A worker pool of long-lived Ray actors.

Workers are actors that Ray restarts, and tasks go to those that are alive, so a killed worker or a
lost node costs time and nothing else: methods are idempotent, and state is only cached. A lost
worker is pinged until it answers, whether Ray restarts it or starts it on a node that joins.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter as Counts
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError
from ray.util.placement_group import get_current_placement_group

from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.on_ray import health, metrics
from rayd.engine.on_ray.actors import (
    SILENCE_LIMIT,
    Actor,
    RayActor,
    RayRef,
    ready_within,
    translated,
)
from rayd.engine.on_ray.cluster import (
    amounts_text,
    capacity,
    check_resources,
    connect,
    log_directory,
)
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.engine.wire import size, unpack
from rayd.errors import ResourceError, RunError

log = logging.getLogger(__name__)

LOSSES = 20
"""Number of workers in a row that may die over the same item."""


class RayPool(WorkerPool):
    """Long-lived actors, each hosting one replica of `factory(*arguments)`.

    Args:
        resources: the number of actors and what they reserve; an elastic pool waits for the first
            of them only.
        factory: creates a replica.
        arguments: of the factory.

    Raises:
        ResourceError: the cluster cannot be reached, cannot hold the actors, or they do not start
            in time.
    """

    def __init__(self, resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any):
        connect(resources.address)
        if not resources.elastic:
            check_resources(resources)
        self._threads = threads(resources)
        reserved = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
        options: dict[str, Any] = {**reserved, "max_task_retries": 0}
        if resources.placement == "spread" and get_current_placement_group() is None:
            # an explicit strategy would leave the placement group of a trial, which spreads its
            # bundles itself
            options["scheduling_strategy"] = "SPREAD"
        self._names = [f"rayd-{uuid.uuid4().hex}" for _ in range(resources.workers)]
        self._workers = [
            Actor.options(name=name, **options).remote(self._threads, factory, arguments)
            for name in self._names
        ]
        self._hosts: list[RayActor] = []
        try:
            self._start(resources)
        except BaseException:
            self.close()
            raise

    def _start(self, resources: ResourceSettings) -> None:
        """Wait until enough workers are alive."""
        needed = resources.workers
        limit = health.START_LIMIT
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
                    f"{needed} worker{'s' if needed > 1 else ''} did not start within {limit:g} s: "
                    f"free resources are {amounts_text(ray.available_resources())}; other jobs may "
                    "hold the rest."
                )

    @cached_property
    def _health(self) -> health.WorkerHealth:
        return health.WorkerHealth(self._workers)

    @cached_property
    def _monitor(self) -> health.ActorMonitor:
        return health.ActorMonitor()

    def workers(self) -> list[WorkerInfo]:
        """The workers and the hosted objects as last reported, without waiting."""
        if not self._workers or not ray.is_initialized():
            return []
        actors = [("worker", worker) for worker in self._workers]
        actors += [(host.role, host.actor) for host in self._hosts]
        return self._monitor.poll(actors, self._health.last_info)

    def logs(self) -> str | None:
        """The directory of Ray's log files on each machine."""
        return log_directory()

    def publish(self, stage: str, rate: float) -> None:
        """Publish the rate of a stage as a metric of Ray."""
        metrics.rate(stage, rate)

    def share(self, value: Any) -> RayRef:
        """Store a value in the object store."""
        return RayRef(value)

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Keep every worker busy with one call at a time; yield results in order of the items."""
        waiting = _ItemQueue(len(items), affinity, len(self._workers))
        # (item, worker) by Ray's reference to the result
        running: dict[Any, tuple[int, int]] = {}
        # results that wait for those of earlier items
        finished: dict[int, Any] = {}
        for index in range(len(items)):
            while index not in finished:
                for worker, item in waiting.assign(self._idle(running)):
                    running[self._workers[worker].call.remote(method, items[item])] = (item, worker)
                reference = self._next(method, running)
                if reference not in running:
                    self._health.update(reference)
                    continue
                item, worker = running.pop(reference)
                try:
                    finished[item] = self._result(reference)
                except _LostError:
                    waiting.put_back(item)
                    self._health.mark_lost(worker)
            yield finished.pop(index)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Keep every worker busy with one generator at a time; yield events on arrival."""
        upcoming = iter(items)
        count = 0
        exhausted = False
        # arguments of unfinished items, in case they have to be restarted
        arguments: dict[int, tuple[Any, ...]] = {}
        lost = _ItemQueue(0, None, len(self._workers))
        # (item, worker) by Ray's generator
        running: dict[Any, tuple[int, int]] = {}
        # events of an item that arrived since its last start, and that were passed on: a restarted
        # item repeats its events
        arrived = Counts[int]()
        yielded = Counts[int]()
        while True:
            for worker in self._idle(running):
                item = lost.take_lost()
                if item is None:
                    following = None if exhausted else next(upcoming, None)
                    if following is None:
                        exhausted = True
                        break
                    item = count
                    count = count + 1
                    arguments[item] = following
                stream = self._workers[worker].stream.options(num_returns="streaming")
                running[stream.remote(method, arguments[item])] = (item, worker)
                arrived[item] = 0
            if exhausted and not running and not lost:
                return
            reference = self._next(method, running)
            if reference not in running:
                self._health.update(reference)
                continue
            item, worker = running[reference]
            try:
                event = self._result(next(reference))
            except StopIteration:
                # arguments may be large: free them
                del running[reference], arguments[item]
            except _LostError:
                del running[reference]
                lost.put_back(item)
                self._health.mark_lost(worker)
            else:
                arrived[item] += 1
                if arrived[item] > yielded[item]:
                    yielded[item] = arrived[item]
                    lost.reset_losses(item)
                    yield item, event

    def _idle(self, running: dict[Any, tuple[int, int]]) -> list[int]:
        return sorted(self._health.present - {worker for _, worker in running.values()})

    def _next(self, method: str, running: dict[Any, tuple[int, int]]) -> Any:
        """The next call with a result, or finished ping of a lost worker."""
        began = time.monotonic()
        try:
            while True:
                # pings first: they are rare, and must not starve while results are always ready
                ready, _ = ready_within(
                    [*self._health.pings(), *running],
                    timeout=health.PING_INTERVAL if self._health.away else 10.0,
                )
                if ready:
                    return ready[0]
                if time.monotonic() - began > SILENCE_LIMIT:
                    raise RunError(
                        f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was "
                        "stopped, --resume continues it."
                    )
                if not running:
                    self._health.check()
        finally:
            metrics.count("rayd_wait_seconds", time.monotonic() - began, method=method)

    @staticmethod
    def _result(reference: Any) -> Any:
        """The value of a result that is ready."""
        try:
            packed = ray.get(reference, timeout=SILENCE_LIMIT)
        except (RayActorError, ObjectLostError) as error:
            raise _LostError from error
        except RayError as error:
            raise translated(error) from error
        metrics.count("rayd_bytes_moved", size(packed), direction="in")
        return unpack(packed)

    def host(self, factory: Callable[..., Any], *arguments: Any) -> RayActor:
        """Host an object in an actor on this node that can call the workers."""
        host = RayActor.start(self._threads, factory, _Handles(self._names), *arguments)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        """Stop the actors."""
        for host in self._hosts:
            host.close()
        for worker in self._workers:
            ray.kill(worker)
        self._workers = []
        self._hosts = []


class _Handles(RayPool):
    """The pool for its hosted object: the same workers, which it neither starts nor stops.

    Workers are looked up by name: handles among an actor's constructor arguments are kept in the
    object store, and may be lost before the actor is restarted.
    """

    def __init__(self, names: list[str]):
        self._names = names

    @cached_property
    def _workers(self) -> list[Any]:  # type: ignore[override]
        return [ray.get_actor(name) for name in self._names]


class _ItemQueue:
    """Waiting items: lost ones first, then those of a worker's affinity, then the oldest.

    Args:
        count: number of items.
        affinity: of each; the worker of that number, modulo the number of workers, is its home.
        workers: their number.
    """

    def __init__(self, count: int, affinity: Sequence[int] | None, workers: int):
        # an item with affinity is in two queues; the one that is read second skips it
        self._own: list[deque[int]] = [deque() for _ in range(workers)]
        self._all = deque(range(count))
        self._taken: set[int] = set()
        self._lost: deque[int] = deque()
        self._losses: Counts[int] = Counts()
        for item, home in enumerate(affinity or ()):
            self._own[home % workers].append(item)

    def assign(self, idle: Sequence[int]) -> list[tuple[int, int]]:
        """Remove and return (worker, item) for idle workers, at most one item each.

        Homes come first: only what an idle worker has no claim to is taken by the others, or a
        step with fewer items than workers would always go to the first of them.
        """
        assigned = []
        without = []
        for worker in idle:
            item = self._lost.popleft() if self._lost else self._first(self._own[worker])
            if item is None:
                without.append(worker)
            else:
                assigned.append((worker, item))
        for worker in without:
            item = self._first(self._all)
            if item is not None:
                assigned.append((worker, item))
        return assigned

    def take_lost(self) -> int | None:
        """Remove and return a lost item; None if there is none."""
        return self._lost.popleft() if self._lost else None

    def _first(self, queue: deque[int]) -> int | None:
        """Remove and return the first item of a queue that is still waiting."""
        while queue:
            item = queue.popleft()
            if item not in self._taken:
                self._taken.add(item)
                return item
        return None

    def put_back(self, item: int) -> None:
        """Return an item whose worker died.

        Raises:
            RunError: too many workers in a row died over the item.
        """
        self._losses[item] += 1
        if self._losses[item] >= LOSSES:
            raise RunError(
                f"A task killed its worker {LOSSES} times in a row, most likely by running out of "
                "memory. Use smaller batches or give workers more memory; --resume continues."
            )
        self._lost.append(item)

    def __bool__(self) -> bool:
        """Whether lost items are waiting."""
        return bool(self._lost)

    def reset_losses(self, item: int) -> None:
        """Count the losses of an item anew, as it makes progress."""
        self._losses.pop(item, None)


class _LostError(Exception):
    """The worker of a call died; another may repeat the call."""
