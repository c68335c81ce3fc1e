"""Exactly once: of several runs that want the same piece of work at the same time, one does it and
the others wait for it.

A claim is a lock of the operating system on `<entry of the store>.lock`. The kernel gives it free
when its holder ends, however that ends, so a claim is never left behind. A run takes the pieces
that are free, each when it comes to it, and gives each free when it is kept; only when it holds
none does it wait for those of others. So no two runs ever wait for each other.

Where a file system knows no locks, work is done twice, with the same result.
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

Piece = TypeVar("Piece")

FIRST_WAIT = 0.05
LONGEST_WAIT = 1.0
"""Seconds between two looks at what another run makes: at first, and at most."""
_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Claim:
    """The right to make what lies, or will lie, at some paths."""

    def __init__(self, locks: Sequence[tuple[Path, IO[str]]]):
        self._locks = list(locks)

    @classmethod
    def on(cls, paths: Sequence[Path]) -> Self | None:
        """The claim on all of the paths, or None if another one holds any of them. Nobody is waited
        for.
        """
        held = cls(())
        # in one order for all, so that of two who want some of the same paths one gets on
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
        """Give all free; nothing is left of the locks."""
        for path, file in self._locks:
            # first the name, then the lock: who opened the file meanwhile sees that it is nobody's
            # any more
            with suppress(OSError):
                path.unlink()
            file.close()
        self._locks = []


class _LockedError(Exception):
    """Somebody else holds the lock."""


def _locked(path: Path) -> tuple[Path, IO[str]] | None:
    """A lock on a file made for it, or None where there are no locks."""
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
            if error.errno in _TAKEN:
                raise _LockedError from error
            return None
        # its holder gave it free, and the name away, since it was opened
        file.close()


class WorkQueue(Generic[Piece]):
    """Goes through pieces of work and yields those that are this run's to make, each claimed when
    it is come to.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        there: Callable[[Piece], bool],
        paths: Callable[[Piece], Sequence[Path]],
    ):
        self._pieces = iter(pieces)
        self._there = there
        self._paths = paths
        self._held: dict[Piece, Claim] = {}
        self.made: list[Piece] = []
        """Pieces that were yielded so far."""

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        for piece in self._pieces:
            claim = Claim.on(self._paths(piece))
            if claim is None:
                continue
            if self._there(piece):
                claim.release()
                continue
            self._held[piece] = claim
            self.made.append(piece)
            return piece
        raise StopIteration

    def done(self, piece: Piece) -> None:
        """Give a piece free that is made and kept."""
        self._held.pop(piece).release()

    def close(self) -> None:
        """Give everything free."""
        for claim in self._held.values():
            claim.release()
        self._held = {}


def run_once(
    pieces: Sequence[Piece],
    there: Callable[[Piece], bool],
    paths: Callable[[Piece], Sequence[Path]],
    make: Callable[[WorkQueue[Piece]], None],
    waiting: Callable[[int], None] = lambda _: None,
) -> None:
    """Have all pieces made, by this run or by others that are at it.

    Args:
        pieces: hashable; what was made and is still not there afterwards is left to the caller.
        there: whether a piece is made.
        paths: where the entries of a piece lie or will lie.
        make: makes the pieces that it takes, keeps them, and says so of each (`WorkQueue.done`).
        waiting: told how many pieces are others' whenever nothing else is left to do.
    """
    absent = [piece for piece in pieces if not there(piece)]
    pause = FIRST_WAIT
    told = 0
    while absent:
        with closing(WorkQueue(absent, there, paths)) as taken:
            make(taken)
        mine = set(taken.made)
        absent = [piece for piece in absent if piece not in mine and not there(piece)]
        if mine:
            pause = FIRST_WAIT
        elif absent:
            if len(absent) != told:
                told = len(absent)
                waiting(told)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT)
