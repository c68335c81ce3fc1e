"""Cross-process work queue: each item is computed by one run; concurrent runs wait for its result.

An item is guarded by a lock of the operating system on `<entry of the store>.lock`. The kernel
releases it when its holder ends, in whatever way, so that no lock outlives its run. A run takes the
items that are free, one at a time, and releases each as soon as it is saved. It waits for the items
of other runs only while it holds none of its own, so two runs never wait for each other.

On file systems without locks, items may be computed more than once, with the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Generic, TypeVar

from filelock import Timeout

from rayd.locks import hold

Item = TypeVar("Item")

FIRST_WAIT = 0.05
"""Seconds before the results of other runs are first checked for again; doubled every time."""
LONGEST_WAIT = 1.0
"""Seconds between two such checks at most."""


def lock_all(paths: Sequence[Path]) -> ExitStack | None:
    """Acquire the exclusive right to write the files at some paths, without waiting.

    Returns:
        An object that releases the right when it is closed, or None if another run holds any of the
        paths.
    """
    locks = ExitStack()
    # in the same order in every process, so that one of two with overlapping paths succeeds
    for path in sorted(set(paths)):
        try:
            locks.enter_context(hold(path.with_name(path.name + ".lock"), timeout=0, remove=True))
        except Timeout:
            locks.close()
            return None
        except OSError:
            # without locks the item may be computed twice, with the same result
            continue
    return locks


class WorkQueue(Generic[Item]):
    """Iterates over the items that this run should compute, locking each when it is reached.

    Args:
        items: hashable items.
        is_cached: whether an item needs no work.
        paths: files of an item's result.
    """

    def __init__(
        self,
        items: Sequence[Item],
        is_cached: Callable[[Item], bool],
        paths: Callable[[Item], Sequence[Path]],
    ):
        self._items = iter(items)
        self._is_cached = is_cached
        self._paths = paths
        self._held: dict[Item, ExitStack] = {}
        self.made: list[Item] = []
        """Items that were yielded so far."""

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        for item in self._items:
            lock = lock_all(self._paths(item))
            if lock is None:
                continue
            # another run may have finished it since the queue was made
            if self._is_cached(item):
                lock.close()
                continue
            self._held[item] = lock
            self.made.append(item)
            return item
        raise StopIteration

    def done(self, item: Item) -> None:
        """Release an item whose result is saved."""
        self._held.pop(item).close()

    def hand_over(self, item: Item) -> ExitStack:
        """Return an object that releases an item when it is closed, by any thread, for results that
        are saved in the background.
        """
        return self._held.pop(item)

    def close(self) -> None:
        """Release all items."""
        for lock in self._held.values():
            lock.close()
        self._held = {}


def run_once(
    items: Sequence[Item],
    is_cached: Callable[[Item], bool],
    paths: Callable[[Item], Sequence[Path]],
    compute: Callable[[WorkQueue[Item]], None],
    on_wait: Callable[[int], None] = lambda _: None,
) -> None:
    """Ensure that all items are computed, by this run or by concurrent ones.

    Args:
        items: hashable items; one that was computed and is still not cached is not tried again.
        is_cached: whether an item needs no work.
        paths: files of an item's result.
        compute: computes and saves the items of a queue, and calls `WorkQueue.done` or
            `WorkQueue.hand_over` for each.
        on_wait: called with the number of items that other runs are computing, when nothing else is
            left to do.
    """
    missing = [item for item in items if not is_cached(item)]
    pause = FIRST_WAIT
    reported = 0
    while missing:
        with closing(WorkQueue(missing, is_cached, paths)) as queue:
            compute(queue)
        computed = set(queue.made)
        # an item that was computed but cannot be read is not retried forever; the caller sees that
        # it is missing
        missing = [item for item in missing if item not in computed and not is_cached(item)]
        if computed:
            pause = FIRST_WAIT
        elif missing:
            if len(missing) != reported:
                reported = len(missing)
                on_wait(reported)
            time.sleep(pause)
            # short at first, as most items that are waited for are nearly done
            pause = min(2 * pause, LONGEST_WAIT)
