"""Work items over standing actors.

Workers are actors that Ray restarts, and whose calls the group gives to whoever is there, so that a
killed worker or a lost node costs time and nothing else: their methods are idempotent and keep no
state that matters. A worker that is away is asked for a sign of life until it answers, whether Ray
has to start it again, or for the first time on a node that joins.
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
from rayd.engine.on_ray.cluster import check_resources, connect, log_directory, room, words
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.engine.wire import size, unpack
from rayd.errors import ResourceError, RunError

log = logging.getLogger(__name__)

LOSSES = 20
"""How often in a row an item may take its worker with it."""


class RayPool(WorkerPool):
    """Standing actors, each hosting one replica."""

    def __init__(self, resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any):
        """Start `resources.workers` actors that host `factory(*arguments)`; if elastic, wait for
        the first of them only.

        Raises:
            ResourceError: the cluster cannot be reached, cannot hold them, or they do not start in
                time.
        """
        connect(resources.address)
        if not resources.elastic:
            check_resources(resources)
        self._threads = threads(resources)
        reserved = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
        options: dict[str, Any] = {**reserved, "max_task_retries": 0}
        if resources.placement == "spread" and get_current_placement_group() is None:
            # whoever says how to place it leaves the placement group of a trial, whose bundles are
            # spread themselves
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
        needed, limit = (
            (1, health.ABSENCE_LIMIT)
            if resources.elastic
            else (resources.workers, health.START_LIMIT)
        )
        if resources.elastic and room(resources)[1] == 0:
            log.warning(
                "No worker fits into the cluster yet; waiting up to %g minutes for nodes to join.",
                limit / 60,
            )
        began = time.monotonic()
        while len(self._health.present) < needed:
            ready, _ = ready_within(self._health.awaited(), timeout=health.ASK_AGAIN)
            for sign in ready:
                self._health.hear(sign)
            if time.monotonic() - began > limit:
                raise ResourceError(
                    f"{needed} worker{'s' if needed > 1 else ''} did not start within {limit:g} s: "
                    f"free resources are {words(ray.available_resources())}; other jobs may hold the rest."
                )

    @cached_property
    def _health(self) -> health.WorkerHealth:
        return health.WorkerHealth(self._workers)

    @cached_property
    def _lookout(self) -> health.ActorMonitor:
        return health.ActorMonitor()

    def workers(self) -> list[WorkerInfo]:
        """Where the workers and the hosted objects are, as far as is known without waiting."""
        if not self._workers or not ray.is_initialized():
            return []
        actors = [("worker", worker) for worker in self._workers] + [
            (host.role, host.actor) for host in self._hosts
        ]
        return self._lookout.look(actors, self._health.heard)

    def logs(self) -> str | None:
        """The directory of Ray's log files on each of its machines."""
        return log_directory()

    def publish(self, stage: str, rate: float) -> None:
        """Publish the rate of a stage among Ray's metrics."""
        metrics.rate(stage, rate)

    def share(self, value: Any) -> RayRef:
        """Place a value in the object store."""
        return RayRef(value)

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Keep every worker busy with one call at a time; yield results in the order of the
        items.
        """
        waiting = _Queue(len(items), affinity, len(self._workers))
        running: dict[Any, tuple[int, int]] = {}
        finished: dict[int, Any] = {}
        for index in range(len(items)):
            while index not in finished:
                for worker in self._idle(running):
                    item = waiting.take(worker)
                    if item is None:
                        break
                    running[self._workers[worker].call.remote(method, items[item])] = (item, worker)
                reference = self._next(method, running)
                if reference not in running:
                    self._health.hear(reference)
                    continue
                item, worker = running.pop(reference)
                try:
                    finished[item] = self._taken(reference)
                except _LostError:
                    waiting.put_back(item)
                    self._health.lose(worker)
            yield finished.pop(index)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Keep every worker busy with one generator at a time; yield events as they come."""
        coming = iter(items)
        count = 0
        ended = False
        given: dict[int, tuple[Any, ...]] = {}
        lost = _Queue(0, None, len(self._workers))
        running: dict[Any, tuple[int, int]] = {}
        seen = Counts[int]()
        told = Counts[int]()
        while True:
            for worker in self._idle(running):
                item = lost.take(worker)
                if item is None:
                    following = None if ended else next(coming, None)
                    if following is None:
                        ended = True
                        break
                    item = count
                    count = count + 1
                    given[item] = following
                events = (
                    self._workers[worker]
                    .stream.options(num_returns="streaming")
                    .remote(method, given[item])
                )
                running[events] = (item, worker)
                seen[item] = 0
            if ended and not running and not lost:
                return
            reference = self._next(method, running)
            if reference not in running:
                self._health.hear(reference)
                continue
            item, worker = running[reference]
            try:
                event = self._taken(next(reference))
            except StopIteration:
                # what it was given may be large, and is nobody's now
                del running[reference], given[item]
            except _LostError:
                del running[reference]
                lost.put_back(item)
                self._health.lose(worker)
            else:
                seen[item] += 1
                if seen[item] > told[item]:
                    told[item] = seen[item]
                    lost.forgive(item)
                    yield item, event

    def _idle(self, running: dict[Any, tuple[int, int]]) -> list[int]:
        return sorted(self._health.present - {worker for _, worker in running.values()})

    def _next(self, method: str, running: dict[Any, tuple[int, int]]) -> Any:
        """The next call that has something to say, or sign of life of a worker that was away."""
        began = time.monotonic()
        try:
            while True:
                # signs first: they are rare, and must not starve where results always wait
                ready, _ = ready_within(
                    [*self._health.awaited(), *running],
                    timeout=health.ASK_AGAIN if self._health.away else 10.0,
                )
                if ready:
                    return ready[0]
                if time.monotonic() - began > SILENCE_LIMIT:
                    raise RunError(
                        f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was stopped, --resume continues it."
                    )
                if not running:
                    self._health.check()
        finally:
            metrics.count("rayd_wait_seconds", time.monotonic() - began, method=method)

    @staticmethod
    def _taken(reference: Any) -> Any:
        try:
            packed = ray.get(reference, timeout=SILENCE_LIMIT)
        except (RayActorError, ObjectLostError) as error:
            raise _LostError from error
        except RayError as error:
            raise translated(error) from error
        metrics.count("rayd_bytes_moved", size(packed), direction="in")
        return unpack(packed)

    def host(self, factory: Callable[..., Any], *arguments: Any) -> RayActor:
        """An actor on this node that holds the group's handles."""
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
    """The group as its hosted object sees it: the same workers, nothing to start or stop.

    It knows them by name: handles among an actor's constructor arguments live in the object store,
    and its restart may not find them there.
    """

    def __init__(self, names: list[str]):
        self._names = names

    @cached_property
    def _workers(self) -> list[Any]:  # type: ignore[override]
        return [ray.get_actor(name) for name in self._names]


class _Queue:
    """Waiting items: those that were given back, then a worker's own, then the oldest of
    anybody's.
    """

    def __init__(self, count: int, affinity: Sequence[int] | None, workers: int):
        self._own: list[deque[int]] = [deque() for _ in range(workers)]
        self._all = deque(range(count))
        self._back: deque[int] = deque()
        self._taken: set[int] = set()
        self._losses: Counts[int] = Counts()
        for item, home in enumerate(affinity or ()):
            self._own[home % workers].append(item)

    def take(self, worker: int) -> int | None:
        if self._back:
            return self._back.popleft()
        for queue in (self._own[worker], self._all):
            while queue:
                item = queue.popleft()
                if item not in self._taken:
                    self._taken.add(item)
                    return item
        return None

    def put_back(self, item: int) -> None:
        """Somebody else is to do it.

        Raises:
            RunError: too many workers died over it.
        """
        self._losses[item] += 1
        if self._losses[item] >= LOSSES:
            raise RunError(
                f"A piece of work lost its worker {LOSSES} times in a row (most often memory runs out); make batches "
                "smaller or give workers more memory, and --resume continues."
            )
        self._back.append(item)

    def __bool__(self) -> bool:
        """Whether anything was given back and waits."""
        return bool(self._back)

    def forgive(self, item: int) -> None:
        """It gets on."""
        self._losses.pop(item, None)


class _LostError(Exception):
    """A call whose worker died; another may do it."""
