"""The driver's side of tasks on long-lived Ray actors: assignment to actors, and recovery.

The computations of a worker are in `rayd.engine.worker` and its bases.

Tasks go to the actors that are alive, so a killed worker or a lost node costs time and nothing
else: methods are idempotent, and state is only cached. A lost worker is pinged until it answers,
whether Ray restarts it or starts it on a node that joins.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError

from rayd.engine.on_ray import health, metrics
from rayd.engine.on_ray.actors import (
    SILENCE_LIMIT,
    WAIT,
    RayActor,
    RayRef,
    ready_within,
    translated,
)
from rayd.engine.on_ray.calls import Call, LostError, unpacked
from rayd.engine.on_ray.cluster import log_directory
from rayd.engine.on_ray.item_queue import ItemQueue, StreamedItems
from rayd.engine.pool import WorkerInfo, WorkerPool
from rayd.errors import DeviceFaultError, RunError

log = logging.getLogger(__name__)

WAITING = 64
"""Maximum number of results per worker that wait for an earlier item; beyond it, only that item is
computed.
"""
HANG_LIMIT = 600.0
"""Seconds without a result after which a worker may count as stuck."""
HANG_FACTOR = 20.0
"""A worker is stuck if it has also taken this many times as long as its method usually takes."""
REMEMBERED = 101
"""Number of durations of a method whose median is the usual one."""


class ActorTasks(WorkerPool):
    """A pool of actors that were started elsewhere: tasks go to those that are alive.

    Subclasses provide the actors: `_workers` are their handles, `_hosts` further hosted objects.
    """

    _workers: list[Any]
    _hosts: list[RayActor]

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
        # actors keep their numbers, by which the monitor identifies them
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
        waiting = ItemQueue(len(items), affinity, len(self._workers))
        # calls by Ray's reference to the result
        running: dict[Any, Call] = {}
        self._running = running
        # references to results that wait for earlier items; the results stay in the object store,
        # which can spill to disk, instead of this process's memory
        finished: dict[int, Any] = {}
        most = WAITING * len(self._workers)
        for index in range(len(items)):
            packed = _MISSING
            while packed is _MISSING:
                if index in finished:
                    try:
                        packed = self._packed(finished.pop(index))
                    except LostError as error:
                        # the node that held the result was lost after computing it
                        waiting.put_back(index, error)
                    continue
                only = None if len(finished) < most else index
                running |= self._call(method, items, waiting.assign(self._idle(running), only))
                reference = self._next(method, running)
                if reference not in running:
                    self._health.update(reference)
                    continue
                call = running.pop(reference)
                try:
                    found = self._packed(reference)
                except LostError as error:
                    waiting.put_back(call.item, error.of(call))
                    self._lose(call, error)
                    continue
                self._durations[method].append(call.silent())
                if call.item == index:
                    packed = found
                else:
                    finished[call.item] = reference
                # the driver holds only one result at a time, however many have arrived
                del found
            yield unpacked(packed)

    def _call(
        self, method: str, items: Sequence[tuple[Any, ...]], assigned: Iterable[tuple[int, int]]
    ) -> dict[Any, Call]:
        """Call workers, each for an item; return the calls by Ray's result references."""
        calls = {}
        for worker, item in assigned:
            reference = self._workers[worker].call.remote(method, items[item])
            calls[reference] = Call(item, worker, method)
        return calls

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Keep every worker busy with one generator at a time; yield events on arrival."""
        waiting = StreamedItems(items, len(self._workers))
        # by Ray's generator
        running: dict[Any, Call] = {}
        self._running = running
        while True:
            for worker in self._idle(running):
                started = waiting.start()
                if started is None:
                    break
                item, arguments = started
                stream = self._workers[worker].stream.options(num_returns="streaming")
                running[stream.remote(method, arguments)] = Call(item, worker, method)
            if waiting.all_started and not running:
                return
            reference = self._next(method, running)
            if reference not in running:
                self._health.update(reference)
                continue
            call = running[reference]
            try:
                event = unpacked(self._packed(next(reference)))
            except StopIteration:
                del running[reference]
                waiting.finish(call.item)
            except LostError as error:
                del running[reference]
                waiting.put_back(call.item, error.of(call))
                self._lose(call, error)
            else:
                call.answered()
                if waiting.is_new_event(call.item):
                    yield call.item, event

    def _idle(self, running: dict[Any, Call]) -> list[int]:
        return sorted(self._health.usable() - {call.worker for call in running.values()})

    def _next(self, method: str, running: dict[Any, Call]) -> Any:
        """The next call with a result, or the finished ping of a lost worker."""
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

    def _end_stuck(self, method: str, running: dict[Any, Call]) -> None:
        """Restart workers that took far longer than usual: a GPU or a file system may hang.

        A call is compared with earlier durations of its method, a stream with its own earlier
        events; without either, the limit is `SILENCE_LIMIT`.
        """
        now = time.monotonic()
        # the check goes through all calls, and results may arrive thousands of times per second
        if now - self._looked < WAIT:
            return
        self._looked = now
        for reference, call in running.items():
            limit = HANG_FACTOR * (self._usual(call) or SILENCE_LIMIT)
            seconds = call.silent()
            if call.stuck_for is not None or seconds < max(HANG_LIMIT, limit):
                continue
            # its result arrived since the last check: the driver was slow, not the worker
            if ray.wait([reference], timeout=0)[0]:
                continue
            call.stuck_for = seconds
            log.warning(
                "A worker on %s took %.0f s over a task ('%s') that usually takes %.3g s; it is "
                "restarted, and its task repeated.",
                self._node(call.worker),
                seconds,
                method,
                limit / HANG_FACTOR,
            )
            # its call now fails like that of a worker that died
            ray.kill(self._workers[call.worker], no_restart=False)

    def _usual(self, call: Call) -> float | None:
        """Seconds that a call usually takes, or a stream between two events; None if not known."""
        if call.longest is not None:
            return call.longest
        known = self._durations[call.method]
        # the median, as a method's first call builds networks and takes many times longer
        return statistics.median(known) if known else None

    def _lose(self, call: Call, error: LostError) -> None:
        """Mark a worker as lost until it answers again; end it first if its GPU failed."""
        if error.fault is not None:
            log.warning(
                "%s on %s; its worker is restarted, and its task repeated.",
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
    def _running(self) -> dict[Any, Call]:
        """The running calls, by Ray's references."""
        return {}

    @cached_property
    def _looked(self) -> float:
        """Time of the last check for stuck workers."""
        return time.monotonic()

    @staticmethod
    def _packed(reference: Any) -> Any:
        """The packed value of a result that is ready; its arrays are in the object store."""
        try:
            return ray.get(reference, timeout=SILENCE_LIMIT)
        except (RayActorError, ObjectLostError) as error:
            raise LostError() from error
        except RayTaskError as error:
            if isinstance(error.cause, DeviceFaultError):
                raise LostError(fault=str(error.cause)) from error
            raise translated(error) from error
        except RayError as error:
            raise translated(error) from error


_MISSING: Any = object()
