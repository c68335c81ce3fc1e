"""Disk cache of remote data files: the most recently used ones, up to a size limit.

    <root>/rayd-data/s3/bucket/imagenet/train-0.parquet
                                    root: $RAYD_MIRROR of this process, else the driver's

All processes of a machine share the cache. A copy is locked while a process fetches or reads it.
When a new file would exceed the limit, unlocked copies are evicted, least recently used first; the
cache exceeds its limit by the locked files at most, one for each reader. Only data files are kept
in this folder: runs and the store (`rayd.remote`) are never evicted.

A copy has the size and modification time that its original had when the data set was opened; if
the original changes, it is fetched again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rayd import remote
from rayd.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from rayd.data.files import DataFile, Listing

FOLDER = "rayd-data"
"""Folder of the cache under the mirror root."""
LIMIT = "RAYD_MIRROR_LIMIT"
"""Environment variable: maximum bytes of the cache on this machine's disk."""
SHARE = 0.5
"""Default limit as a share of the disk: of free space plus what the cache occupies."""
ROOM = 0.9
"""Share of the limit that eviction frees down to: scanning a million copies each time is slow."""
TOGETHER = 64
"""Maximum number of files fetched in parallel."""
MOST = 1 / 8
"""Share of the limit that files fetched in parallel may take; one file always may."""


def limit(root: Path, taken: int) -> int:
    """Maximum bytes of the copies in a folder, given the bytes they occupy now.

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


def fit(originals: Iterable[DataFile]) -> bool:
    """Whether copies of all these files fit into the cache at once."""
    files = list(originals)
    root = _root(files[0])
    return sum(file.size for file in files) <= ROOM * limit(root, _taken(root))


def path(original: DataFile) -> Path:
    """Path of the copy of a file, whether or not it exists."""
    scheme, _, rest = (remote.url(original.path) or "").partition("://")
    return _root(original) / scheme / rest


def held(original: DataFile) -> BinaryIO | None:
    """Open the copy of a file, or return None if there is none; it is not evicted until closed."""
    copy = path(original)
    if not _same(copy, original) or (file := _locked(copy, "rb", fcntl.LOCK_SH)) is None:
        return None
    if not _same(copy, original):
        file.close()
        return None
    with suppress(OSError):
        os.utime(copy, ns=(time.time_ns(), original.modified))
    return file


def opened(original: DataFile) -> BinaryIO:
    """Open the copy of a file, fetching it if needed; it is not evicted until closed.

    Raises:
        DataError: the original has changed since the data set was opened.
        RunError: the storage cannot be reached, or the disk is full.
    """
    while (file := held(original)) is None:
        _fetch([original])
    return file


def prefetched(originals: Listing) -> Iterator[DataFile]:
    """Yield the files in order; remote ones are fetched in parallel batches ahead of use."""
    if not len(originals) or not originals[0].is_remote:
        yield from originals
        return
    batch: list[DataFile] = []
    missing: list[DataFile] = []
    root = _root(originals[0])
    size = 0
    most = MOST * limit(root, _taken(root))
    for original in originals:
        if batch and (len(batch) == TOGETHER or size + original.size > most):
            _fetch(missing)
            yield from batch
            batch = []
            missing = []
            size = 0
        batch.append(original)
        size += original.size
        if not _same(path(original), original):
            missing.append(original)
    _fetch(missing)
    yield from batch


def _fetch(originals: Iterable[DataFile]) -> None:
    """Fetch the files that have no copy, each atomically and by one process only."""
    # all processes lock files in the same order, so they cannot deadlock
    files = sorted({(path(original), original) for original in originals}, key=lambda file: file[0])
    with ExitStack() as stack:
        due: list[tuple[DataFile, Path, Path]] = []
        for copy, original in files:
            part = copy.with_name(f".{copy.name}.part")
            stack.enter_context(_exclusive(part))
            if _same(copy, original):
                part.unlink(missing_ok=True)
            else:
                due.append((original, part, copy))
        if not due:
            return
        try:
            _make_room(_root(due[0][0]), sum(original.size for original, _, _ in due))
            remote.get([(original.path, part) for original, part, _ in due])
            while due:
                _keep(*due[-1])
                # from here on another process may write this partial file
                due.pop()
        except OSError as error:
            raise RunError(
                f"Cannot keep a copy of '{due[-1][0]}' here: {error.strerror}."
            ) from error
        finally:
            for _, part, _ in due:
                part.unlink(missing_ok=True)


def _keep(original: DataFile, part: Path, copy: Path) -> None:
    size = part.stat().st_size
    if size != original.size:
        raise DataError(
            f"'{original}' has changed since it was opened: {original.size} bytes then, {size} now."
        )
    os.utime(part, ns=(time.time_ns(), original.modified))
    os.replace(part, copy)


def _make_room(root: Path, size: int) -> None:
    """Evict copies until this many bytes fit, and reserve them."""
    with _exclusive(root / ".lock"):
        taken = _taken(root)
        if taken + size > limit(root, taken):
            copies = sorted(_copies(root), key=lambda copy: copy[0].st_atime_ns)
            taken = sum(stat.st_size for stat, _ in copies)
            most = ROOM * limit(root, taken) - size
            for stat, copy in copies:
                if taken <= most:
                    break
                taken -= stat.st_size if _removed(copy) else 0
        (root / ".taken").write_text(str(taken + size))


def _taken(root: Path) -> int:
    """Bytes occupied or reserved; reservations of dead processes last until the next eviction."""
    try:
        return int((root / ".taken").read_text())
    except (FileNotFoundError, ValueError):
        return sum(stat.st_size for stat, _ in _copies(root))


def _copies(root: Path) -> Iterator[tuple[os.stat_result, Path]]:
    """All copies, including partial ones."""
    for folder in filter(Path.is_dir, root.iterdir()):
        for copy in folder.rglob("*"):
            with suppress(FileNotFoundError):
                if copy.is_file():
                    yield copy.stat(), copy


def _removed(copy: Path) -> bool:
    """Remove a copy unless it is locked; return whether it is gone."""
    try:
        if (file := _locked(copy, "r+b", fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            with file:
                copy.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False


def _same(copy: Path, original: DataFile) -> bool:
    try:
        stat = copy.stat()
    except FileNotFoundError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (original.size, original.modified)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, created if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while (file := _locked(path, "ab", fcntl.LOCK_EX)) is None:
        pass
    with file:
        yield


def _locked(path: Path, mode: str, lock: int) -> BinaryIO | None:
    """Open and lock a file; None if it was removed or replaced meanwhile."""
    try:
        file: BinaryIO = path.open(mode)  # type: ignore[assignment]
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, lock)
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _root(original: DataFile) -> Path:
    own = os.environ.get(remote.VARIABLE)
    root = (remote.root() if own else remote.root(original.path)) / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    return root
