"""Cross-process work queue: each item is computed by one run; concurrent runs wait for its result.

An item is guarded by a lock of the operating system on `<entry of the store>.lock`. The kernel
releases it when its holder ends, however that ends, so no lock outlives its run. A run takes the
items that are free, one at a time, and releases each as soon as it is saved. It waits for the items
of other runs only while it holds none of its own, so two runs never wait for each other.

On file systems without locks items are computed more than once, with the same result.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Generic, Self, TypeVar

Item = TypeVar("Item")

FIRST_WAIT = 0.05
"""Seconds before the results of other runs are first checked for again; doubled every time."""
LONGEST_WAIT = 1.0
"""Seconds between two such checks at most."""
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""Errors that mean that another process holds the lock."""


class FileLock:
    """The exclusive right to write the files at some paths."""

    def __init__(self, locks: Sequence[tuple[Path, IO[str]]]):
        self._locks = list(locks)

    @classmethod
    def acquire(cls, paths: Sequence[Path]) -> Self | None:
        """A lock on all of the paths, or None if any of them is held; never blocks."""
        held = cls(())
        # in the same order in every process: of two that want some of the same paths one succeeds
        for path in sorted(set(paths)):
            try:
                lock = _locked(path.with_name(path.name + ".lock"))
            except _LockedError:
                held.release()
                return None
            if lock is not None:
                held._locks.append(lock)
        return held

    def release(self) -> None:
        """Release the lock and remove its files."""
        for path, file in self._locks:
            # the name goes first: a process that opened the file meanwhile then finds it replaced
            with suppress(OSError):
                path.unlink()
            file.close()
        self._locks = []


class _LockedError(Exception):
    """Another process holds the lock."""


def _locked(path: Path) -> tuple[Path, IO[str]] | None:
    """A lock on a file created for it, or None where the file system has no locks."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return path, file
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            if error.errno in _HELD:
                raise _LockedError from error
            return None
        # its holder removed the file between opening and locking it: try again with a new one
        file.close()


class WorkQueue(Generic[Item]):
    """Iterates over the items that this run is to compute, and locks each when it is reached.

    Args:
        items: hashable.
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
        self._held: dict[Item, FileLock] = {}
        self.made: list[Item] = []
        """Items that were yielded so far."""

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        for item in self._items:
            lock = FileLock.acquire(self._paths(item))
            if lock is None:
                continue
            # another run may have finished it since the queue was made
            if self._is_cached(item):
                lock.release()
                continue
            self._held[item] = lock
            self.made.append(item)
            return item
        raise StopIteration

    def done(self, item: Item) -> None:
        """Release an item whose result is saved."""
        self._held.pop(item).release()

    def close(self) -> None:
        """Release all items."""
        for lock in self._held.values():
            lock.release()
        self._held = {}


def run_once(
    items: Sequence[Item],
    is_cached: Callable[[Item], bool],
    paths: Callable[[Item], Sequence[Path]],
    compute: Callable[[WorkQueue[Item]], None],
    on_wait: Callable[[int], None] = lambda _: None,
) -> None:
    """Have all items computed, by this run or by concurrent ones.

    Args:
        items: hashable; an item that was computed and is still not cached is not tried again.
        is_cached: whether an item needs no work.
        paths: files of an item's result.
        compute: computes and saves the items of a queue, and calls `WorkQueue.done` for each.
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
        missing = [item for item in missing if item not in computed and not is_cached(item)]
        if computed:
            pause = FIRST_WAIT
        elif missing:
            if len(missing) != reported:
                reported = len(missing)
                on_wait(reported)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT)
