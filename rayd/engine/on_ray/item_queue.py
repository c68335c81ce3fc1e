"""Queues of work items: the next item for a worker."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from rayd.engine.on_ray.calls import LostError
from rayd.errors import DeviceFaultError, RunError

LOSSES = 20
"""Number of workers in a row that may die over the same item."""
FAULTS = 3
"""Number of workers in a row whose GPU may fail, or that may hang, over the same item."""


class ItemQueue:
    """Waiting items: lost ones first, then those of a worker's affinity, then the oldest.

    Args:
        count: number of items.
        affinity: affinity of each item; its home is the worker of that number, modulo the number of
            workers.
        workers: their number.
    """

    def __init__(self, count: int, affinity: Sequence[int] | None, workers: int):
        # an item with affinity is in two queues; it is skipped in the one that is read second
        self._own: list[deque[int]] = [deque() for _ in range(workers)]
        self._all = deque(range(count))
        self._taken: set[int] = set()
        self._lost: deque[int] = deque()
        self._losses: Counter[int] = Counter()
        self._faults: Counter[int] = Counter()
        for item, home in enumerate(affinity or ()):
            self._own[home % workers].append(item)

    def assign(self, idle: Sequence[int], only: int | None = None) -> list[tuple[int, int]]:
        """Remove and return (worker, item) for idle workers, at most one item each.

        Items first go to their homes; only items whose home is not idle go to other workers.
        Otherwise, a step with fewer items than workers would always run on the first workers.

        Args:
            idle: the workers.
            only: assign just this item, if it is waiting; None assigns all.
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

    def put_back(self, item: int, error: LostError | None = None) -> None:
        """Put back an item whose worker died, with the reason if it is known.

        Raises:
            RunError: too many workers in a row died, failed or hung over the item.
        """
        self._losses[item] += 1
        error = error or LostError()
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
        """Reset the count of an item's losses, as it makes progress."""
        self._losses.pop(item, None)
        self._faults.pop(item, None)


class StreamedItems:
    """Items of a stream: lost ones first, then the next of an iterator.

    Args:
        items: arguments of each item; taken from the iterator when a worker is free.
        workers: their number.
    """

    def __init__(self, items: Iterable[tuple[Any, ...]], workers: int):
        self._upcoming = iter(items)
        self._count = 0
        self._is_exhausted = False
        # arguments of unfinished items, in case they must be restarted
        self._arguments: dict[int, tuple[Any, ...]] = {}
        self._lost = ItemQueue(0, None, workers)
        # events of an item that arrived since its last start, and that were passed on: a restarted
        # item repeats its events
        self._arrived = Counter[int]()
        self._yielded = Counter[int]()

    @property
    def all_started(self) -> bool:
        """Whether all items have been started."""
        return self._is_exhausted and not self._lost

    def start(self) -> tuple[int, tuple[Any, ...]] | None:
        """Number and arguments of the next item to start; None if there is none."""
        item = self._lost.take_lost()
        if item is None:
            following = None if self._is_exhausted else next(self._upcoming, None)
            if following is None:
                self._is_exhausted = True
                return None
            item = self._count
            self._count += 1
            self._arguments[item] = following
        self._arrived[item] = 0
        return item, self._arguments[item]

    def is_new_event(self, item: int) -> bool:
        """Count an event that arrived; return whether it is new, not repeated after a restart."""
        self._arrived[item] += 1
        if self._arrived[item] <= self._yielded[item]:
            return False
        self._yielded[item] = self._arrived[item]
        self._lost.reset_losses(item)
        return True

    def finish(self, item: int) -> None:
        """Forget a finished item."""
        # free its arguments, which may be large
        del self._arguments[item]

    def put_back(self, item: int, error: LostError) -> None:
        """Return an item whose worker died; see `ItemQueue.put_back`."""
        self._lost.put_back(item, error)
