"""Groups on Ray: with `ray_train` the only module under `rayd` that imports it.

Workers are standing actors that Ray restarts and whose calls it repeats, so that a killed worker costs time and nothing else:
their methods are idempotent and keep no state that matters. Tensors travel as numpy arrays. Every wait has a limit.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self, cast

import torch

from rayd.config import ResourceSettings
from rayd.devices import threads
from rayd.engine.group import Group
from rayd.engine.wire import pack, unpack
from rayd.errors import RaydError, ResourceError, RunError

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise ResourceError(
        "Workers need Ray, which is not installed; install 'ray[tune,train]' or run in process with --workers 0."
    ) from missing

KNOCK_LIMIT = 5.0
"""Seconds that a cluster's address may take to accept a connection."""
START_LIMIT = 180.0
"""Seconds that a worker may take to start."""
SILENCE_LIMIT = 6 * 3600.0
"""Seconds without any answer from any worker after which a run gives up; Ray itself notices a dead worker within seconds."""


class RayShared:
    """A value in Ray's object store; arrays in it are read without a copy."""

    def __init__(self, value: Any):
        """Place the value."""
        self._reference = ray.put(pack(value))

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
        self._inner, self._fault = None, None
        try:
            self._inner = factory(*arguments)
        except Exception as error:
            # raised by the first call: an actor that fails while it is made tells Ray's story instead of its own
            self._fault = error

    def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        return pack(self._method(method)(*arguments))

    def stream(self, method: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
        for event in self._method(method)(*arguments):
            yield pack(event)

    def pid(self) -> int:
        if self._fault is not None:
            raise self._fault
        return os.getpid()

    def _method(self, name: str) -> Callable[..., Any]:
        if self._fault is not None:
            raise self._fault
        return cast("Callable[..., Any]", getattr(self._inner, name))


_Actor = ray.remote(max_restarts=-1, max_task_retries=-1)(_Worker)


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start a private one on this machine; nothing when connected already.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    _knock(address)
    if ray.is_initialized():
        return
    # A worker that reserved no GPU must not see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, RayError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"Cannot join the Ray cluster at '{address or 'local'}': {reason} If it asks for a token, set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the one of the cluster."
        ) from error


def _knock(address: str | None) -> None:
    """Fail within seconds where nothing listens; Ray itself tries for minutes."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d+)", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=KNOCK_LIMIT).close()
    except OSError as error:
        raise ResourceError(
            f"No Ray cluster answers at '{address}': {error.strerror or error}. Start one there with 'ray start --head', or "
            "leave --address out to work on this machine."
        ) from error


def check_resources(resources: ResourceSettings, setting: str = "workers") -> None:
    """Refuse at once what the connected cluster can never hold.

    Args:
        resources: how many workers there are to be, and what each of them reserves.
        setting: what the user sets their number by.

    Raises:
        ResourceError: says what was asked for and what there is.
    """
    wanted = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(
        min(
            (int(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in wanted.items() if amount > 0),
            default=resources.workers,
        )
        for node in nodes
    )
    if room < resources.workers:
        asked = " and ".join(f"{amount:g} {kind}" for kind, amount in wanted.items() if amount > 0)
        there = "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes)
        raise ResourceError(
            f"{resources.workers} workers of {asked} each do not fit: the cluster holds {room} of them "
            f"({len(nodes)} node{'s' if len(nodes) != 1 else ''}: {there}). "
            f"Ask for fewer {setting}, or less for each (resources.cpus_per_worker, resources.gpus_per_worker)."
        )


def census(address: str | None) -> str:
    """Join (or start) a cluster, tell in words what it holds, and leave it.

    Raises:
        ResourceError: no cluster answers at the address, or none can be started.
    """
    joined = not ray.is_initialized()
    connect(address)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    words = f"ray {ray.__version__} starts here" if address is None else f"ray {ray.__version__} at {address}"
    words += f": {len(nodes)} node{'s' if len(nodes) != 1 else ''}, {_words(ray.cluster_resources())}"
    if joined:
        ray.shutdown()
    return words


class RayGroup(Group):
    """Standing actors, each hosting one replica."""

    def __init__(self, resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any):
        """Start `resources.workers` actors that host `factory(*arguments)`.

        Raises:
            ResourceError: the cluster cannot be reached, cannot hold them, or they do not start in time.
        """
        connect(resources.address)
        check_resources(resources)
        self._threads = threads(resources)
        options = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker}
        self._names = [f"rayd-{uuid.uuid4().hex}" for _ in range(resources.workers)]
        self._workers = [_Actor.options(name=name, **options).remote(self._threads, factory, arguments) for name in self._names]
        self._hosts: list[RayHost] = []
        try:
            ray.get([worker.pid.remote() for worker in self._workers], timeout=START_LIMIT)
        except GetTimeoutError as error:
            self.close()
            raise ResourceError(
                f"{resources.workers} workers did not start within {START_LIMIT:g} s: "
                f"free resources are {_words(ray.available_resources())}; other jobs may hold the rest."
            ) from error
        except RayError as error:
            self.close()
            raise _translated(error) from error

    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return list(ray.get([worker.pid.remote() for worker in self._workers], timeout=START_LIMIT))

    def share(self, value: Any) -> RayShared:
        """Place a value in the object store."""
        return RayShared(value)

    def map(self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None) -> Iterator[Any]:
        """Keep every worker busy with one call at a time; yield results in the order of the items."""
        waiting, idle = _Queue(len(items), affinity, len(self._workers)), set(range(len(self._workers)))
        running: dict[Any, tuple[int, int]] = {}
        finished: dict[int, Any] = {}
        for index in range(len(items)):
            while index not in finished:
                for worker in sorted(idle):
                    item = waiting.take(worker)
                    if item is None:
                        break
                    running[self._workers[worker].call.remote(method, items[item])] = (item, worker)
                    idle.discard(worker)
                (reference,) = _wait(list(running))
                item, worker = running.pop(reference)
                finished[item] = unpack(_get(reference))
                idle.add(worker)
            yield finished.pop(index)

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Keep every worker busy with one generator at a time; yield events as they come."""
        waiting, idle = enumerate(items), set(range(len(self._workers)))
        running: dict[Any, tuple[int, int]] = {}
        while True:
            while idle and (following := next(waiting, None)) is not None:
                worker, (item, arguments) = min(idle), following
                events = self._workers[worker].stream.options(num_returns="streaming").remote(method, arguments)
                running[events] = (item, worker)
                idle.discard(worker)
            if not running:
                return
            (events,) = _wait(list(running))
            item, worker = running[events]
            try:
                yield item, unpack(_get(next(events)))
            except StopIteration:
                del running[events]
                idle.add(worker)

    def host(self, factory: Callable[..., Any], *arguments: Any) -> RayHost:
        """An actor on this node that holds the group's handles."""
        host = RayHost.start(self._threads, factory, _Handles(self._names), *arguments)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        """Stop the actors."""
        for host in self._hosts:
            host.close()
        for worker in self._workers:
            ray.kill(worker)
        self._workers, self._hosts = [], []


class _Handles(RayGroup):
    """The group as its hosted object sees it: the same workers, nothing to start or stop.

    It knows them by name: handles among an actor's constructor arguments live in the object store, and its restart may not find
    them there.
    """

    def __init__(self, names: list[str]):
        self._names = names

    @cached_property
    def _workers(self) -> list[Any]:  # type: ignore[override]
        return [ray.get_actor(name) for name in self._names]


class RayHost:
    """An object in an actor."""

    def __init__(self, actor: Any):
        """Hold the actor's handle."""
        self._actor = actor

    @classmethod
    def start(cls, threads_: int, factory: Callable[..., Any], *arguments: Any, calls: int = 1) -> Self:
        """An actor on this node that reserves nothing and hosts `factory(*arguments)`.

        Args:
            threads_: of torch.
            factory: makes the object.
            arguments: what it is made of.
            calls: how many calls it answers at a time.
        """
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = _Actor.options(num_cpus=0, scheduling_strategy=here, max_concurrency=calls)
        return cls(options.remote(threads_, factory, arguments))

    @classmethod
    def here(cls) -> Self:
        """The host of the object that asks."""
        return cls(ray.get_runtime_context().current_actor)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call it and wait."""
        reference = self._actor.call.remote(method, arguments)
        _wait([reference])
        return unpack(_get(reference))

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method; yield its events as they come."""
        events = self._actor.stream.options(num_returns="streaming").remote(method, arguments)
        while True:
            _wait([events])
            try:
                event = _get(next(events))
            except StopIteration:
                return
            yield unpack(event)

    def close(self) -> None:
        """Stop the actor."""
        ray.kill(self._actor)


class _Queue:
    """Waiting items: a worker's own first, then the oldest of anybody's."""

    def __init__(self, count: int, affinity: Sequence[int] | None, workers: int):
        self._own: list[deque[int]] = [deque() for _ in range(workers)]
        self._all = deque(range(count))
        self._taken: set[int] = set()
        for item, home in enumerate(affinity or ()):
            self._own[home % workers].append(item)

    def take(self, worker: int) -> int | None:
        for queue in (self._own[worker], self._all):
            while queue:
                item = queue.popleft()
                if item not in self._taken:
                    self._taken.add(item)
                    return item
        return None


def _wait(references: list[Any]) -> list[Any]:
    started = time.monotonic()
    while time.monotonic() - started < SILENCE_LIMIT:
        ready, _ = ray.wait(references, num_returns=1, timeout=10.0)
        if ready:
            return list(ready)
    raise RunError(f"No worker answered for {SILENCE_LIMIT / 60:g} minutes; the run was stopped, --resume continues it.")


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=SILENCE_LIMIT)
    except RayError as error:
        raise _translated(error) from error


def _translated(error: RayError) -> RaydError:
    """The error that a worker raised, or a sentence about how Ray failed."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, RaydError):
        return error.cause
    if isinstance(error, RayTaskError):
        return RunError(f"A worker failed: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, RayActorError):
        return RunError("A worker could not be kept alive (most often the machine ran out of memory); --resume continues.")
    return RunError(f"Ray failed: {str(error).strip().splitlines()[0]}")


def _words(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amounts.get(kind, 0.0):g} {kind}" for kind in ("CPU", "GPU"))
