"""A worker pool of long-lived Ray actors.

Workers are actors that Ray restarts, and tasks go to those that are alive, so a killed worker or a
lost node costs time and nothing else: methods are idempotent, and state is only cached. A lost
worker is pinged until it answers, whether Ray restarts it or starts it on a node that joins.
"""

from __future__ import annotations

import logging
import statistics
import time
import uuid
from collections import Counter as Counts
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayd import parts
from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.on_ray import health, metrics
from rayd.engine.on_ray.actors import (
    SILENCE_LIMIT,
    WAIT,
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
    memory_to_ask,
    sent,
)
from rayd.engine.on_ray.watch import head_is_lost
from rayd.engine.pool import LocalPool, WorkerInfo, WorkerPool
from rayd.engine.wire import size, to_host, unpack
from rayd.errors import DeviceFaultError, ResourceError, RunError

log = logging.getLogger(__name__)

LOSSES = 20
"""Number of workers in a row that may die over the same item."""
FAULTS = 3
"""Number of workers in a row whose GPU may fail, or that may hang, over the same item."""
WAITING = 64
"""Results per worker that may wait for that of an earlier item; then only that one is computed."""
HANG_LIMIT = 600.0
"""Seconds without a result after which a worker may count as stuck."""
HANG_FACTOR = 20.0
"""A worker is stuck if it has also taken so many times as long as its method usually takes."""
REMEMBERED = 101
"""Durations of a method of which the median is its usual one."""
SHORT = 0.004
"""Seconds of a task below which a worker that has some computes them all: to have another one
compute it takes as long, most of it processor time of both.
"""
SHORT_OF = 8
"""Durations of which the least tells whether tasks are short: others hold what the machine was busy
with besides.
"""
NEIGHBOURS_LIMIT = 10.0
"""Seconds that a worker waits at first for the others to answer."""


class RayPool(WorkerPool):
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
            # an explicit strategy would leave the placement group of a trial, which spreads its
            # bundles itself
            options["scheduling_strategy"] = "SPREAD"
        # the bundles of a trial hold no memory
        asked = 0 if get_current_placement_group() else memory_to_ask(resources, memory)
        if asked > 0:
            options["memory"] = asked
        if own := parts.environment():
            # of a cluster that was joined before the parts were imported
            options["runtime_env"] = {"env_vars": own["env_vars"]}
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
                    f"{needed} worker{'s' if needed > 1 else ''} did not start within {round(limit, 1):g} s: "
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
        known = self._monitor.poll(actors, self._health.last_info)
        for call in list(self._running.values()):
            info = replace(known[call.worker], busy=call.silent(), usual=self._usual(call))
            known[call.worker] = info
        # numbers of actors stay: the monitor knows them by these
        closed = {len(self._workers) + i for i, host in enumerate(self._hosts) if host.is_closed}
        return [info for index, info in enumerate(known) if index not in closed]

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
        # by Ray's reference to the result
        running: dict[Any, _Call] = {}
        self._running = running
        # references to results that wait for those of earlier items: they stay in the object
        # store, which spills to disk, and not in the memory of this process
        finished: dict[int, Any] = {}
        most = WAITING * len(self._workers)
        for index in range(len(items)):
            packed = _MISSING
            while packed is _MISSING:
                if index in finished:
                    try:
                        packed = self._packed(finished.pop(index))
                    except _LostError as error:
                        # the node that kept the result went after it was computed
                        waiting.put_back(index, error)
                    continue
                only = None if len(finished) < most else index
                for worker, item in waiting.assign(self._idle(running), only):
                    reference = self._workers[worker].call.remote(method, items[item])
                    running[reference] = _Call(item, worker, method)
                reference = self._next(method, running)
                if reference not in running:
                    self._health.update(reference)
                    continue
                call = running.pop(reference)
                try:
                    found = self._packed(reference)
                except _LostError as error:
                    waiting.put_back(call.item, error.of(call))
                    self._lose(call, error)
                    continue
                self._durations[method].append(call.silent())
                if call.item == index:
                    packed = found
                else:
                    finished[call.item] = reference
                del found
            yield _unpacked(packed)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Keep every worker busy with one generator at a time; yield events on arrival."""
        upcoming = iter(items)
        count = 0
        exhausted = False
        # arguments of unfinished items, in case they have to be restarted
        arguments: dict[int, tuple[Any, ...]] = {}
        lost = _ItemQueue(0, None, len(self._workers))
        # by Ray's generator
        running: dict[Any, _Call] = {}
        self._running = running
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
                running[stream.remote(method, arguments[item])] = _Call(item, worker, method)
                arrived[item] = 0
            if exhausted and not running and not lost:
                return
            reference = self._next(method, running)
            if reference not in running:
                self._health.update(reference)
                continue
            call = running[reference]
            item = call.item
            try:
                event = _unpacked(self._packed(next(reference)))
            except StopIteration:
                # arguments may be large: free them
                del running[reference], arguments[item]
            except _LostError as error:
                del running[reference]
                lost.put_back(item, error.of(call))
                self._lose(call, error)
            else:
                call.answered()
                arrived[item] += 1
                if arrived[item] > yielded[item]:
                    yielded[item] = arrived[item]
                    lost.reset_losses(item)
                    yield item, event

    def _idle(self, running: dict[Any, _Call]) -> list[int]:
        return sorted(self._health.usable() - {call.worker for call in running.values()})

    def _next(self, method: str, running: dict[Any, _Call]) -> Any:
        """The next call with a result, or finished ping of a lost worker."""
        began = time.monotonic()
        try:
            while True:
                self._end_stuck(method, running)
                # pings first: they are rare, and must not starve while results are always ready
                ready, _ = ready_within(
                    [*self._health.pings(), *running],
                    timeout=health.PING_INTERVAL if self._health.away else WAIT,
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

    def _end_stuck(self, method: str, running: dict[Any, _Call]) -> None:
        """Restart workers that took far longer than usual: a GPU or a file system may hang.

        A call has the durations of its method to be compared with, a stream its own earlier events;
        those without any have until `SILENCE_LIMIT`.
        """
        now = time.monotonic()
        if now - self._looked < WAIT:
            return
        self._looked = now
        for reference, call in running.items():
            limit = HANG_FACTOR * (self._usual(call) or SILENCE_LIMIT)
            seconds = call.silent()
            if call.stuck_for is not None or seconds < max(HANG_LIMIT, limit):
                continue
            if ray.wait([reference], timeout=0)[0]:
                continue
            call.stuck_for = seconds
            log.warning(
                "A worker on %s took %.0f s over a task ('%s') that usually takes %.3g s; it is "
                "restarted, and its task done again.",
                self._node(call.worker),
                seconds,
                method,
                limit / HANG_FACTOR,
            )
            # its call now fails as that of a worker that died
            ray.kill(self._workers[call.worker], no_restart=False)

    def _usual(self, call: _Call) -> float | None:
        """Seconds that a call usually takes, or a stream between two events; None if not known."""
        if call.longest is not None:
            return call.longest
        known = self._durations[call.method]
        return statistics.median(known) if known else None

    def _lose(self, call: _Call, error: _LostError) -> None:
        """Count a worker as lost until it answers again; end it first if its GPU failed."""
        if error.fault is not None:
            log.warning(
                "%s on %s; its worker is restarted, and its task done again.",
                error.fault,
                self._node(call.worker),
            )
            ray.kill(self._workers[call.worker], no_restart=False)
        self._health.mark_lost(call.worker)

    def _node(self, worker: int) -> str:
        info = self._health.last_info.get(worker)
        return "an unknown node" if info is None else info.node

    @cached_property
    def _durations(self) -> dict[str, deque[float]]:
        """Seconds that calls of each method took lately."""
        return defaultdict(lambda: deque(maxlen=REMEMBERED))

    @cached_property
    def _running(self) -> dict[Any, _Call]:
        """The calls that go on, by Ray's references."""
        return {}

    @cached_property
    def _looked(self) -> float:
        """When workers were last looked at for being stuck."""
        return time.monotonic()

    @staticmethod
    def _packed(reference: Any) -> Any:
        """The packed value of a result that is ready; its arrays lie in the object store."""
        try:
            return ray.get(reference, timeout=SILENCE_LIMIT)
        except (RayActorError, ObjectLostError) as error:
            raise _LostError() from error
        except RayTaskError as error:
            if isinstance(error.cause, DeviceFaultError):
                raise _LostError(fault=str(error.cause)) from error
            raise translated(error) from error
        except RayError as error:
            raise translated(error) from error

    def neighbours(self) -> _Handles:
        """The workers, for one of them."""
        return _Handles(self._names)

    def host(self, factory: Callable[..., Any], *arguments: Any) -> RayActor:
        """Host an object in an actor on this node that can call the workers."""
        host = RayActor.start(self._threads, sent(factory), _Handles(self._names), *arguments)
        self._hosts.append(host)
        return host

    @contextmanager
    def sharing_gpus(self, each: int) -> Iterator[WorkerPool]:
        """These workers with `each` - 1 more beside each of them, which reserve nothing."""
        with _SharedGPUs(self, each) as pool:
            yield pool

    def close(self) -> None:
        """Stop the actors."""
        for host in self._hosts:
            host.close()
        for worker in self._workers:
            if not head_is_lost():
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

    def around(self, replica: Any) -> _Around:
        """The pool for the worker in whose process this is called; see `Neighbours`."""
        return _Around(self._names, replica)


class _Around(_Handles):
    """The pool for an object inside a worker: that worker, and the others beside it.

    Args:
        names: of the actors of all workers.
        replica: what this worker hosts.
    """

    def __init__(self, names: list[str], replica: Any):
        super().__init__(names)
        self._own = names.index(ray.get_runtime_context().get_actor_name())
        self._local = LocalPool.around(replica)
        # seconds of the last tasks that were computed here, by method
        self._computed: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=SHORT_OF))

    def share(self, value: Any) -> _NearRef:  # type: ignore[override]
        """A reference to a copy of the value, which is stored for other workers when a task that
        goes there refers to it.
        """
        return _NearRef(to_host(value, copy=True))

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Share the items with the other workers, unless a call takes longer than a task.

        All calls are made at once, as the others must not wait while this worker computes.
        """
        known = self._computed[method]
        if len(known) == SHORT_OF and min(known) < SHORT:
            for item in items:
                yield self._compute(method, item)
            return
        # nobody waits for pings where all others are lost
        for ping in ready_within(self._health.pings(), timeout=0)[0]:
            self._health.update(ping)
        mine = []
        running: dict[Any, _Call] = {}
        workers = self._among(affinity or range(len(items)))
        for index, worker in enumerate(workers):
            if worker == self._own:
                mine.append(index)
            else:
                reference = self._workers[worker].call.remote(method, items[index])
                running[reference] = _Call(index, worker, method)
        results = {index: self._compute(method, items[index]) for index in mine}
        while running:
            reference = self._next(method, running)
            if reference not in running:
                self._health.update(reference)
                continue
            call = running.pop(reference)
            try:
                results[call.item] = _unpacked(self._packed(reference))
            except _LostError as error:
                self._lose(call, error.of(call))
                results[call.item] = self._compute(method, items[call.item])
            else:
                self._durations[method].append(call.silent())
        yield from (results[index] for index in range(len(items)))

    def _among(self, affinity: Sequence[int]) -> list[int]:
        """The worker of each item: its home, unless that is lost or has its share already."""
        workers = self._idle({})
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
        # results of other workers come in host memory, too
        found = to_host(result)
        self._computed[method].append(time.perf_counter() - began)
        return found

    @cached_property
    def _health(self) -> health.WorkerHealth:
        known = health.WorkerHealth(self._workers)
        # this worker is busy with the caller, so it answers no ping
        known.away.pop(self._own)
        known.present.add(self._own)
        node = str(ray.get_runtime_context().get_node_id())
        known.last_info[self._own] = WorkerInfo("worker", 0, "", "", node_id=node)
        began = time.monotonic()
        # the first tasks should find the others there
        while known.away and time.monotonic() - began < NEIGHBOURS_LIMIT:
            ready, _ = ready_within(known.pings(), timeout=health.PING_INTERVAL)
            for ping in ready:
                known.update(ping)
        return known

    def _idle(self, running: dict[Any, _Call]) -> list[int]:
        return sorted({self._own, *super()._idle(running)})


class _NearRef:
    """A value in this process that becomes a `RayRef` where it is sent to another one.

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


class _SharedGPUs(RayPool):
    """The workers of a pool, and further ones on their GPUs, which end with this pool.

    Those are on the nodes of the workers, reserve nothing, and see the GPU that a worker reserved.
    One whose node is lost does not come back.

    Args:
        pool: idle.
        each: workers on a GPU.
    """

    def __init__(self, pool: RayPool, each: int):
        self._threads = max(1, pool._threads // each)
        self._added = []
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
        self._faults: Counts[int] = Counts()
        for item, home in enumerate(affinity or ()):
            self._own[home % workers].append(item)

    def assign(self, idle: Sequence[int], only: int | None = None) -> list[tuple[int, int]]:
        """Remove and return (worker, item) for idle workers, at most one item each.

        Homes come first: only what an idle worker has no claim to is taken by the others, or a
        step with fewer items than workers would always go to the first of them.

        Args:
            idle: the workers.
            only: the item without which no other is given; None gives all.
        """
        if only is not None:
            return self._assign_one(idle, only)
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

    def _assign_one(self, idle: Sequence[int], item: int) -> list[tuple[int, int]]:
        """Give an item to the first idle worker, if it is waiting."""
        if not idle:
            return []
        if item in self._lost:
            self._lost.remove(item)
        elif item in self._taken:
            return []
        self._taken.add(item)
        return [(idle[0], item)]

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

    def put_back(self, item: int, error: _LostError | None = None) -> None:
        """Return an item whose worker died, for a reason if one is known.

        Raises:
            RunError: too many workers in a row died, failed or hung over the item.
        """
        self._losses[item] += 1
        error = error or _LostError()
        if error.fault is not None or error.stuck_for is not None:
            self._faults[item] += 1
        if self._faults[item] >= FAULTS and error.fault is not None:
            raise DeviceFaultError(
                f"{error.fault}, {FAULTS} times in a row over the same task; --resume continues, "
                "on other GPUs or once 'nvidia-smi' shows them in order."
            )
        if self._faults[item] >= FAULTS:
            raise RunError(
                f"A task hung {FAULTS} times in a row, at last for {error.stuck_for:.0f} s; see "
                "whether GPUs and file systems answer. --resume continues."
            )
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
        self._faults.pop(item, None)


@dataclass
class _Call:
    """A call of a worker that goes on."""

    item: int
    worker: int
    method: str
    since: float = field(default_factory=time.monotonic)
    """When it began, or last yielded an event."""
    longest: float | None = None
    """Most seconds between two events; None before the first one."""
    stuck_for: float | None = None
    """Seconds after which it was ended as stuck."""

    def silent(self) -> float:
        """Seconds since it began, or since its last event."""
        return time.monotonic() - self.since

    def answered(self) -> None:
        """Note an event."""
        self.longest = max(self.longest or 0.0, self.silent())
        self.since = time.monotonic()


class _LostError(Exception):
    """The worker of a call died, or is of no use; another may repeat the call."""

    def __init__(self, fault: str | None = None):
        """Describe the loss.

        Args:
            fault: of its GPU.
        """
        super().__init__(fault)
        self.fault = fault
        self.stuck_for: float | None = None

    def of(self, call: _Call) -> _LostError:
        """The loss of a call, which may have been ended as stuck."""
        self.stuck_for = call.stuck_for
        return self


_MISSING: Any = object()


def _unpacked(packed: Any) -> Any:
    metrics.count("rayd_bytes_moved", size(packed), direction="in")
    return unpack(packed)
