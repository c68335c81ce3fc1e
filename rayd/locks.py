"""Locks between processes of a machine, by files (`filelock`).

The operating system releases a lock when its process ends, however that ends: no lock outlives its
holder, so none has to be removed by hand. On a network file system they hold between machines if
its mount supports locks. Where a file system has none, `hold` raises `OSError`, and each caller
decides what that means; marker files, which a killed process leaves behind, never stand in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rayd.errors import OutputError

LOCK = ".lock"
"""Name of the file that locks a directory."""
PATIENCE = 0.1
"""Seconds after which a lock counts as held: `is_locked` itself holds it for an instant."""


@contextmanager
def hold(path: Path, timeout: float = -1, remove: bool = False) -> Iterator[None]:
    """Hold the lock of a file, which is created if needed, with its folder.

    Args:
        path: of the lock file, which has no other content.
        timeout: seconds to wait; 0 tries once, -1 waits as long as it takes.
        remove: the file at the end.

    Raises:
        filelock.Timeout: another process, or another part of this one, holds the lock.
        OSError: the file cannot be written, or its file system has no locks.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "item.lock"
    >>> with hold(path, remove=True):
    ...     path.exists()
    True
    >>> path.exists()
    False
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a lock may be released by another thread than the one that acquired it
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        if remove:
            # while it is locked: whoever waits with the old file open notices and opens a new one;
            # Windows refuses that, and `release` removes the file there
            with suppress(OSError):
                path.unlink()
        lock.release()


@contextmanager
def locked(directory: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a directory, which is created if needed.

    Args:
        directory: to lock.
        on_wait: called once if another process holds the lock, which is then waited for; None: that
            is an error.

    Raises:
        OutputError: the directory cannot be written, or another process holds the lock and nobody
            wants to wait.
    """
    with ExitStack() as stack:
        try:
            try:
                stack.enter_context(hold(directory / LOCK, PATIENCE))
            except Timeout:
                if on_wait is None:
                    raise
                on_wait()
                stack.enter_context(hold(directory / LOCK))
        except Timeout as error:
            raise OutputError(
                f"'{directory}' is in use by another run; choose another --out or wait."
            ) from error
        except OSError as error:
            raise OutputError(f"Cannot write into '{directory}': {error.strerror}.") from error
        yield


def is_locked(directory: Path) -> bool | None:
    """Whether a process holds the lock of a directory; None if this user cannot know."""
    if not (directory / LOCK).exists():
        return False
    try:
        with hold(directory / LOCK, PATIENCE):
            return False
    except Timeout:
        return True
    except OSError:
        return None
