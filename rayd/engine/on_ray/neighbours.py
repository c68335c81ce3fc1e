"""A pool as seen by one of its workers: it runs its own tasks in place, and the others' by Ray."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import ray

from rayd.engine.on_ray import health
from rayd.engine.on_ray.actor_tasks import ActorTasks
from rayd.engine.on_ray.actors import RayRef, ready_within
from rayd.engine.on_ray.calls import Call, LostError, unpacked
from rayd.engine.pool import LocalPool, WorkerInfo
from rayd.engine.wire import to_host

SHORT = 0.004
"""Seconds per task below which a worker computes all of its tasks itself, as handing one to another
worker takes as long, most of it processor time of both.
"""
SHORT_OF = 8
"""Number of durations, the least of which shows whether tasks are short; longer ones may include
other work of the machine.
"""
NEIGHBOURS_LIMIT = 10.0
"""Seconds that a worker initially waits for the others to answer."""


class WorkersByName(ActorTasks):
    """The pool for its hosted object: the same workers, without starting or stopping them.

    Workers are looked up by name, as handles among an actor's constructor arguments are in the
    object store, and may be lost before the actor is restarted.
    """

    def __init__(self, names: list[str]):
        self._names = names
        self._hosts = []

    @cached_property
    def _workers(self) -> list[Any]:  # type: ignore[override]
        return [ray.get_actor(name) for name in self._names]

    def around(self, replica: Any) -> AroundWorker:
        """The pool for the worker in the calling process; see `Neighbours`."""
        return AroundWorker(self._names, replica)


class AroundWorker(WorkersByName):
    """The pool for an object inside a worker: that worker and the others.

    Args:
        names: of the actors of all workers.
        replica: the object that this worker hosts.
    """

    def __init__(self, names: list[str], replica: Any):
        super().__init__(names)
        self._own = names.index(ray.get_runtime_context().get_actor_name())
        self._local = LocalPool.around(replica)
        # durations of the last tasks that were computed here, in seconds, by method
        self._computed: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=SHORT_OF))

    def share(self, value: Any) -> NearRef:  # type: ignore[override]
        """A reference to a copy of the value, which is put into the object store once a task for
        another worker refers to it.
        """
        return NearRef(to_host(value, copy=True))

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Distribute the items over all workers, unless a call takes longer than a task.

        All calls are made at once, so that the others do not wait while this worker computes.
        """
        known = self._computed[method]
        if len(known) == SHORT_OF and min(known) < SHORT:
            for item in items:
                yield self._compute(method, item)
            return
        mine, running = self._distribute(method, items, affinity or range(len(items)))
        # concurrently with the other workers
        results = {index: self._compute(method, items[index]) for index in mine}
        while running:
            reference = self._next(method, running)
            if reference not in running:
                self._health.update(reference)
                continue
            call = running.pop(reference)
            try:
                results[call.item] = unpacked(self._packed(reference))
            except LostError as error:
                self._lose(call, error.of(call))
                # computed here, where it cannot be lost again
                results[call.item] = self._compute(method, items[call.item])
            else:
                self._durations[method].append(call.silent())
        yield from (results[index] for index in range(len(items)))

    def _distribute(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int]
    ) -> tuple[list[int], dict[Any, Call]]:
        """Call the other workers; return the items that are left for this one, and the calls."""
        # if all others are lost, there is no point in waiting for pings
        for ping in ready_within(self._health.pings(), timeout=0)[0]:
            self._health.update(ping)
        mine = []
        others = []
        for index, worker in enumerate(self._among(affinity)):
            if worker == self._own:
                mine.append(index)
            else:
                others.append((worker, index))
        return mine, self._call(method, items, others)

    def _among(self, affinity: Sequence[int]) -> list[int]:
        """The worker of each item: its home, unless that is lost or already has its share."""
        workers = self._idle({})
        # even shares: a step ends with its last task, so balance matters more than caches
        most = -(-len(affinity) // len(workers))
        loads = dict.fromkeys(workers, 0)
        found: dict[int, int] = {}
        for index, home in enumerate(affinity):
            worker = home % len(self._workers)
            if loads.get(worker, most) < most:
                found[index] = worker
                loads[worker] += 1
        for index in range(len(affinity)):
            if index not in found:
                found[index] = min(workers, key=lambda worker: (loads[worker], worker))
                loads[found[index]] += 1
        return [found[index] for index in range(len(affinity))]

    def _compute(self, method: str, item: tuple[Any, ...]) -> Any:
        began = time.perf_counter()
        (result,) = self._local.map(method, [item])
        # like results of other workers, in host memory
        found = to_host(result)
        self._computed[method].append(time.perf_counter() - began)
        return found

    @cached_property
    def _health(self) -> health.WorkerHealth:
        known = health.WorkerHealth(self._workers)
        # this worker is busy with the caller, so it cannot answer pings
        known.away.pop(self._own)
        known.present.add(self._own)
        node = str(ray.get_runtime_context().get_node_id())
        known.last_info[self._own] = WorkerInfo("worker", 0, "", "", node_id=node)
        began = time.monotonic()
        # so that the first tasks find the others available
        while known.away and time.monotonic() - began < NEIGHBOURS_LIMIT:
            ready, _ = ready_within(known.pings(), timeout=health.PING_INTERVAL)
            for ping in ready:
                known.update(ping)
        return known

    def _idle(self, running: dict[Any, Call]) -> list[int]:
        return sorted({self._own, *super()._idle(running)})


class NearRef:
    """A value in this process that becomes a `RayRef` when it is sent to another one.

    Args:
        value: must not change.
    """

    def __init__(self, value: Any):
        self.key = uuid.uuid4().hex
        self._value = value
        self._sent: RayRef | None = None

    def get(self) -> Any:
        """The value itself."""
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        if self._sent is None:
            self._sent = RayRef(self._value)
        return _received, (self._sent,)


def _received(reference: RayRef) -> RayRef:
    return reference
