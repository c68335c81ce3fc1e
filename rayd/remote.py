"""Remote directories: runs, stores and data in an object store, see fsspec (`s3://`, `gs://`).

A directory such as `s3://bucket/runs/a` is worked on in a local folder, its mirror:

    <root>/rayd-mirror/s3/bucket/runs/a          root: $RAYD_MIRROR, else ~/.cache

The path of a mirror determines its URL, so any process on any node that gets a path knows its
remote location without further configuration. The object store is authoritative: a file is uploaded
whole, under its final name, before it appears in the folder, and is fetched if the folder has none
or another version. A copy has the size and modification time of its original. So no data are lost
with a node, and an empty folder on another one works as well.

Object stores replace files atomically but have no locks: locks on runs and store entries hold on
one machine only. On two machines, work may be done twice, with the same result.

`file://` stands for a plain path. On paths without a remote location, these functions act like a
file system.

The files of data sets, which may exceed a disk, are not kept in mirrors but in `rayd.data.copies`.
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
from rayd.names import expanded, inside

MARK = "rayd-mirror"
"""Folder of all mirrors; the rest of a mirror's path is its URL."""
VARIABLE = "RAYD_MIRROR"
"""Environment variable of the folder that contains the mirrors."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each retry."""
PARALLEL_FILES = 64
"""Number of files fetched in parallel."""

_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.*)", re.DOTALL)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_FOR_GOOD = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_STAMPS = ("LastModified", "last_modified", "mtime", "updated", "created")

Result = TypeVar("Result")


def local(path: str | Path) -> Path:
    """Local path for a path or URL; `s3:/bucket`, which `Path` makes of a URL, is accepted, too.

    Raises:
        ConfigError: the scheme is unknown, or the URL has a `..` that leads out of the storage.
        ResourceError: the package for this kind of storage is not installed.
    """
    found = _URL.fullmatch(str(path))
    if found is None:
        return expanded(path)
    scheme = found[1]
    rest = found[2].strip("/")
    if scheme in ("file", "local"):
        return Path("/") / rest
    _filesystem(scheme)
    return root() / MARK / scheme / inside(rest, f"{scheme}://", ConfigError)


def root(mirror: Path | None = None) -> Path:
    """Folder that contains a mirror; by default, that of this process's mirrors."""
    if mirror is not None:
        return Path(*mirror.parts[: mirror.parts.index(MARK)])
    given = os.environ.get(VARIABLE)
    return (Path(given) if given else Path("~/.cache")).expanduser().absolute()


def url(path: Path) -> str | None:
    """URL of a mirror's path; None for other paths."""
    parts = path.parts
    if MARK not in parts:
        return None
    scheme, *rest = parts[parts.index(MARK) + 1 :] or ("",)
    return f"{scheme}://{'/'.join(rest)}" if rest else None


def shown(path: Path) -> str:
    """Name of a path for users: its URL if it has one."""
    return url(path) or str(path)


def send(content: Path, path: Path) -> None:
    """Upload a file to the remote location of another path, if any, and adopt its timestamp.

    Raises:
        RunError: the storage is unreachable or refuses the file.
    """
    location = _location(path)
    if location is None:
        return
    _tried(location.url, lambda: location.system.put_file(str(content), location.name))
    uploaded = location.find()
    if uploaded is not None:
        os.utime(content, (uploaded.modified, uploaded.modified))


def bring(path: Path) -> bool:
    """Fetch the current version of a file if needed; return whether it exists.

    Raises:
        RunError: the storage is unreachable, or the file cannot be written here.
    """
    location = _location(path)
    if location is None:
        return path.is_file()
    found = location.find()
    if found is None:
        return False
    if not found.same(path):
        _fetch(location.system, [(found, path)])
    return True


def need(path: Path) -> None:
    """Fetch a file if it exists remotely and not here: for files that never change."""
    if MARK in path.parts and not path.exists():
        bring(path)


def read(path: Path, start: int, stop: int) -> bytes:
    """Read bytes `start` to `stop` (excluded) of a remote file, without caching them.

    Raises:
        RunError: the storage is unreachable.
    """
    location = _location(path)
    assert location is not None
    content: bytes = _tried(
        location.url, lambda: location.system.cat_file(location.name, start=start, end=stop)
    )
    return content


def get(files: Sequence[tuple[Path, Path]]) -> None:
    """Download remote files of one storage to given targets, in parallel.

    Raises:
        RunError: the storage is unreachable, or a file cannot be written.
    """
    located = [
        (location, str(target))
        for path, target in files
        if (location := _location(path)) is not None
    ]
    if located:
        first = located[0][0]
        names = [location.name for location, _ in located]
        targets = [target for _, target in located]
        _tried(first.url, lambda: first.system.get(names, targets))


def exists(path: Path) -> bool:
    """Whether a file or folder exists, without fetching it."""
    location = _location(path)
    return path.exists() if location is None else location.info() is not None


def listed(directory: Path, pattern: str = "*") -> list[Path]:
    """List a directory by name, whether fetched or not.

    Raises:
        RunError: the storage is unreachable, or a name in it leads out of the directory.
    """
    location = _location(directory)
    if location is None:
        return sorted(directory.glob(pattern))
    found: list[str] = _tried(
        location.url,
        lambda: _or(FileNotFoundError, [], lambda: location.system.ls(location.name, detail=False)),
    )
    names = set[str]()
    for name in found:
        # some storages list the folder itself
        if str(name).strip("/") != location.name.strip("/"):
            names.add(location.inside(str(name).rstrip("/").rpartition("/")[2]))
    return [directory / name for name in sorted(names) if fnmatch(name, pattern)]


def files(directory: Path) -> list[tuple[Path, int, int]]:
    """List the files below a remote directory: path, bytes, and seconds since 1970.

    Raises:
        RunError: the storage is unreachable, or a name in it leads out of the directory.
    """
    location = _location(directory)
    assert location is not None
    return [
        (directory / location.relative(file), file.size, file.modified)
        for file in location.find_all()
    ]


def bring_all(directory: Path) -> None:
    """Fetch all files below a directory, and remove others except hidden ones.

    No other process may write here meanwhile. Files that are current are kept.

    Raises:
        RunError: the storage is unreachable, or a name in it leads out of the directory.
    """
    location = _location(directory)
    if location is None:
        return
    remote_files = {directory / location.relative(file): file for file in location.find_all()}
    for path in directory.rglob("*"):
        if path not in remote_files and path.is_file() and not path.name.startswith("."):
            path.unlink()
    stale = [(file, path) for path, file in remote_files.items() if not file.same(path)]
    _fetch(location.system, stale)


def remove(path: Path) -> None:
    """Remove a file or directory, here and remotely, if it exists."""
    location = _location(path)
    if location is not None:
        _tried(
            location.url,
            lambda: _or(
                FileNotFoundError, None, lambda: location.system.rm(location.name, recursive=True)
            ),
        )
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def size(directory: Path) -> int | None:
    """Total bytes of the files of a remote directory; None for other directories."""
    location = _location(directory)
    return None if location is None else sum(file.size for file in location.find_all())


@dataclass(frozen=True)
class _RemoteFile:
    """A file in the storage."""

    name: str
    size: int
    modified: int
    """Modification time in seconds since 1970; 0 if the storage does not report it."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> _RemoteFile:
        stamp = next((info[name] for name in _STAMPS if info.get(name) is not None), 0)
        if isinstance(stamp, str):
            stamp = datetime.fromisoformat(stamp)
        if info.get("size") is None:
            # web servers that list a folder as a page
            raise RunError(
                f"The storage of '{info['name']}' does not tell the sizes of files; download them, "
                "and give the folder instead of the URL."
            )
        return cls(
            str(info["name"]),
            int(info["size"]),
            int(stamp.timestamp() if isinstance(stamp, datetime) else stamp),
        )

    def same(self, path: Path) -> bool:
        """Whether a local file is a copy of this version."""
        with suppress(FileNotFoundError):
            stat = path.stat()
            return (stat.st_size, int(stat.st_mtime)) == (self.size, self.modified)
        return False


@dataclass(frozen=True)
class _Location:
    """Remote location of a file or folder, which need not exist."""

    url: str
    system: Any
    """fsspec's file system."""
    name: str
    """Path within the file system."""

    def info(self) -> dict[str, Any] | None:
        """The storage's information about the file or folder; None if it does not exist."""
        info: dict[str, Any] | None = _tried(
            self.url, lambda: _or(FileNotFoundError, None, lambda: self.system.info(self.name))
        )
        return info

    def find(self) -> _RemoteFile | None:
        """Look up the file; None if it does not exist."""
        info = self.info()
        return _RemoteFile.of(info) if info is not None and info["type"] == "file" else None

    def find_all(self) -> list[_RemoteFile]:
        """List all files below the directory; refuse names that lead out of it."""
        infos: dict[str, Any] = _tried(
            self.url,
            lambda: _or(FileNotFoundError, {}, lambda: self.system.find(self.name, detail=True)),
        )
        # fsspec says nothing of the only file if the URL is one itself
        found = [_RemoteFile.of(info) for info in infos.values() if info.get("type") == "file"]
        for file in found:
            self.relative(file)
        return found

    def relative(self, file: _RemoteFile) -> str:
        """Path of a file relative to the directory."""
        return self.inside(file.name[len(self.name) :].lstrip("/"))

    def inside(self, name: str) -> str:
        """Refuse a name that leads out of the directory."""
        return inside(name, self.url, RunError)


def _location(path: Path) -> _Location | None:
    if MARK not in path.parts or (address := url(path)) is None:
        return None
    system = _filesystem(address.partition(":")[0])
    return _Location(address, system, str(system._strip_protocol(address)))


@cache
def _filesystem(scheme: str) -> Any:
    import fsspec

    try:
        # listings are not cached, as other machines add files
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        package = f"rayd[{_EXTRAS[scheme]}]" if scheme in _EXTRAS else "what fsspec reads it with"
        raise ResourceError(
            f"Storage at '{scheme}://' needs a package that is not installed; install '{package}'."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"There is no storage at '{scheme}://'; use s3://, gs://, file:// or a path."
        ) from error


def _fetch(system: Any, files: Sequence[tuple[_RemoteFile, Path]]) -> None:
    """Fetch files, each atomically."""
    for start in range(0, len(files), PARALLEL_FILES):
        batch = [
            (found, path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
            for found, path in files[start : start + PARALLEL_FILES]
        ]
        address = shown(batch[0][1])
        try:
            _tried(address, lambda batch=batch: _copy(system, batch))  # type: ignore[misc]
        finally:
            for _, _, temporary in batch:
                with suppress(OSError):
                    temporary.unlink(missing_ok=True)


def _copy(system: Any, files: Iterable[tuple[_RemoteFile, Path, Path]]) -> None:
    for _, path, _ in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    system.get([found.name for found, _, _ in files], [str(temporary) for _, _, temporary in files])
    for found, path, temporary in files:
        os.utime(temporary, (found.modified, found.modified))
        os.replace(temporary, path)


def _or(kind: type[Exception], default: Result, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except kind:
        return default


def _tried(address: str, work: Callable[[], Result]) -> Result:
    """Run `work`, retrying after pauses: connections drop, and servers are busy.

    Raises:
        RunError: it fails permanently.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except Exception as error:
            # each storage raises its library's exceptions, so unknown ones are retried
            permanent = isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)
            permanent = permanent or (isinstance(error, OSError) and error.errno in _FOR_GOOD)
            if permanent or pause is None:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
                tries = "" if permanent else f" in {len(PAUSES) + 1} tries"
                raise RunError(
                    f"Cannot reach '{address}'{tries}: {reason}; once that is fixed, "
                    "--resume continues from the finished work."
                ) from error
            time.sleep(pause)
    raise AssertionError
