"""Directories at URLs: runs, caches and data in an object store (`s3://`, `gs://`, what fsspec
knows), worked on in a folder.

What lies at `s3://bucket/runs/a` is worked on in a folder of this machine, its mirror:

    <root>/rayd-mirror/s3/bucket/runs/a          root: $RAYD_MIRROR, else ~/.cache

A path tells its URL, so that any process on any node that is given a path knows what it mirrors,
and nothing has to be told to workers. The store holds the truth: a file is sent there whole, under
its final name, before it appears in the folder, and is fetched when the folder has none or another
one. A copy has the size and the time of what it is a copy of. So a node that dies takes nothing
with it, and an empty folder on another one is as good.

Object stores replace a file at once but know no locks: who is at a run or makes an entry of a cache
is known on one machine alone. On two, work may be done twice, with the same result.

`file://` is the path itself. On paths that mirror nothing, these functions do what a file system
does.

The files of data sets, which may be more than a disk holds, are not kept in mirrors:
`rayd.data.copies` has them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rayd.errors import ConfigError, ResourceError, RunError

MARK = "rayd-mirror"
"""The folder under which mirrors lie; what follows it in a path is a URL."""
VARIABLE = "RAYD_MIRROR"
"""Environment variable of the folder that it lies in."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try of what failed."""
TOGETHER = 64
"""Files that are fetched side by side."""

_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.*)", re.DOTALL)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_FOR_GOOD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_STAMPS = ("LastModified", "last_modified", "mtime", "updated", "created")

Result = TypeVar("Result")


def local(place: str | Path) -> Path:
    """The path that a path or URL is worked on under; `s3:/bucket`, which a `Path` makes of a URL,
    is one too.

    Raises:
        ConfigError: no kind of storage has this scheme.
        ResourceError: what reads this kind of storage is not installed.
    """
    found = _URL.fullmatch(str(place))
    if found is None:
        return Path(place).expanduser()
    scheme = found[1]
    rest = found[2].strip("/")
    if scheme in ("file", "local"):
        return Path("/") / rest
    _filesystem(scheme)
    return root() / MARK / scheme / rest


def root(mirror: Path | None = None) -> Path:
    """The folder that a mirror lies in; absent: that this process's mirrors lie in."""
    if mirror is not None:
        return Path(*mirror.parts[: mirror.parts.index(MARK)])
    given = os.environ.get(VARIABLE)
    return (Path(given) if given else Path("~/.cache")).expanduser().absolute()


def url(path: Path) -> str | None:
    """The URL that a path mirrors; None if it mirrors nothing."""
    parts = path.parts
    if MARK not in parts:
        return None
    scheme, *rest = parts[parts.index(MARK) + 1 :] or ("",)
    return f"{scheme}://{'/'.join(rest)}" if rest else None


def shown(path: Path) -> str:
    """How a user calls a path: by its URL if it mirrors one."""
    return url(path) or str(path)


def send(content: Path, path: Path) -> None:
    """Put a file where another path mirrors, if it does; it gets the time that it has there.

    Raises:
        RunError: the storage cannot be reached, or refuses it.
    """
    if (place := _place(path)) is not None:
        _tried(place.url, lambda: place.system.put_file(str(content), place.name))
        if (found := place.find()) is not None:
            os.utime(content, (found.modified, found.modified))


def bring(path: Path) -> bool:
    """Have the file at a path as it is where the path mirrors; whether there is one.

    Raises:
        RunError: the storage cannot be reached, or the file not be written here.
    """
    place = _place(path)
    if place is None:
        return path.is_file()
    found = place.find()
    if found is None:
        return False
    if not found.same(path):
        _fetch(place.system, [(found, path)])
    return True


def need(path: Path) -> None:
    """Have some file at a path if there is one where it mirrors: for files that never change."""
    if MARK in path.parts and not path.exists():
        bring(path)


def read(path: Path, start: int, stop: int) -> bytes:
    """Some bytes of a file that a path mirrors, from `start` to before `stop`; they are not kept.

    Raises:
        RunError: the storage cannot be reached.
    """
    place = _place(path)
    assert place is not None
    content: bytes = _tried(
        place.url, lambda: place.system.cat_file(place.name, start=start, end=stop)
    )
    return content


def get(files: Sequence[tuple[Path, Path]]) -> None:
    """Write what paths of one storage mirror into files elsewhere, which nobody else writes; side
    by side.

    Raises:
        RunError: the storage cannot be reached, or a file not be written here.
    """
    places = [_place(path) for path, _ in files]
    some = [
        (place, str(target))
        for place, (_, target) in zip(places, files, strict=True)
        if place is not None
    ]
    if some:
        names = [place.name for place, _ in some]
        targets = [target for _, target in some]
        _tried(some[0][0].url, lambda: some[0][0].system.get(names, targets))


def exists(path: Path) -> bool:
    """Whether there is a file or a folder, without fetching it."""
    place = _place(path)
    return path.exists() if place is None else place.info() is not None


def listed(directory: Path, pattern: str = "*") -> list[Path]:
    """What a directory holds, fetched or not, by name in order."""
    place = _place(directory)
    if place is None:
        return sorted(directory.glob(pattern))
    found: list[str] = _tried(
        place.url,
        lambda: _or(FileNotFoundError, [], lambda: place.system.ls(place.name, detail=False)),
    )
    names = {
        str(name).rstrip("/").rpartition("/")[2]
        for name in found
        if str(name).strip("/") != place.name.strip("/")
    }
    return [directory / name for name in sorted(names) if fnmatch(name, pattern)]


def files(directory: Path) -> list[tuple[Path, int, int]]:
    """All files of a directory that mirrors something, however deep, fetched or not: path, bytes,
    and seconds since 1970.
    """
    place = _place(directory)
    assert place is not None
    found = place.find_all()
    return [
        (directory / one.name[len(place.name) :].lstrip("/"), one.size, one.modified)
        for one in found
    ]


def bring_all(directory: Path) -> None:
    """Have all files of a directory as they are where it mirrors, and no others but hidden ones.

    Nobody else may be writing here. Files that are the same already stay.
    """
    if (place := _place(directory)) is None:
        return
    there = {
        directory / found.name[len(place.name) :].lstrip("/"): found for found in place.find_all()
    }
    for path in directory.rglob("*"):
        if path not in there and path.is_file() and not path.name.startswith("."):
            path.unlink()
    _fetch(place.system, [(found, path) for path, found in there.items() if not found.same(path)])


def remove(path: Path) -> None:
    """Remove a file or a directory with all that it holds, if it is there."""
    if (place := _place(path)) is not None:
        _tried(
            place.url,
            lambda: _or(
                FileNotFoundError, None, lambda: place.system.rm(place.name, recursive=True)
            ),
        )
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size(directory: Path) -> int | None:
    """Bytes of all files where a directory mirrors; None if it mirrors nothing."""
    place = _place(directory)
    return None if place is None else sum(found.size for found in place.find_all())


@dataclass(frozen=True)
class _Found:
    """A file in the storage."""

    name: str
    size: int
    modified: int
    """Seconds since 1970; 0 where the storage does not tell."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> _Found:
        stamp = next((info[name] for name in _STAMPS if info.get(name) is not None), 0)
        if isinstance(stamp, str):
            stamp = datetime.fromisoformat(stamp)
        return cls(
            str(info["name"]),
            int(info["size"]),
            int(stamp.timestamp() if isinstance(stamp, datetime) else stamp),
        )

    def same(self, path: Path) -> bool:
        """Whether a file is a copy of it."""
        with suppress(FileNotFoundError):
            stat = path.stat()
            return (stat.st_size, int(stat.st_mtime)) == (self.size, self.modified)
        return False


@dataclass(frozen=True)
class _Place:
    """Where something lies, or would lie."""

    url: str
    system: Any
    """fsspec's file system."""
    name: str
    """What it is called there."""

    def info(self) -> dict[str, Any] | None:
        """What the storage tells of the file or folder, if there is one."""
        info: dict[str, Any] | None = _tried(
            self.url, lambda: _or(FileNotFoundError, None, lambda: self.system.info(self.name))
        )
        return info

    def find(self) -> _Found | None:
        """The file, if there is one."""
        info = self.info()
        return _Found.of(info) if info is not None and info["type"] == "file" else None

    def find_all(self) -> list[_Found]:
        """All files of the directory, however deep."""
        infos: dict[str, Any] = _tried(
            self.url,
            lambda: _or(FileNotFoundError, {}, lambda: self.system.find(self.name, detail=True)),
        )
        return [_Found.of(info) for info in infos.values() if info["type"] == "file"]


def _place(path: Path) -> _Place | None:
    if MARK not in path.parts or (address := url(path)) is None:
        return None
    system = _filesystem(address.partition(":")[0])
    return _Place(address, system, str(system._strip_protocol(address)))


@cache
def _filesystem(scheme: str) -> Any:
    import fsspec

    try:
        # whoever lists wants to see what other machines have put there meanwhile
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        wanted = f"rayd[{_EXTRAS[scheme]}]" if scheme in _EXTRAS else "what fsspec reads it with"
        raise ResourceError(
            f"Storage at '{scheme}://' needs a package that is not installed; install '{wanted}'."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"There is no storage at '{scheme}://'; use s3://, gs://, file:// or a path."
        ) from error


def _fetch(system: Any, files: Sequence[tuple[_Found, Path]]) -> None:
    """Fetch files, each whole or not at all."""
    for start in range(0, len(files), TOGETHER):
        batch = files[start : start + TOGETHER]
        some = [
            (found, path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
            for found, path in batch
        ]
        try:
            _tried(shown(some[0][1]), lambda some=some: _copy(system, some))  # type: ignore[misc]
        finally:
            for _, _, temporary in some:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)


def _copy(system: Any, files: Iterable[tuple[_Found, Path, Path]]) -> None:
    for _, path, _ in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    system.get([found.name for found, _, _ in files], [str(temporary) for _, _, temporary in files])
    for found, path, temporary in files:
        os.utime(temporary, (found.modified, found.modified))
        os.replace(temporary, path)


def _or(kind: type[Exception], absent: Result, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except kind:
        return absent


def _tried(address: str, work: Callable[[], Result]) -> Result:
    """What work returns, tried again after a pause where it fails: connections drop, and servers
    are busy.

    Raises:
        RunError: it fails for good.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except Exception as error:
            # storages raise what their libraries raise: what is not known to stay wrong is tried
            # again
            hopeless = isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)
            hopeless = hopeless or (isinstance(error, OSError) and error.errno in _FOR_GOOD)
            if hopeless or pause is None:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                tries = "" if hopeless else f" in {len(PAUSES) + 1} tries"
                raise RunError(
                    f"Cannot reach '{address}'{tries}: {reason}; once that is mended, --resume goes on from what is there."
                ) from error
            time.sleep(pause)
    raise AssertionError
