"""Downloading known data sets into the data root.

A set is downloaded into a temporary folder beside its destination, checked against its published
MD5, unpacked, opened, compared with what is known of it, and only then renamed to `<root>/<name>`:
a download that fails leaves nothing behind. The files stay as they were published;
`rayd.data.formats` reads them directly. CIFAR comes in its binary version, as the other one is
pickles.
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

Progress = Callable[[str, int, int | None], None]
"""Told the file, the bytes of it that are there, and its size, None where the server does not
say.
"""

TIMEOUT_SECONDS = 30.0
"""Longest silence of a server."""

BLOCK_BYTES = 2**18


def fetch(name: str, root: Path | None = None, progress: Progress | None = None) -> Path:
    """Download a known data set, unless it is there already; its folder.

    Args:
        name: a known name.
        root: data root; absent: `$RAYD_DATA`, else `~/.cache/rayd/data`.
        progress: called after every block.

    Raises:
        DataError: the name is unknown or cannot be fetched, the download failed or is not what was
            published, or the destination holds something else.
    """
    known = known_set(name)
    there = locate(name, root)
    if there is not None:
        return there
    if not known.downloads:
        raise DataError(f"Data set '{name}' cannot be fetched; {known.remedy}.")
    destination = data_roots(root)[0] / name
    if remote.url(destination) is not None:
        raise DataError(
            f"'{name}' is fetched into a folder, not to '{remote.shown(destination)}'; copy it there afterwards."
        )
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise DataError(
            f"'{destination}' is in the way of '{name}': it is there, but holds no data set; move it away."
        )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{name}-", dir=destination.parent, ignore_cleanup_errors=True
        ) as temporary:
            unfinished = Path(temporary) / name
            unfinished.mkdir()
            for download in known.downloads:
                _unpack(_download(download, unfinished, progress))
            _verify(known, unfinished)
            unfinished.rename(destination)
    except (OSError, EOFError, tarfile.TarError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".:")
        raise DataError(
            f"Cannot fetch '{name}' into '{destination}': {reason}; nothing was left there."
        ) from error
    return destination


def _download(download: Download, folder: Path, progress: Progress | None) -> Path:
    """The file, from the first mirror that has it as it was published."""
    path = folder / download.file
    failures = []
    for url in download.urls:
        try:
            digest = _stream(url, path, progress)
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        if digest == download.md5:
            return path
        failures.append(f"{url}: its MD5 is {digest}, wanted {download.md5}")
    raise DataError(
        f"Cannot download '{download.file}' ({'; '.join(failures)}); nothing was left behind."
    )


def _stream(url: str, path: Path, progress: Progress | None) -> str:
    """Write what a URL serves to a file; its MD5, hex."""
    digest = hashlib.md5(usedforsecurity=False)
    done = 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        while block := response.read(BLOCK_BYTES):
            file.write(block)
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(path.name, done, int(length) if length else None)
    return digest.hexdigest()


def _unpack(path: Path) -> None:
    """Replace an archive by what is in it; other files stay."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            archive.extractall(path.parent, filter="data")
        path.unlink()


def _verify(known: KnownSet, path: Path) -> None:
    """Refuse files that do not hold what is known of the set."""
    source = open_source(str(path))
    counts = {split: len(contents.labels) for split, contents in source.splits.items()}
    wanted = {"train": known.train, "test": known.test}
    if counts != wanted:
        raise DataError(
            f"'{known.name}' must have {wanted} images, but what was downloaded has {counts}; nothing was left behind."
        )
    problem = check_class_order(known.name, source.class_names)
    if problem is not None and source.class_names != tuple(map(str, range(known.classes))):
        raise DataError(problem)
