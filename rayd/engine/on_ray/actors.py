"""Objects in actors: how they are made, called and heard of, and how their failures are told."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayd.engine.memory import out_of_memory
from rayd.engine.on_ray.cluster import log_directory
from rayd.engine.on_ray.metrics import count
from rayd.engine.pool import WorkerInfo
from rayd.engine.wire import pack, size, unpack
from rayd.errors import OutOfMemoryError, RaydError, RunError

SILENCE_LIMIT = 6 * 3600.0
"""Seconds without any answer from any worker after which a run gives up; Ray itself notices a dead
worker within seconds.
"""


class RayRef:
    """A value in Ray's object store; arrays in it are read without a copy."""

    def __init__(self, value: Any):
        """Place the value."""
        packed = pack(value)
        count("rayd_bytes_moved", size(packed), direction="out")
        self._reference = ray.put(packed)

    @property
    def key(self) -> str:
        """The object's identity in the store."""
        return str(self._reference.hex())

    def get(self) -> Any:
        """The value, in the process that asks."""
        return unpack(ray.get(self._reference, timeout=SILENCE_LIMIT))


class _Worker:
    """What runs in an actor: a plain object, torch threads, and the wire format."""

    def __init__(self, threads_: int, factory: Callable[..., Any], arguments: tuple[Any, ...]):
        logging.basicConfig(level=logging.WARNING)
        torch.set_num_threads(threads_)
        self._inner = None
        self._fault = None
        if ray.get_runtime_context().was_current_actor_reconstructed:
            count("rayd_restarts", 1)
        try:
            self._inner = factory(*arguments)
        except Exception as error:
            # raised by the first call: an actor that fails while it is made tells Ray's story
            # instead of its own
            self._fault = error

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return pack(self._method(method)(*arguments))

    def stream(self, method: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        for event in self._method(method)(*arguments):
            yield pack(event)

    def presence(self, role: str) -> WorkerInfo:
        if self._fault is not None:
            raise self._fault
        return WorkerInfo(
            role,
            os.getpid(),
            f"{socket.gethostname()} ({ray.util.get_node_ip_address()})",
            _log_name(),
        )

    def _method(self, name: str) -> Callable[..., Any]:
        if self._fault is not None:
            raise self._fault
        return cast("Callable[..., Any]", getattr(self._inner, name))


Actor = ray.remote(max_restarts=-1, max_task_retries=-1)(_Worker)


class RayActor:
    """An object in an actor."""

    def __init__(self, actor: Any, role: str = "host"):
        """Hold the actor's handle; `role` says what it is for."""
        self.actor = actor
        self.role = role

    @classmethod
    def start(
        cls, threads_: int, factory: Callable[..., Any], *arguments: Any, calls: int = 1
    ) -> Self:
        """An actor on this node that reserves nothing and hosts `factory(*arguments)`.

        Args:
            threads_: of torch.
            factory: makes the object.
            arguments: what it is made of.
            calls: how many calls it answers at a time.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = Actor.options(num_cpus=0, scheduling_strategy=here, max_concurrency=calls)
        return cls(
            options.remote(threads_, factory, arguments),
            getattr(factory, "__name__", "host").lower(),
        )

    @classmethod
    def here(cls) -> Self:
        """The host of the object that asks."""
        return cls(ray.get_runtime_context().current_actor)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call it and wait."""
        reference = self.actor.call.remote(method, arguments)
        _wait([reference])
        return unpack(_get(reference))

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method; yield its events as they come."""
        events = self.actor.stream.options(num_returns="streaming").remote(method, arguments)
        while True:
            _wait([events])
            try:
                event = _get(next(events))
            except StopIteration:
                return
            yield unpack(event)

    def close(self) -> None:
        """Stop the actor."""
        ray.kill(self.actor)


def ready_within(references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
    """The first of some references that is ready within some seconds."""
    if not references:
        time.sleep(timeout)
        return [], []
    ready, others = ray.wait(references, num_returns=1, timeout=timeout)
    return list(ready), list(others)


def _wait(references: list[Any]) -> list[Any]:
    started = time.monotonic()
    while time.monotonic() - started < SILENCE_LIMIT:
        ready, _ = ready_within(references, timeout=10.0)
        if ready:
            return ready
    raise RunError(
        f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was stopped, --resume continues it."
    )


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=SILENCE_LIMIT)
    except RayError as error:
        raise translated(error) from error


def translated(error: RayError) -> RaydError:
    """The error that a worker raised, or a sentence about how Ray failed."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, RaydError):
        return error.cause
    if isinstance(error, RayTaskError) and (what := out_of_memory(error.cause)) is not None:
        return OutOfMemoryError(what)
    if isinstance(error, RayTaskError):
        return RunError(f"A worker failed: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError):
        return RunError(
            "A worker could not be kept alive (most often the machine ran out of memory); --resume continues."
        )
    return RunError(f"Ray failed: {str(error).strip().splitlines()[0]}")


@cache
def _log_name() -> str:
    """What the logs of this worker are called; in the middle is the job that Ray started it for,
    which may be none.
    """
    found = Path(log_directory() or "").glob(
        f"worker-{ray.get_runtime_context().get_worker_id()}-*-{os.getpid()}.err"
    )
    return next((path.stem for path in found), "")
