"""Files of a data set, local or remote, as they were when the data set was opened."""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rayd import remote
from rayd.data import copies
from rayd.data.arrays import Rows
from rayd.errors import DataError


@dataclass(frozen=True)
class DataFile:
    """One file."""

    path: Path
    """Local path, or the path that mirrors its URL (`rayd.remote`)."""
    size: int
    """Size in bytes."""
    modified: int
    """Modification time in nanoseconds since 1970; whole seconds at a URL."""

    @classmethod
    def at(cls, path: Path) -> DataFile:
        """Describe a local file."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    @property
    def is_remote(self) -> bool:
        """Whether the file is at a URL."""
        return remote.url(self.path) is not None

    def open(self) -> BinaryIO:
        """Open the file for reading; remote files are first fetched into `rayd.data.copies`.

        Raises:
            OSError: the file cannot be read.
            DataError: the file has changed since the data set was opened.
            RunError: the storage cannot be reached.
        """
        if self.is_remote:
            return copies.opened(self)
        file = self.path.open("rb")
        size = os.fstat(file.fileno()).st_size
        if size != self.size:
            file.close()
            raise DataError(
                f"'{self}' has changed since it was opened: {self.size} bytes then, {size} now."
            )
        return file

    def peek(self) -> BinaryIO:
        """Open the file for reading; of a remote file without a copy, fetch only the bytes read."""
        if not self.is_remote:
            return self.path.open("rb")
        return copies.held(self) or _RemoteFile(self)  # type: ignore[return-value]

    def read_bytes(self) -> bytes:
        """Read the content; see `open`."""
        with self.open() as file:
            return file.read()

    def __str__(self) -> str:
        return remote.shown(self.path)


@dataclass(frozen=True, eq=False)
class Listing:
    """All files in a folder and its subfolders, stored compactly, for millions of files."""

    folder: Path
    names: tuple[str, ...]
    """Paths relative to the folder, sorted by path components."""
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    """See `DataFile`."""
    folders: frozenset[str] = frozenset()
    """Relative paths of the subfolders; includes empty ones if the storage has folders."""
    skipped: tuple[str, ...] = ()
    """Entries that were not listed (broken links, link loops, pipes), as clauses."""

    @classmethod
    def of(cls, folder: Path) -> Listing:
        """List all files in a folder and its subfolders, including hidden ones.

        Raises:
            RunError: the folder is at a URL whose storage cannot be reached.
        """
        if remote.url(folder) is None:
            folders, files, skipped = _walk(folder)
        else:
            files = [
                (str(path.relative_to(folder)), size, time * 10**9)
                for path, size, time in remote.files(folder)
            ]
            folders = {str(parent) for name, _, _ in files for parent in Path(name).parents[:-1]}
            skipped = ()
        files.sort(key=lambda file: file[0].split(os.sep))
        sizes = np.array([size for _, size, _ in files], np.int64)
        modified = np.array([time for _, _, time in files], np.int64)
        return cls(
            folder=folder,
            names=tuple(name for name, _, _ in files),
            sizes=sizes,
            modified=modified,
            folders=frozenset(folders),
            skipped=skipped,
        )

    @cached_property
    def files(self) -> frozenset[str]:
        """The names as a set, for look-ups."""
        return frozenset(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DataFile:
        return DataFile(
            self.folder / self.names[index], int(self.sizes[index]), int(self.modified[index])
        )

    def __iter__(self) -> Iterator[DataFile]:
        return (self[index] for index in range(len(self)))

    def at(self, rows: Rows | Sequence[int]) -> Listing:
        """Select files in the requested order."""
        selected = np.asarray(rows, np.int64)
        return Listing(
            self.folder,
            tuple(self.names[row] for row in selected),
            self.sizes[selected],
            self.modified[selected],
        )


class _RemoteFile(io.RawIOBase):
    """Remote file that fetches only the bytes that are read."""

    def __init__(self, file: DataFile):
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        self._position = origins[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._file.size)
        content = (
            remote.read(self._file.path, self._position, stop) if stop > self._position else b""
        )
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def names_below(folder: Path) -> Iterator[str]:
    """Yield the names of all files in a folder and its subfolders, following links to folders."""
    waiting = [(str(folder), frozenset[tuple[int, int]]())]
    while waiting:
        parent, above = waiting.pop()
        with suppress(OSError):
            for entry in os.scandir(parent):
                if entry.is_dir():
                    status = entry.stat()
                    here = (status.st_dev, status.st_ino)
                    if here not in above:
                        waiting.append((entry.path, above | {here}))
                elif entry.is_file():
                    yield entry.name


def _walk(
    folder: Path,
) -> tuple[set[str], list[tuple[str, int, int]], tuple[str, ...]]:
    """Walk a local folder, following links except to a folder that contains the link.

    Returns:
        Subfolders; files with size and modification time; and skipped entries, as clauses.

    Raises:
        DataError: a folder cannot be listed.
    """
    folders = set[str]()
    files = list[tuple[str, int, int]]()
    skipped = Counter[str]()
    top = os.stat(folder)
    waiting = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while waiting:
        relative, above = waiting.pop()
        try:
            entries = list(os.scandir(os.path.join(folder, relative)))
        except OSError as error:
            path = os.path.join(folder, relative)
            raise DataError(f"Cannot list the folder '{path}': {error.strerror}.") from error
        for entry in entries:
            name = os.path.join(relative, entry.name)
            try:
                status = entry.stat()
            except OSError:
                skipped["broken link"] += 1
                continue
            if stat.S_ISDIR(status.st_mode):
                here = (status.st_dev, status.st_ino)
                if here in above:
                    skipped["link to a folder that contains it"] += 1
                    continue
                folders.add(name)
                waiting.append((name, above | {here}))
            elif stat.S_ISREG(status.st_mode):
                files.append((name, status.st_size, status.st_mtime_ns))
            else:
                skipped["pipe, socket or device"] += 1
    clauses = tuple(f"{count:,} x {what}" for what, count in sorted(skipped.items()))
    return folders, files, clauses
