"""Worker pools: the same tasks in this process, or on any number of workers.

A pool hosts replicas of a plain object and calls its methods. Tasks are independent and
idempotent, and their results do not depend on the worker; they are returned in the order of the
tasks. `LocalPool` runs them in this process, one after another, without Ray;
`rayd.engine.on_ray.pool.RayPool` runs them on Ray actors behind the same interface.
"""

from __future__ import annotations

import gc
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayd import allocator
from rayd.closable import Closable
from rayd.config import ResourceSettings


class ObjectRef(Protocol):
    """A reference to a read-only value that every worker can access."""

    @property
    def key(self) -> str:
        """Unique key of the value, under which workers may cache what they derive from it."""

    def get(self) -> Any:
        """The value, in the calling process."""


@dataclass(frozen=True)
class LocalRef:
    """A value in this process."""

    value: Any
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def get(self) -> Any:
        """The value itself."""
        return self.value


class ActorHandle(Protocol):
    """A handle to an object in another process, called by method name."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and wait for its result."""


class HostedActor(ActorHandle, Protocol):
    """A handle to an object that a pool hosts in addition to its workers."""

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method; yield its events on arrival."""

    def close(self) -> None:
        """Stop hosting the object."""


class TaskStream(Protocol):
    """The part of a `WorkerPool` that stages need."""

    def share(self, value: Any) -> ObjectRef:
        """Store a value once for all workers."""

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a generator method for every item; yield (index of the item, event) on arrival."""


@dataclass(frozen=True)
class WorkerInfo:
    """Process and machine of a replica, as last reported."""

    role: str
    """`worker`, or the kind of a hosted object."""
    pid: int
    """Its process; 0 before its first report."""
    node: str
    """Name and address of its machine."""
    log: str
    """Name of its log files on that machine, without .out and .err."""
    restarts: int = 0
    """Number of restarts that were observed."""
    there: bool = True
    """Whether it is alive: it answered the last ping, or is working on a task."""
    node_id: str = ""
    """Ray's id of its machine, hex."""
    busy: float | None = None
    """Seconds since its task began or last reported progress; None while it has no task."""
    usual: float | None = None
    """Usual seconds between such reports; None if not known yet."""
    gpu: str = ""
    """The GPU that it reserved, as in `CUDA_VISIBLE_DEVICES`; empty without one."""
    gpu_bytes: int = 0
    """Memory of that GPU; 0 without one."""
    memory: int = 0
    """Peak of its resident memory in bytes; 0 if not known."""
    gpu_memory: int = 0
    """Peak of its tensors on a GPU in bytes."""


class WorkerPool(Closable, ABC):
    """Replicas of one object that compute tasks. A context manager, which frees the workers."""

    @abstractmethod
    def share(self, value: Any) -> ObjectRef:
        """Store a value once for all workers."""

    @abstractmethod
    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Call `method(*item)` for every item; yield the results in the order of the items.

        Any free worker takes the next item. It prefers items of its own affinity (affinity a
        belongs to worker a modulo the number of workers), which keeps its caches warm and does not
        affect results.

        Raises:
            RunError: an item failed for good, or no worker answered for too long.
        """

    @abstractmethod
    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a generator method for every item; yield (index of the item, event) on arrival.

        Items are taken from their iterator when a worker is free. A restarted item must yield its
        events again from the first one; each is passed on once.
        """

    @contextmanager
    def sharing_gpus(self, each: int) -> Iterator[WorkerPool]:
        """A pool of these workers and `each` - 1 more replicas on the GPU of each, for tasks that
        leave most of a GPU idle. This pool must be idle in the meantime.
        """
        yield self

    def neighbours(self) -> Neighbours | None:
        """Access to the workers for one of them that has tasks for the others; None in process."""
        return None

    def workers(self) -> list[WorkerInfo]:
        """The replicas as last reported, without waiting; empty in process."""
        return []

    def logs(self) -> str | None:
        """The directory of log files on each machine of the replicas; None in process."""
        return None

    def publish(self, stage: str, rate: float) -> None:
        """Publish the rate of a stage, in work units per second, as a metric."""
        return


class HostingPool(WorkerPool):
    """A pool that has started its workers, and can host further objects."""

    @abstractmethod
    def host(self, factory: Callable[..., Any], *arguments: Any) -> HostedActor:
        """Host another object, `factory(self, *arguments)`, which can call the workers."""


class LocalPool(HostingPool):
    """A single replica in this process."""

    def __init__(self, resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any):
        """Host `factory(*arguments)`; tasks run with the threads of `resources`."""
        from rayd.devices import threads

        self._threads = threads(resources)
        self._worker = factory(*arguments)

    @classmethod
    def around(cls, worker: Any) -> LocalPool:
        """A pool whose single replica is this object, with the current number of threads."""
        import torch

        pool = cls.__new__(cls)
        pool._threads = torch.get_num_threads()
        pool._worker = worker
        return pool

    def share(self, value: Any) -> LocalRef:
        """A reference to the value itself."""
        return LocalRef(value)

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Run the items one after another, each when its result is requested."""
        from rayd.devices import thread_limit

        for item in items:
            with thread_limit(self._threads):
                result = getattr(self._worker, method)(*item)
            yield result

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run the items one after another."""
        from rayd.devices import thread_limit

        for index, item in enumerate(items):
            with thread_limit(self._threads):
                for event in getattr(self._worker, method)(*item):
                    yield index, event

    def host(self, factory: Callable[..., Any], *arguments: Any) -> LocalActor:
        """The object, in this process."""
        return LocalActor(factory(self, *arguments))

    def close(self) -> None:
        """Free the memory of the replica, including that of its device."""
        self._worker = None
        free_memory()


def free_memory() -> None:
    """Return memory of dropped tensors to the system and the device."""
    import torch

    if torch.cuda.is_available():
        # networks and their cached tensors form reference cycles
        gc.collect()
        torch.cuda.empty_cache()
    allocator.give_back()


class Neighbours(Protocol):
    """Access to the workers of a pool for one of them."""

    def around(self, replica: Any) -> WorkerPool:
        """The pool for the worker that hosts `replica`: that worker, for which a task is a plain
        call, and the others.
        """


class WorkerActor:
    """A part of the workers' replicas as an actor: calls go to the first worker, or to another one
    while that is lost.

    Args:
        pool: its workers have a method that takes the neighbours, and the name and arguments of a
            call.
        part: name of the workers' method.
        neighbours: the workers that the part may use besides its own; None for none.
    """

    def __init__(self, pool: WorkerPool, part: str, neighbours: Neighbours | None = None):
        self._pool = pool
        self._part = part
        self._neighbours = neighbours

    def call(self, method: str, *arguments: Any) -> Any:
        """Call it in a worker; if the worker is lost, the call is repeated."""
        item = (self._neighbours, method, *arguments)
        (result,) = self._pool.map(self._part, [item], affinity=[0])
        return result


class LocalActor:
    """An object in this process."""

    def __init__(self, inner: Any):
        """Host `inner`."""
        self._inner = inner

    def call(self, method: str, *arguments: Any) -> Any:
        """Call it."""
        return getattr(self._inner, method)(*arguments)

    def stream(self, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method; yield its events."""
        yield from getattr(self._inner, method)(*arguments)

    def close(self) -> None:
        """Drop the object."""
        self._inner = None
