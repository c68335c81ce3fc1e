"""Disk cache of remote data files, limited in size, with least-recently-used eviction.

    <root>/rayd-data/s3/bucket/imagenet/train-0.parquet
                                    root: $RAYD_MIRROR of this process, else the driver's

All processes of a machine share the cache. One process fetches a file while others that need it
wait, and the copy appears atomically. When a new file would exceed the limit, the least recently
used copies are evicted. A process that has an evicted copy open can still read it to the end; until
then, the copy takes disk space beyond the limit. The folder holds data files only: runs and the
store (`rayd.remote`) are never evicted.

fsspec's own caches guarantee none of this: they have no limit, and a process or thread can read a
partial file that another one is still fetching, or left behind when it was killed.

A copy has the size and modification time that the original had when the data set was opened; if
the original changes, it is fetched again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from filelock import Timeout

from rayd import remote
from rayd.errors import ConfigError, DataError, RunError
from rayd.locks import LOCK, hold

FOLDER = "rayd-data"
"""Folder of the cache under the mirror root."""
LIMIT = "RAYD_MIRROR_LIMIT"
"""Environment variable with the maximum size of the cache on this machine's disk, in bytes."""
SHARE = 0.5
"""Default limit, as a share of the free disk space plus the space that the cache occupies."""
ROOM = 0.9
"""Share of the limit that an eviction frees the cache down to. The margin keeps evictions rare, as
scanning a million copies is slow.
"""
PART = ".part"
"""Suffix of a file that is being fetched, `.<name>.<size>.part`."""
LOCKED = ".lock"
"""Suffix of its lock file, `.<name>.<size>.lock`, whose name reserves the space."""
PARALLEL_FILES = 64
"""Maximum number of files fetched in parallel."""
MOST = 1 / 8
"""Maximum share of the limit for files fetched in parallel; a single file may exceed it."""


class Original(Protocol):
    """A remote file, as it was when the data set was opened."""

    @property
    def path(self) -> Path:
        """Local path that mirrors its URL (`rayd.remote`)."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def modified(self) -> int:
        """Modification time in nanoseconds since 1970."""


File = TypeVar("File", bound=Original)


def limit(root: Path, taken: int) -> int:
    """Maximum total size of the copies in bytes, given the bytes that they occupy now.

    Raises:
        ConfigError: `$RAYD_MIRROR_LIMIT` is not a number of bytes.
    """
    given = os.environ.get(LIMIT)
    if given is None:
        return int(SHARE * (shutil.disk_usage(root).free + taken))
    try:
        return int(float(given))
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"${LIMIT} must be a number of bytes, e.g. 200e9. Got '{given}' instead."
        ) from error


def fit(originals: Iterable[Original]) -> bool:
    """Whether copies of all the files fit into the cache at once."""
    files = list(originals)
    root = _root(files[0])
    return sum(file.size for file in files) <= ROOM * limit(root, _taken(root))


def path(original: Original) -> Path:
    """Path of the copy of a file, which need not exist."""
    scheme, _, rest = (remote.url(original.path) or "").partition("://")
    return _root(original) / scheme / rest


def held(original: Original) -> BinaryIO | None:
    """Open the copy of a file, which stays readable if evicted; None if there is no copy."""
    try:
        file = path(original).open("rb")
    except FileNotFoundError:
        return None
    if not _same(os.fstat(file.fileno()), original):
        file.close()
        return None
    # eviction uses the access time, which file systems mounted with noatime do not update
    with suppress(OSError):
        opened = file.fileno() if os.utime in os.supports_fd else path(original)
        os.utime(opened, ns=(time.time_ns(), original.modified))
    return file


def opened(original: Original) -> BinaryIO:
    """Open the copy of a file, fetching it if needed.

    Raises:
        DataError: the original has changed since the data set was opened.
        RunError: the storage cannot be reached, or the disk is full.
    """
    while (file := held(original)) is None:
        _fetch([original])
    return file


def prefetched(originals: Iterable[File]) -> Iterator[File]:
    """Yield the files in order; remote files are fetched ahead of use, in parallel batches."""
    batch: list[File] = []
    size = 0
    most: float | None = None
    for original in originals:
        if remote.url(original.path) is None:
            yield original
            continue
        if most is None:
            root = _root(original)
            most = MOST * limit(root, _taken(root))
        if batch and (len(batch) == PARALLEL_FILES or size + original.size > most):
            _fetch(batch)
            yield from batch
            batch = []
            size = 0
        batch.append(original)
        size += original.size
    _fetch(batch)
    yield from batch


def _fetch(originals: Iterable[Original]) -> None:
    """Fetch the files that have no copy; each is fetched by one process and appears atomically."""
    missing = {path(original): original for original in originals if not _exists(original)}
    due: dict[Path, Original] = {}
    with ExitStack() as stack:
        try:
            # all processes acquire locks in the same order, so they cannot deadlock
            for copy in sorted(missing):
                stack.enter_context(hold(_lock(copy, missing[copy]), remove=True))
                if not _exists(missing[copy]):
                    due[copy] = missing[copy]
            if due:
                _make_room(_root(due[copy]), sum(original.size for original in due.values()))
                remote.get([(one.path, _part(copy, one)) for copy, one in due.items()])
            for copy, original in due.items():
                _keep(original, _part(copy, original), copy)
        except OSError as error:
            raise RunError(
                f"Cannot keep a copy of '{remote.shown(missing[copy].path)}' here: "
                f"{error.strerror}."
            ) from error
        finally:
            for copy, original in due.items():
                _part(copy, original).unlink(missing_ok=True)


def _keep(original: Original, part: Path, copy: Path) -> None:
    size = part.stat().st_size
    if size != original.size:
        raise DataError(
            f"'{remote.shown(original.path)}' has changed since it was opened: "
            f"{original.size} bytes then, {size} now."
        )
    os.utime(part, ns=(time.time_ns(), original.modified))
    os.replace(part, copy)


def _make_room(root: Path, size: int) -> None:
    """Evict copies until `size` bytes fit, for files whose locks are held."""
    with hold(root / LOCK):
        taken = _taken(root) + size
        if taken > limit(root, taken - size):
            copies = sorted(_copies(root), key=lambda copy: copy.used)
            taken = sum(copy.size for copy in copies)
            most = ROOM * limit(root, taken - size)
            for copy in copies:
                if taken <= most:
                    break
                taken -= copy.size if _removed(copy.path) else 0
        (root / ".taken").write_text(str(taken))


def _taken(root: Path) -> int:
    """Bytes occupied or reserved; reservations of dead processes count until the next eviction."""
    try:
        return int((root / ".taken").read_text())
    except (FileNotFoundError, ValueError):
        return sum(copy.size for copy in _copies(root))


class _Copy(NamedTuple):
    """A copy, or the lock of a file that is being fetched."""

    path: Path
    size: int
    """Bytes that the copy occupies or the lock reserves."""
    used: int
    """Time of last use in nanoseconds since 1970."""


def _copies(root: Path) -> Iterator[_Copy]:
    """All copies, and the locks of files that are being fetched."""
    for folder in filter(Path.is_dir, root.iterdir()):
        for path in folder.rglob("*"):
            reserved = _reserved(path)
            with suppress(FileNotFoundError):
                if reserved is not None:
                    yield _Copy(path, reserved, path.stat().st_mtime_ns)
                elif path.is_file() and not _is_hidden(path, PART):
                    stat = path.stat()
                    yield _Copy(path, stat.st_size, stat.st_atime_ns)


def _removed(copy: Path) -> bool:
    """Remove a copy, or lock and partial file of a killed process; return whether it is gone."""
    try:
        if _is_hidden(copy, LOCKED):
            # times out if a live process holds the lock
            with hold(copy, timeout=0, remove=True):
                copy.with_suffix(PART).unlink(missing_ok=True)
        else:
            copy.unlink(missing_ok=True)
    except (Timeout, PermissionError):
        # a live process holds the lock, or Windows refuses to remove an open file
        return False
    return True


def _exists(original: Original) -> bool:
    try:
        return _same(path(original).stat(), original)
    except FileNotFoundError:
        return False


def _same(copy: os.stat_result, original: Original) -> bool:
    return (copy.st_size, copy.st_mtime_ns) == (original.size, original.modified)


def _is_hidden(copy: Path, ending: str) -> bool:
    return copy.name.startswith(".") and copy.suffix == ending


def _part(copy: Path, original: Original) -> Path:
    """Partial file that a copy is fetched into."""
    return copy.with_name(f".{copy.name}.{original.size}{PART}")


def _lock(copy: Path, original: Original) -> Path:
    """File that is locked while its copy is fetched."""
    return copy.with_name(f".{copy.name}.{original.size}{LOCKED}")


def _reserved(path: Path) -> int | None:
    """Bytes that a lock file reserves; None for any other file."""
    size = path.with_suffix("").suffix.removeprefix(".")
    return int(size) if _is_hidden(path, LOCKED) and size.isdecimal() else None


def _root(original: Original) -> Path:
    own = os.environ.get(remote.VARIABLE)
    root = (remote.root() if own else remote.root(original.path)) / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    return root
