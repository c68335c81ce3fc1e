"""The files of a data set, here or at a URL, as they were when the data set was opened."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from rayd import remote
from rayd.data import copies
from rayd.data.arrays import Rows


@dataclass(frozen=True)
class DataFile:
    """One file."""

    path: Path
    """Where it lies, or the path that mirrors its URL (`rayd.remote`)."""
    size: int
    """Bytes."""
    modified: int
    """When, in nanoseconds since 1970; whole seconds at a URL."""

    @classmethod
    def at(cls, path: Path) -> DataFile:
        """The file at a path that mirrors nothing."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    @property
    def elsewhere(self) -> bool:
        """Whether it lies at a URL."""
        return remote.url(self.path) is not None

    def open(self) -> BinaryIO:
        """The file, for reading; of one at a URL the copy (`rayd.data.copies`), which is fetched if
        there is none.

        Raises:
            OSError: it cannot be read.
            DataError: it is another one than it was.
            RunError: its storage cannot be reached.
        """
        return copies.opened(self) if self.elsewhere else self.path.open("rb")

    def peek(self) -> BinaryIO:
        """The same; of one at a URL without a copy nothing is fetched but what is read, byte by
        byte.
        """
        if not self.elsewhere:
            return self.path.open("rb")
        return copies.held(self) or _Distant(self)  # type: ignore[return-value]

    def read_bytes(self) -> bytes:
        """Its content; see `open`."""
        with self.open() as file:
            return file.read()

    def __str__(self) -> str:
        return remote.shown(self.path)


@dataclass(frozen=True, eq=False)
class Listing:
    """The files below a folder; a million of them take little memory."""

    folder: Path
    names: tuple[str, ...]
    """Their paths inside the folder, by name in order, folder by folder."""
    sizes: npt.NDArray[np.int64]
    modified: npt.NDArray[np.int64]
    """See `DataFile`."""
    folders: frozenset[str] = frozenset()
    """Paths of the folders inside, empty ones too where there is such a thing."""

    @classmethod
    def of(cls, folder: Path) -> Listing:
        """All files below a folder, hidden ones too.

        Raises:
            RunError: it is at a URL, whose storage cannot be reached.
        """
        if remote.url(folder) is None:
            folders, files = _walk(folder)
        else:
            files = [
                (str(path.relative_to(folder)), size, time * 10**9)
                for path, size, time in remote.files(folder)
            ]
            folders = {str(parent) for name, _, _ in files for parent in Path(name).parents[:-1]}
        files.sort(key=lambda file: file[0].split(os.sep))
        sizes, modified = (np.array([file[which] for file in files], np.int64) for which in (1, 2))
        return cls(folder, tuple(name for name, _, _ in files), sizes, modified, frozenset(folders))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DataFile:
        return DataFile(
            self.folder / self.names[index], int(self.sizes[index]), int(self.modified[index])
        )

    def __iter__(self) -> Iterator[DataFile]:
        return (self[index] for index in range(len(self)))

    def at(self, rows: Rows | Sequence[int]) -> Listing:
        """Some of the files, in the order asked."""
        wanted = np.asarray(rows, np.int64)
        return Listing(
            self.folder,
            tuple(self.names[row] for row in wanted),
            self.sizes[wanted],
            self.modified[wanted],
        )


class _Distant(io.RawIOBase):
    """A file at a URL, of which is fetched what is read."""

    def __init__(self, file: DataFile):
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def publish(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset
            + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        )
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._file.size)
        content = (
            remote.read(self._file.path, self._position, stop) if stop > self._position else b""
        )
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def _walk(folder: Path) -> tuple[set[str], list[tuple[str, int, int]]]:
    """Folders below a folder, and files with their sizes and times."""
    folders = set[str]()
    files = list[tuple[str, int, int]]()
    for inside, below, names in os.walk(folder, followlinks=True):
        place = os.path.relpath(inside, folder)
        folders.update(os.path.normpath(os.path.join(place, name)) for name in below)
        for name in names:
            with suppress(FileNotFoundError):  # a link to nowhere
                stat = os.stat(os.path.join(inside, name))
                files.append(
                    (os.path.normpath(os.path.join(place, name)), stat.st_size, stat.st_mtime_ns)
                )
    return folders, files
