"""The crew of a group: which of its workers can be given work, and where they are."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from rayd.engine.on_ray.actors import translated
from rayd.engine.pool import WorkerInfo
from rayd.errors import RunError

START_LIMIT = 180.0
"""Seconds that a worker may take to start."""
ABSENCE_LIMIT = 1800.0
"""Seconds that a run goes on without a single worker: time for a node to be replaced."""
ASK_AGAIN = 1.0
"""Seconds between two signs of life asked of a worker that is away."""
ANSWER_LIMIT = 5.0
"""Seconds that an answer which is there may take to be read."""


class WorkerHealth:
    """Which workers can be given work.

    The others are asked for a sign of life. The call waits as long as an actor was never made,
    because no node can hold it, and fails within seconds while Ray cannot start it again.
    """

    def __init__(self, workers: list[Any]):
        """Ask everyone."""
        self._workers = workers
        self.present: set[int] = set()
        self.away = dict.fromkeys(range(len(workers)), 0.0)
        """When to ask those who are away again."""
        self.heard: dict[int, WorkerInfo] = {}
        """What they said last."""
        self._signs: dict[Any, int] = {}
        self._gone: set[int] = set()
        self._alone = time.monotonic()

    def awaited(self) -> list[Any]:
        """The signs of life that are asked for."""
        if self.away:
            asked = set(self._signs.values())
            now = time.monotonic()
            for worker in sorted(self.away.keys() - asked):
                if self.away[worker] <= now:
                    self._signs[self._workers[worker].presence.remote("worker")] = worker
        return list(self._signs)

    def hear(self, sign: Any) -> None:
        """Know from a sign that is there whether its worker is.

        Raises:
            RaydError: the worker's replica cannot be made, or no worker will come back.
        """
        worker = self._signs.pop(sign)
        try:
            self.heard[worker] = ray.get(sign, timeout=START_LIMIT)
        except RayActorError as error:
            self.away[worker] = time.monotonic() + ASK_AGAIN
            if isinstance(error, ActorDiedError):
                self._gone.add(worker)
            self.check()
            return
        except RayError as error:
            raise translated(error) from error
        del self.away[worker]
        self.present.add(worker)
        self._gone.discard(worker)

    def lose(self, worker: int) -> None:
        """A worker is away."""
        self.present.discard(worker)
        self.away[worker] = 0.0
        if not self.present:
            self._alone = time.monotonic()

    def check(self) -> None:
        """Do not wait for ever.

        Raises:
            RunError: all workers are gone for good, or away for too long.
        """
        if len(self._gone) == len(self._workers):
            raise RunError(
                "The workers could not be kept alive (most often memory ran out); --resume continues."
            )
        if not self.present and time.monotonic() - self._alone > ABSENCE_LIMIT:
            raise RunError(
                f"No worker was there for {ABSENCE_LIMIT / 60:g} minutes, as no node joined that could hold one; --resume "
                "continues."
            )


class ActorMonitor:
    """Tells where actors are without waiting for those that work: each has one question open, and
    is what it last answered.
    """

    def __init__(self) -> None:
        """Know nobody."""
        self._known: list[WorkerInfo] = []
        self._questions: dict[Any, int] = {}

    def look(self, actors: list[tuple[str, Any]], heard: dict[int, WorkerInfo]) -> list[WorkerInfo]:
        """What is known now of actors and what they are; later calls may add to them. `heard`: what
        some said elsewhere.
        """
        for index in range(len(self._known), len(actors)):
            self._known.append(
                heard.get(index, WorkerInfo(actors[index][0], 0, "", "", there=False))
            )
        for index in set(range(len(actors))) - set(self._questions.values()):
            role, actor = actors[index]
            self._questions[actor.presence.remote(role)] = index
        ready, _ = ray.wait(list(self._questions), num_returns=len(self._questions), timeout=0)
        for question in ready:
            index = self._questions.pop(question)
            before = self._known[index]
            try:
                now = ray.get(question, timeout=ANSWER_LIMIT)
            except RayError:
                self._known[index] = replace(before, there=False)
                continue
            again = before.pid not in (0, now.pid)
            self._known[index] = replace(now, restarts=before.restarts + again)
        return list(self._known)
