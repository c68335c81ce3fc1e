"""Downloading known data sets into the data root.

A set is downloaded into a temporary folder next to its destination, checked against its published
MD5, unpacked, opened, compared with the catalogue, and only then renamed to `<root>/<name>`, so a
failed download leaves nothing behind. The files stay as published; `rayd.data.formats` reads them
directly. CIFAR is fetched in its binary version, because the Python version consists of pickles.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from rayd import remote
from rayd.data.catalog import Download, KnownSet, check_class_order, known_set
from rayd.data.sources import data_roots, locate, open_source
from rayd.errors import DataError

OnProgress = Callable[[str, int, int | None], None]
"""Called with the file name, the bytes downloaded, and the size (None if the server omits it)."""

TIMEOUT_SECONDS = 30.0
"""Maximum seconds to wait for a server."""

BLOCK_BYTES = 2**18


def fetch(name: str, root: Path | None = None, on_progress: OnProgress | None = None) -> Path:
    """Download a known data set unless it exists already, and return its folder.

    Args:
        name: a known name.
        root: data root; by default `$RAYD_DATA`, else `~/.cache/rayd/data`.
        on_progress: called after every block.

    Raises:
        DataError: the name is unknown, the set cannot be fetched, the download fails or differs
            from the published files, or the destination holds something else.
    """
    known = known_set(name)
    existing = locate(name, root)
    if existing is not None:
        return existing
    if not known.downloads:
        raise DataError(f"Data set '{name}' cannot be fetched; {known.remedy}.")
    destination = data_roots(root)[0] / name
    if remote.url(destination) is not None:
        raise DataError(
            f"'{name}' cannot be fetched to a URL, '{remote.shown(destination)}'; fetch it into a "
            "local folder and copy it there."
        )
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise DataError(
            f"'{destination}' exists but is not a valid '{name}' data set; move or delete it."
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{name}-", dir=destination.parent, ignore_cleanup_errors=True
        ) as temporary:
            unfinished = Path(temporary) / name
            unfinished.mkdir()
            for download in known.downloads:
                _unpack(_download(download, unfinished, on_progress))
            _verify(known, unfinished)
            unfinished.rename(destination)
    except (OSError, EOFError, tarfile.TarError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")
        raise DataError(
            f"Cannot fetch '{name}' into '{destination}': {reason}; nothing was left there."
        ) from error
    return destination


def _download(download: Download, folder: Path, on_progress: OnProgress | None) -> Path:
    """Download a file from the first mirror that serves it with the published MD5."""
    path = folder / download.file
    failures = []
    for url in download.urls:
        try:
            digest = _stream(url, path, on_progress)
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        if digest == download.md5:
            return path
        failures.append(f"{url}: its MD5 is {digest}, expected {download.md5}")
    raise DataError(
        f"Cannot download '{download.file}' ({'; '.join(failures)}); nothing was left behind."
    )


def _stream(url: str, path: Path, on_progress: OnProgress | None) -> str:
    """Write the content of a URL to a file; return its MD5 in hex."""
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            done += len(block)
            if on_progress is not None:
                on_progress(path.name, done, int(length) if length else None)
    return digest.hexdigest()


def _unpack(path: Path) -> None:
    """Replace an archive by its content; leaves other files as they are."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(path.parent, filter="data")
        path.unlink()


def _verify(known: KnownSet, path: Path) -> None:
    """Check the downloaded files against the catalogue.

    Raises:
        DataError: numbers of images or classes differ.
    """
    source = open_source(str(path))
    counts = {split: len(contents.labels) for split, contents in source.splits.items()}
    expected = {"train": known.train, "test": known.test}
    if counts != expected:
        raise DataError(
            f"'{known.name}' must have {expected} images, but the download has {counts}; "
            "nothing was left behind."
        )
    problem = check_class_order(known.name, source.class_names)
    if problem is not None and source.class_names != tuple(map(str, range(known.classes))):
        raise DataError(problem)
