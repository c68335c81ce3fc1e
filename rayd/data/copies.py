"""Copies of data files that lie at URLs, on this machine's disk: as many as a limit allows, those
that were used last.

    <root>/rayd-data/s3/bucket/imagenet/train-0.parquet          root: $RAYD_MIRROR of this process, else the driver's

All processes of a machine share them. Who opens a copy holds it, as does who fetches it: what
nobody holds gives way when another file would make the copies exceed the limit, the least recently
used first. So they exceed it by what is held at most, a file for each reader. Nothing else lies in
this folder: runs and what they share (`rayd.remote`) never give way.

A copy has the size and the time of its original when the data set was opened; one of another
original is fetched again.
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
"""Of the root that mirrors lie in."""
LIMIT = "RAYD_MIRROR_LIMIT"
"""Environment variable: bytes that copies may take on this machine's disk."""
SHARE = 0.5
"""Share of the disk, of what is free and what copies take already, that they may take without
that.
"""
ROOM = 0.9
"""Share of the limit that is left when some give way: looking through a million copies each time
would take long.
"""
TOGETHER = 64
"""Files that are fetched side by side."""
MOST = 1 / 8
"""Share of the limit that files fetched side by side may take, unless it is one file."""


def limit(root: Path, taken: int) -> int:
    """Bytes that copies in a folder may take, where they take some now.

    Raises:
        ConfigError: `$RAYD_MIRROR_LIMIT` is no number of bytes.
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
    """Whether copies of all of these may be there at once."""
    files = list(originals)
    root = _root(files[0])
    return sum(file.size for file in files) <= ROOM * limit(root, _taken(root))


def path(original: DataFile) -> Path:
    """Where the copy of a file is, or would be."""
    scheme, _, rest = (remote.url(original.path) or "").partition("://")
    return _root(original) / scheme / rest


def held(original: DataFile) -> BinaryIO | None:
    """The copy, opened, if there is one: it stays until it is closed."""
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
    """The copy, fetched if there is none; it stays until it is closed.

    Raises:
        DataError: the original has changed since the data set was opened.
        RunError: the storage cannot be reached, or the disk is full.
    """
    while (file := held(original)) is None:
        _fetch([original])
    return file


def prefetched(originals: Listing) -> Iterator[DataFile]:
    """The same files, in order; of those at a URL a handful is fetched, side by side, when the
    first of them is due.
    """
    if not len(originals) or not originals[0].elsewhere:
        yield from originals
        return
    handful: list[DataFile] = []
    absent: list[DataFile] = []
    root = _root(originals[0])
    size = 0
    most = MOST * limit(root, _taken(root))
    for original in originals:
        if handful and (len(handful) == TOGETHER or size + original.size > most):
            _fetch(absent)
            yield from handful
            handful = []
            absent = []
            size = 0
        handful.append(original)
        size += original.size
        if not _same(path(original), original):
            absent.append(original)
    _fetch(absent)
    yield from handful


def _fetch(originals: Iterable[DataFile]) -> None:
    """Fetch those files of which there is no copy, each whole or not at all; each by one
    process.
    """
    # whoever waits for others does so in the same order as they
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
                # from here on its part may be that of somebody else
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
    """Let copies give way to so many bytes, which are counted from now on."""
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
    """Bytes that copies take, or were to take: what who died did not fetch is counted until some
    give way.
    """
    try:
        return int((root / ".taken").read_text())
    except (FileNotFoundError, ValueError):
        return sum(stat.st_size for stat, _ in _copies(root))


def _copies(root: Path) -> Iterator[tuple[os.stat_result, Path]]:
    """All copies, and what is left of those that were not fetched to the end."""
    for folder in filter(Path.is_dir, root.iterdir()):
        for copy in folder.rglob("*"):
            with suppress(FileNotFoundError):
                if copy.is_file():
                    yield copy.stat(), copy


def _removed(copy: Path) -> bool:
    """Remove a copy that nobody holds; whether it is gone."""
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
    """Be the only one who has a file, made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while (file := _locked(path, "ab", fcntl.LOCK_EX)) is None:
        pass
    with file:
        yield


def _locked(path: Path, mode: str, lock: int) -> BinaryIO | None:
    """A file, opened and locked; None if it is gone, or was replaced meanwhile."""
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
