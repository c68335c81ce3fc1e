"""An fsspec storage in a folder, which logs what is read from it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import fsspec


class FolderStorage(fsspec.AbstractFileSystem):
    """`folder://a/b` is `$FOLDER_STORAGE/a/b`; every read of bytes becomes a line of
    `$FOLDER_STORAGE.log`.
    """

    protocol = "folder"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path)).strip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """See fsspec."""
        name = self._strip_protocol(path)
        stat = _here(name).stat()
        kind = "directory" if _here(name).is_dir() else "file"
        return {"name": name, "size": stat.st_size, "type": kind, "mtime": stat.st_mtime}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """See fsspec."""
        name = self._strip_protocol(path)
        names = [f"{name}/{file}".strip("/") for file in sorted(os.listdir(_here(name)))]
        return [self.info(one) for one in names] if detail else names

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """See fsspec."""
        with _here(self._strip_protocol(path)).open("rb") as file:
            file.seek(start or 0)
            content = file.read() if end is None else file.read(end - (start or 0))
        _log(self._strip_protocol(path), len(content))
        return content

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        assert mode == "rb"
        _log(path, _here(path).stat().st_size)
        return _here(path).open("rb")


def fetched() -> list[tuple[str, int]]:
    """File names and byte counts of all reads so far."""
    log = Path(os.environ["FOLDER_STORAGE"] + ".log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [(name, int(size)) for size, name in (line.split(" ", 1) for line in lines)]


def _here(name: str) -> Path:
    return Path(os.environ["FOLDER_STORAGE"]) / name


def _log(name: str, size: int) -> None:
    with Path(os.environ["FOLDER_STORAGE"] + ".log").open("a") as log:
        log.write(f"{size} {name}\n")


fsspec.register_implementation("folder", FolderStorage, clobber=True)
