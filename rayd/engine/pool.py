"""Groups: the same work items over no, one or many workers.

A group hosts replicas of one plain object and calls its methods. Work items are independent,
idempotent and keyed by what they are, never by who does them; results come back in the order of the
items. `LocalPool` runs them in this process, one after another, and needs no Ray;
`rayd.engine.on_ray.pool.RayPool` runs them on Ray actors. The driver cannot tell which it talks to.
"""

from __future__ import annotations

import gc
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from rayd import allocator
from rayd.config import ResourceSettings


class ObjectRef(Protocol):
    """A value placed once where every worker can reach it. It is read-only."""

    @property
    def key(self) -> str:
        """Tells this value from all others; workers may cache what they derive from it."""

    def get(self) -> Any:
        """The value, in the process that asks."""


@dataclass(frozen=True)
class LocalRef:
    """A value in this process."""

    value: Any
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def get(self) -> Any:
        """The value itself."""
        return self.value


class ActorHandle(Protocol):
    """One object somewhere, called by method name."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and wait for its result."""


class TaskStream(Protocol):
    """Whoever does work items that tell how far they are; a `WorkerPool` is one."""

    def share(self, value: Any) -> ObjectRef:
        """Place a value once for all workers."""

    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a generator method for every item; yield (index of the item, event) as events
        come.
        """


@dataclass(frozen=True)
class WorkerInfo:
    """Where a replica is, or was when it was last heard of."""

    role: str
    """`worker`, or what a hosted object is."""
    pid: int
    """Its process, 0 before it is first heard of."""
    node: str
    """Name and address of its machine."""
    log: str
    """What its log files on that machine are called, without .out and .err."""
    restarts: int = 0
    """How often it was seen to have been started again."""
    there: bool = True
    """Whether it answered, or is at work, since it was last asked."""


class WorkerPool(ABC):
    """Replicas of one object, and the work items given to them. A context manager: leaving it frees
    the workers.
    """

    @abstractmethod
    def share(self, value: Any) -> ObjectRef:
        """Place a value once for all workers."""

    @abstractmethod
    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Call `method(*item)` for every item; yield the results in the order of the items.

        Items go to whichever worker is free; among the waiting ones a worker takes those of its own
        affinity first (an item of affinity a belongs to worker a modulo the number of workers),
        which keeps its caches warm and changes no result.

        Raises:
            RunError: an item failed for good, or nothing was heard from any worker for too long.
        """

    @abstractmethod
    def stream(self, method: str, items: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Call a generator method for every item; yield (index of the item, event) as events come.

        Items are taken from their iterator when a worker is free for them. An item that was
        restarted must yield its events again from the first one; each is passed on once.
        """

    @abstractmethod
    def host(self, factory: Callable[..., Any], *arguments: Any) -> ActorHandle:
        """One more object, `factory(self, *arguments)`, beside the workers and able to call
        them.
        """

    def workers(self) -> list[WorkerInfo]:
        """Where the replicas are, as far as is known without waiting; empty in process."""
        return []

    def logs(self) -> str | None:
        """The directory of the replicas' log files on each of their machines; None in process."""
        return None

    def publish(self, stage: str, rate: float) -> None:
        """Publish the rate of a stage, work units a second, where anybody listens."""
        return

    def close(self) -> None:
        """Free the workers."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LocalPool(WorkerPool):
    """A single replica in this process."""

    def __init__(self, resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any):
        """Host `factory(*arguments)`; torch gets the threads that `resources` grants a worker while
        it works.
        """
        from rayd.devices import threads

        self._threads = threads(resources)
        self._worker = factory(*arguments)

    @classmethod
    def around(cls, worker: Any) -> LocalPool:
        """The group whose single replica is this object, with the threads that it has now."""
        import torch

        pool = cls.__new__(cls)
        pool._threads = torch.get_num_threads()
        pool._worker = worker
        return pool

    def share(self, value: Any) -> LocalRef:
        """A handle on the value itself."""
        return LocalRef(value)

    def map(
        self, method: str, items: Sequence[tuple[Any, ...]], affinity: Sequence[int] | None = None
    ) -> Iterator[Any]:
        """Run the items one after another, each when its result is asked for."""
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
        """Give back the memory of the replica, that of its device included."""
        import torch

        self._worker = None
        if torch.cuda.is_available():
            # networks and what is cached of them refer to each other in circles
            gc.collect()
            torch.cuda.empty_cache()
        allocator.give_back()


class LocalActor:
    """An object in this process."""

    def __init__(self, inner: Any):
        """Host `inner`."""
        self._inner = inner

    def call(self, method: str, *arguments: Any) -> Any:
        """Call it."""
        return getattr(self._inner, method)(*arguments)


def open_pool(
    resources: ResourceSettings, factory: Callable[..., Any], *arguments: Any
) -> WorkerPool:
    """The group that the resources ask for: in process for no workers, else on Ray.

    Raises:
        ResourceError: Ray is not installed, cannot be reached, or cannot hold the workers.
    """
    if resources.workers == 0:
        return LocalPool(resources, factory, *arguments)
    from rayd.engine.on_ray.pool import RayPool

    return RayPool(resources, factory, *arguments)
