"""Liveness of workers: which of them can take tasks, and in which processes they run."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from rayd.engine.on_ray.actors import translated
from rayd.engine.on_ray.watch import Draining
from rayd.engine.pool import WorkerInfo
from rayd.errors import RunError

START_LIMIT = 180.0
"""Seconds that workers may take to start, if there are few."""
START_EACH = 2.0
"""Additional seconds per worker, as many import torch from one file system at the same time."""
NO_WORKER_LIMIT = 1800.0
"""Seconds that a run continues without any worker: time for a node to be replaced."""
PING_INTERVAL = 1.0
"""Seconds between two pings of a lost worker."""
READ_LIMIT = 5.0
"""Seconds that reading the result of a finished ping may take."""


def start_limit(workers: int, crowding: float = 1.0) -> float:
    """Time limit for workers to start, in seconds.

    Args:
        workers: number of workers.
        crowding: number of processes that share a core of this machine; see `crowding`.

    >>> start_limit(2), start_limit(256), start_limit(2, crowding=3.0)
    (184.0, 692.0, 552.0)
    """
    return (START_LIMIT + START_EACH * workers) * crowding


def crowding() -> float:
    """Number of runnable processes per core of this machine; at least 1."""
    try:
        waiting = os.getloadavg()[0]
    except (AttributeError, OSError):
        # not available on Windows
        return 1.0
    return max(1.0, waiting / (os.cpu_count() or 1))


class WorkerHealth:
    """Tracks which workers can take tasks; all count as lost before their first ping.

    Lost workers are pinged. A ping stays pending while Ray has not yet placed the actor because no
    node can hold it, and fails within seconds while Ray cannot restart it.

    Args:
        workers: handles of their actors.
    """

    def __init__(self, workers: list[Any]):
        self._workers = workers
        self.present: set[int] = set()
        """Indices of the workers that are alive."""
        self.away = dict.fromkeys(range(len(workers)), 0.0)
        """Times at which to ping the others."""
        self.last_info: dict[int, WorkerInfo] = {}
        """Latest results of pings."""
        self._draining = Draining()
        self._pings: dict[Any, int] = {}
        self._gone: set[int] = set()
        self._alone = time.monotonic()

    def pings(self) -> list[Any]:
        """Ping lost workers that are due; return all pending pings."""
        if self.away:
            pending = set(self._pings.values())
            now = time.monotonic()
            for worker in sorted(self.away.keys() - pending):
                if self.away[worker] <= now:
                    self._pings[self._workers[worker].worker_info.remote("worker")] = worker
        return list(self._pings)

    def update(self, ping: Any) -> None:
        """Update the state of a worker by a finished ping.

        Raises:
            RaydError: the worker's replica cannot be created, or no worker can come back.
        """
        worker = self._pings.pop(ping)
        try:
            self.last_info[worker] = ray.get(ping, timeout=START_LIMIT)
        except RayActorError as error:
            self.away[worker] = time.monotonic() + PING_INTERVAL
            # for Ray it is permanently dead; if it answers nevertheless, it is used again
            if isinstance(error, ActorDiedError):
                self._gone.add(worker)
            self.check()
            return
        except RayError as error:
            raise translated(error) from error
        del self.away[worker]
        self.present.add(worker)
        self._gone.discard(worker)

    def usable(self) -> set[int]:
        """The workers that may take new tasks: if possible, those on nodes that do not drain."""
        draining = self._draining.nodes()
        if not draining:
            return self.present
        staying = {
            worker for worker in self.present if self.last_info[worker].node_id not in draining
        }
        # if all nodes drain, their workers are still better than none
        return staying or self.present

    def mark_lost(self, worker: int) -> None:
        """Mark a worker as lost; it is pinged at once."""
        self.present.discard(worker)
        self.away[worker] = 0.0
        # the time without any worker starts now
        if not self.present:
            self._alone = time.monotonic()

    def check(self) -> None:
        """Raise an error if no worker is left to wait for.

        Raises:
            RunError: all workers are permanently dead, or lost for too long.
        """
        if len(self._gone) == len(self._workers):
            raise RunError(
                "The workers could not be kept alive, most likely because memory ran out; --resume "
                "continues."
            )
        if not self.present and time.monotonic() - self._alone > NO_WORKER_LIMIT:
            raise RunError(
                f"No worker was alive for {NO_WORKER_LIMIT / 60:g} minutes, as no node joined that "
                "could hold one; --resume continues."
            )


class ActorMonitor:
    """Reports the processes of actors without waiting for busy ones.

    Each actor has one pending ping, and is reported as of its last finished one. Any thread may
    poll: the driver asks for peak memory while the status file is written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[WorkerInfo] = []
        self._pending: dict[Any, int] = {}

    def poll(
        self, actors: list[tuple[str, Any]], last_info: dict[int, WorkerInfo]
    ) -> list[WorkerInfo]:
        """Read finished pings, start new ones, and return what is known of every actor.

        Args:
            actors: roles and handles; later calls may append to them.
            last_info: results of other pings, for actors that are polled for the first time.
        """
        with self._lock:
            self._add(actors, last_info)
            self._ping(actors)
            self._read()
            return list(self._known)

    def _add(self, actors: list[tuple[str, Any]], last_info: dict[int, WorkerInfo]) -> None:
        for index in range(len(self._known), len(actors)):
            unknown = WorkerInfo(role=actors[index][0], pid=0, node="", log="", there=False)
            self._known.append(last_info.get(index, unknown))

    def _ping(self, actors: list[tuple[str, Any]]) -> None:
        for index in set(range(len(actors))) - set(self._pending.values()):
            role, actor = actors[index]
            # the next poll asks again; Ray would report retries on standard output
            ping = actor.worker_info.options(max_task_retries=0)
            self._pending[ping.remote(role)] = index

    def _read(self) -> None:
        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for ping in ready:
            index = self._pending.pop(ping)
            before = self._known[index]
            try:
                now = ray.get(ping, timeout=READ_LIMIT)
            except RayError:
                self._known[index] = replace(before, there=False)
                continue
            restarted = before.pid not in (0, now.pid)
            self._known[index] = replace(now, restarts=before.restarts + restarted)
